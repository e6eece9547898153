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
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

from swarm import chain as chains
from swarm.chain import ChainState, CommitList
from swarm.config import RoundConfig, RunConfig
from swarm.digest import Digest, digest_of
from swarm.events import Event
from swarm.identity import PeerId
from swarm.messages import Commit, Contribution, CutHint, GetLog, Goodbye, Log, StateRecord, UnitState
from swarm.round.facts import (
    BlobFailed,
    BlobStored,
    CatchUp,
    CatchUpEnded,
    Effect,
    Fact,
    Fetch,
    Happened,
    MoveTo,
    Received,
    RequestCut,
    Send,
    Tick,
    Unreached,
)
from swarm.round.own import Self
from swarm.round.participant import Participant
from tests.sim.faults import (
    Crash,
    Fault,
    Freeze,
    Join,
    Leave,
    Lossy,
    Partition,
    Phase,
    Slow,
    StrikeLeader,
    over_at_s,
)
from tests.sim.stub_trainer import Disk, StubTrainer, state_digest
from tests.sim.wires import RUN, open_contribution, seal, unseal

TICK_S = 0.5
SEND_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 10.0
LATENCY_S = 0.03  # one way; jitter doubles it at most
BYTES_PER_S = 12.5e6
STATE_BYTES = 4 << 20
BOARD_EXPIRY_S = 60.0  # a status on the noticeboard is gone so long after it was put there
DISCOVERY_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)  # waits between looks at the noticeboard; the last one for ever

Process = Generator[float, None, Any]
"""Yields the seconds it waits for."""


