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
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final

from peer import fault_point
from peer import handoff as work
from peer.catch_up import Catcher
from peer.checkpoints import serve
from peer.clock import awake_or_asleep_s
from peer.discovery import Discovery
from peer.loss_watch import LossWatch
from peer.node_parts import NodeParts
from peer.refusals import Refusals
from peer.serve import ROUND_PINS
from swarm import events
from swarm.chain import ChainState
from swarm.digest import Digest
from swarm.errors import MalformedBytes, NetworkError, RemoteError, StateError
from swarm.events import Event
from swarm.identity import PeerId
from swarm.messages import Contribution, Goodbye, KnownStatus, PeerStatus, StateRecord, record_digest
from swarm.round.catch_up import CatchUpRequest
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
    MoveFailed,
    MoveTo,
    Received,
    RequestCut,
    Resumed,
    Send,
    Tick,
    Unreached,
    WayFound,
)
from swarm.round.own import HELD_VERSIONS
from swarm.round.participant import Participant
from swarm.round.root import Root
from swarm.schema import line

log = logging.getLogger(__name__)

TICK_S: Final = 0.1
MAX_GAP_S: Final = 2.0  # between two facts: more means that this process did not run, however busy the machine is
SEND_TIMEOUT_S: Final = 5.0  # a control message is small: whoever takes longer counts as not reached
MAX_SENDS_PER_PEER: Final = 32  # under way to one peer; more would only queue behind a frozen one
GOODBYE_TIMEOUT_S: Final = 1.0
CHECKED_AT_ONCE: Final = 2  # contributions that are decoded to see whether they can be: each is whole in memory
_ROOM_BYTES: Final = 1 << 20  # that a contribution may have beyond the bytes of the whole state: its header
_MAX_LOSS: Final = 1e6  # that a status can carry


