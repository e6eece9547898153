"""The coordinator's shell keeps the Transport promise: towards itself (the whole contract) and towards a real p2pd."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from coordinator.net import Libp2pTransport, open_transport
from swarm.digest import CHUNK_BYTES
from swarm.errors import MalformedBytes, TimedOut, Unreachable
from swarm.identity import Keypair, PeerId
from swarm.wire import MAX_FRAME_BYTES
from tests.contract.transport_contract import CHECKS, Check, Meeting
from tests.libp2p.far_transport import peer_shell

SCRIPT = Path(__file__).with_name("p2pd_echo.py")
GENEROUS_S = 30.0
BRIEF_S = 0.7


class TrioRuntime:
    """What the contract needs of trio."""

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def gather(self, jobs: list[Callable[[], Awaitable[Any]]]) -> list[Any]:
        results: list[Any] = [None] * len(jobs)

        async def run(index: int) -> None:
            results[index] = await jobs[index]()

        async with trio.open_nursery() as nursery:
            for index in range(len(jobs)):
                nursery.start_soon(run, index)
        return results


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract_between_two_of_our_own(check: Check) -> None:
    async def main() -> None:
        dead = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{Keypair.generate().peer_id.base58}"
        async with open_transport(Keypair.generate()) as asker:
            async with open_transport(Keypair.generate(), [("127.0.0.1", 0)]) as answerer:
                await check(Meeting(asker, answerer, TrioRuntime(), dead))

    trio.run(main)


@pytest.mark.system
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract_with_a_peer_on_a_real_p2pd(check: Check) -> None:
    async def main() -> None:
        dead = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{Keypair.generate().peer_id.base58}"
        async with peer_shell() as answerer:
            async with open_transport(Keypair.generate()) as asker:
                await check(Meeting(asker, answerer, TrioRuntime(), dead))

    trio.run(main)


class Echo:
    """A p2pd in another process."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process, self.address = process, address
        self.peer = PeerId.from_base58(address.rsplit("/", 1)[1])

    @property
    def port(self) -> int:
        return int(self.address.split("/")[4])

    def everybody(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def signal(self, number: int) -> None:
        for process in self.everybody():
            os.kill(process.pid, number)

    def kill(self) -> None:
        doomed = self.everybody()
        for process in doomed:
            process.kill()
        self.process.wait()
        psutil.wait_procs(doomed)


@contextmanager
def echo(key: Path, port: int = 0) -> Iterator[Echo]:
    if not key.exists():
        key.write_bytes(Keypair.generate().to_libp2p())
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--key", str(key), "--port", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    found = None
    try:
        found = Echo(process, process.stdout.readline().strip())
        yield found
    finally:
        if process.poll() is None:
            if found is not None:
                found.signal(signal.SIGCONT)
            process.stdin.close()
            process.wait(timeout=60)
        process.stdin.close()
        process.stdout.close()


@pytest.fixture(scope="module")
def p2pd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Echo]:
    with echo(tmp_path_factory.mktemp("p2pd") / "key") as found:
        yield found


