"""Whole swarms under one heap of events: the product's round machines, with simulated trainers, disks, links and faults.

Time leaps from event to event; all chance descends from the seed by name. Every message is encoded, sealed and opened.
After each step of a machine the laws are checked:

- equal heads have equal chain states, and the tokens of a chain are those of its entries;
- no (author, incarnation, number) and no blob is twice on a chain, and whatever is listed was cut by its author;
- a machine's head ranks higher with every move.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from swarm import chain as chains
from swarm.chain import ChainState, CommitList
from swarm.config import RoundConfig, RunConfig
from swarm.digest import Digest, digest_of
from swarm.events import Event
from swarm.identity import PeerId
from swarm.messages import Contribution
from swarm.round.facts import (
    CatchUp,
    Effect,
    Fetch,
    Happened,
    MoveTo,
    Received,
    RequestCut,
    Send,
    Tick,
)
from swarm.round.own import Self
from swarm.round.participant import Participant
from tests.sim.fate import Fate
from tests.sim.faults import (
    Fault,
    over_at_s,
)
from tests.sim.life import Life, Peer, Process
from tests.sim.stub_trainer import Disk, StubTrainer, state_digest
from tests.sim.traffic import LATENCY_S, Traffic
from tests.sim.wires import RUN, open_contribution, seal, unseal

TICK_S = 0.5
BOARD_EXPIRY_S = 60.0  # a status on the noticeboard is gone so long after it was put there
DISCOVERY_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)  # waits between looks at the noticeboard; the last one for ever


def round_config(**changes: Any) -> RunConfig:
    """Rounds of 10 s, deadlines of 20 s and 10 s, and the product's heartbeat and patience."""
    times = {"train_deadline_s": 10.0, "exchange_deadline_s": 10.0, "min_peers": 1}
    return RunConfig(round=RoundConfig(**{**times, **changes}))