class Node:
    """Runs until `leave`; afterwards the swarm has been told."""

    def __init__(self, parts: NodeParts, chains: tuple[ChainState, ...], roots: tuple[Root, ...]) -> None:
        self._parts = parts
        self._participant = parts.participant
        self._fetcher = parts.fetcher
        self._catcher = Catcher(parts.asker, self._fetcher, parts.verifier, parts.lease)
        self._chains, self._roots = chains, roots  # that the trainer can go back to, newest first
        self._progress = work.Progress()
        self._checkpoint_version: int | None = max(parts.server.checkpoints, default=None)
        self._sends: Counter[PeerId] = Counter()  # under way, by receiver
        self._sealed: tuple[object, bytes] = (None, b"")  # the last message that was sealed: often for several peers
        self._pinned: dict[Digest, int] = {}  # contributions, and the version at which each was last wanted
        self._undecodable: set[Digest] = set()  # contributions of the last versions, told once
        self._checks = asyncio.Semaphore(CHECKED_AT_ONCE)
        self._reports: asyncio.Queue[work.Report] = asyncio.Queue()
        self._adopting: StateRecord | None = None
        self._effects: set[asyncio.Task[None]] = set()
        self._tasks: asyncio.TaskGroup
        own_doors = (self._received, lambda peer, status: self._perform(Send(peer, status)), self._happened)
        parts.routes.learn_from(parts.participant.presence)
        self._reach = parts.reach
        self._posted_s = awake_or_asleep_s()
        self._discovery = Discovery(parts.participant, parts.network, parts.asker, parts.book, own_doors)
        self._left = asyncio.Event()
        self._saved_view = parts.participant.view
        self._caught_up: tuple[str, int, float] | None = None
        self._opened: tuple[PeerId, ...] = ()
        self._restarts = parts.network.num_restarts
        self._losses = LossWatch()
        self._moved_at_s = (0.0, 0.0)  # seconds of sending and receiving blobs at the last head
        self._refusals = Refusals(self._tell)
        parts.server.connect(self._received, self._known_statuses, parts.participant.status)
        parts.server.on_refused = lambda peer, why: self._happened(events.PeerMisbehaved(peer, why))

    # ---------------------------------------------------------------- life

    async def run(self, *first: Event) -> None:
        """Serves, beats and follows the round until `leave` was called; raises what the network cannot survive."""
        async with asyncio.TaskGroup() as self._tasks:
            loop = asyncio.get_running_loop()
            self._parts.network.transport.serve(self._parts.server.handle)
            for event in first:
                self._happened(event)
            self._parts.handoff.listen(loop, self._reports.put_nowait)
            own = [
                self._tasks.create_task(self._ticker(), name="ticker"),
                self._tasks.create_task(self._discovery.run(), name="discovery"),
                self._tasks.create_task(self._reach.run(), name="reach"),
                self._tasks.create_task(self._hear_trainer(), name="reports"),
            ]
            await self._left.wait()
            for task in own:
                task.cancel()
            await self._say_goodbye()
            for effect in self._effects:
                effect.cancel()

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
        fresh = self._participant.presence.fresh(awake_or_asleep_s())
        return tuple(heard.status.name for heard in fresh if heard.status.version < own)

    async def _say_goodbye(self) -> None:
        heard = self._participant.farewells()
        sealed = self._seal(Goodbye("left on purpose", self._participant.me.incarnation))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                request = self._parts.routes.request
                sends = (request(peer, sealed, timeout_s=GOODBYE_TIMEOUT_S) for peer in heard)
                await asyncio.gather(*sends, return_exceptions=True)

    async def _ticker(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._measure()
            self.post(Tick())
            self._refusals.look()
            if self._parts.network.num_restarts != self._restarts:
                self._restarts = self._parts.network.num_restarts
                self._happened(events.DaemonRestarted(self._participant.me.peer, "the network daemon had died"))

    async def _hear_trainer(self) -> None:
        """A task of the group, so that what goes wrong in here rises instead of being logged by the loop."""
        while True:
            self._reported(await self._reports.get())

    # ---------------------------------------------------------------- facts in

    def post(self, fact: Fact) -> None:
        """One step of the machine, and its effects. Whoever has left takes nothing in any more."""
        if self._left.is_set():
            return
        now_s = awake_or_asleep_s()
        gap_s, self._posted_s = now_s - self._posted_s, now_s
        if gap_s > MAX_GAP_S:  # ticks are much closer: this process was stopped, or the machine slept
            log.warning("this process did not run for %.1f s", gap_s)
            self.post(Resumed(gap_s))
        effects = self._participant.step(fact, now_s)
        fault_point.stands(self._participant)
        for effect in effects:
            self._perform(effect)
        if self._participant.view != self._saved_view:
            self._saved_view = self._participant.view
            self._parts.handoff.give(work.SetView(self._saved_view))
        if self._participant.opened != self._opened:
            self._opened = self._participant.opened
            if self._opened:
                self._parts.handoff.give(work.OpenRound(self._opened))

    def _received(self, sender: PeerId, message: Any, sealed: bytes, age_s: float | None = None) -> None:
        self.post(Received(sender, message, sealed, age_s))
        if isinstance(message, PeerStatus) and message.heldout_version <= self._participant.chain.version:
            self._learn_loss(message.heldout_version, message.heldout_loss)

    def _learn_loss(self, version: int, loss: float | None) -> None:
        jumped = None if loss is None else self._losses.learn(version, loss)
        if jumped is not None:
            self._happened(jumped)

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
                if self._adopting is not None:
                    self._catcher.refuse(self._adopting)
                    self._adopting = None
                self.post(MoveFailed())
            case work.Kept(record):
                serve(self._parts.store, report)
                self._parts.server.checkpoints[record.version] = report
                self._checkpoint_version = record.version
                self._happened(events.CheckpointKept(record.version, sum(file.num_bytes for file in record.files)))
            case work.Evaluation(version, loss):
                if _loss(loss) is not None:
                    self._happened(events.Evaluated(version, loss))
                    self._learn_loss(version, loss)
            case work.CheckpointSkipped(version, reason):
                self._happened(events.CheckpointSkipped(self._participant.me.peer, version, line(reason)))
            case work.StepDropped(reason):
                self._happened(events.StepNotApplied(self._participant.me.peer, line(reason)))
            case work.TrainerEnded():
                self.leave()

    def _moved(self, moved: work.Moved) -> None:
        self._parts.server.state, self._parts.server.log = moved.record, moved.log
        undone = work.undone_commits(self._chains, moved)
        self._chains, self._roots = moved.chains, moved.roots
        self._adopting = None
        self._moved_at_s = (self._parts.network.up_s, self._parts.network.down_s)
        oldest = (
            moved.record.chain.version - HELD_VERSIONS
        )  # what was listed since is pinned with the log that is saved
        self._pinned = {root: version for root, version in self._pinned.items() if version >= oldest}
        self._pin()
        self._undecodable.clear()
        me = self._participant.me.peer
        if moved.dropped_tokens:
            self._happened(events.WorkDropped(me, moved.dropped_tokens, "our own state was wrong"))
        if undone:
            self._happened(events.Undone(moved.record.chain.version, undone, "another fork ranks higher"))
        if moved.caught_up and self._caught_up is not None:
            how, num_bytes, seconds = self._caught_up
            self._happened(events.CaughtUp(me, moved.record.chain.version, how, num_bytes, seconds))
        elif moved.log:
            roster = moved.record.chain.roster
            self._parts.server.note_round(moved.log[-1], sum(map(moved.record.chain.is_dialable, roster)))
        self._measure()
        self.post(HeadReached(moved.record.chain, record_digest(moved.record), moved.roots[0], moved.still_pending))

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
                    train_loss=_loss(progress.train_loss),
                    heldout_loss=_loss(progress.heldout_loss),
                    heldout_version=progress.heldout_version,
                    checkpoint_version=self._checkpoint_version,
                    addresses=network.addresses[:8],
                    dialled=self._reach.dialled,
                    time=replace(
                        progress.time,
                        upload_s=max(0.0, network.up_s - self._moved_at_s[0]),
                        download_s=max(0.0, network.down_s - self._moved_at_s[1]),
                    ),
                    waits_for=progress.waits_for,
                )
            )
        )

    # ---------------------------------------------------------------- effects out

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, message, sealed):
                if self._sends[to] < MAX_SENDS_PER_PEER:
                    self._sends[to] += 1
                    send = self._send(to, self._seal(message) if sealed is None else sealed)
                    self._spawn(fault_point.telling(message, send))
            case RequestCut(reason):
                self._parts.handoff.give(work.CutNow(reason))
            case Fetch(contribution, holders):
                self._spawn(self._fetch(contribution, holders))
            case MoveTo(commit, root):
                fault_point.reached("commit-accepted")
                self._parts.handoff.give(work.ApplyCommits(commit.parent, (commit,), (root,)))
            case CatchUp():
                self._spawn(self._catch_up(effect))
            case Happened(event):
                self._happened(event)

    def _spawn(self, task: Coroutine[Any, Any, None]) -> None:
        effect = self._tasks.create_task(task, name="effect")
        self._effects.add(effect)
        effect.add_done_callback(self._effects.discard)

    def _seal(self, message: object) -> bytes:
        if self._sealed[0] is not message:
            self._sealed = (message, self._parts.asker.seal(message))
        return self._sealed[1]

    async def _send(self, to: PeerId, sealed: bytes) -> None:
        try:
            await self._parts.routes.request(to, sealed, timeout_s=SEND_TIMEOUT_S)
        except (NetworkError, RemoteError) as error:
            log.debug("%s was not reached: %s", to, error)
            self.post(Unreached(to))
        finally:
            self._sends[to] -= 1
            if not self._sends[to]:
                del self._sends[to]

    async def _fetch(self, contribution: Contribution, holders: tuple[PeerId, ...]) -> None:
        root = contribution.root
        self._pin(root)
        try:
            self._check_length(contribution)
            await self._fetcher.fetch(root, (*holders, contribution.author), contribution.num_bytes)
            async with self._checks:
                await asyncio.to_thread(self._check, contribution)
        except RemoteError as error:
            if root not in self._undecodable:
                self._undecodable.add(root)
                self._happened(events.PeerMisbehaved(contribution.author, line(f"its contribution: {error}")))
            self.post(BlobFailed(root, f"does not decode: {error}"))
        except NetworkError as error:
            self.post(BlobFailed(root, str(error)))
        except StateError as error:
            log.warning("a contribution cannot be kept: %s", error)
            self.post(BlobFailed(root, str(error)))
        else:
            self._pin(root)  # for as long as the machine says that it is here
            self.post(BlobStored(root))

    def _check_length(self, contribution: Contribution) -> None:
        """Raises RemoteError for one that is longer than any of this run can be: it would only fill the disk."""
        if contribution.root in self._undecodable:
            raise MalformedBytes("it did not decode")
        state = self._parts.server.state
        most = sum(unit.num_bytes for unit in state.units) + _ROOM_BYTES if state is not None else None
        if most is not None and contribution.num_bytes > most:
            raise MalformedBytes(f"{contribution.num_bytes} bytes where at most {most} are due")

    def _check(self, contribution: Contribution) -> None:
        """In a thread. Raises StateError for a blob that the disk changed, RemoteError for one that does not decode."""
        self._parts.check_blob(contribution, self._parts.store.read(contribution.root, check=True))

    async def _catch_up(self, wish: CatchUp) -> None:
        log.info("catching up: %s", wish.reason)
        head = self._chains[0].head

        def begins() -> bool:
            self.post(WayFound(head))
            return self._participant.is_moving_on

        request = CatchUpRequest(
            me=self._participant.me.peer,
            peers=self._participant.presence.to_ask(wish.peers, awake_or_asleep_s()),
            chains=self._chains,
            roots=self._roots,
            stands=self._participant.turn.stands(),
            views=self._participant.turn.acceptable_views,
            is_among_strangers=self._participant.turn.is_among_strangers,
            introducers=self._parts.introducers,
            units=() if self._parts.server.state is None else self._parts.server.state.units,
            whole=wish.whole,
            digest=self._participant.state_digest,
        )
        try:
            target = await self._catcher.find(request, begins)
        except (NetworkError, RemoteError, StateError) as error:
            log.info("catching up failed: %s", error)
            self.post(CatchUpEnded(line(error), is_refused=getattr(error, "is_refused", False)))
            return
        if target.left_tokens:
            me = self._participant.me.peer
            self._happened(events.WorkDropped(me, target.left_tokens, "our branch was left"))
        self._caught_up = (target.how, target.num_bytes, target.seconds)
        if isinstance(target.order, work.AdoptState):
            self._adopting = target.order.record
        self._parts.handoff.give(target.order)

    def _pin(self, *roots: Digest) -> None:
        """Keeps contributions from being collected for the next few versions."""
        for root in roots:
            self._pinned[root] = self._participant.chain.version
        self._parts.store.pin(ROUND_PINS, self._pinned)

    def _happened(self, event: Event) -> None:
        self._refusals.happened(event)

    def _tell(self, event: Event) -> None:
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

    def _known_statuses(self) -> list[KnownStatus]:
        own, now_s = self._seal(self._participant.status()), awake_or_asleep_s()
        others = (heard for heard in self._participant.presence.roll.all() if not heard.left)
        return [KnownStatus(own, 0.0), *(KnownStatus(heard.sealed, max(0.0, now_s - heard.at_s)) for heard in others)]


def _loss(loss: float | None) -> float | None:
    """A loss that a status can carry; None for one of a model that has diverged."""
    return loss if loss is not None and 0.0 <= loss <= _MAX_LOSS else None