def round_config(**changes: Any) -> RunConfig:
    """Rounds of 10 s, deadlines of 20 s and 10 s, and the product's heartbeat and patience."""
    times = {"train_deadline_s": 10.0, "exchange_deadline_s": 10.0, "min_peers": 1}
    return RunConfig(round=RoundConfig(**{**times, **changes}))


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
            if self.world.strikes(self, effect):
                self.run(partial(self._perform, effects[place:]))  # later if it is frozen, never if it is dead
                return
            self.world.perform(self, effect)
        self.trainer.go_on()

    def store(self, root: Digest) -> None:
        self.trainer.now = replace(self.trainer.now, blobs=self.trainer.now.blobs | {root})
        self.peer.disk = replace(self.peer.disk, blobs=self.trainer.now.blobs)


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
        self.faults = faults
        self.config = config or round_config(min_peers=peers)
        self.blob_bytes = blob_bytes
        self.discovers_for_s = discovers_for_s  # of each life: the noticeboard is for meeting, not for rounds
        self.now_s = 0.0
        self.peers: list[Peer] = []
        self.events: list[tuple[float, str, Event]] = []
        self.transcript: list[str] | None = None  # a list to fill with who said what when
        self.sent: Counter[str] = Counter()
        self.genesis = chains.genesis(RUN, digest_of("parameters", b"simulated"))
        self._by_id: dict[PeerId, Peer] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._fired: set[Fault] = set()
        self._states = {self.genesis.head: self.genesis}
        self._on_chain: dict[Digest, frozenset[tuple[PeerId, int]]] = {self.genesis.head: frozenset()}
        self._cut: dict[Digest, tuple[PeerId, int, int, int]] = {}
        self._board: dict[PeerId, tuple[float, bytes]] = {}
        self._partitions: set[Partition] = set()
        self._lossy: Lossy | None = None
        self._chance: dict[str, random.Random] = {}
        chance = self.chance("starts")
        for number in range(peers):
            self._add(starts_s[number] if starts_s else chance.uniform(0.0, 1.0))
        for fault in faults:
            self._schedule(fault)

    def add(self, fault: Fault) -> None:
        """One more fault, in the future."""
        self.faults = (*self.faults, fault)
        self._schedule(fault)

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
        self._run_while(lambda: True, over_at_s(self.faults))
        end_s = self.now_s + limit_s
        highest = max(life.machine.chain.version for life in self.lives())
        return self.run_until(highest + rounds, end_s - self.now_s)

    def lives(self) -> list[Life]:
        """Processes that are up and not frozen."""
        return [peer.life for peer in self.peers if peer.life is not None and not peer.life.is_frozen]

    def fired(self, faults: tuple[Fault, ...] | None = None) -> bool:
        return set(self.faults if faults is None else faults) <= self._fired

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
        lines = [f"seed {self.seed}, {self.now_s:.1f} s, faults {self.faults}"]
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
                self._send(life, to, message, seal(life.peer.id, message) if sealed is None else sealed)
            case RequestCut(reason):
                self.say(f"{life.peer.name} is asked to cut: {reason}")
                life.trainer.request_cut()
            case Fetch(contribution, holders):
                life.spawn(self._fetch(life, contribution.root, holders))
            case MoveTo(commit):
                life.trainer.apply(commit.parent, (commit,))
            case CatchUp(peers, whole, reason):
                self.say(f"{life.peer.name} catches up: {reason}")
                life.spawn(self._catch_up(life, peers, whole))
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

    def _send(self, life: Life, to: PeerId, message: object, raw: bytes) -> None:
        sender, receiver = life.peer, self.by_id(to)
        assert receiver is not None and receiver is not sender
        kind = type(message).__name__
        self.sent[kind] += 1
        if self.transcript is not None:
            self.say(f"{sender.name} -> {receiver.name}  {line_of(message)}")
        if receiver.life is None:
            life.after(2 * LATENCY_S, lambda: life.take(Unreached(to)))
            return
        lossy, chance = self._lossy, self.chance("loss", sender.number, receiver.number)
        copies = 1
        if lossy is not None:
            copies = 0 if chance.random() < lossy.loss else 2 if chance.random() < lossy.duplicate else 1
            self._fired.add(lossy)
        if self.is_cut(sender, receiver) or not copies:
            life.after(SEND_TIMEOUT_S, lambda: life.take(Unreached(to)))
            return
        target = receiver.life
        for _ in range(copies):
            target.after(self._way_s(sender, receiver, len(raw)), lambda: self._arrive(target, sender.id, raw))

    def _arrive(self, target: Life, sender: PeerId, raw: bytes) -> None:
        _, message = unseal(raw)
        target.take(Received(sender, message, raw))

    def _way_s(self, sender: Peer, receiver: Peer, num_bytes: int) -> float:
        """Seconds until bytes sent now are there; big ones queue at the sender's uplink."""
        jitter = 1 + self.chance("latency", sender.number, receiver.number).random()
        if num_bytes < 1 << 16:
            return LATENCY_S * jitter
        sender.uplink_free_s = max(sender.uplink_free_s, self.now_s) + num_bytes / BYTES_PER_S
        return sender.uplink_free_s - self.now_s + LATENCY_S * jitter

    def is_cut(self, a: Peer, b: Peer) -> bool:
        def parts(one: Partition) -> bool:
            if one.other is not None:
                return (a.number in one.side and b.number in one.other) or (
                    a.number in one.other and b.number in one.side
                )
            return (a.number in one.side) != (b.number in one.side)

        return any(parts(one) for one in self._partitions)

    # ---------------------------------------------------------------- fetching and catching up

    def _ask(self, life: Life, peer: Peer, num_bytes: Callable[[Life], int | None]) -> Process:
        """Whether `peer` answered with so many bytes; `num_bytes` is asked when the question is there."""
        began_s = self.now_s
        if peer.life is None:
            yield 2 * LATENCY_S
            return False
        yield self._way_s(life.peer, peer, 0)
        while self.now_s - began_s < ASK_TIMEOUT_S:
            if peer.life is None:
                return False
            if not peer.life.is_frozen and not self.is_cut(life.peer, peer):
                answer = num_bytes(peer.life)
                if answer is None:
                    yield self._way_s(peer, life.peer, 0)
                    return False
                yield self._way_s(peer, life.peer, answer)
                return peer.life is not None and not self.is_cut(life.peer, peer)
            yield 1.0
        return False

    def _get_blob(self, life: Life, root: Digest, holders: tuple[PeerId, ...]) -> Process:
        def length(other: Life) -> int | None:
            return self.blob_bytes if root in other.trainer.now.blobs else None

        for holder in holders:
            peer = self.by_id(holder)
            if root in life.trainer.now.blobs:
                return True
            if peer is not None and peer is not life.peer and (yield from self._ask(life, peer, length)):
                life.store(root)
                return True
        return root in life.trainer.now.blobs

    def _fetch(self, life: Life, root: Digest, holders: tuple[PeerId, ...]) -> Process:
        got = yield from self._get_blob(life, root, holders)
        life.take(BlobStored(root) if got else BlobFailed(root, "nobody has it"))

    def _catch_up(self, life: Life, peers: tuple[PeerId, ...], whole: bool) -> Process:
        fresh = [heard.status.peer for heard in life.machine.presence.fresh(self.now_s)]
        asked = [self.by_id(peer) for peer in dict.fromkeys([*peers, *fresh])][:5]
        for peer in [one for one in asked if one is not None and one is not life.peer]:
            if not whole and (yield from self._by_log(life, peer)):
                return
            if (yield from self._by_state(life, peer)):
                return
        life.take(CatchUpEnded("nobody has a state that ranks above ours"))

    def _by_log(self, life: Life, peer: Peer) -> Process:
        answers: list[Log] = []
        own = life.trainer.now.chains[::-1]
        question, _ = unseal(seal(life.peer.id, GetLog(tuple(chain.head for chain in own)))), None

        def log_of(other: Life) -> int | None:
            log = other.trainer.now.log
            parents = [commit.parent for commit in log]
            base = next((head for head in question[1].heads if head in parents), None)
            if base is None:
                return None
            raw = seal(peer.id, Log(base, log[parents.index(base) :]))
            answers.append(unseal(raw)[1])
            return len(raw)

        if not (yield from self._ask(life, peer, log_of)):
            return False
        log = answers[-1]
        chain = next(chain for chain in own if chain.head == log.base)
        for commit in log.commits:
            chain = self.follow(chain, commit.commit)
        if chain.key <= own[0].key:
            return False
        for commit in log.commits:
            for entry, holders in zip(commit.commit.entries, commit.holders, strict=True):
                if not (yield from self._get_blob(life, entry.root, (peer.id, *holders.peers))):
                    return False
        life.trainer.apply(log.base, log.commits)
        return True

    def _by_state(self, life: Life, peer: Peer) -> Process:
        answers: list[StateRecord] = []

        def state_of(other: Life) -> int | None:
            chain = other.trainer.chain
            if chain.key <= life.trainer.chain.key:
                return None
            raw = seal(peer.id, StateRecord(chain, (UnitState(state_digest(chain), STATE_BYTES),)))
            answers.append(unseal(raw)[1])
            return STATE_BYTES

        if not (yield from self._ask(life, peer, state_of)):
            return False
        life.trainer.adopt(answers[-1].chain)
        return True

    # ---------------------------------------------------------------- lives

    def _add(self, at_s: float) -> Peer:
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
                if other and self.now_s - put_s < BOARD_EXPIRY_S and not self.is_cut(life.peer, other):
                    life.take(Received(author, unseal(raw)[1], raw))
            if turn == 0:
                for heard in life.machine.presence.roll.all():
                    self.perform(life, Send(heard.status.peer, life.machine.status()))

    # ---------------------------------------------------------------- faults

    def _schedule(self, fault: Fault) -> None:
        match fault:
            case Crash(number, at_s, back_s):
                self._when(fault, at_s, lambda: self.crash(self.peers[number], back_s))
            case Freeze(number, from_s, to_s):
                self._when(fault, from_s, lambda: self.freeze(self.peers[number], to_s))
            case Partition(_, from_s, to_s):
                self._when(fault, from_s, lambda: self._partitions.add(fault))
                self.at(to_s, lambda: self._partitions.discard(fault))
            case Slow(number, factor, from_s, to_s):
                self._when(fault, from_s, lambda: setattr(self.peers[number], "slowness", factor))
                self.at(to_s, lambda: setattr(self.peers[number], "slowness", 1.0))
            case Lossy(_, _, from_s, to_s):
                self.at(from_s, lambda: setattr(self, "_lossy", fault))
                self.at(to_s, lambda: setattr(self, "_lossy", None))
            case Join(at_s):
                peer = self._add(at_s)
                self._when(fault, at_s, lambda: self.say(f"{peer.name} joins"))
            case Leave(number, at_s):
                self._when(fault, at_s, lambda: self._leave(self.peers[number]))
            case StrikeLeader():
                pass  # strikes when its phase comes

    def _when(self, fault: Fault, at_s: float, do: Callable[[], Any]) -> None:
        def happen() -> None:
            self._fired.add(fault)
            do()

        self.at(at_s, happen)

    def _leave(self, peer: Peer) -> None:
        life = peer.life
        if life is None:
            return
        life.machine.leaving = True
        for heard in life.machine.presence.roll.all():
            self._send(life, heard.status.peer, Goodbye("left on purpose"), seal(peer.id, Goodbye("left on purpose")))
        self.crash(peer, None)

    def strikes(self, life: Life, effect: Effect) -> bool:
        """Whether a fault hits this process instead of the effect that it is about to carry out."""
        for fault in self.faults:
            if isinstance(fault, StrikeLeader) and fault not in self._fired and self._is_due(fault, life, effect):
                self._fired.add(fault)
                if fault.freeze:
                    self.freeze(life.peer, self.now_s + (fault.back_after_s or 0.0))
                else:
                    back_s = None if fault.back_after_s is None else self.now_s + fault.back_after_s
                    self.crash(life.peer, back_s)
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
            self.sent["Commit of the struck"] += sends_commit
            return sends_commit and self.sent["Commit of the struck"] == 2
        if fault.phase is Phase.HINTED:
            return isinstance(effect, RequestCut)
        if fault.phase is Phase.ANNOUNCED:
            return isinstance(effect, Fetch)
        return not (isinstance(effect, Send) and isinstance(effect.message, CutHint))  # TRAINING: its first effect


def line_of(message: object) -> str:
    """A message as one line of a transcript."""
    match message:
        case Commit():
            listed = ", ".join(f"{entry.author}#{entry.seq}" for entry in message.commit.entries)
            return f"Commit in view {message.view}: {listed}; {message.reason}"
        case _:
            said = [
                getattr(message, name)
                for name in ("activity", "view", "version", "seq", "reason")
                if hasattr(message, name)
            ]
            return " ".join([type(message).__name__, *map(str, said)])
