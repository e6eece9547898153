"""Makes the faults of a world happen, and remembers which did."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from swarm.messages import Commit, CutHint, Goodbye
from swarm.round.facts import Effect, Fetch, RequestCut, Send
from tests.sim.faults import Crash, DiskFull, Fault, Freeze, Join, Leave, Lossy, Partition, Phase, Slow, StrikeLeader
from tests.sim.life import Life, Peer
from tests.sim.wires import seal

if TYPE_CHECKING:
    from tests.sim.world import World


class Fate:
    """Faults by time are timers; those by phase strike when a leader is about to carry out an effect."""

    def __init__(self, world: World) -> None:
        self.faults: tuple[Fault, ...] = ()
        self.fired: set[Fault] = set()
        self.full_disks: set[int] = set()
        self._world = world

    def schedule(self, fault: Fault) -> None:
        """One more fault, in the future."""
        self.faults = (*self.faults, fault)
        match fault:
            case Crash(number, at_s, back_s):
                self._when(fault, at_s, lambda: self._world.crash(self._world.peers[number], back_s))
            case Freeze(number, from_s, to_s):
                self._when(fault, from_s, lambda: self._world.freeze(self._world.peers[number], to_s))
            case Partition(_, from_s, to_s):
                self._when(fault, from_s, lambda: self._world.traffic.partitions.add(fault))
                self._world.at(to_s, lambda: self._world.traffic.partitions.discard(fault))
            case Slow(number, factor, from_s, to_s):
                self._when(fault, from_s, lambda: setattr(self._world.peers[number], "slowness", factor))
                self._world.at(to_s, lambda: setattr(self._world.peers[number], "slowness", 1.0))
            case DiskFull(number, from_s, to_s):
                self._world.at(from_s, lambda: self.full_disks.add(number))
                self._world.at(to_s, lambda: self.full_disks.discard(number))
            case Lossy(_, _, from_s, to_s):
                self._world.at(from_s, lambda: setattr(self._world.traffic, "lossy", fault))
                self._world.at(to_s, lambda: setattr(self._world.traffic, "lossy", None))
            case Join(at_s):
                peer = self._world.add_peer(at_s)
                self._when(fault, at_s, lambda: self._world.say(f"{peer.name} joins"))
            case Leave(number, at_s):
                self._when(fault, at_s, lambda: self._leave(self._world.peers[number]))
            case StrikeLeader():
                pass  # strikes when its phase comes

    def may_write(self, peer: Peer) -> bool:
        """Whether a peer can write its state now."""
        if peer.number in self.full_disks:
            self.fired |= {fault for fault in self.faults if isinstance(fault, DiskFull) and fault.peer == peer.number}
        return peer.number not in self.full_disks

    def _when(self, fault: Fault, at_s: float, do: Callable[[], Any]) -> None:
        def happen() -> None:
            self.fired.add(fault)
            do()

        self._world.at(at_s, happen)

    def _leave(self, peer: Peer) -> None:
        life = peer.life
        if life is None:
            return
        life.machine.leaving = True
        goodbye = Goodbye("left on purpose")
        for heard in life.machine.presence.roll.all():
            self._world.traffic.send(life, heard.status.peer, goodbye, seal(peer.id, goodbye))
        self._world.crash(peer, None)

    def strikes(self, life: Life, effect: Effect) -> bool:
        """Whether a fault hits this process instead of the effect that it is about to carry out."""
        for fault in self.faults:
            if isinstance(fault, StrikeLeader) and fault not in self.fired and self._is_due(fault, life, effect):
                self.fired.add(fault)
                if fault.freeze:
                    self._world.freeze(life.peer, self._world.now_s + (fault.back_after_s or 0.0))
                else:
                    back_s = None if fault.back_after_s is None else self._world.now_s + fault.back_after_s
                    self._world.crash(life.peer, back_s)
                return True
        return False

    def _is_due(self, fault: StrikeLeader, life: Life, effect: Effect) -> bool:
        machine = life.machine
        if not machine.is_leader or machine.chain.version != fault.version:
            return False
        sends_commit = isinstance(effect, Send) and isinstance(effect.message, Commit)
        if fault.phase is Phase.COMMITTING:
            return sends_commit
        if fault.phase is Phase.ONE_TOLD:
            self._world.traffic.sent["Commit of the struck"] += sends_commit
            return sends_commit and self._world.traffic.sent["Commit of the struck"] == 2
        if fault.phase is Phase.HINTED:
            return isinstance(effect, RequestCut)
        if fault.phase is Phase.ANNOUNCED:
            return isinstance(effect, Fetch)
        return not (isinstance(effect, Send) and isinstance(effect.message, CutHint))  # TRAINING: its first effect
