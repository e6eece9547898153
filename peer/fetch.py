"""Fetching a blob from several holders into the store: the asyncio shell of `swarm.blobs.BlobFetch`.

Whoever asks for a blob that is being fetched already joins that flight, and brings its holders along. A flight is a task of
its own, so that nobody's cancellation takes it from the others; the last one who waits for it ends it. A flight that ends
early leaves its verified chunks to the next one, of this process or another. All flights share what is known of holders.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, TypeVar

from peer import fault_point
from peer.blob_store import BlobStore
from peer.disk import disk_errors
from peer.routes import Routes
from peer.sealing import open_aside
from swarm.blobs import Ask, BlobFetch
from swarm.digest import CHUNK_BYTES, Digest
from swarm.errors import MalformedBytes, NetworkError, Refusal, RemoteError
from swarm.holders import Holders
from swarm.identity import Keypair, PeerId
from swarm.messages import GetBlob, GetChunk, Refused, seal_message
from swarm.net.transport import Transport

log = logging.getLogger(__name__)

CHUNK_TIMEOUT_S: Final = 20.0  # 1 MiB at 0.5 Mbit/s: slower links cannot take part anyway
INFO_TIMEOUT_S: Final = 5.0
_IDLE_LOOK_S: Final = 0.25
_CHECKED_AT_ONCE: Final = 16  # chunks of an earlier try
_Result = TypeVar("_Result")


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

    progress: BlobFetch
    num_bytes: int | None
    holders: list[PeerId] = field(default_factory=list)
    num_waiting: int = 0
    is_ending: bool = False  # nobody may join any more
    task: asyncio.Task[None] | None = None
    asks: dict[asyncio.Task[object], Ask] = field(default_factory=dict)  # requests under way
    ended: set[asyncio.Task[object]] = field(default_factory=set)  # those that were cancelled
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # something has come, or there may be room at a holder


class Fetcher:
    """Blobs from other peers into one store. Lives in one event loop."""

    def __init__(self, asker: Asker, store: BlobStore, routes: Routes | None = None) -> None:
        """With `routes`, whom to ask depends on who can be reached."""
        self._routes = routes
        self._asker = asker
        self._store = store
        self._flights: dict[Digest, _Flight] = {}
        self._known = Holders()

    def pin(self, owner: str, roots: Iterable[Digest]) -> None:
        """Keeps these from being collected, after a restart too; to be called before they are fetched."""
        self._store.pin(owner, roots, lasting=True)

    async def fetch(self, root: Digest, holders: Iterable[PeerId], num_bytes: int | None = None) -> None:
        """Returns when the blob is in the store, every chunk checked.

        Raises NetworkError when nobody could give it, StateError when it cannot be stored.
        """
        if self._routes is not None and not self._store.has(root):
            holders = await self._routes.within_reach(holders)
        flight = await self._join(root, num_bytes)
        if flight is None:
            return
        flight.holders.extend(holders)
        if flight.task is None:
            flight.task = asyncio.create_task(self._fly(root, flight), name=f"fetch {root}")
        flight.wake.set()
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
            flight = self._flights.get(root)
            if flight is None:
                progress = BlobFetch(root, (), num_bytes=num_bytes, known=self._known)
                flight = self._flights[root] = _Flight(progress, num_bytes)
            if not flight.is_ending and flight.num_bytes == num_bytes:
                return flight
            # One that ends takes nobody in; of two lengths at most one is right, and each has its turn.
            assert flight.task is not None
            await asyncio.wait([flight.task])

    async def _fly(self, root: Digest, flight: _Flight) -> None:
        partials, progress = self._store.partials, flight.progress
        keep = False
        try:
            with disk_errors(partials.path(root)):
                file = partials.open(root)
                try:
                    await self._gather(flight, file)
                except (NetworkError, asyncio.CancelledError):
                    keep = bool(progress.verified)
                    raise
                finally:
                    flight.is_ending = True
                    await self._end_asks(flight)
                    await asyncio.to_thread(file.close)
                assert progress.info is not None
                await asyncio.to_thread(self._store.adopt_partial, root, progress.info)
        finally:
            flight.is_ending = True
            partials.end(root, keep=keep)  # without `keep`: it has another name by now, or is worth nothing
            del self._flights[root]

    async def _gather(self, flight: _Flight, file: BinaryIO) -> None:
        """Asks until every chunk is in the file."""
        clock, progress = asyncio.get_running_loop().time, flight.progress
        is_resumed = False
        while not progress.done:
            while flight.holders:
                progress.add_holder(flight.holders.pop(0))
            if progress.failed_reason is not None:
                raise NetworkError(progress.failed_reason)
            if progress.info is not None and not is_resumed:
                is_resumed = True
                await self._resume(progress, file)
                continue
            for ask in progress.next_requests(clock()):
                self._send(flight, ask)
            flight.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_LOOK_S):
                    await flight.wake.wait()
            for task in [task for task in flight.asks if task.done()]:
                ask = flight.asks.pop(task)
                data = progress.take(ask, task.result(), clock())
                if data is not None and isinstance(ask.message, GetChunk):
                    await _whole(_write, file, ask.message.index, data)
            for task, ask in list(flight.asks.items()):
                if not task.done() and not progress.is_wanted(ask):  # another holder was sooner, or this one has lied
                    self._cancel(flight, task)

    def _send(self, flight: _Flight, ask: Ask) -> None:
        task = asyncio.create_task(self._perform(ask))
        flight.asks[task] = ask
        task.add_done_callback(lambda _: self._landed(flight))

    def _landed(self, flight: _Flight) -> None:
        flight.wake.set()
        for other in self._flights.values():  # the holder may have room for another blob's chunk now
            if other.progress.is_hungry:
                other.wake.set()

    def _cancel(self, flight: _Flight, task: asyncio.Task[object]) -> None:
        flight.progress.on_cancelled(flight.asks.pop(task))
        flight.ended.add(task)
        task.add_done_callback(flight.ended.discard)
        task.cancel()

    async def _end_asks(self, flight: _Flight) -> None:
        for task in list(flight.asks):
            self._cancel(flight, task)
        if flight.ended:
            await asyncio.wait(flight.ended)

    async def _perform(self, ask: Ask) -> object:
        """The answer, or why there is none."""
        timeout_s = INFO_TIMEOUT_S if isinstance(ask.message, GetBlob) else CHUNK_TIMEOUT_S
        if not isinstance(ask.message, GetBlob):
            fault_point.reached("fetch")
        try:
            return await self._asker.ask(ask.to, ask.message, timeout_s=timeout_s)
        except (NetworkError, RemoteError) as error:
            log.debug("%s did not give %s: %s", ask.to, ask.message, error)
            return error

    @staticmethod
    async def _resume(progress: BlobFetch, file: BinaryIO) -> None:
        """Takes the chunks that an earlier try has left, as far as they are right."""
        num_chunks = progress.num_chunks or 0
        if not await _whole(_cut_to, file, progress.num_bytes or 0):
            return
        for first in range(0, num_chunks, _CHECKED_AT_ONCE):
            await _whole(_check, progress, file, range(first, min(num_chunks, first + _CHECKED_AT_ONCE)))


async def _whole(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """The result of work in a thread. Who is cancelled meanwhile waits for its end: it uses a file that will be closed."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _cut_to(file: BinaryIO, num_bytes: int) -> bool:
    """Whether an earlier try has left anything; it is made as long as the blob."""
    if file.seek(0, 2) == 0:
        return False
    file.truncate(num_bytes)
    return True


def _write(file: BinaryIO, index: int, data: bytes) -> None:
    file.seek(index * CHUNK_BYTES)
    file.write(data)
    file.flush()  # what is in this process's memory dies with it


def _check(progress: BlobFetch, file: BinaryIO, indices: range) -> None:
    file.seek(indices[0] * CHUNK_BYTES)
    for index in indices:
        progress.on_local(index, file.read(CHUNK_BYTES))
