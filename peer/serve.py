"""What a peer answers others: requests from immutable values; one-way messages go on to the round machine.

All is answered at once but for chunks that no round waits for (states, checkpoints, contributions of older versions): those
are served at a share of the upload, so that somebody who joins slows nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from peer import fault_point
from peer.blob_store import BlobStore
from peer.forwarding import Forwarding
from peer.handoff import Kept
from peer.pacing import Pacer
from peer.sealing import open_aside, seal_aside
from peer.served_states import ServedStates
from swarm import wire
from swarm.blobs import BUSY
from swarm.digest import Digest, chunk_length, num_chunks
from swarm.errors import BadSignature, MalformedBytes, Refusal, RemoteError
from swarm.events import Event, event_bytes
from swarm.identity import Keypair, PeerId
from swarm.messages import (
    FORWARDED_PAGE_BYTES,
    MAX_EVENTS_PAGE,
    MAX_LOG_COMMITS,
    MAX_PEERS_PAGE,
    BlobInfo,
    Chunk,
    Commit,
    Contribution,
    CutHint,
    Events,
    Forward,
    GetBlob,
    GetCheckpoint,
    GetChunk,
    GetEvents,
    GetLog,
    GetManifest,
    GetPeers,
    GetState,
    GetStatus,
    Goodbye,
    HeadBarred,
    Holding,
    KnownStatus,
    LeaderBrief,
    Log,
    ManifestBytes,
    NewView,
    Peers,
    PeerStatus,
    Refused,
    RoundOpened,
    StateRecord,
)
from swarm.round.commits import roots_of
from swarm.schema import line, to_value
from swarm.wire import MAX_FRAME_BYTES

WAITED_FOR_S: Final = 2.0  # for a blob that is being fetched; less than an asker waits for its answer
LOOK_S: Final = 0.1
FREE_ANSWER_BYTES: Final = 16 << 10  # longer ones, logs and states and pages, are served at the pace of chunks
KEPT_EVENTS: Final = 2048
ROUND_PINS: Final = "network"  # the owner under whom the blobs are pinned that the round may be about
_PAGE_BYTES: Final = 512 << 10  # of commits, statuses or events in one answer: half a frame, room for what is around
_MOST_BYTES: Final = MAX_FRAME_BYTES - 1024  # of one commit in an answer
_ONE_WAY: Final = (
    PeerStatus,
    Contribution,
    Holding,
    LeaderBrief,
    RoundOpened,
    CutHint,
    Commit,
    NewView,
    HeadBarred,
    Goodbye,
)  # what may come unasked; an answer that nobody asked for costs its sender the stream

OneWay = Callable[[PeerId, Any, bytes], None]
Statuses = Callable[[], list[KnownStatus]]


class EventLog:
    """The last events of this peer, numbered from 1."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, bytes]] = deque(maxlen=KEPT_EVENTS)
        self._count = 0

    def add(self, at_unix_s: float, event: Event) -> None:
        self._count += 1
        self._events.append((self._count, event_bytes(at_unix_s, event)))

    def behind(self, since: int, page_bytes: int = _PAGE_BYTES) -> Events:
        """The events with numbers above `since`, oldest first, and the last number given."""
        if since > self._count:
            since = 0  # numbers of a former life
        page: list[bytes] = []
        last, size = since, 0
        for number, raw in self._events:
            if number <= since:
                continue
            if len(page) == MAX_EVENTS_PAGE or size + len(raw) > page_bytes:
                break
            page.append(raw)
            size += len(raw)
            last = number
        return Events(last, tuple(page))


