"""A swarm in one thread: the product's round machines, trainers, replicas and bytes over a seeded network in virtual time.

Everything follows from the seed and the faults, chance by name from it: one more draw for one peer changes nothing for the
others. The laws in `laws.py` and `books.py` are checked on the way, after every event.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from peer.handoff import ApplyCommits, CutNow
from swarm import chain as chains
from swarm.allreduce.shared import snapshot
from swarm.config import CodecConfig, DataConfig, InnerConfig, RoundConfig, RunConfig
from swarm.digest import Digest, digest_of
from swarm.errors import StateError
from swarm.events import Event
from swarm.identity import PeerId
from swarm.messages import Commit, record_digest
from swarm.round.facts import CatchUp, Effect, Fetch, Happened, MoveTo, Received, RequestCut, Send
from tests.sim.books import TOLERANCES, Books
from tests.sim.disk import Disk
from tests.sim.fate import Fate, passed_over
from tests.sim.faults import Disk as DiskFate
from tests.sim.faults import Fault, Usurper, over_at_s
from tests.sim.laws import WATCH_EVERY_S, Laws
from tests.sim.life import Life, Peer, Process
from tests.sim.traffic import LATENCY_S, Traffic
from tests.sim.wires import seal, unseal
from tests.sim.workshop import genesis_of, math_of, precision_of

TICK_S = 0.5
BLOB_BYTES = 1 << 18  # of a contribution or a unit's state, as the network sees it
BOARD_EXPIRY_S = 60.0  # a status on the noticeboard is gone so long after it was put there
BOARD_SLACK_S = 60.0  # of somebody else's clock
DISCOVERY_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)  # waits between looks at the noticeboard; the last one for ever


def round_config(
    *,
    codec: str = "int8",
    error_decay: float = 1.0,
    outer: str = "nesterov",
    precision: str = "fp64",
    **changes: Any,
) -> RunConfig:
    """Rounds of 10 s, deadlines of 20 s and 10 s, and the product's heartbeat and patience; windows of 4096 tokens."""
    times = {"train_deadline_s": 10.0, "exchange_deadline_s": 10.0, "min_peers": 1}
    return RunConfig(
        name=f"simulated in {precision}",
        round=RoundConfig(**{**times, **changes}),
        inner=InnerConfig(batch_windows=1),
        data=DataConfig(sequence_length=4096),
        codec=CodecConfig(name=codec, block_size=4, error_decay=error_decay),  # type: ignore[arg-type]
        outer=RunConfig().outer.model_copy(update={"optimizer": outer}),
    )


