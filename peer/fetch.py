"""Fetching a blob from several holders into the store: the asyncio shell of `swarm.blobs.BlobFetch`.

Whoever asks for a blob that is being fetched already joins that flight, and brings its holders along. A flight is a task of
its own, so that nobody's cancellation takes it from the others; the last one who waits for it ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from peer import fault_point
from peer.blob_store import BlobStore
from peer.disk import disk_errors
from peer.sealing import ASIDE_BYTES, open_aside
from swarm.blobs import Ask, BlobFetch
from swarm.digest import CHUNK_BYTES, Digest
from swarm.errors import MalformedBytes, NetworkError, Refusal, RemoteError
from swarm.identity import Keypair, PeerId
from swarm.messages import BlobInfo, Chunk, GetBlob, Refused, seal_message
from swarm.net.transport import Transport

CHUNK_TIMEOUT_S: Final = 20.0  # 1 MiB at 0.5 Mbit/s: slower links cannot take part anyway
INFO_TIMEOUT_S: Final = 5.0
_IDLE_LOOK_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Asker:
    """Requests to other peers, signed and opened."""

    transport: Transport
    keypair: Keypair
    run: Digest

    def seal(self, message: object) -> bytes:
        """The signed bytes of a message of ours."""
        return seal_message(self.keypair, self.run, message)

    async def ask(self, to: PeerId, message: object, *, timeout_s: float) -> Any:
        """The answer to a request. Raises NetworkError, RemoteError, or Refusal with the other side's reason."""
        raw = await self.transport.request(to, self.seal(message), timeout_s=timeout_s)
        author, answer = await open_aside(raw, self.run)
        if author != to:
            raise MalformedBytes(f"{to} passed on an answer that {author} signed")
        if isinstance(answer, Refused):
            raise Refusal(answer.reason)
        return answer


@dataclass(slots=True)
class _Flight:
    """One blob on its way. `holders` are those that the task has not taken up yet."""

    num_bytes: int | None
    holders: list[PeerId] = field(default_factory=list)
    num_waiting: int = 0
    is_ending: bool = False  # nobody may join any more
    task: asyncio.Task[None] | None = None


class Fetcher:
    """Blobs from other peers into one store. Lives in one event loop."""

    def __init__(self, asker: Asker, store: BlobStore) -> None:
        self._asker = asker
        self._store = store
        self._flights: dict[Digest, _Flight] = {}

    def pin(self, owner: str, roots: Iterable[Digest]) -> None:
        """Keeps these from being collected; to be called before they are fetched."""
        self._store.pin(owner, roots)

    async def fetch(self, root: Digest, holders: Iterable[PeerId], num_bytes: int | None = None) -> None:
        """Returns when the blob is in the store, every chunk checked.

        Raises NetworkError when nobody could give it, StateError when it cannot be stored.
        """
        flight = await self._join(root, num_bytes)
        if flight is None:
            return
        flight.holders.extend(holders)
        if flight.task is None:
            flight.task = asyncio.create_task(self._fly(root, flight), name=f"fetch {root}")
        flight.num_waiting += 1
        try:
            await asyncio.shield(flight.task)
        finally:
            flight.num_waiting -= 1
            if not flight.num_waiting and not flight.task.done():
                flight.is_ending = True
                flight.task.cancel()
                await asyncio.wait([flight.task])

    async def _join(self, root: Digest, num_bytes: int | None) -> _Flight | None:
        """The flight of that blob, maybe a new one; None when it is here."""
        while True:
            if self._store.has(root):
                return None
            flight = self._flights.setdefault(root, _Flight(num_bytes))
            if not flight.is_ending and flight.num_bytes == num_bytes:
                return flight
            # One that ends takes nobody in; of two lengths at most one is right, and each has its turn.
            assert flight.task is not None
            await asyncio.wait([flight.task])

    async def _fly(self, root: Digest, flight: _Flight) -> None:
        progress = BlobFetch(root, (), num_bytes=flight.num_bytes)
        path = self._store.partial_path(root)
        asks: set[asyncio.Task[tuple[Ask, object]]] = set()
        try:
            with disk_errors(path):
                file: BinaryIO = open(path, "wb")  # noqa: SIM115, ASYNC230  closed below; opening does not block
                try:
                    info = await self._gather(progress, flight, file, asks)
                finally:
                    flight.is_ending = True
                    for task in asks:
                        task.cancel()
                    if asks:
                        await asyncio.wait(asks)
                    await asyncio.to_thread(file.close)
                await asyncio.to_thread(self._store.adopt_partial, root, info)
        finally:
            flight.is_ending = True
            path.unlink(missing_ok=True)  # it has another name by now, or is worth nothing
            del self._flights[root]

    async def _gather(
        self, progress: BlobFetch, flight: _Flight, file: BinaryIO, asks: set[asyncio.Task[tuple[Ask, object]]]
    ) -> BlobInfo:
        """Asks until every chunk is in the file; returns the chunk digests. `asks`: requests under way."""
        clock = asyncio.get_running_loop().time
        info: BlobInfo | None = None
        while not progress.done:
            while flight.holders:
                progress.add_holder(flight.holders.pop(0))
            if progress.failed_reason is not None:
                raise NetworkError(progress.failed_reason)
            asks.update(asyncio.create_task(self._perform(ask)) for ask in progress.next_requests(clock()))
            if not asks:
                await asyncio.sleep(_IDLE_LOOK_S)
                continue
            done, _ = await asyncio.wait(asks, timeout=_IDLE_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            asks -= done
            for task in done:
                ask, answer = task.result()
                if (
                    isinstance(answer, Chunk) and len(answer.data) >= ASIDE_BYTES
                ):  # hashing and writing it takes a while
                    await asyncio.to_thread(self._take, progress, file, ask, answer)
                else:
                    info = self._take(progress, file, ask, answer) or info
        assert info is not None
        return info

    async def _perform(self, ask: Ask) -> tuple[Ask, object]:
        timeout_s = INFO_TIMEOUT_S if isinstance(ask.message, GetBlob) else CHUNK_TIMEOUT_S
        if not isinstance(ask.message, GetBlob):
            fault_point.reached("fetch")
        try:
            return ask, await self._asker.ask(ask.to, ask.message, timeout_s=timeout_s)
        except (NetworkError, RemoteError) as error:
            return ask, error

    @staticmethod
    def _take(progress: BlobFetch, file: BinaryIO, ask: Ask, answer: object) -> BlobInfo | None:
        """Hands one answer to the machine, and right bytes to the file; returns the chunk digests when they came."""
        match answer:
            case BlobInfo() if isinstance(ask.message, GetBlob):
                return answer if progress.on_info(ask.to, answer) else None
            case Chunk(data) if not isinstance(ask.message, GetBlob):
                if progress.on_chunk(ask.to, ask.message.index, data):
                    file.seek(ask.message.index * CHUNK_BYTES)
                    file.write(data)
            case Refusal():
                progress.on_failure(ask.to, str(answer), refused=True)
            case Exception():
                progress.on_failure(ask.to, str(answer))
            case _:
                progress.on_failure(ask.to, f"answered with a {type(answer).__name__}", refused=True)
        return None
