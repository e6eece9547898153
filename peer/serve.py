"""What a peer answers others: requests at once, from immutable values; one-way messages go on to the round machine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from peer.blob_store import BlobStore
from peer.handoff import Kept
from swarm import chain as chains
from swarm.digest import Digest
from swarm.errors import BadSignature
from swarm.events import Event, event_bytes
from swarm.identity import Keypair, PeerId
from swarm.messages import (
    MAX_EVENTS_PAGE,
    MAX_LOG_COMMITS,
    MAX_PEERS_PAGE,
    Chunk,
    Commit,
    Contribution,
    Events,
    GetBlob,
    GetCheckpoint,
    GetChunk,
    GetEvents,
    GetLog,
    GetManifest,
    GetPeers,
    GetState,
    Log,
    ManifestBytes,
    Peers,
    Refused,
    StateRecord,
    open_message,
    seal_message,
)

KEPT_EVENTS: Final = 2048
_PAGE_BYTES: Final = (
    512 << 10
)  # of commits, statuses or events in one answer: half a frame, room for what surrounds them

OneWay = Callable[[PeerId, Any, bytes], None]
Statuses = Callable[[], list[bytes]]


class EventLog:
    """The last events of this peer, numbered from 1."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, bytes]] = deque(maxlen=KEPT_EVENTS)
        self._count = 0

    def add(self, at_unix_s: float, event: Event) -> None:
        self._count += 1
        self._events.append((self._count, event_bytes(at_unix_s, event)))

    def behind(self, since: int) -> Events:
        """The events with numbers above `since`, oldest first, and the last number given."""
        if since > self._count:
            since = 0  # numbers of a former life
        page: list[bytes] = []
        last, size = since, 0
        for number, raw in self._events:
            if number <= since:
                continue
            if len(page) == MAX_EVENTS_PAGE or size + len(raw) > _PAGE_BYTES:
                break
            page.append(raw)
            size += len(raw)
            last = number
        return Events(last, tuple(page))


class Server:
    """Answers requests. The network thread replaces `state`, `log` and `checkpoints` whole when they change."""

    def __init__(self, keypair: Keypair, run: Digest, manifest: bytes, store: BlobStore) -> None:
        self.state: StateRecord | None = None
        self.log: tuple[Commit, ...] = ()
        self.checkpoints: dict[int, Kept] = {}
        self.events = EventLog()
        self._keypair = keypair
        self._run = run
        self._manifest = manifest
        self._store = store
        self._one_way: OneWay = lambda *_: None
        self._statuses: Statuses = list

    def connect(self, one_way: OneWay, statuses: Statuses) -> None:
        """From now on one-way messages go to `one_way`, and GetPeers is answered from `statuses` (our own first)."""
        self._one_way, self._statuses = one_way, statuses

    async def handle(self, remote: PeerId, payload: bytes) -> bytes:
        """The answer to one request; raises RemoteError for bytes that cost the sender its stream."""
        author, message = open_message(payload, run=self._run)
        if author != remote and not isinstance(message, Contribution):
            raise BadSignature(f"{remote} passed on a {type(message).__name__} of {author}")
        answer = await self._answer(message)
        if answer is None:
            self._one_way(remote, message, payload)
            return b""
        return seal_message(self._keypair, self._run, answer)

    async def _answer(self, message: object) -> object | None:
        """The answer to a request; None for a one-way message."""
        match message:
            case GetBlob(root):
                return await asyncio.to_thread(self._store.info, root) or Refused(f"blob {root} is not here")
            case GetChunk(root, index):
                data = await asyncio.to_thread(self._store.chunk, root, index)
                return Refused(f"chunk {index} of blob {root} is not here") if data is None else Chunk(data)
            case GetPeers(offset):
                return self._peers(offset)
            case GetManifest():
                return ManifestBytes(self._manifest)
            case GetLog(heads):
                return self._log(heads)
            case GetState():
                return self.state or Refused("no state yet")
            case GetCheckpoint(version):
                return self._checkpoint(version)
            case GetEvents(since):
                return self.events.behind(since)
            case _:
                return None

    def _peers(self, offset: int) -> Peers:
        statuses = self._statuses()
        page: list[bytes] = []
        size = 0
        for sealed in statuses[offset : offset + MAX_PEERS_PAGE]:
            size += len(sealed)
            if size > _PAGE_BYTES:
                break
            page.append(sealed)
        return Peers(len(statuses), tuple(page))

    def _log(self, heads: tuple[Digest, ...]) -> object:
        if self.state is None:
            return Refused("no state yet")
        parents = [commit.parent for commit in self.log]
        last = chains.head_after(parents[-1], self.log[-1].commit) if self.log else self.state.chain.head
        for head in heads:  # the asker's newest first: the least to undo
            if head == last:
                return Log(head, ())
            if head in parents:
                return Log(head, self._page(self.log[parents.index(head) :]))
        return Refused("none of these heads is in the log any more; ask for the state")

    @staticmethod
    def _page(commits: tuple[Commit, ...]) -> tuple[Commit, ...]:
        page: list[Commit] = []
        size = 0
        for commit in commits[:MAX_LOG_COMMITS]:
            size += sum(len(sealed) + 128 for sealed in commit.announcements)
            if page and size > _PAGE_BYTES:
                break
            page.append(commit)
        return tuple(page)

    def _checkpoint(self, version: int | None) -> object:
        if not self.checkpoints:
            return Refused("no checkpoint is kept here yet")
        wanted = max(self.checkpoints) if version is None else version
        kept = self.checkpoints.get(wanted)
        if kept is None:
            return Refused(f"version {wanted} is not kept; there are {sorted(self.checkpoints)}"[:400])
        return kept.record