class Server:
    """Answers requests. The network thread replaces `state`, `log` and `checkpoints` whole when they change."""

    def __init__(
        self,
        keypair: Keypair,
        run: Digest,
        manifest: bytes,
        store: BlobStore,
        pacer: Pacer | None = None,
        forwarding: Forwarding | None = None,
    ) -> None:
        """Without a `pacer` everything is answered at once; without `forwarding` nothing is passed on, or taken in so."""
        self.state: StateRecord | None = None
        self.log: tuple[Commit, ...] = ()
        self.checkpoints: dict[int, Kept] = {}
        self.events = EventLog()
        self.on_refused: Callable[[PeerId, str], None] = lambda *_: None  # is told who sent what was refused, and why
        self._keypair = keypair
        self._run = run
        self._manifest = manifest
        self._store = store
        self._forwarding = forwarding
        self._pacer = pacer
        self._served_states = ServedStates(store)
        self._old: tuple[tuple[Commit, ...], frozenset[Digest]] = ((), frozenset())  # a log, and what is old of it
        self._one_way: OneWay = lambda *_: None
        self._statuses: Statuses = list
        self._status: Callable[[], PeerStatus] | None = None

    def connect(self, one_way: OneWay, statuses: Statuses, status: Callable[[], PeerStatus] | None = None) -> None:
        """From now on one-way messages go to `one_way`, GetPeers is answered from `statuses` (our own first), and GetStatus
        from `status`."""
        self._one_way, self._statuses, self._status = one_way, statuses, status

    def note_round(self, commit: Commit, num_holders: int) -> None:
        """A round has ended with that commit; a newcomer may fetch its blobs from so many."""
        if self._pacer is not None:
            self._pacer.note_round(self._store.size(roots_of(commit.commit)) / max(1, num_holders))

    async def handle(self, remote: PeerId, payload: bytes) -> bytes:
        """The answer to one request; raises RemoteError for bytes that cost the sender its stream."""
        if self._pacer is not None:
            self._pacer.look()
        with self._told_if_refused(remote):
            author, message = await open_aside(payload, self._run)
            if not isinstance(message, Forward) or self._forwarding is None:
                return await self._take(remote, author, message, payload, _PAGE_BYTES)
            if message.to != self._keypair.peer_id:
                return await self._pass_on(self._forwarding, remote, author, message, payload)
        # What is inside was signed for us by its author: who passed it on cannot know what it is.
        with self._told_if_refused(author):
            inner_author, inner = await self._forwarding.unwrap(author, message)
            return await self._take(author, inner_author, inner, message.sealed, FORWARDED_PAGE_BYTES)

    @contextmanager
    def _told_if_refused(self, sender: PeerId) -> Iterator[None]:
        try:
            yield
        except RemoteError as error:
            self.on_refused(sender, line(error))
            raise

    async def _take(self, remote: PeerId, author: PeerId, message: Any, payload: bytes, page_bytes: int) -> bytes:
        """The answer to an opened message of `author` that `remote` sent."""
        if author != remote and not isinstance(message, PeerStatus | Contribution | Commit):
            raise BadSignature(f"{remote} passed on a {type(message).__name__} of {author}")
        if isinstance(message, _ONE_WAY):
            self._one_way(author if isinstance(message, Commit) else remote, message, payload)
            return b""
        answer = await self._answer(remote, message, page_bytes)
        sealed = await seal_aside(self._keypair, self._run, answer)
        if self._pacer is None or len(sealed) <= FREE_ANSWER_BYTES or isinstance(answer, Chunk | BlobInfo):
            return sealed  # chunks have waited already, and what a round needs to know of a blob waits for nobody
        try:
            await self._pacer.turn(remote, len(sealed))
        except Refusal as busy:
            return await seal_aside(self._keypair, self._run, Refused(line(busy)))
        return sealed

    async def _pass_on(
        self, forwarding: Forwarding, remote: PeerId, author: PeerId, forward: Forward, payload: bytes
    ) -> bytes:
        try:
            return await forwarding.pass_on(remote, author, forward, payload)
        except Refusal as refusal:
            return await seal_aside(self._keypair, self._run, Refused(line(refusal)))

    async def _answer(self, remote: PeerId, message: object, page_bytes: int) -> object:
        fault_point.serves(message, self.state)
        match message:
            case GetBlob(root):
                return await self._info(root)
            case GetChunk(root, index):
                return await self._chunk(remote, root, index)
            case GetPeers(offset):
                return self._peers(offset, page_bytes)
            case GetStatus():
                return Refused("it has just begun") if self._status is None else self._status()
            case GetManifest():
                return ManifestBytes(self._manifest)
            case GetLog(heads):
                return await self._log(heads, page_bytes)
            case GetState():
                if self.state is None:
                    return Refused("no state yet")
                self._served_states.serve(self.state)
                return self.state
            case GetCheckpoint(version):
                return await asyncio.to_thread(self._checkpoint, version)
            case GetEvents(since):
                return self.events.behind(since, page_bytes)
            case _:
                raise MalformedBytes(f"a {type(message).__name__} is not a request")

    async def _info(self, root: Digest) -> BlobInfo | Refused:
        """What is on its way here is waited for a moment: others ask us since they cannot reach its author."""
        for _ in range(round(WAITED_FOR_S / LOOK_S)):
            if not self._store.partials.is_open(root):
                break
            await asyncio.sleep(LOOK_S)
        info = await asyncio.to_thread(self._store.info, root)
        if info is None and self._store.partials.is_open(root):
            return Refused(f"{BUSY}: blob {root} is on its way here")
        return info or Refused(f"blob {root} is not here")

    async def _chunk(self, remote: PeerId, root: Digest, index: int) -> Chunk | Refused:
        self._served_states.asked(root)
        if self._pacer is not None and not self._is_of_the_round(root):
            info = await asyncio.to_thread(self._store.info, root)
            if info is not None and index < num_chunks(info.num_bytes):
                try:
                    await self._pacer.turn(remote, chunk_length(info.num_bytes, index))
                except Refusal as busy:
                    return Refused(str(busy))
        data = await asyncio.to_thread(self._store.chunk, root, index)
        return Refused(f"chunk {index} of blob {root} is not here") if data is None else Chunk(data)

    def _is_of_the_round(self, root: Digest) -> bool:
        """Whether members may be waiting for that blob: one not listed yet, or listed by the last commit."""
        if self._old[0] is not self.log:
            old = (entry.root for commit in self.log[:-1] for entry in commit.commit.entries)
            self._old = (self.log, frozenset(old))
        return root in self._store.pinned(ROUND_PINS) and root not in self._old[1]

    def _peers(self, offset: int, page_bytes: int) -> Peers:
        known = list(self._statuses())
        page: list[KnownStatus] = []
        size = 0
        for one in known[offset : offset + MAX_PEERS_PAGE]:
            size += len(one.sealed)
            if size > page_bytes:
                break
            page.append(one)
        return Peers(len(known), tuple(page))

    async def _log(self, heads: tuple[Digest, ...], page_bytes: int) -> object:
        if self.state is None:
            return Refused("no state yet")
        parents = [commit.parent for commit in self.log]
        for head in heads:  # the asker's newest first: the least to undo
            if head == self.state.chain.head:
                return Log(head, ())
            if head in parents:
                page = await asyncio.to_thread(_page_of, self.log[parents.index(head) :], page_bytes)
                return Log(head, page) if page else Refused("the next commit is too long for a log; ask for the state")
        return Refused("none of these heads is in the log any more; ask for the state")

    def _checkpoint(self, version: int | None) -> object:
        # In a thread. The trainer removes old ones: a record whose files are gone promises what nobody can give.
        there = {
            number: kept
            for number, kept in list(self.checkpoints.items())
            if all(Path(path).exists() for _, path in kept.files)
        }
        if not there:
            return Refused("no checkpoint is kept here yet")
        wanted = max(there) if version is None else version
        if wanted not in there:
            return Refused(line(f"version {wanted} is not kept; there are {sorted(there)}"))
        return there[wanted].record


def _page_of(commits: tuple[Commit, ...], page_bytes: int) -> tuple[Commit, ...]:
    """The first of these commits, as many as an answer has room for; none when the first one alone is too long."""
    page: list[Commit] = []
    size = 0
    for commit in commits[:MAX_LOG_COMMITS]:
        size += len(wire.encode(to_value(commit)))
        if size > (page_bytes if page else _MOST_BYTES):
            break
        page.append(commit)
    return tuple(page)
