"""Makes the faults of a world happen, and remembers which did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from swarm.digest import digest_of
from swarm.identity import PeerId
from swarm.messages import Commit, CutHint, Goodbye, NewView, PeerStatus
from swarm.round.facts import Effect, Fetch, Received, RequestCut, Send
from tests.sim import faults as kinds
from tests.sim.disk import WRITE_S
from tests.sim.faults import Disk, Fault, Join, Partition, Phase, StrikeEffect, StrikeLeader, StrikeOutput
from tests.sim.forgery import Forgery, forge
from tests.sim.life import Life, Peer, Process
from tests.sim.wires import seal, unseal

if TYPE_CHECKING:
    from tests.sim.world import World

USURPS_EVERY_S = 4.0
VOUCHES_EVERY_S = 2.0
LATENCY_S = 0.05


class Fate:
    """Faults by time are timers; those by phase strike when a leader is about to carry out an effect."""

    def __init__(self, world: World) -> None:
        self.faults: tuple[Fault, ...] = ()
        self.fired: set[Fault] = set()
        self.withheld: set[int] = set()
        self.liars: set[int] = set()
        self.forgeries: dict[int, Forgery] = {}
        self._strikes: list[StrikeLeader | StrikeEffect] = []
        self._output_strikes: dict[int, list[StrikeOutput]] = {}
        self._world = world

    def schedule(self, fault: Fault) -> None:
        """One more fault, in the future."""
        self.faults = (*self.faults, fault)
        world = self._world
        match fault:
            case kinds.Crash(number, at_s, back_s, disk):
                self._when(fault, at_s, lambda: world.crash(world.peers[number], back_s, disk))
            case kinds.Freeze(number, from_s, to_s):
                self._when(fault, from_s, lambda: world.freeze(world.peers[number], to_s))
            case Partition(_, from_s, to_s):
                self._while(fault, world.traffic.partitions.add, world.traffic.partitions.discard)
            case kinds.Slow(number, factor):
                self._set(fault, world.peers[number], "slowness", factor, 1.0)
            case kinds.SlowDisk(number, write_s):
                self._set(fault, world.peers[number].disk, "write_s", write_s, WRITE_S)
            case kinds.DiskFull(number):
                self._set(fault, world.peers[number].disk, "is_full", True, False)
            case kinds.SlowLink():
                self._while(fault, world.traffic.slow_links.add, world.traffic.slow_links.discard)
            case kinds.Lossy():
                self._set(fault, world.traffic, "lossy", fault, None)
            case kinds.Skew(number, rate, wall_offset_s):
                peer = world.peers[number]
                peer.clock_rate, peer.wall_offset_s = rate, wall_offset_s
                peer.clock_offset_s = 1000.0 * number
                self.fired.add(fault)
            case kinds.Hidden(number):
                world.peers[number].is_dialable = False
                self.fired.add(fault)
            case kinds.Withhold(peers):
                self._while(fault, lambda _: self.withheld.update(peers), lambda _: self.withheld.clear())
            case kinds.Liar(number):
                self._while(fault, lambda _: self.liars.add(number), lambda _: self.liars.discard(number))
            case kinds.Usurper(number, from_s):
                self._when(fault, from_s, lambda: self._usurp(fault))
            case kinds.Forger():
                self._while(fault, self._forge, lambda one: self.forgeries.pop(one.peer, None))
            case kinds.BitFlip(number, at_s):
                self._when(fault, at_s, lambda: self._flip(world.peers[number]))
            case Join(at_s, count, over_s, introducer):
                for turn in range(count):
                    begin_s = at_s + (over_s * turn / count if count > 1 else 0.0)
                    peer = world.add_peer(begin_s)
                    peer.introducers = frozenset() if introducer is None else frozenset({world.peers[introducer].id})
                    self._when(fault, begin_s, lambda name=peer.name: world.say(f"{name} joins"))
            case kinds.Leave(number, at_s):
                self._when(fault, at_s, lambda: self._leave(world.peers[number]))
            case StrikeLeader() | StrikeEffect():
                self._strikes.append(fault)
            case StrikeOutput(number):
                self._output_strikes.setdefault(number, []).append(fault)

    # ---------------------------------------------------------------- by time

    def _when(self, fault: Fault, at_s: float, do: Callable[[], Any]) -> None:
        def happen() -> None:
            self.fired.add(fault)
            self._world.laws.disturbed()
            do()

        self._world.at(at_s, happen)

    def _while(self, fault: Any, begin: Callable[[Any], Any], end: Callable[[Any], Any]) -> None:
        self._when(fault, fault.from_s, lambda: begin(fault))
        self._world.at(fault.to_s, lambda: (end(fault), self._world.laws.disturbed()))

    def _set(self, fault: Any, what: object, name: str, value: Any, usual: Any) -> None:
        self._while(fault, lambda _: setattr(what, name, value), lambda _: setattr(what, name, usual))

    def _leave(self, peer: Peer) -> None:
        life = peer.life
        if life is None:
            return
        life.machine.leaving = True
        goodbye = Goodbye("left on purpose", life.machine.me.incarnation)
        for heard in life.machine.presence.roll.all():
            self._world.traffic.send(life, heard.status.peer, goodbye, seal(peer.id, goodbye))
        self._world.crash(peer, None)

    def ended(self, peer: Peer) -> None:
        """A process ended by itself: it could not write. Its owner starts it again once there is room."""
        full = [fault for fault in self.faults if isinstance(fault, kinds.DiskFull) and fault.peer == peer.number]
        back_s = max([fault.to_s for fault in full if fault.from_s <= self._world.now_s], default=0.0)
        again_s = max(back_s, self._world.now_s) + 2.0
        if peer.life is None:
            self._world.at(again_s, lambda: self._world.restart(peer))
        else:
            self._world.crash(peer, again_s)

    def _usurp(self, fault: kinds.Usurper) -> None:
        """Its own contribution, committed by itself in views that it has no right to, or that are out of all proportion."""

        def usurping(life: Life) -> Process:
            turn = 0
            while self._world.now_s < fault.to_s:
                turn += 1
                self._claim(life, turn)
                yield USURPS_EVERY_S

        life = self._world.peers[fault.peer].life
        if life is not None:
            life.spawn(usurping(life))

    def _claim(self, life: Life, turn: int) -> None:
        machine, me = life.machine, life.peer.id
        chain, roster = machine.chain, machine.chain.roster
        if me not in roster or machine.is_leader or len(roster) < 2:
            return
        view = machine.view + (1 + turn % 3) * len(roster)  # another turn of the rightful leader's, who is not it
        if turn % 2:
            view += (roster.index(me) - view) % len(roster)  # its own view, two to four turns ahead
            view += len(roster)
        messages: list[object] = [NewView(view, chain.head, 1), CutHint(view, chain.head, "because I say so")]
        commit = self._world.traffic.lone_commit(life, view)
        messages += [] if commit is None else [commit]
        for peer in roster:
            for message in messages if peer != me else ():
                self._world.traffic.send(life, peer, message, seal(me, message))

    def _forge(self, fault: kinds.Forger) -> None:
        """Once it stands somewhere: a branch from there, which its ids vouch for again and again."""
        life = self._world.peers[fault.peer].life
        if life is None:
            return
        forgery = self.forgeries[fault.peer] = forge(self._world, life, fault.lie, fault.ids)
        for one in forgery.ids:
            self._world.speak_for(one, life.peer)

        def vouching(life: Life) -> Process:
            while self.forgeries.get(fault.peer) is forgery:
                for one in forgery.ids:
                    self._vouch(life, one, forgery)
                yield VOUCHES_EVERY_S

        life.spawn(vouching(life))

    def _vouch(self, life: Life, one: PeerId, forgery: Forgery) -> None:
        for other in self._world.lives():
            if other is not life and not self._world.traffic.is_cut(life.peer, other.peer):
                status = forgery.status(life.machine.status(), one)
                raw = seal(one, status)
                other.after(LATENCY_S, partial(other.take, Received(one, unseal(raw)[1], raw)))

    def _flip(self, peer: Peer) -> None:
        if peer.life is not None:
            machine = peer.life.machine
            machine.state_digest = digest_of("another state", machine.state_digest.raw)

    def lied(self, peer: Peer, message: object) -> object:
        """What a peer says instead, while it lies."""
        if not isinstance(message, PeerStatus) or message.peer != peer.id:
            return message
        if peer.number in self.forgeries:
            return self.forgeries[peer.number].status(message, peer.id)
        if peer.number not in self.liars:
            return message
        made_up = digest_of("made up", message.head.raw)
        return replace(message, head=made_up, version=message.version + 5, tokens=message.tokens + (1 << 30))

    # ---------------------------------------------------------------- by phase

    def strikes(self, life: Life, effect: Effect) -> bool:
        """Whether a fault hits this process instead of the effect that it is about to carry out."""
        if not self._strikes:
            return False
        for fault in self._strikes:
            if self._is_due(fault, life, effect):
                self._strikes.remove(fault)
                self.fired.add(fault)
                self._strike(life, fault.back_after_s, fault.freeze)
                return True
        return False

    def strikes_output(self, life: Life) -> bool:
        """Whether a fault kills this process in front of a write or report of its trainer."""
        for fault in self._output_strikes.get(life.peer.number, ()):
            if life.peer.lives == 1 and life.outputs >= fault.output:
                self._output_strikes[life.peer.number].remove(fault)
                self.fired.add(fault)
                self._strike(life, fault.back_after_s, False)
                return True
        return False

    def _strike(self, life: Life, back_after_s: float | None, freeze: bool) -> None:
        self._world.laws.disturbed()
        if freeze:
            self._world.freeze(life.peer, self._world.now_s + (back_after_s or 0.0))
        else:
            self._world.crash(life.peer, None if back_after_s is None else self._world.now_s + back_after_s)

    def _is_due(self, fault: StrikeLeader | StrikeEffect, life: Life, effect: Effect) -> bool:
        machine, sent = life.machine, self._world.traffic.sent
        if machine.chain.version != fault.version or not machine.is_leader:
            return False
        if isinstance(fault, StrikeEffect):
            sent[f"effects at {fault.version}"] += 1
            return sent[f"effects at {fault.version}"] >= fault.effect
        sends_commit = isinstance(effect, Send) and isinstance(effect.message, Commit)
        if fault.phase is Phase.COMMITTING:
            return sends_commit
        if fault.phase is Phase.ONE_TOLD:
            sent["Commit of the struck"] += sends_commit
            return sends_commit and sent["Commit of the struck"] == 2
        if fault.phase is Phase.HINTED:
            return isinstance(effect, RequestCut)
        if fault.phase is Phase.ANNOUNCED:
            return isinstance(effect, Fetch)
        return not (isinstance(effect, Send) and isinstance(effect.message, CutHint))  # TRAINING: its first effect


def passed_over(peer: Peer, disk: Disk) -> int:
    """How many generations a peer finds damaged when it comes back; never all of them."""
    written = peer.disk.generations
    if disk is not Disk.OLDER or len(written) < 2:
        return 0
    older = written[1].saved
    return int(older.blobs() <= peer.disk.blobs.keys())