class World:
    """A swarm and its fate. `peers` processes start within a second; the faults happen by themselves."""

    def __init__(
        self,
        peers: int,
        seed: int = 0,
        faults: tuple[Fault, ...] = (),
        config: RunConfig | None = None,
        starts_s: tuple[float, ...] = (),
        blob_bytes: int = 1 << 20,
        discovers_for_s: float = math.inf,
    ) -> None:
        self.seed = seed
        self.config = config or round_config(min_peers=peers)
        self.blob_bytes = blob_bytes
        self.discovers_for_s = discovers_for_s  # of each life: the noticeboard is for meeting, not for rounds
        self.now_s = 0.0
        self.traffic = Traffic(self)
        self.fate = Fate(self)
        self.peers: list[Peer] = []
        self.events: list[tuple[float, str, Event]] = []
        self.transcript: list[str] | None = None  # a list to fill with who said what when
        self.genesis = chains.genesis(RUN, digest_of("parameters", b"simulated"))
        self._by_id: dict[PeerId, Peer] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._states = {self.genesis.head: self.genesis}
        self._on_chain: dict[Digest, frozenset[tuple[PeerId, int]]] = {self.genesis.head: frozenset()}
        self._cut: dict[Digest, tuple[PeerId, int, int, int]] = {}
        self._board: dict[PeerId, tuple[float, bytes]] = {}
        self._chance: dict[str, random.Random] = {}
        chance = self.chance("starts")
        for number in range(peers):
            self.add_peer(starts_s[number] if starts_s else chance.uniform(0.0, 1.0))
        for fault in faults:
            self.fate.schedule(fault)

    # ---------------------------------------------------------------- running

    def run_for(self, seconds: float) -> World:
        """Lets so much time pass."""
        self._run_while(lambda: True, self.now_s + seconds)
        return self

    def run_until(self, version: int, limit_s: float) -> World:
        """Runs until everyone who is up agrees on a head of at least this version; fails after `limit_s`."""
        end_s = self.now_s + limit_s
        self._run_while(lambda: not self._agree_from(version), end_s)
        assert self._agree_from(version), f"no agreement on version {version} within {limit_s:g} s\n{self.describe()}"
        return self

    def settle(self, rounds: int, limit_s: float) -> World:
        """Once every fault is over, everyone agrees within the limit, and then that many rounds more are made."""
        self._run_while(lambda: True, over_at_s(self.fate.faults))
        end_s = self.now_s + limit_s
        highest = max(life.machine.chain.version for life in self.lives())
        return self.run_until(highest + rounds, end_s - self.now_s)

    def lives(self) -> list[Life]:
        """Processes that are up and not frozen."""
        return [peer.life for peer in self.peers if peer.life is not None and not peer.life.is_frozen]

    def fired(self, faults: tuple[Fault, ...] | None = None) -> bool:
        return set(self.fate.faults if faults is None else faults) <= self.fate.fired

    def life(self, number: int) -> Life:
        found = self.peers[number].life
        assert found is not None, f"peer {number} is down"
        return found

    def leader(self) -> Life:
        """Who leads, by the one with the best head."""
        best = max(self.lives(), key=lambda life: life.machine.chain.key)
        return next(peer.life for peer in self.peers if peer.id == best.machine.leader and peer.life)

    def of_kind(self, kind: type[Any]) -> list[tuple[float, str, Any]]:
        """(time, name of the peer, event) of one kind."""
        return [one for one in self.events if isinstance(one[2], kind)]

    def describe(self) -> str:
        names = {peer.id: peer.name for peer in self.peers}
        lines = [f"seed {self.seed}, {self.now_s:.1f} s, faults {self.fate.faults}"]
        for peer in self.peers:
            if peer.life is None:
                lines.append(f"{peer.name} down at version {peer.disk.chains[-1].version}")
                continue
            one = peer.life.machine
            frozen = " frozen" if peer.life.is_frozen else ""
            roster = "".join(names[member] for member in one.chain.roster)
            lines.append(
                f"{peer.name}{frozen} {one.activity} v{one.chain.version} {one.chain.head} tokens {one.chain.tokens}"
                f" view {one.view} led by {names.get(one.leader)} roster {roster}; {self.named(one.waits_for)}"
            )
        return "\n".join(lines)

    def at(self, then_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (then_s, next(self._numbers), do))

    def chance(self, *name: object) -> random.Random:
        key = "/".join(map(str, (self.seed, *name)))
        return self._chance.setdefault(key, random.Random(key))

    def _run_while(self, goes_on: Callable[[], bool], end_s: float) -> None:
        while self._heap and self._heap[0][0] <= end_s and goes_on():
            self.now_s, _, do = heapq.heappop(self._heap)
            do()
        if goes_on():
            self.now_s = max(self.now_s, end_s)

    def _agree_from(self, version: int) -> bool:
        heads = {life.machine.chain.head for life in self.lives()}
        return len(heads) == 1 and self._states[heads.pop()].version >= version

    # ---------------------------------------------------------------- laws

    def follow(self, parent: ChainState, commit: CommitList) -> ChainState:
        """`chains.apply`, with every law of a chain checked the first time that a list is applied."""
        state = chains.apply(parent, commit, self.config.lease_windows)
        if state.head not in self._states:
            self._states[state.head] = state
            listed = {(entry.author, entry.seq) for entry in commit.entries}
            assert not listed & self._on_chain[parent.head], f"listed twice at version {state.version}"
            self._on_chain[state.head] = self._on_chain[parent.head] | listed
            for entry in commit.entries:
                author, incarnation, seq, tokens = self._cut[entry.root]
                assert (author, incarnation, seq) == (entry.author, entry.incarnation, entry.seq)
                assert entry.tokens <= tokens
        assert state == self._states[state.head], "equal heads with different states"
        return state

    def note_cut(self, made: Contribution) -> None:
        self._cut[made.root] = (made.author, made.incarnation, made.seq, made.tokens)

    def check_move(self, life: Life, before: ChainState, after: ChainState) -> None:
        assert after == self._states[after.head], "equal heads with different states"
        assert after.key > before.key, f"{life.peer.name} went from {before.key[:2]} to {after.key[:2]}"
        assert life.machine.state_digest == state_digest(after)
        self.say(f"{life.peer.name} reaches version {after.version}")

    # ---------------------------------------------------------------- effects

    def perform(self, life: Life, effect: Effect) -> None:
        match effect:
            case Send(to, message, sealed):
                self.traffic.send(life, to, message, seal(life.peer.id, message) if sealed is None else sealed)
            case RequestCut(reason):
                self.say(f"{life.peer.name} is asked to cut: {reason}")
                life.trainer.request_cut()
            case Fetch(contribution, holders):
                life.spawn(self.traffic.fetch(life, contribution.root, holders))
            case MoveTo(commit):
                life.trainer.apply(commit.parent, (commit,))
            case CatchUp(peers, whole, reason):
                self.say(f"{life.peer.name} catches up: {reason}")
                life.spawn(self.traffic.catch_up(life, peers, whole))
            case Happened(event):
                self.events.append((self.now_s, life.peer.name, event))

    def named(self, text: str) -> str:
        for peer in self.peers:
            text = text.replace(str(peer.id), peer.name)
        return text

    def say(self, line: str) -> None:
        if self.transcript is not None:
            self.transcript.append(f"{self.now_s:8.3f}  {self.named(line)}")

    def by_id(self, peer_id: PeerId) -> Peer | None:
        return self._by_id.get(peer_id)

    # ---------------------------------------------------------------- lives

    def add_peer(self, at_s: float) -> Peer:
        number = len(self.peers)
        peer_id = PeerId(digest_of("peer", str(self.seed).encode(), bytes([number])).raw)
        peer = Peer(number, peer_id, Disk((self.genesis,)), step_s=self.chance("speed", number).uniform(0.8, 1.2))
        self.peers.append(peer)
        self._by_id[peer_id] = peer
        self.at(at_s, lambda: self.start(peer))
        return peer

    def start(self, peer: Peer) -> None:
        """A process begins, from what is on disk."""
        assert peer.life is None
        disk = peer.disk = replace(peer.disk, incarnation=peer.disk.incarnation + 1)
        chain = disk.chains[-1]
        me = Self(peer.id, peer.name, "stub", disk.incarnation)
        machine = Participant(me, self.config, chain, state_digest(chain), open_contribution, disk.view)
        life = peer.life = Life(self, peer, machine)
        life.trainer = StubTrainer(life, disk)
        for _, (contribution, sealed) in sorted(disk.pending.items()):
            machine.restore(contribution, sealed)
        self.say(f"{peer.name} starts at version {chain.version}")
        life.spawn(self._ticks(life))
        life.spawn(self._discovery(life))

    def crash(self, peer: Peer, back_s: float | None) -> None:
        if peer.life is None:
            return
        self.say(f"{peer.name} dies")
        peer.life.is_alive, peer.life = False, None
        if back_s is not None:
            self.at(back_s, lambda: self.start(peer))

    def freeze(self, peer: Peer, until_s: float) -> None:
        life = peer.life
        if life is None:
            return
        self.say(f"{peer.name} freezes")
        life.is_frozen = True
        self.at(until_s, lambda: self._thaw(life))

    def _thaw(self, life: Life) -> None:
        self.say(f"{life.peer.name} thaws")
        life.is_frozen = False
        held, life.held_back = life.held_back, []
        for then in held:
            life.run(then)

    def _ticks(self, life: Life) -> Process:
        yield self.chance("ticks", life.peer.number).uniform(0, TICK_S)
        while not life.machine.leaving:
            life.take(Tick())
            yield TICK_S

    def _discovery(self, life: Life) -> Process:
        began_s = self.now_s
        for turn in count():
            yield DISCOVERY_S[min(turn, len(DISCOVERY_S) - 1)]
            if life.machine.leaving or self.now_s - began_s > self.discovers_for_s:
                return
            self._board[life.peer.id] = (self.now_s, seal(life.peer.id, life.machine.status()))
            yield LATENCY_S
            for author, (put_s, raw) in sorted(self._board.items()):
                other = self.by_id(author)
                if other and self.now_s - put_s < BOARD_EXPIRY_S and not self.traffic.is_cut(life.peer, other):
                    life.take(Received(author, unseal(raw)[1], raw))
            if turn == 0:
                for heard in life.machine.presence.roll.all():
                    self.perform(life, Send(heard.status.peer, life.machine.status()))