def with_transport(job: Callable[[Libp2pTransport], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_transport(Keypair.generate()) as transport:
            await job(transport)

    trio.run(main)


@pytest.mark.system
def test_p2pd_answers(p2pd: Echo) -> None:
    async def job(transport: Libp2pTransport) -> None:
        assert await transport.connect(p2pd.address, timeout_s=GENEROUS_S) == p2pd.peer
        for payload in (b"", b"drawer", bytes(range(256)) * (CHUNK_BYTES // 256), bytes(MAX_FRAME_BYTES)):
            assert await transport.request(p2pd.peer, payload, timeout_s=GENEROUS_S) == payload
        jobs = [
            lambda index=index: transport.request(p2pd.peer, b"%d" % index, timeout_s=GENEROUS_S) for index in range(32)
        ]
        assert await TrioRuntime().gather(jobs) == [b"%d" % index for index in range(32)]

    with_transport(job)


@pytest.mark.system
def test_p2pd_asks_back_over_the_connection_that_we_dialled(p2pd: Echo) -> None:
    async def job(transport: Libp2pTransport) -> None:
        async def answer(asker: PeerId, payload: bytes) -> bytes:
            assert asker == p2pd.peer
            return b"you asked: " + payload

        transport.serve(answer)
        await transport.connect(p2pd.address, timeout_s=GENEROUS_S)
        assert await transport.request(p2pd.peer, b"call me", timeout_s=GENEROUS_S) == b"you asked: who is there?"

    with_transport(job)


@pytest.mark.system
def test_bad_answers_cost_only_their_request(p2pd: Echo) -> None:
    async def job(transport: Libp2pTransport) -> None:
        await transport.connect(p2pd.address, timeout_s=GENEROUS_S)
        with pytest.raises(TimedOut):
            await transport.request(p2pd.peer, b"brood", timeout_s=BRIEF_S)
        with pytest.raises(Unreachable):
            await transport.request(p2pd.peer, b"hang up", timeout_s=GENEROUS_S)
        with pytest.raises(MalformedBytes):
            await transport.request(p2pd.peer, b"lie", timeout_s=GENEROUS_S)
        assert await transport.request(p2pd.peer, b"still there?", timeout_s=GENEROUS_S) == b"still there?"

    with_transport(job)


@pytest.mark.system
def test_a_frozen_remote_costs_its_deadline_and_thaws(p2pd: Echo) -> None:
    async def job(transport: Libp2pTransport) -> None:
        await transport.connect(p2pd.address, timeout_s=GENEROUS_S)
        p2pd.signal(signal.SIGSTOP)
        try:
            with pytest.raises(TimedOut):
                await transport.request(p2pd.peer, b"frozen", timeout_s=BRIEF_S)
            with pytest.raises(TimedOut):  # the kernel still accepts, so the dial hangs in its handshake
                await transport.connect(p2pd.address, timeout_s=BRIEF_S)
        finally:
            p2pd.signal(signal.SIGCONT)
        assert await transport.request(p2pd.peer, b"thawed", timeout_s=GENEROUS_S) == b"thawed"

    with_transport(job)


@pytest.mark.system
def test_a_restarted_remote_is_reached_at_once(tmp_path: Path) -> None:
    async def job(transport: Libp2pTransport) -> None:
        with echo(tmp_path / "key") as first:
            await transport.connect(first.address, timeout_s=GENEROUS_S)
            assert await transport.request(first.peer, b"1", timeout_s=GENEROUS_S) == b"1"
            first.kill()
        for _ in range(3):
            with pytest.raises(Unreachable):
                await transport.request(first.peer, b"2", timeout_s=GENEROUS_S)
        with pytest.raises(Unreachable):
            await transport.connect(first.address, timeout_s=GENEROUS_S)
        with echo(tmp_path / "key", first.port) as second:
            assert second.peer == first.peer
            assert await transport.request(second.peer, b"3", timeout_s=GENEROUS_S) == b"3"

    with_transport(job)


@pytest.mark.system
def test_another_peer_at_a_known_address_is_not_taken_for_the_first(p2pd: Echo) -> None:
    async def job(transport: Libp2pTransport) -> None:
        stranger = p2pd.address.rsplit("/", 1)[0] + "/" + Keypair.generate().peer_id.base58
        with pytest.raises(Unreachable):
            await transport.connect(stranger, timeout_s=GENEROUS_S)

    with_transport(job)


def test_nothing_is_left_when_the_block_ends() -> None:
    open_before = len(psutil.Process().net_connections())

    async def main() -> None:
        async with open_transport(Keypair.generate(), [("127.0.0.1", 0)]) as answerer:
            async with open_transport(Keypair.generate()) as asker:
                await asker.connect(answerer.addresses()[0], timeout_s=GENEROUS_S)
                assert len(psutil.Process().net_connections()) >= open_before + 3

    trio.run(main)
    assert len(psutil.Process().net_connections()) == open_before
