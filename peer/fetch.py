"""Fetching a blob from several holders into the store: the asyncio shell of `swarm.blobs.BlobFetch`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from peer.blob_store import BlobStore, disk_errors
from swarm.blobs import Ask, BlobFetch
from swarm.digest import CHUNK_BYTES, Digest
from swarm.errors import MalformedBytes, NetworkError, Refusal, RemoteError
from swarm.identity import Keypair, PeerId
from swarm.messages import BlobInfo, Chunk, GetBlob, Refused, open_message, seal_message
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

    async def ask(self, to: PeerId, message: object, *, timeout_s: float) -> Any:
        """The answer to a request. Raises NetworkError, RemoteError, or Refusal with the other side's reason."""
        raw = await self.transport.request(to, seal_message(self.keypair, self.run, message), timeout_s=timeout_s)
        author, answer = open_message(raw, run=self.run)
        if author != to:
            raise MalformedBytes(f"{to} passed on an answer that {author} signed")
        if isinstance(answer, Refused):
            raise Refusal(answer.reason)
        return answer


class Fetcher:
    """Blobs from other peers; `down` tells how many bytes came."""

    def __init__(self, asker: Asker, store: BlobStore) -> None:
        self._asker = asker
        self._store = store
        self._under_way: dict[Digest, asyncio.Task[None]] = {}

    async def fetch(self, root: Digest, holders: Iterable[PeerId], num_bytes: int | None = None) -> None:
        """Returns when the blob is in the store, every chunk checked. Raises NetworkError when nobody could give it."""
        if self._store.has(root):
            return
        task = self._under_way.get(root)
        if task is None:
            task = asyncio.ensure_future(self._fetch(BlobFetch(root, holders, num_bytes=num_bytes)))
            self._under_way[root] = task
            task.add_done_callback(lambda _: self._under_way.pop(root, None))
        await task

    async def _fetch(self, progress: BlobFetch) -> None:
        path = self._store.partial_path(progress.root)
        clock = asyncio.get_running_loop().time
        asks: dict[asyncio.Task[tuple[Ask, object]], None] = {}
        info: BlobInfo | None = None
        with disk_errors(path):
            file: BinaryIO = open(path, "wb")  # noqa: SIM115, ASYNC230  closed below; opening does not block
        try:
            while not progress.done:
                if progress.failed_reason is not None:
                    raise NetworkError(progress.failed_reason)
                for ask in progress.next_requests(clock()):
                    asks[asyncio.ensure_future(self._perform(ask))] = None
                if not asks:
                    await asyncio.sleep(_IDLE_LOOK_S)
                    continue
                done, _ = await asyncio.wait(asks, timeout=_IDLE_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del asks[task]
                    info = self._take(progress, file, *task.result()) or info
            assert info is not None
            with disk_errors(path):
                await asyncio.to_thread(file.close)
            self._store.adopt_partial(progress.root, info)
        finally:
            for task in asks:
                task.cancel()
            file.close()
            if not progress.done:
                path.unlink(missing_ok=True)

    async def _perform(self, ask: Ask) -> tuple[Ask, object]:
        timeout_s = INFO_TIMEOUT_S if isinstance(ask.message, GetBlob) else CHUNK_TIMEOUT_S
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
