"""Fetching over the network in memory: from holders that lie, die or stall; shared by all who want the same blob."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    "another kind": lambda m: Goodbye("what?"),
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
