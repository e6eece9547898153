"""Fetching over the network in memory: from holders that lie, die or stall; shared by all who want the same blob."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peer.blob_store import BlobStore
from peer.fetch import Fetcher
from swarm.digest import CHUNK_BYTES, blob_digest
from swarm.errors import NetworkError, Refusal, StateError
from swarm.identity import PeerId
from swarm.messages import BlobInfo, Chunk, GetBlob, GetChunk, Goodbye, Refused, open_message, seal_message
from swarm.net.transport import Handler
from tests.unit.message_examples import RUN
from tests.unit.small_swarm import Host, SmallSwarm, run_clean

BLOB = bytes(range(256)) * (5 * CHUNK_BYTES // 512)  # two chunks and a half
ROOT = blob_digest(BLOB)


LONG = b"".join(bytes([index]) * CHUNK_BYTES for index in range(12))


def folder_of(host: Host) -> list[str]:
    return sorted(path.name for path in host.store.partial_path(ROOT).parent.iterdir())


def answering(host: Host, answer: Callable[[Any], object | None]) -> Handler:
    """Answers with what `answer` makes of a request, and honestly where it makes None."""

    async def handle(asker: PeerId, raw: bytes) -> bytes:
        _, message = open_message(raw, run=RUN)
        said = answer(message)
        return await host.server.handle(asker, raw) if said is None else seal_message(host.key, RUN, said)

    return handle


LIES: dict[str, Callable[[Any], object | None]] = {
    "wrong chunk": lambda m: Chunk(bytes(CHUNK_BYTES)) if isinstance(m, GetChunk) else None,
    "short chunk": lambda m: Chunk(b"") if isinstance(m, GetChunk) else None,
    "wrong leaves": lambda m: BlobInfo(5, (ROOT,)) if isinstance(m, GetBlob) else None,
    "refuses": lambda m: Refused("not here"),
    "another kind": lambda m: Goodbye("what?", 1),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lying_holder_changes_nothing_but_who_is_asked(tmp_path: Path, lie: Callable[[Any], Any]) -> None:
    async def main() -> None:
        me, honest, liar = await SmallSwarm(tmp_path).hosts(3)
        for holder in (honest, liar):
            holder.store.put(BLOB)
        liar.transport.serve(answering(liar, lie))
        await Fetcher(me.asker, me.store).fetch(ROOT, [liar.id, honest.id], len(BLOB))
        assert me.store.read(ROOT, check=True) == BLOB and folder_of(me) == [ROOT.hex()]
        with pytest.raises(NetworkError, match="no holder left"):
            await Fetcher(me.asker, me.store).fetch(blob_digest(b"x"), [liar.id])

    run_clean(main())


def test_an_answer_signed_by_another_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        me, honest, liar = await SmallSwarm(tmp_path).hosts(3)
        liar.transport.serve(honest.server.handle)
        with pytest.raises(Exception, match="passed on an answer"):
            await me.asker.ask(liar.id, GetBlob(ROOT), timeout_s=5)
        with pytest.raises(Refusal, match="not here"):
            await me.asker.ask(honest.id, GetBlob(ROOT), timeout_s=5)

    run_clean(main())


def test_a_holder_that_dies_half_way_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = SmallSwarm(tmp_path)
        me, steady, dying = await swarm.hosts(3)
        for holder in (steady, dying):
            holder.store.put(BLOB)

        async def serve_once(asker: PeerId, raw: bytes) -> bytes:
            _, message = open_message(raw, run=RUN)
            if isinstance(message, GetChunk):
                swarm.net.kill(dying.id)
            return await dying.server.handle(asker, raw)

        dying.transport.serve(serve_once)
        await Fetcher(me.asker, me.store).fetch(ROOT, [dying.id, steady.id])
        assert me.store.read(ROOT, check=True) == BLOB

    run_clean(main())


def test_all_who_want_a_blob_share_one_download_and_their_holders(tmp_path: Path) -> None:
    async def main() -> None:
        me, holder, empty = await SmallSwarm(tmp_path).hosts(3)
        holder.store.put(BLOB)
        asked: list[int] = []
        may_go = asyncio.Event()

        async def slowly(asker: PeerId, raw: bytes) -> bytes:
            await may_go.wait()
            return seal_message(empty.key, RUN, Refused("not here"))

        def count(message: Any) -> None:
            if isinstance(message, GetChunk):
                asked.append(message.index)

        empty.transport.serve(slowly)
        holder.transport.serve(answering(holder, count))
        fetcher = Fetcher(me.asker, me.store)
        first = asyncio.create_task(fetcher.fetch(ROOT, [empty.id]))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(fetcher.fetch(ROOT, [holder.id])) for _ in range(5)]
        await asyncio.sleep(0.01)
        may_go.set()
        await asyncio.gather(first, *others)  # the first has no holder of its own, but the others brought one
        assert sorted(asked) == [0, 1, 2] and me.store.read(ROOT, check=True) == BLOB

    run_clean(main())


def test_cancelling_one_leaves_the_download_to_the_others_and_the_last_ends_it(tmp_path: Path) -> None:
    async def main() -> None:
        me, holder = await SmallSwarm(tmp_path).hosts(2)
        holder.store.put(BLOB)
        may_go = asyncio.Event()

        async def wait(asker: PeerId, raw: bytes) -> bytes:
            await may_go.wait()
            return await holder.server.handle(asker, raw)

        holder.transport.serve(wait)
        fetcher = Fetcher(me.asker, me.store)

        def start() -> asyncio.Task[None]:
            return asyncio.create_task(fetcher.fetch(ROOT, [holder.id], len(BLOB)))

        tasks = [start(), start()]
        await asyncio.sleep(0.02)
        assert folder_of(me) == [f"{ROOT.hex()}.part"]
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert tasks[0].cancelled() and folder_of(me) == [f"{ROOT.hex()}.part"]
        tasks[1].cancel()
        late = start()  # while the last one ends: it must not be taken down with it
        await asyncio.wait(tasks)
        assert tasks[1].cancelled()
        may_go.set()
        await late
        assert me.store.read(ROOT, check=True) == BLOB and folder_of(me) == [ROOT.hex()]
        gone = asyncio.create_task(fetcher.fetch(blob_digest(b"x"), [holder.id]))
        may_go.clear()
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.wait([gone])
        assert folder_of(me) == [ROOT.hex()]
        may_go.set()

    run_clean(main())


def test_a_wrong_length_fails_alone(tmp_path: Path) -> None:
    """A forged announcement of a true root must not keep the true one from being fetched."""

    async def main() -> None:
        me, holder = await SmallSwarm(tmp_path).hosts(2)
        holder.store.put(BLOB)
        fetcher = Fetcher(me.asker, me.store)
        forged, true = await asyncio.gather(
            fetcher.fetch(ROOT, [holder.id], 7), fetcher.fetch(ROOT, [holder.id], len(BLOB)), return_exceptions=True
        )
        assert isinstance(forged, NetworkError) and true is None
        assert me.store.read(ROOT, check=True) == BLOB

    run_clean(main())


def test_without_holders_it_fails_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        (me,) = await SmallSwarm(tmp_path).hosts(1)
        with pytest.raises(NetworkError):
            await Fetcher(me.asker, me.store).fetch(ROOT, [])
        assert folder_of(me) == []

    run_clean(main())


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        me, holder = await SmallSwarm(tmp_path).hosts(2)
        holder.store.put(BLOB)

        def full(path: Path) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr("peer.blob_store.sync", full)
        with pytest.raises(StateError, match="disk is full"):
            await Fetcher(me.asker, me.store).fetch(ROOT, [holder.id])
        assert folder_of(me) == []

    run_clean(main())


def asked_of(host: Host) -> list[int]:
    """The chunks that are asked of a host from now on."""
    asked: list[int] = []
    host.transport.serve(answering(host, lambda m: asked.append(m.index) if isinstance(m, GetChunk) else None))
    return asked


async def broken_off(me: Host, holder: Host, chunks: int) -> None:
    """A fetch that is cancelled once so many chunks have come."""
    fetcher = Fetcher(me.asker, me.store)
    fetch = asyncio.create_task(fetcher.fetch(blob_digest(LONG), [holder.id]))
    while len(fetcher._flights[blob_digest(LONG)].progress.verified if fetcher._flights else ()) < chunks:  # noqa: ASYNC110
        await asyncio.sleep(0)
    fetch.cancel()
    await asyncio.wait([fetch])


@pytest.mark.parametrize("restarted", [False, True])
def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path, restarted: bool) -> None:
    async def main() -> None:
        me, holder, other = await SmallSwarm(tmp_path).hosts(3)
        root = holder.store.put(LONG)
        other.store.put(LONG)
        await broken_off(me, holder, 5)
        kept = (tmp_path / "blobs-1" / f"{root.hex()}.part").read_bytes()
        there = {
            index for index in range(12) if kept[index << 20 : (index + 1) << 20] == LONG[index << 20 :][: 1 << 20]
        }
        assert len(there) >= 5
        asked = asked_of(other)
        store = BlobStore(tmp_path / "blobs-1") if restarted else me.store
        await Fetcher(me.asker, store).fetch(root, [other.id], len(LONG))
        assert store.read(root, check=True) == LONG
        assert sorted(asked) == sorted(set(range(12)) - there)

    run_clean(main())


def test_what_is_left_of_a_download_may_be_anything(tmp_path: Path) -> None:
    async def main() -> None:
        me, holder = await SmallSwarm(tmp_path).hosts(2)
        root = holder.store.put(LONG)
        left = bytearray(LONG + b"and more")
        left[3 << 20] ^= 1
        me.store.partial_path(root).write_bytes(left)
        asked = asked_of(holder)
        await Fetcher(me.asker, me.store).fetch(root, [holder.id])
        assert asked == [3] and me.store.read(root, check=True) == LONG

    run_clean(main())


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from peer.fetch import Fetcher
from swarm.messages import GetChunk
from tests.unit.small_swarm import SmallSwarm
from tests.unit.test_fetch import LONG, answering

async def main():
    me, holder = await SmallSwarm(Path(sys.argv[1])).hosts(2)
    root = holder.store.put(LONG)
    answered = 0
    def count(message):
        nonlocal answered
        if isinstance(message, GetChunk):
            answered += 1
            if answered == 8:
                os.kill(os.getpid(), signal.SIGKILL)
    holder.transport.serve(answering(holder, count))
    await Fetcher(me.asker, me.store).fetch(root, [holder.id])

asyncio.run(main())
"""


def test_a_killed_download_goes_on_in_the_next_process(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], cwd=Path(__file__).parents[2], timeout=60)
    assert killed.returncode == -signal.SIGKILL

    async def main() -> None:
        me, holder = await SmallSwarm(tmp_path).hosts(2)
        root = blob_digest(LONG)
        assert not me.store.has(root) and holder.store.has(root)
        asked = asked_of(holder)
        await Fetcher(me.asker, me.store).fetch(root, [holder.id])
        assert me.store.read(root, check=True) == LONG
        # Of seven that were answered, those that had not been written yet were under way: four at most.
        assert len(asked) <= 12 - 7 + 4 and sorted(set(asked)) == sorted(asked)

    run_clean(main())


def test_a_busy_holder_is_asked_again_and_not_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        me, holder = await SmallSwarm(tmp_path).hosts(2)
        holder.store.put(BLOB)
        refusals = [Refused("busy: ask again later")] * 3
        holder.transport.serve(
            answering(holder, lambda m: refusals.pop() if isinstance(m, GetChunk) and refusals else None)
        )
        await Fetcher(me.asker, me.store).fetch(ROOT, [holder.id])
        assert me.store.read(ROOT, check=True) == BLOB and not refusals

    run_clean(main())
