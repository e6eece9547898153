"""The Transport contract, and what this shell promises beyond it, over two real p2pd in one process."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from peer.net import INCOMING_SOCKET, MAX_SLOTS_PER_REMOTE, MAX_STREAMS_PER_REMOTE
from peer.network import Network, NetworkConfig
from swarm import wire
from swarm.digest import digest_of
from swarm.errors import LocalError, MalformedBytes, TimedOut, Unreachable
from swarm.identity import Keypair, PeerId
from tests.contract.transport_contract import BRIEF_S, CHECKS, GENEROUS_S, STRANGER, Check, Meeting

pytestmark = pytest.mark.system
RUN = digest_of("a run for tests")


class AsyncioRuntime:
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def gather(self, jobs: list[Callable[[], Awaitable[Any]]]) -> list[Any]:
        return list(await asyncio.gather(*(job() for job in jobs)))


@pytest.fixture
def sockets_parent() -> Iterator[Path]:
    """A folder with a name short enough for sockets, which must be empty again in the end."""
    with tempfile.TemporaryDirectory(prefix="bn") as name:
        yield Path(name)
        assert list(Path(name).iterdir()) == []


@asynccontextmanager
async def two_peers(sockets_parent: Path) -> AsyncIterator[Meeting]:
    config = NetworkConfig(sockets_parent=sockets_parent)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and never listens: nobody else gets the port meanwhile
        dead = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{STRANGER.base58}"
        async with (
            Network(Keypair.from_seed(b"a" * 32), RUN, config) as asker,
            Network(Keypair.from_seed(b"b" * 32), RUN, config) as answerer,
        ):
            yield Meeting(asker.transport, answerer.transport, AsyncioRuntime(), dead)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Check, sockets_parent: Path) -> None:
    async def main() -> None:
        async with two_peers(sockets_parent) as meeting:
            await check(meeting)

    asyncio.run(main())


def test_one_remote_gets_its_share_of_slots_and_no_more(sockets_parent: Path) -> None:
    async def main() -> None:
        async with two_peers(sockets_parent) as meeting:
            at_once, most, full, release = 0, 0, asyncio.Event(), asyncio.Event()

            async def hold(asker: PeerId, payload: bytes) -> bytes:
                nonlocal at_once, most
                at_once += 1
                most = max(most, at_once)
                if at_once == MAX_SLOTS_PER_REMOTE:
                    full.set()
                await release.wait()
                at_once -= 1
                return payload

            meeting.answerer.serve(hold)
            await meeting.connect()
            async with asyncio.TaskGroup() as tasks:
                answers = [tasks.create_task(meeting.ask(b"x")) for _ in range(2 * MAX_SLOTS_PER_REMOTE)]
                await full.wait()
                release.set()
            assert [task.result() for task in answers] == [b"x"] * len(answers)
            assert most == MAX_SLOTS_PER_REMOTE

    asyncio.run(main())


def test_streams_beyond_the_cap_are_closed_unread(sockets_parent: Path) -> None:
    async def main() -> None:
        async with two_peers(sockets_parent) as meeting:
            release = asyncio.Event()

            async def hold(asker: PeerId, payload: bytes) -> bytes:
                await release.wait()
                return payload

            meeting.answerer.serve(hold)
            await meeting.connect()
            surplus = 5
            tasks = {asyncio.create_task(meeting.ask(b"x")) for _ in range(MAX_STREAMS_PER_REMOTE + surplus)}
            refused: set[asyncio.Task[bytes]] = set()
            while len(refused) < surplus:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                refused |= done
            release.set()
            assert await asyncio.gather(*tasks) == [b"x"] * MAX_STREAMS_PER_REMOTE
            assert all(isinstance(task.exception(), Unreachable) for task in refused)

    asyncio.run(main())


def test_an_answer_longer_than_a_frame_is_malformed(sockets_parent: Path) -> None:
    async def main() -> None:
        async with two_peers(sockets_parent) as meeting:

            async def liar(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(wire.FRAME_HEADER.pack(0xFFFFFFFF))
                await writer.drain()
                await reader.read()
                writer.close()

            answerer: Any = meeting.answerer
            await meeting.connect()
            incoming = f"{answerer._live().path.rpartition('/')[0]}/{INCOMING_SOCKET}"
            await answerer.detach("the liar takes its place at the daemon")
            async with await asyncio.start_unix_server(liar, incoming):
                with pytest.raises(MalformedBytes):
                    await meeting.ask(b"x")

    asyncio.run(main())


def test_a_fault_of_the_handler_costs_one_stream(sockets_parent: Path) -> None:
    async def main() -> None:
        async with two_peers(sockets_parent) as meeting:

            async def trip(asker: PeerId, payload: bytes) -> bytes:
                if payload == b"trip":
                    raise LocalError("a bug")
                return payload

            meeting.answerer.serve(trip)
            await meeting.connect()
            with pytest.raises(Unreachable):
                await meeting.ask(b"trip")
            assert await meeting.ask(b"walk") == b"walk"

    asyncio.run(main())


def test_a_cancelled_request_leaves_nothing_open(sockets_parent: Path) -> None:
    async def main() -> None:
        async with two_peers(sockets_parent) as meeting:
            reached = asyncio.Event()

            async def hold(asker: PeerId, payload: bytes) -> bytes:
                reached.set()
                await asyncio.Event().wait()
                raise AssertionError

            meeting.answerer.serve(hold)
            await meeting.connect()
            before = num_descriptors()
            task = asyncio.create_task(meeting.ask(b"x"))
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(TimedOut):
                await meeting.ask(b"x", timeout_s=BRIEF_S / 10)
            await meeting.answerer.close()
            assert num_descriptors() <= before

    asyncio.run(main())


def test_bytes_are_counted_on_both_sides(sockets_parent: Path) -> None:
    async def main() -> None:
        async with two_peers(sockets_parent) as meeting:
            asker: Any = meeting.asker
            answerer: Any = meeting.answerer

            async def lengthen(_: PeerId, payload: bytes) -> bytes:
                return payload * 3

            answerer.serve(lengthen)
            await meeting.connect()
            assert await meeting.ask(bytes(1000)) == bytes(3000)
            assert (asker.up_bytes, asker.down_bytes) == (1004, 3004)
            assert answerer.down_bytes == 1004
            assert asker.down_bytes_per_s > asker.up_bytes_per_s > 0.0
            await asker.request(answerer.peer_id, b"", timeout_s=GENEROUS_S)
            assert answerer.up_bytes >= 3004  # counted once the daemon has it, before or after the asker has

    asyncio.run(main())
