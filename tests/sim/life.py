"""A machine on the network, and one process on it: what runs there stops with a freeze and ends with a crash.

A life is the product's `Node` without sockets and tasks: it turns messages and the trainer's reports into facts, hands them
to the round machine, and carries out the effects in their order. Disk writes and reports of the trainer are played out in the
order in which the product made them, with time in between, so that a process may die between any two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

from peer import handoff as work
from swarm.chain import MAX_AGE_VERSIONS, ChainState
from swarm.digest import Digest
from swarm.errors import StateError
from swarm.identity import PeerId
from swarm.messages import PeerStatus, StateRecord, record_digest
from swarm.net.forward import ForwardLimits
from swarm.round import facts
from swarm.round.facts import (
    CutDone,
    Effect,
    Fact,
    Figures,
    HeadReached,
    Measured,
    Received,
    Resumed,
    Tick,
)
from swarm.round.own import Self
from swarm.round.participant import Participant
from swarm.round.root import Root
from tests.sim.books import Account, Vector
from tests.sim.disk import Disk, Written
from tests.sim.wires import seals_of
from tests.sim.workshop import Workshop

if TYPE_CHECKING:
    from peer.replica import Replica
    from swarm.messages import Commit
    from tests.sim.world import World

Process = Generator[float, None, Any]
"""Yields the seconds it waits for."""

ENCODE_S = 0.3
APPLY_S = 0.2
PAUSE_TICKS = 2.5  # a process that took no fact for so long did not run
SERVED = 2  # states that stay to be fetched after they were asked for
PINNED_VERSIONS = MAX_AGE_VERSIONS + 2  # as in the product's node


@dataclass
class Peer:
    """A machine on the network: what stays when its process dies."""

    number: int
    id: PeerId
    disk: Disk
    step_s: float
    slowness: float = 1.0
    is_dialable: bool = True
    introducers: frozenset[PeerId] = frozenset()  # who invited it
    clock_offset_s: float = 0.0
    clock_rate: float = 1.0  # of its monotonic clock
    wall_offset_s: float = 0.0  # of its wall clock, which dates what it pins up
    uplink_free_s: float = 0.0
    lives: int = 0
    life: Life | None = None
    words_s: dict[PeerId, float] = field(default_factory=dict)  # of leaders, by sender: when the last one was taken

    @property
    def name(self) -> str:
        return chr(ord("a") + self.number) if self.number < 26 else f"p{self.number}"


@dataclass
class Life:
    """One process of a peer, from its start to its death."""

    world: World
    peer: Peer
    number: int  # of this peer's lives
    is_alive: bool = True
    is_frozen: bool = False
    is_starting: bool = True  # its first generation is not on disk yet
    stepped_s: float = 0.0  # when the machine last took a fact
    outputs: int = 0  # writes and reports so far
    facts: int = 0  # that its machine took
    heard_s: dict[PeerId, float] = field(default_factory=dict)  # by sender
    resumed_s: float = 0.0  # since when it runs
    decided: Commit | None = None  # the last commit that it made itself,
    issued: Commit | None = None  # and the last one that it began to send
    account: Account = field(init=False)
    machine: Participant = field(init=False)
    shop: Workshop = field(init=False)
    record: StateRecord = field(init=False)  # what it serves
    log: tuple[Commit, ...] = ()
    chains: tuple[ChainState, ...] = ()  # that it can go back to, newest first
    roots: tuple[Root, ...] = ()  # of each of them
    adopting: StateRecord | None = None
    refused: frozenset[Digest] = frozenset()  # states that could not be used
    dialled: tuple[PeerId, ...] = ()
    forwards: ForwardLimits = field(default_factory=ForwardLimits)  # what it passes on for others
    served: tuple[StateRecord, ...] = ()  # lately, to whoever catches up
    held_back: list[Callable[[], None]] = field(default_factory=list)
    _pinned: dict[Digest, int] = field(default_factory=dict)
    _progress: work.Progress = field(default_factory=work.Progress)
    _is_busy: bool = False
    _view: int = 0
    _opened: tuple[PeerId, ...] = ()

    def begin(self, passed_over: int) -> None:
        """From disk, or from version 0. Raises StateError: the disk is full."""
        world, peer = self.world, self.peer
        self.stepped_s = self.resumed_s = world.now_s
        self.shop = Workshop(self, world.config, world.math, world.books)
        self.shop.begin(peer.disk, world.genesis, passed_over, 1 + int(world.now_s))
        replica = self.replica
        present = replica.present
        me = Self(peer.id, peer.name, "simulated", replica.incarnation)
        start = HeadReached(present.state.chain, record_digest(present.record), present.root)
        self.machine = Participant(me, world.config, start, seals_of(peer.id), replica.view)
        for seq in replica.pending:
            world.laws.check_told(self, replica.contributions[seq][0])
            self.machine.restore(*replica.contributions[seq])
        self.record, self.log = present.record, replica.log
        self.chains, self.roots = replica.chains, replica.roots
        self._view = replica.view
        world.laws.check_state(self)
        self._is_busy = True
        self._play()

    @property
    def replica(self) -> Replica:
        return self.shop.replica

    def theta_N(self) -> Vector:
        return self.shop.inner.theta_N()

    def clock_s(self) -> float:
        """Its monotonic clock."""
        return self.peer.clock_offset_s + self.peer.clock_rate * self.world.now_s

    # ---------------------------------------------------------------- time

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        """Runs `then` in this process: never if it is dead by then, and when it thaws if it is frozen."""
        self.world.at(self.world.now_s + seconds, partial(self.run, then))

    def run(self, then: Callable[[], None]) -> None:
        if self.is_alive:
            if self.is_frozen:
                self.held_back.append(then)
            else:
                then()

    def spawn(self, process: Process) -> None:
        """Runs a process of waits to its end."""

        def go_on() -> None:
            for wait_s in process:
                self.after(wait_s, go_on)
                return

        go_on()

    # ---------------------------------------------------------------- the round machine

    def take(self, fact: Fact) -> None:
        """One step of the machine, its laws, and its effects."""
        world, machine = self.world, self.machine
        gap_s, self.stepped_s = world.now_s - self.stepped_s, world.now_s
        if gap_s > PAUSE_TICKS * world.tick_s:
            self.take(Resumed(gap_s * self.peer.clock_rate))
        world.num_events += 1
        before, root = machine.chain, machine.turn.root
        known = machine.presence.roll.get(fact.message.peer) if _is_status(fact) else None
        before_s = -math.inf if known is None else known.at_s
        knew_nobody = machine.turn.is_among_strangers
        effects = machine.step(fact, self.clock_s())
        if _is_status(fact):
            world.laws.check_age(self, fact, before_s)
        if machine.chain is not before:
            world.laws.check_move(self, before, root, knew_nobody=knew_nobody)
            world.has_moved = True
        world.laws.check_step(self, fact)
        if effects:
            world.laws.check_effects(self, effects)
            self._perform(effects)
        if machine.view != self._view:
            self._view = machine.view
            self.give(work.SetView(self._view))
        if machine.opened != self._opened:
            self._opened = machine.opened
            if self._opened:
                self.give(work.OpenRound(self._opened))

    def _perform(self, effects: list[Effect]) -> None:
        for place, effect in enumerate(effects):
            if self.world.fate.strikes(self, effect):
                self.run(partial(self._perform, effects[place:]))  # later if it is frozen, never if it is dead
                return
            self.world.perform(self, effect)

    def tick(self) -> None:
        self.take(Tick())
        self.go_on()  # what only the time allows: training on beside a contribution that waits for too long

    # ---------------------------------------------------------------- the trainer

    def give(self, order: work.Order) -> None:
        self.shop.handoff.orders.append(order)
        self.go_on()

    def go_on(self) -> None:
        """One pass of the training loop, if it stands still and something is due."""
        if self._is_busy or not self.is_alive:
            return
        trainer, orders, peer = self.shop.trainer, self.shop.handoff.orders, self.peer
        now_s = self.world.now_s
        if orders:
            seconds = APPLY_S if isinstance(orders[0], work.ApplyCommits | work.AdoptState) else 0.0
        elif trainer._must_cut():
            seconds = ENCODE_S * peer.slowness
        elif self.shop.may_step(now_s):
            seconds = peer.step_s * peer.slowness
        elif self.shop.waits_for(now_s) != self._progress.waits_for:
            seconds = 0.0  # it says so
        else:
            return
        self._is_busy = True
        try:
            self.shop.turn(now_s)
        except StateError as error:
            self.world.say(f"{peer.name} ends: {error}")
            self.world.fate.ended(peer)
            self.is_alive = False  # also one that was just about to begin
            return
        self.after(seconds, self._play)

    def _play(self) -> None:
        """Carries out what the last turn wrote and reported, one by one."""
        out = self.shop.handoff.out
        while out and self.is_alive:
            self.outputs += 1
            if self.world.fate.strikes_output(self):
                self.run(self._play)
                return
            one = out.popleft()
            if isinstance(one, Written):
                self.after(self.peer.disk.write_s, partial(self._written, one))
                return
            self._reported(one)
        self._is_busy = False
        self.go_on()

    def _written(self, written: Written) -> None:
        self.peer.disk.write(written)
        self.is_starting = False
        self._play()

    def _reported(self, report: work.Report) -> None:
        match report:
            case work.Progress():
                self._progress = report
                self._measure()
            case CutDone():
                self.world.laws.check_told(self, report.contribution)
                self.pin(report.contribution.root)
                self.take(report)
            case work.Moved():
                self._moved(report)
            case work.MoveFailed():
                if self.adopting is not None:
                    self.refused |= {record_digest(self.adopting)}
                    self.adopting = None
                self.take(facts.MoveFailed())

    def _moved(self, moved: work.Moved) -> None:
        self.record, self.log, self.chains, self.roots = moved.record, moved.log, moved.chains, moved.roots
        self.adopting = None
        oldest = moved.record.chain.version - PINNED_VERSIONS
        self._pinned = {root: version for root, version in self._pinned.items() if version >= oldest}
        self.pin()
        self.take(HeadReached(moved.record.chain, record_digest(moved.record), moved.roots[0], moved.still_pending))

    def _measure(self) -> None:
        one = self._progress
        figures = Figures(one.tokens_since_cut, one.steps_since_cut, waits_for=one.waits_for, dialled=self.dialled)
        self.take(Measured(figures))

    def dial(self, others: tuple[PeerId, ...]) -> None:
        """These answered a fresh dial."""
        if others != self.dialled:
            self.dialled = others
            self._measure()

    # ---------------------------------------------------------------- blobs

    def pin(self, *roots: Digest) -> None:
        for root in roots:
            self._pinned[root] = self.machine.chain.version
        self.shop.store.pin("network", self._pinned)

    def serve_state(self) -> StateRecord:
        """Its state, for somebody else: its blobs stay here for a while."""
        if self.record not in self.served:
            self.served = (*self.served, self.record)[-SERVED:]
            self.shop.store.pin("served", [unit.root for record in self.served for unit in record.units])
        return self.record

    def has(self, root: Digest) -> bool:
        return self.shop.store.has(root)


def _is_status(fact: Fact) -> TypeGuard[Received]:
    return type(fact) is Received and type(fact.message) is PeerStatus
