"""Many of the product's round machines under churn, with blobs that are only lengths: what `scale.py` measures.

A lean driver beside `world.py`: no disks, no numerics, no laws, and messages are encoded once for their length. Counted are
the protocol's messages (not the chunks of blobs), what is read from the noticeboard, and the time of a leader's machine.
A few begin the run, the others join at version 1; counting begins when nine of ten are on the roster.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from swarm import chain as chains
from swarm import wire
from swarm.chain import MAX_AGE_VERSIONS, ChainState
from swarm.config import DataConfig, InnerConfig, RoundConfig, RunConfig
from swarm.dht.records import NUM_PREFIXES, RECORD_LIFETIME_S, prefix_of, prefixes_to_read
from swarm.digest import Digest, digest_of
from swarm.identity import PeerId
from swarm.messages import MAX_PEERS_PAGE, Commit, Contribution, Goodbye, StateRecord, seal_message
from swarm.round.commits import Seals, Verifier
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
    Unreached,
    WayFound,
)
from swarm.round.own import Self
from swarm.round.participant import Participant
from swarm.round.root import Root, root_at
from swarm.schema import to_value
from swarm.votes import VOTE_BYTES

FIRST_PEERS = 24  # that begin the run
TICK_S = 1.0
LATENCY_S = (0.03, 0.08)
FETCH_S = (0.3, 3.0)  # of one blob
STEP_S, ENCODE_S, MOVE_S, CATCH_UP_S = 1.0, 0.5, 0.5, 1.5
STEP_TOKENS = 4096
TRAIN_S = 20.0
MEAN_LIFE_ROUNDS = 30
GUESSED_ROUND_S = TRAIN_S + 8.0
LEAVES = 0.3  # share of those who end that say goodbye
LOOKS_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)  # waits between looks at the noticeboard; the last one for ever
MEASURED = 32  # members of a crowd whose machines are measured
RUN = digest_of("run", b"scale")
VOTE = bytes(VOTE_BYTES)  # and the signature of a commit: nobody lies here


def round_config(peers: int, **changes: Any) -> RunConfig:
    """Rounds of 20 s of training."""
    times = {
        "train_deadline_s": TRAIN_S,
        "exchange_deadline_s": 20.0,
        "min_peers": max(1, min(peers, FIRST_PEERS) * 9 // 10),
    }
    return RunConfig(
        round=RoundConfig(**{**times, **changes}),
        inner=InnerConfig(batch_windows=1),
        data=DataConfig(sequence_length=STEP_TOKENS),
    )


@dataclass
class _Key:
    peer_id: PeerId

    def sign(self, to_sign: bytes) -> bytes:
        return bytes(64)


def _cost_of_the_clock() -> float:
    """Seconds that a look at the thread's clock takes."""
    began_s = time.thread_time()
    for _ in range(200):
        time.thread_time()
    return (time.thread_time() - began_s) / 201


@dataclass
class Traffic:
    """Messages and bytes of one role, per round; `cpu_s` is what its machines' steps took."""

    sent: int = 0
    received: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    cpu_s: float = 0.0
    blobs: int = 0
    records_read: int = 0
    record_bytes_read: int = 0
    records_written: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # sent
    kind_bytes: Counter[str] = field(default_factory=Counter)


@dataclass
class Host:
    """One process."""

    number: int
    id: PeerId
    machine: Participant
    chain: ChainState
    is_alive: bool = True
    seq: int = 0
    trains_since_s: float = 0.0
    since_version: int = 0
    pending: dict[int, Contribution] = field(default_factory=dict)
    blobs: set[Digest] = field(default_factory=set)

    def steps(self, now_s: float) -> int:
        return 0 if self.pending or not self.machine.may_train else int((now_s - self.trains_since_s) / STEP_S)


