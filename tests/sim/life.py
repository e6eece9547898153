"""A machine on the network, and one process on it: what runs there stops with a freeze and ends with a crash."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.round.facts import Effect, Fact
from swarm.round.participant import Participant
from tests.sim.stub_trainer import Disk, StubTrainer

if TYPE_CHECKING:
    from tests.sim.world import World

Process = Generator[float, None, Any]
"""Yields the seconds it waits for."""


@dataclass
class Peer:
    """A machine on the network: what stays when its process dies."""

    number: int
    id: PeerId
    disk: Disk
    step_s: float
    slowness: float = 1.0
    uplink_free_s: float = 0.0
    life: Life | None = None

    @property
    def name(self) -> str:
        return chr(ord("a") + self.number)


@dataclass
class Life:
    """One process of a peer, from its start to its death."""

    world: World
    peer: Peer
    machine: Participant
    is_alive: bool = True
    is_frozen: bool = False
    held_back: list[Callable[[], None]] = field(default_factory=list)
    trainer: StubTrainer = field(init=False)

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        """Runs `then` in this process: never if it is dead by then, and when it thaws if it is frozen."""
        self.world.at(self.world.now_s + seconds, lambda: self.run(then))

    def run(self, then: Callable[[], None]) -> None:
        if self.is_alive and self.is_frozen:
            self.held_back.append(then)
        elif self.is_alive:
            then()

    def spawn(self, process: Process) -> None:
        """Runs a process of waits to its end."""

        def go_on() -> None:
            for wait_s in process:
                self.after(wait_s, go_on)
                return

        go_on()

    def take(self, fact: Fact) -> None:
        """One step of the machine, its laws, and its effects."""
        before = self.machine.chain
        effects = self.machine.step(fact, self.world.now_s)
        if self.machine.chain is not before:
            self.world.check_move(self, before, self.machine.chain)
        self._perform(effects)

    def _perform(self, effects: list[Effect]) -> None:
        for place, effect in enumerate(effects):
            if self.world.fate.strikes(self, effect):
                self.run(partial(self._perform, effects[place:]))  # later if it is frozen, never if it is dead
                return
            self.world.perform(self, effect)
        self.trainer.go_on()

    def store(self, root: Digest) -> None:
        self.trainer.now = replace(self.trainer.now, blobs=self.trainer.now.blobs | {root})
        self.peer.disk = replace(self.peer.disk, blobs=self.trainer.now.blobs)