class World:
    """A swarm and its fate. `peers` processes start within a second; the faults happen by themselves."""

    def __init__(
        self,
        peers: int,
        seed: int = 0,
        faults: tuple[Fault, ...] = (),
        config: RunConfig | None = None,
        starts_s: tuple[float, ...] = (),
        discovers_for_s: float = math.inf,
        tick_s: float = TICK_S,
    ) -> None:
        self.seed = seed
        self.config = config or round_config(min_peers=peers)
        self.blob_bytes = BLOB_BYTES
        self.discovers_for_s = discovers_for_s  # of each life: the noticeboard is for meeting, not for rounds
        self.tick_s = tick_s
        self.now_s = 0.0
        self.num_events = 0  # facts that some machine took
        self.has_moved = True  # since agreement was last looked for
        self.math = math_of(self.config)
        self.genesis = genesis_of(self.math)
        self.books = Books(self.config.codec.error_decay, TOLERANCES[precision_of(self.config)])
        self.traffic = Traffic(self)
        self.fate = Fate(self)
        record, _ = snapshot(self.math, self.genesis)
        self.laws = Laws(self, self.genesis, record_digest(record))
        self.peers: list[Peer] = []
        self.usurpers = {fault.peer for fault in faults if isinstance(fault, Usurper)}
        self.events: list[tuple[float, str, Event]] = []
        self.transcript: list[str] | None = None  # a list to fill with who said what when
        self._by_id: dict[PeerId, Peer] = {}
        self._heap: list[tuple[float, int, Callable[[], Any]]] = []
        self._numbers = count()
        self._board: dict[PeerId, tuple[float, bytes]] = {}
        self._after: dict[int, tuple[Commit, Digest]] = {}
        self._agrees_at: int | None = None
        chance = self.chance("starts")
        for number in range(peers):
            self.add_peer(starts_s[number] if starts_s else chance.uniform(0.0, 1.0))
        for fault in faults:
            self.fate.schedule(fault)
        self.at(WATCH_EVERY_S, self._watch)

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
        highest = max((life.machine.chain.version for life in self.lives()), default=0)
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

    @property
    def version(self) -> int:
        """The highest version that a peer which is up stands at."""
        return max((life.machine.chain.version for life in self.lives()), default=0)

    def describe(self) -> str:
        names = {peer.id: peer.name for peer in self.peers}
        lines = [f"seed {self.seed}, {self.now_s:.1f} s, faults {self.fate.faults}"]
        for peer in self.peers:
            if peer.life is None:
                written = peer.disk.generations
                lines.append(
                    f"{peer.name} down at version {written[0].saved.states[-1].chain.version if written else 0}"
                )
                continue
            one = peer.life.machine
            frozen = " frozen" if peer.life.is_frozen else ""
            roster = "".join(names[member] for member in one.chain.roster)
            lines.append(
                f"{peer.name}{frozen} {one.activity} v{one.chain.version} {one.chain.head} tokens {one.chain.tokens}"
                f" view {one.view} led by {names.get(one.leader)} roster {roster}; {self.named(one.waits_for)}"
            )
        return "\n".join(lines)

    def at(self, then_s: float, do: Callable[[], Any]) -> None:
        heapq.heappush(self._heap, (then_s, next(self._numbers), do))

    def chance(self, *name: object) -> random.Random:
        return random.Random("/".join(map(str, (self.seed, *name))))

    def _run_while(self, goes_on: Callable[[], bool], end_s: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end_s and goes_on():
            self.now_s, _, do = heapq.heappop(heap)
            do()
        if goes_on():
            self.now_s = max(self.now_s, end_s)

    def _agree_from(self, version: int) -> bool:
        if self.has_moved:
            self.has_moved = False
            heads = {life.machine.chain.head: life.machine.chain.version for life in self.lives()}
            self._agrees_at = next(iter(heads.values())) if len(heads) == 1 else None
        return self._agrees_at is not None and self._agrees_at >= version

    def _watch(self) -> None:
        self.laws.watch()
        self.at(self.now_s + WATCH_EVERY_S, self._watch)

    # ---------------------------------------------------------------- chains

    def head_after(self, commit: Commit) -> Digest:
        known = self._after.get(id(commit))
        if known is None or known[0] is not commit:
            known = self._after[id(commit)] = (commit, chains.head_after(commit.parent, commit.commit))
        return known[1]

    # ---------------------------------------------------------------- effects

    def perform(self, life: Life, effect: Effect) -> None:
        match effect:
            case Send(to, message, sealed):
                if type(message) is Commit:
                    self.laws.check_issued(life, message)
                self.traffic.send(life, to, message, seal(life.peer.id, message) if sealed is None else sealed)
            case RequestCut(reason):
                self.say(f"{life.peer.name} is asked to cut: {reason}")
                life.give(CutNow(reason))
            case Fetch(contribution, holders):
                life.spawn(self.traffic.fetch(life, contribution, holders))
            case MoveTo(commit, root):
                self.laws.check_moves_to(life, commit)
                life.give(ApplyCommits(commit.parent, (commit,), (root,)))
            case CatchUp():
                self.say(f"{life.peer.name} catches up: {effect.reason}")
                life.spawn(self.traffic.catch_up(life, effect))
            case Happened(event):
                self.events.append((self.now_s, life.peer.name, event))

    def named(self, text: str) -> str:
        for peer in self.peers:
            text = text.replace(str(peer.id), peer.name)
        return text

    def say(self, line: str) -> None:
        if self.transcript is not None:
            self.transcript.append(f"{self.now_s:8.3f}  {self.named(line)}")

    def speak_for(self, invented: PeerId, peer: Peer) -> None:
        """What is asked of an invented id is answered by the peer that has its key."""
        self._by_id[invented] = peer

    def by_id(self, peer_id: PeerId) -> Peer | None:
        return self._by_id.get(peer_id)

    # ---------------------------------------------------------------- lives

    def add_peer(self, at_s: float) -> Peer:
        number = len(self.peers)
        peer_id = PeerId(digest_of("peer", str(self.seed).encode(), bytes([number])).raw)
        step_s = self.chance("speed", number).uniform(0.8, 1.2)
        peer = Peer(number, peer_id, Disk(), step_s)
        self.peers.append(peer)
        self._by_id[peer_id] = peer
        self.at(at_s, partial(self.start, peer))
        return peer

    def start(self, peer: Peer, damage: DiskFate = DiskFate.KEPT) -> None:
        """A process begins, from what is on disk."""
        assert peer.life is None
        peer.lives += 1
        life = Life(self, peer, peer.lives)
        self.has_moved = True
        try:
            life.begin(passed_over(peer, damage))
        except StateError as error:
            self.say(f"{peer.name} does not start: {error}")
            self.fate.ended(peer)
            return
        if not life.is_alive:
            return  # its first turn could not write; it is started again
        peer.life = life
        self.say(f"{peer.name} starts at version {life.machine.chain.version}")
        life.spawn(self._ticks(life))
        life.spawn(self._discovery(life))

    def crash(self, peer: Peer, back_s: float | None, damage: DiskFate = DiskFate.KEPT) -> None:
        if peer.life is None:
            return
        self.say(f"{peer.name} dies")
        self.has_moved = True
        peer.life.is_alive, peer.life = False, None
        if damage is DiskFate.LOST:
            peer.disk.lost = frozenset(peer.disk.blobs)
            peer.disk.blobs.clear()
            peer.disk.generations.clear()
            if back_s is not None:
                self.add_peer(back_s)
        elif back_s is not None:
            self.at(back_s, partial(self.restart, peer, damage))

    def restart(self, peer: Peer, damage: DiskFate = DiskFate.KEPT) -> None:
        if peer.life is None:  # two faults may have killed it
            self.laws.disturbed()
            self.start(peer, damage)

    def freeze(self, peer: Peer, until_s: float) -> None:
        life = peer.life
        if life is None:
            return
        self.say(f"{peer.name} freezes")
        self.has_moved = True
        life.is_frozen = True
        self.at(until_s, partial(self._thaw, life))

    def _thaw(self, life: Life) -> None:
        self.say(f"{life.peer.name} thaws")
        self.has_moved = True
        self.laws.disturbed()
        life.is_frozen = False
        life.resumed_s = self.now_s
        held, life.held_back = life.held_back, []
        for then in held:
            life.run(then)

    def _ticks(self, life: Life) -> Process:
        """A tick when nothing else has made the machine look at its clock for a while."""
        yield self.chance("ticks", life.peer.number).uniform(0, self.tick_s)
        while not life.machine.leaving:
            idle_s = self.now_s - life.stepped_s
            if idle_s >= self.tick_s - 1e-9:
                life.tick()
                yield self.tick_s
            else:
                yield self.tick_s - idle_s

    def _discovery(self, life: Life) -> Process:
        began_s = self.now_s
        for turn in count():
            yield DISCOVERY_S[min(turn, len(DISCOVERY_S) - 1)]
            if life.machine.leaving or self.now_s - began_s > self.discovers_for_s:
                return
            wall_s = self.now_s + life.peer.wall_offset_s
            life.dial(self.traffic.dial(life))
            status = self.fate.lied(life.peer, life.machine.status())
            self._board[life.peer.id] = (wall_s + BOARD_EXPIRY_S, seal(life.peer.id, status))
            yield LATENCY_S
            for author, (expires_s, raw) in sorted(self._board.items()):
                other = self.by_id(author)
                good = wall_s < expires_s <= wall_s + BOARD_EXPIRY_S + BOARD_SLACK_S
                if other and good and not self.traffic.is_cut(other, life.peer):
                    age_s = max(0.0, wall_s + BOARD_EXPIRY_S - expires_s)
                    life.take(Received(author, unseal(raw)[1], raw, age_s))
            if turn == 0:
                for heard in life.machine.presence.roll.all():
                    self.perform(life, Send(heard.status.peer, life.machine.status()))