class Crowd:
    """Many peers, and what they cost."""

    def __init__(self, peers: int, seed: int = 0, config: RunConfig | None = None) -> None:
        self.size = peers
        self.config = config or round_config(peers)
        self.now_s = 0.0
        self.hosts: dict[PeerId, Host] = {}  # alive
        self.version = 0
        self.leader, self.members = Traffic(), Traffic()
        self.is_counting = False
        self.peer_rounds = 0.0
        self.num_rounds = 0
        self.missed = 0  # commits that had to be caught up with
        self.admitted: set[PeerId] = set()
        self.reached_s: dict[int, float] = {}
        self._clock_s = _cost_of_the_clock()
        self._every = max(1, peers // MEASURED)
        self._chance = random.Random(f"scale/{peers}/{seed}")
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._turns = count()
        self._numbers = count()
        self._order: list[PeerId] = []
        self._boards: list[dict[PeerId, tuple[float, Any, bytes]]] = [{} for _ in range(NUM_PREFIXES)]
        self._sealed: dict[int, tuple[object, bytes]] = {}
        self._opened: dict[bytes, object] = {}
        self._next: dict[int, tuple[Commit, ChainState, int]] = {}
        self._commit_bytes: dict[Digest, int] = {}
        self._state_bytes: dict[Digest, int] = {}
        self._verifier = Verifier(self._open, lambda peer, vote, stand: vote == VOTE, lambda *_: True)
        self._genesis = chains.genesis(RUN, digest_of("test", b"version 0"))
        for _ in range(min(peers, FIRST_PEERS)):
            self.at(self._chance.uniform(0.0, 2.0), self.join)

    # ---------------------------------------------------------------- running

    def run(self, rounds: int, limit_s: float = 1e5) -> Crowd:
        """Until so many versions were made while counting; fails after `limit_s` of virtual time."""
        start: int | None = None
        while start is None or self.version < start + rounds:
            if start is None and self.is_counting:
                start = self.version
            assert self.now_s < limit_s, f"version {self.version} after {self.now_s:.0f} s"
            self.now_s, _, do = heapq.heappop(self._heap)
            do()
        self.num_rounds = rounds
        return self

    def at(self, then_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (then_s, next(self._turns), do))

    def after(self, host: Host, seconds: float, do: Callable[..., None], *args: Any) -> None:
        def then() -> None:
            if host.is_alive:
                do(host, *args)

        self.at(self.now_s + seconds, then)

    # ---------------------------------------------------------------- lives

    def join(self) -> None:
        number = next(self._numbers)
        peer = PeerId(digest_of("peer", number.to_bytes(4, "big")).raw)
        seals = Seals(
            self._verifier, lambda message: self._seal(peer, message), lambda stand: VOTE, lambda view, head: VOTE
        )
        me = Self(peer, f"p{number}", "simulated", 1)
        start = HeadReached(self._genesis, self._digest_of(self._genesis), root_at(self._genesis))
        machine = Participant(me, self.config, start, seals)
        host = self.hosts[peer] = Host(number, peer, machine, self._genesis)
        self._order.append(peer)
        self._tick(host)
        self._ask_peers(host)
        self._look(host, 0)
        life_s = self._chance.expovariate(1.0 / (MEAN_LIFE_ROUNDS * GUESSED_ROUND_S))
        if number < self.size and not self.is_counting:
            life_s += 60.0  # the beginning of the run is not what is measured
        self.after(host, life_s, self._end)

    def _end(self, host: Host) -> None:
        if self._chance.random() < LEAVES:
            for peer in host.machine.farewells():
                self._send(host, Send(peer, Goodbye("done", 1)))
        host.is_alive = False
        del self.hosts[host.id]
        self.join()

    def _anyone(self) -> Host | None:
        while self._order:
            place = self._chance.randrange(len(self._order))
            peer = self._order[place]
            if peer in self.hosts:
                return self.hosts[peer]
            self._order[place] = self._order[-1]
            self._order.pop()
        return None

    # ---------------------------------------------------------------- discovery

    def _ask_peers(self, host: Host) -> None:
        """As the product's discovery: pages of one acquaintance's roll, then a word to some of those found."""
        other = self._anyone()
        if other is None or other is host:
            return
        known = [heard for heard in other.machine.presence.roll.all() if not heard.left][:MAX_PEERS_PAGE]
        status = other.machine.status()
        self._take(host, Received(other.id, status, self._seal(other.id, status)))
        for heard in known:
            self._take(host, Received(heard.status.peer, heard.status, heard.sealed))
        role = self._role(host)
        role.received += 1
        role.received_bytes += sum(len(heard.sealed) for heard in known)
        for peer in host.machine.acquaintances():
            self._send(host, Send(peer, host.machine.status()))

    def _look(self, host: Host, turn: int) -> None:
        machine, role = host.machine, self._role(host)
        status = machine.status()
        self._boards[prefix_of(host.id)][host.id] = (
            self.now_s + RECORD_LIFETIME_S,
            status,
            self._seal(host.id, status),
        )
        role.records_written += 1
        first, rest = prefixes_to_read(self._chance)
        for prefix in (first, *rest):
            if prefix != first and not machine.looks_for_peers():
                break
            board = self._boards[prefix]
            for peer in [peer for peer, (expires_s, *_) in board.items() if expires_s < self.now_s]:
                del board[peer]
            for peer, (_, found, raw) in list(board.items()):
                role.records_read += 1
                role.record_bytes_read += len(raw)
                self._take(host, Received(peer, found, raw))
        self.after(host, LOOKS_S[min(turn + 1, len(LOOKS_S) - 1)], self._look, turn + 1)

    # ---------------------------------------------------------------- the machine

    def _tick(self, host: Host) -> None:
        steps = host.steps(self.now_s)
        self._take(host, Measured(Figures(tokens_since_cut=steps * STEP_TOKENS, steps_since_cut=steps)))
        self.after(host, TICK_S, self._tick)

    def _role(self, host: Host) -> Traffic:
        if not self.is_counting:
            return Traffic()
        return self.leader if host.machine.is_leader else self.members

    def _take(self, host: Host, fact: Fact) -> None:
        role = self._role(host)
        if role is self.leader or (
            role is self.members and host.number % self._every == 0
        ):  # a look at the clock is dear
            began_s = time.thread_time()
            effects = host.machine.step(fact, self.now_s)
            took_s = max(0.0, time.thread_time() - began_s - self._clock_s)
            role.cpu_s += took_s * (1 if role is self.leader else self._every)
        else:
            effects = host.machine.step(fact, self.now_s)
        for effect in effects:
            self._perform(host, effect)

    def _perform(self, host: Host, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(host, effect)
            case RequestCut():
                self.after(host, self._chance.uniform(0.0, STEP_S) + ENCODE_S, self._cut)
            case Fetch(contribution, holders):
                self.after(host, self._chance.uniform(*FETCH_S), self._fetched, contribution.root, holders)
            case MoveTo(commit, root):
                self.after(host, self._chance.uniform(0.5, 1.5) * MOVE_S, self._moved, commit, root)
            case CatchUp():
                self.after(host, CATCH_UP_S, self._caught_up, effect)
            case Happened():
                pass

    def _send(self, host: Host, send: Send) -> None:
        raw = self._seal(host.id, send.message) if send.sealed is None else send.sealed
        role, kind = self._role(host), type(send.message).__name__
        role.sent += 1
        role.sent_bytes += len(raw)
        role.kinds[kind] += 1
        role.kind_bytes[kind] += len(raw)
        wire.frame(raw)  # raises for a message that no frame carries
        target = self.hosts.get(send.to)
        if target is None:
            self.after(host, 2 * LATENCY_S[1], self._take, Unreached(send.to))
            return
        author = host.id if send.sealed is None or not isinstance(send.message, Commit) else self._author_of(raw)
        self.after(target, self._chance.uniform(*LATENCY_S), self._arrived, author, send.message, raw)

    def _arrived(self, host: Host, sender: PeerId, message: object, raw: bytes) -> None:
        role = self._role(host)
        role.received += 1
        role.received_bytes += len(raw)
        self._take(host, Received(sender, message, raw))

    # ---------------------------------------------------------------- what a trainer and a network would do

    def _cut(self, host: Host) -> None:
        steps = host.steps(self.now_s)
        if host.pending or not steps or host.machine.syncing:
            return
        host.seq += 1
        made = Contribution(
            author=host.id,
            incarnation=1,
            seq=host.seq,
            root=digest_of("blob", host.id.raw, host.seq.to_bytes(4, "big")),
            num_bytes=1 << 20,
            first_unit=0,
            end_unit=1,
            tokens=steps * STEP_TOKENS,
            steps=steps,
            since_version=host.since_version,
            version=host.chain.version,
            head=host.chain.head,
        )
        host.pending[made.seq] = made
        host.blobs.add(made.root)
        sealed = self._seal(host.id, made)
        self._opened[sealed] = made
        self._take(host, CutDone(made, sealed))

    def _fetched(self, host: Host, root: Digest, holders: tuple[PeerId, ...]) -> None:
        if any(peer in self.hosts and root in self.hosts[peer].blobs for peer in holders):
            host.blobs.add(root)
            self._role(host).blobs += 1
            self._take(host, BlobStored(root))
        else:
            self._take(host, BlobFailed(root, "nobody has it"))

    def _moved(self, host: Host, commit: Commit, root: Root) -> None:
        known = self._next.get(id(commit))
        if known is None:
            chain = chains.apply(host.chain, commit.commit, self.config.lease_windows)
            known = self._next[id(commit)] = (commit, chain, 0)
            self._commit_bytes[chain.head] = len(self._seal(host.id, commit))
        self._reach(host, known[1], root)

    def _caught_up(self, host: Host, wish: CatchUp) -> None:
        fresh = [heard.status.peer for heard in host.machine.presence.fresh(self.now_s)]
        for peer in dict.fromkeys((*wish.peers, *fresh)):
            other = self.hosts.get(peer)
            if other is None or not other.chain.ranks_above(host.chain):
                continue
            self._take(host, WayFound(host.chain.head))
            if not host.machine.is_moving_on:
                break
            recent = (other.chain.head, *other.chain.recent)
            missed = recent[: recent.index(host.chain.head)] if host.chain.head in recent else ()
            num_bytes = sum(self._commit_bytes.get(head, 0) for head in missed) or self._size_of(other.chain)
            for one, way in ((host, "received"), (other, "sent")):
                role = self._role(one)
                setattr(role, way, getattr(role, way) + 1)
                setattr(role, f"{way}_bytes", getattr(role, f"{way}_bytes") + num_bytes)
            self.missed += bool(missed) and self.is_counting
            self._reach(host, other.chain, other.machine.turn.root if missed else root_at(other.chain))
            return
        self._take(host, CatchUpEnded("nobody has a better one", is_refused=True))

    def _reach(self, host: Host, chain: ChainState, root: Root) -> None:
        host.chain = chain
        was_pending = bool(host.pending)
        host.pending = {
            seq: one
            for seq, one in host.pending.items()
            if not chain.has_listed(host.id, seq) and chain.version - one.version <= MAX_AGE_VERSIONS
        }
        if host.id not in self.admitted or (was_pending and not host.pending):
            host.trains_since_s, host.since_version = self.now_s, chain.version
            self.admitted.add(host.id)
        self._take(host, HeadReached(chain, self._digest_of(chain), root, tuple(host.pending)))
        if chain.version > self.version:
            for _ in range(self.size - len(self.hosts) if not self.version else 0):
                self.at(self.now_s + self._chance.uniform(0.0, 10.0), self.join)
            self.version = chain.version
            self.reached_s[chain.version] = self.now_s
            self.peer_rounds += len(self.hosts) if self.is_counting else 0
            self.is_counting = self.is_counting or len(chain.roster) >= 0.9 * self.size
            for peer in [one for one in self._next if self._next[one][1].version < chain.version - 4]:
                del self._next[peer]
            for one in self.hosts.values():
                if len(one.blobs) > 4096:
                    one.blobs = set(list(one.blobs)[-2048:])

    # ---------------------------------------------------------------- bytes

    def _seal(self, author: PeerId, message: object) -> bytes:
        known = self._sealed.get(id(message))
        if known is None or known[0] is not message:
            raw = seal_message(_Key(author), RUN, message)  # type: ignore[arg-type]
            known = self._sealed[id(message)] = (message, raw)
            if len(self._sealed) > 256:
                del self._sealed[next(iter(self._sealed))]
        return known[1]

    def _author_of(self, raw: bytes) -> PeerId:
        return PeerId(wire.decode(raw)[3])

    def _open(self, sealed: bytes) -> object:
        return self._opened[sealed]

    def _digest_of(self, chain: ChainState) -> Digest:
        return digest_of("state", chain.head.raw)

    def _size_of(self, chain: ChainState) -> int:
        if chain.head not in self._state_bytes:
            self._state_bytes[chain.head] = len(wire.encode(to_value(StateRecord(chain, ()))))
        return self._state_bytes[chain.head]
