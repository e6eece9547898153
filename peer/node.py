"""The network side of a peer: carries facts to the round machine and its effects out. One asyncio loop, one TaskGroup.

streams -> Server -> one-way messages ---.                     .-> Send: sealed, a task each, failure comes back
trainer -> reports ----------------------+-> Participant.step -+-> Fetch, CatchUp: tasks, end in a fact
ticker, discovery -----------------------'                     '-> RequestCut, MoveTo: orders to the trainer
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from peer import handoff as work
from peer.address_book import AddressBook
from peer.blob_store import BlobStore
from peer.catch_up import Catcher
from peer.checkpoints import serve
from peer.fetch import Asker, Fetcher
from peer.handoff import Handoff
from peer.network import Network
from peer.serve import Server
from swarm import events
from swarm.allreduce.shared import record_digest
from swarm.chain import ChainState
from swarm.digest import Digest
from swarm.errors import NetworkError, RemoteError, StateError, Unreachable
from swarm.events import Event
from swarm.identity import PeerId
from swarm.messages import Contribution, GetPeers, Goodbye, Peers, PeerStatus, open_as, seal_message
from swarm.round.facts import (
    BlobFailed,
    BlobStored,
    CatchUp,
    CatchUpEnded,
    CutDone,
    Effect,
    Fact,
    Fetch,
    Figures,
    Happened,
    HeadReached,
    Measured,
    MoveTo,
    Received,
    RequestCut,
    Send,
    Tick,
    Unreached,
)
from swarm.round.participant import Participant

log = logging.getLogger(__name__)

TICK_S: Final = 0.1
SEND_TIMEOUT_S: Final = 5.0  # a control message is small: whoever takes longer counts as not reached
MAX_SENDS_PER_PEER: Final = 32  # under way to one peer; more would only queue behind a frozen one
DISCOVERY_EVERY_S: Final = 15.0
FIRST_DISCOVERY_S: Final = 1.0
GOODBYE_TIMEOUT_S: Final = 1.0
_DIALLED_AT_ONCE: Final = 16
REDIAL_EVERY_S: Final = 5.0  # of one peer that the daemon does not find by itself
_PINNED_COMMITS: Final = 8  # commits whose contributions stay for whoever catches up

CheckBlob = Callable[[Contribution, bytes], None]
"""Raises RemoteError for a contribution that does not decode."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """The collaborators of a node, made by whoever starts the peer."""

    participant: Participant
    network: Network
    server: Server
    store: BlobStore
    asker: Asker
    handoff: Handoff
    book: AddressBook
    check_blob: CheckBlob
    record_event: Callable[[float, Event], None]
    lease_windows: int


class Node:
    """Runs until `leave`; afterwards the swarm has been told."""

    def __init__(self, parts: NodeParts, chains: tuple[ChainState, ...]) -> None:
        self._parts = parts
        self._participant = parts.participant
        self._fetcher = Fetcher(parts.asker, parts.store)
        self._catcher = Catcher(parts.asker, self._fetcher, self.open_contribution, parts.lease_windows)
        self._chains = chains  # that the trainer can go back to, newest first
        self._progress = work.Progress()
        self._checkpoint_version: int | None = max(parts.server.checkpoints, default=None)
        self._sends: Counter[PeerId] = Counter()
        self._pinned: dict[Digest, None] = {}
        self._redialled: dict[PeerId, float] = {}
        self._tasks: asyncio.TaskGroup
        self._left = asyncio.Event()
        self._saved_view = parts.participant.view
        self._caught_up: tuple[str, int, float] | None = None
        self._opened: tuple[PeerId, ...] = ()
        self._restarts = parts.network.num_restarts
        parts.server.connect(self._received, self._known_statuses)

    # ---------------------------------------------------------------- life

    async def run(self, started: Event) -> None:
        """Serves, beats and follows the round until `leave` was called; raises what the network cannot survive."""
        async with asyncio.TaskGroup() as self._tasks:
            loop = asyncio.get_running_loop()
            self._parts.network.transport.serve(self._parts.server.handle)
            self._happened(started)
            self._parts.handoff.listen(loop, self._reported)
            ticker = self._tasks.create_task(self._ticker(), name="ticker")
            discovery = self._tasks.create_task(self._discovery(), name="discovery")
            await self._left.wait()
            ticker.cancel()
            discovery.cancel()
            await self._say_goodbye()
            for task in asyncio.all_tasks():
                if task.get_name() == "effect":
                    task.cancel()

    def leave(self) -> None:
        """Ends `run`. Called in the loop's thread."""
        self._participant.leaving = True
        self._left.set()

    @property
    def participant(self) -> Participant:
        return self._participant

    def others_behind(self) -> tuple[str, ...]:
        """Names of members heard lately that have not reached our version yet."""
        own = self._participant.chain.version
        fresh = self._participant.presence.fresh(time.monotonic())
        return tuple(heard.status.name for heard in fresh if heard.status.version < own)

    async def _say_goodbye(self) -> None:
        roll = self._participant.presence.roll
        heard = [one.status.peer for one in roll.all() if not one.left]
        sealed = self._seal(Goodbye("left on purpose"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                request = self._parts.network.transport.request
                sends = (request(peer, sealed, timeout_s=GOODBYE_TIMEOUT_S) for peer in heard)
                await asyncio.gather(*sends, return_exceptions=True)

    async def _ticker(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._measure()
            self.post(Tick())
            if self._parts.network.num_restarts != self._restarts:
                self._restarts = self._parts.network.num_restarts
                self._happened(events.DaemonRestarted(self._participant.me.peer, "the network daemon had died"))

    async def _discovery(self) -> None:
        """Statuses from the noticeboard and from whoever we know, and our own onto the board."""
        wait_s = FIRST_DISCOVERY_S
        await self._meet(tuple(self._parts.network.transport.known))
        while True:
            status = self._participant.status()
            try:
                sealed = self._seal(status)
                await self._parts.network.board.publish(status.peer, sealed)
                for record in await self._parts.network.board.read():
                    self._received(record.status.peer, record.status, record.sealed)
            except (NetworkError, OSError) as error:
                log.debug("the noticeboard: %s", error)
            if not self._participant.presence.fresh(time.monotonic()):
                await self._find_anybody()
            self._parts.book.note(heard.status for heard in self._participant.presence.roll.all())
            await asyncio.sleep(wait_s)
            wait_s = min(DISCOVERY_EVERY_S, 2 * wait_s)

    async def _find_anybody(self) -> None:
        """We hear nobody: dials every address we remember, and tells whoever answers that we are here."""
        with contextlib.suppress(NetworkError, RemoteError):
            await self._meet(await self._parts.network.connect_all(self._parts.book.addresses()[:_DIALLED_AT_ONCE]))

    async def _meet(self, peers: tuple[PeerId, ...]) -> None:
        """Asks peers whom they know, and tells all of them of us."""
        for peer in peers:
            try:
                answer = await self._parts.asker.ask(peer, GetPeers(), timeout_s=SEND_TIMEOUT_S)
            except (NetworkError, RemoteError) as error:
                log.debug("%s was asked for peers: %s", peer, error)
                continue
            for sealed in answer.statuses if isinstance(answer, Peers) else ():
                try:
                    status = open_as(PeerStatus, sealed, run=self._parts.asker.run)
                except RemoteError as error:
                    self._happened(events.PeerMisbehaved(peer, f"passed on a status: {error}"[:400]))
                    continue
                self._received(status.peer, status, sealed)
        own = self._participant.status()
        for heard in self._participant.presence.roll.all():
            self._perform(Send(heard.status.peer, own))

    # ---------------------------------------------------------------- facts in

    def post(self, fact: Fact) -> None:
        """One step of the machine, and its effects. Whoever has left takes nothing in any more."""
        if self._left.is_set():
            return
        for effect in self._participant.step(fact, time.monotonic()):
            self._perform(effect)
        if self._participant.view != self._saved_view:
            self._saved_view = self._participant.view
            self._parts.handoff.give(work.SetView(self._saved_view))
        if self._participant.opened != self._opened:
            self._opened = self._participant.opened
            if self._opened:
                self._parts.handoff.give(work.OpenRound(self._opened))

    def open_contribution(self, sealed: bytes) -> Contribution:
        """Opens a sealed contribution of this run."""
        contribution: Contribution = open_as(Contribution, sealed, run=self._parts.asker.run)
        return contribution

    def _received(self, sender: PeerId, message: Any, sealed: bytes) -> None:
        self.post(Received(sender, message, sealed))

    def _reported(self, report: work.Report) -> None:
        """A report of the trainer, in the loop's thread."""
        match report:
            case work.Progress():
                self._progress = report
            case CutDone():
                self._pin(report.contribution.root)
                self._measure()
                self.post(report)
                self._happened(self._cut_event(report.contribution))
            case work.Moved():
                self._moved(report)
            case work.MoveFailed(reason):
                log.warning("could not move to the next head: %s", reason)
                self.post(CatchUpEnded(reason))
            case work.Kept(record):
                serve(self._parts.store, report)
                self._parts.server.checkpoints[record.version] = report
                self._checkpoint_version = record.version
                self._happened(events.CheckpointKept(record.version, sum(file.num_bytes for file in record.files)))
            case work.Evaluation(version, loss):
                self._happened(events.Evaluated(version, loss))
            case work.StepDropped(reason):
                self._happened(events.StepNotApplied(self._participant.me.peer, reason[:400]))
            case work.TrainerEnded():
                self.leave()

    def _moved(self, moved: work.Moved) -> None:
        self._parts.server.state, self._parts.server.log = moved.record, moved.log
        chains = {chain.head: chain for chain in (moved.record.chain, *self._chains)}
        self._chains = tuple(chains[head] for head in moved.heads if head in chains)
        self._pin(*(entry.root for commit in moved.log[-_PINNED_COMMITS:] for entry in commit.commit.entries))
        me = self._participant.me.peer
        if moved.dropped_tokens:
            self._happened(events.WorkDropped(me, moved.dropped_tokens, "our own state was wrong"))
        if moved.undone:
            self._happened(events.Undone(moved.record.chain.version, moved.undone, "another fork ranks higher"))
        if moved.caught_up and self._caught_up is not None:
            how, num_bytes, seconds = self._caught_up
            self._happened(events.CaughtUp(me, moved.record.chain.version, how, num_bytes, seconds))
        self._measure()
        self.post(HeadReached(moved.record.chain, record_digest(moved.record), moved.still_pending))

    def _measure(self) -> None:
        """New figures from the trainer's last report and the network's counters."""
        progress, network = self._progress, self._parts.network
        self.post(
            Measured(
                Figures(
                    tokens_since_cut=progress.tokens_since_cut,
                    steps_since_cut=progress.steps_since_cut,
                    tokens_per_s=progress.tokens_per_s,
                    up_bytes=network.up_bytes,
                    down_bytes=network.down_bytes,
                    up_bytes_per_s=network.up_bytes_per_s,
                    down_bytes_per_s=network.down_bytes_per_s,
                    train_loss=progress.train_loss,
                    heldout_loss=progress.heldout_loss,
                    heldout_version=progress.heldout_version,
                    checkpoint_version=self._checkpoint_version,
                    addresses=network.addresses[:8],
                    time=progress.time,
                )
            )
        )

    # ---------------------------------------------------------------- effects out

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, message, sealed):
                if self._sends[to] < MAX_SENDS_PER_PEER:
                    self._spawn(self._send(to, self._seal(message) if sealed is None else sealed))
            case RequestCut(reason):
                self._parts.handoff.give(work.CutNow(reason))
            case Fetch(contribution, holders):
                self._spawn(self._fetch(contribution, holders))
            case MoveTo(commit):
                self._parts.handoff.give(work.ApplyCommits(commit.parent, (commit,)))
            case CatchUp(peers, whole, reason):
                self._spawn(self._catch_up(peers, whole, reason))
            case Happened(event):
                self._happened(event)

    def _spawn(self, task: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(task, name="effect")

    def _seal(self, message: object) -> bytes:
        return seal_message(self._parts.asker.keypair, self._parts.asker.run, message)

    async def _send(self, to: PeerId, sealed: bytes) -> None:
        self._sends[to] += 1
        request = self._parts.network.transport.request
        try:
            try:
                await request(to, sealed, timeout_s=SEND_TIMEOUT_S)
            except Unreachable:
                if not await self._redial(to):
                    raise
                await request(to, sealed, timeout_s=SEND_TIMEOUT_S)
        except (NetworkError, RemoteError) as error:
            log.debug("%s was not reached: %s", to, error)
            self.post(Unreached(to))
        finally:
            self._sends[to] -= 1

    async def _redial(self, peer: PeerId) -> bool:
        """Dials the addresses of a peer's status, at most every REDIAL_EVERY_S; returns whether one answered."""
        heard, now = self._participant.presence.roll.get(peer), time.monotonic()
        if heard is None or now < self._redialled.get(peer, 0.0) + REDIAL_EVERY_S:
            return False
        self._redialled[peer] = now
        for address in heard.status.addresses:
            with contextlib.suppress(NetworkError, RemoteError):
                return await self._parts.network.transport.connect(address, timeout_s=SEND_TIMEOUT_S) == peer
        return False

    async def _fetch(self, contribution: Contribution, holders: tuple[PeerId, ...]) -> None:
        root = contribution.root
        self._pin(root)
        try:
            await self._fetcher.fetch(root, holders, contribution.num_bytes)
            blob = await asyncio.to_thread(self._parts.store.read, root)
            await asyncio.to_thread(self._parts.check_blob, contribution, blob)
        except RemoteError as error:
            self._happened(events.PeerMisbehaved(contribution.author, f"its contribution: {error}"[:400]))
            self.post(BlobFailed(root, f"does not decode: {error}"))
        except (NetworkError, StateError) as error:
            self.post(BlobFailed(root, str(error)))
        else:
            self.post(BlobStored(root))

    async def _catch_up(self, peers: tuple[PeerId, ...], whole: bool, reason: str) -> None:
        log.info("catching up: %s", reason)
        others = [heard.status.peer for heard in self._participant.presence.fresh(time.monotonic())]
        asked = tuple(dict.fromkeys([*peers, *others]))
        try:
            target = await self._catcher.find(asked, self._chains, whole=whole)
        except (NetworkError, RemoteError, StateError) as error:
            log.info("catching up failed: %s", error)
            self.post(CatchUpEnded(str(error)[:400]))
            return
        self._caught_up = (target.how, target.num_bytes, target.seconds)
        if isinstance(target.order, work.AdoptState):
            self._pin(*(unit.root for unit in target.order.record.units))
        else:
            self._pin(*(entry.root for commit in target.order.commits for entry in commit.commit.entries))
        self._parts.handoff.give(target.order)

    def _pin(self, *roots: Digest) -> None:
        """Keeps blobs from being collected; of very many the oldest are let go."""
        for root in roots:
            self._pinned.pop(root, None)
            self._pinned[root] = None
        while len(self._pinned) > 512:
            del self._pinned[next(iter(self._pinned))]
        self._parts.store.pin("network", self._pinned)

    def _happened(self, event: Event) -> None:
        now = time.time()
        self._parts.server.events.add(now, event)
        self._parts.record_event(now, event)

    def _cut_event(self, contribution: Contribution) -> Event:
        return events.CutMade(
            peer=contribution.author,
            version=contribution.version,
            seq=contribution.seq,
            tokens=contribution.tokens,
            steps=contribution.steps,
            num_bytes=contribution.num_bytes,
        )

    def _known_statuses(self) -> list[bytes]:
        own = self._seal(self._participant.status())
        return [own, *(heard.sealed for heard in self._participant.presence.roll.all() if not heard.left)]
