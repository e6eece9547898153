"""The ledger's identity, in fp64, over random lives: cuts, commits, forks, undos, withdrawals, restarts.

For each peer at every instant, with h its head:
    -(sum of inner updates) = sum of d listed in chain(h) + e + (A_h - theta) + (1 - beta) * sum of listed e0
A life that forgets work, or counts it twice, breaks it; three plausible shortcuts that do are tried below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import pytest
import torch
from torch import Tensor

from swarm.allreduce.codec import Codec, Int8Codec, RawCodec, bytes_of, vector_from
from swarm.allreduce.layout import build_layout
from swarm.allreduce.ledger import UNDO_DEPTH, Ledger, Moved, cut, joined, move_head, withdraw
from swarm.allreduce.shared import OpenedContribution, RunMath, SharedState, after_commit, genesis_state
from swarm.chain import MAX_AGE_VERSIONS, ChainState, CommitList, Entry
from swarm.config import OuterConfig
from swarm.digest import Digest, blob_digest
from swarm.errors import LocalError
from swarm.identity import PeerId
from tests.unit.message_examples import RUN

LAYOUT = build_layout([[("a", (5,))], [("b", (2, 2))], [("c", (7,))]])
OUTER = OuterConfig(optimizer="nesterov", learning_rate=0.7, momentum=0.9)
MoveHead = Callable[[RunMath, Ledger, Tensor, "Hop"], Moved]


class LargestOnly:
    """Sends the largest element of a unit alone: most of what it is given stays in the residual."""

    name = "largest"

    def encode(self, vector_U: Tensor) -> bytes:
        kept_U = torch.zeros(len(vector_U))
        place = int(vector_U.abs().argmax())
        kept_U[place] = vector_U[place]
        return bytes_of(kept_U)

    def decode(self, payload: bytes | memoryview, num_elements: int) -> Tensor:
        return vector_from(payload)


def _math(codec: Codec, beta: float, dtype: torch.dtype = torch.float64) -> RunMath:
    return RunMath(LAYOUT, codec, OUTER, error_decay=beta, lease_windows=1, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Node:
    """A head in the tree of all that was ever committed."""

    state: SharedState
    parent: Node | None = None

    @property
    def version(self) -> int:
        return self.state.chain.version

    def ancestors(self) -> list[Node]:
        """This one, its parent, and so on to genesis."""
        return [self, *(self.parent.ancestors() if self.parent else [])]


@dataclass(frozen=True)
class Announced:
    """A contribution as the world knows it."""

    entry: Entry
    version: int  # it was cut at
    sent_N: Tensor  # d
    before_N: Tensor  # e0


@dataclass(frozen=True)
class Life:
    """One peer; each event makes the next one, so that a saved copy is a restart."""

    node: Node
    theta_N: Tensor
    ledger: Ledger
    updates_N: Tensor  # the sum of its inner updates
    next_seq: int = 1
    kept: tuple[Node, ...] = ()  # heads whose state it still has, oldest first
    cut_at: Node | None = None  # head of a cut since which it has not trained
    trained: bool = False  # since the last cut


@dataclass(frozen=True)
class Hop:
    """From one head to another, by way of the head where their chains part."""

    old: SharedState
    new: SharedState
    base: ChainState


def _move(math: RunMath, ledger: Ledger, theta_N: Tensor, hop: Hop) -> Moved:
    return move_head(ledger, hop.old, hop.new, theta_N, hop.base)


@dataclass
class World:
    """Peers that share a growing tree of heads, and one seed."""

    math: RunMath
    chance: Random
    overlap: bool
    move_head: MoveHead = _move
    lives: dict[PeerId, Life] = field(default_factory=dict)
    saved: dict[PeerId, Life] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    announced: dict[tuple[PeerId, int], Announced] = field(default_factory=dict)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    met: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    eager: float = 0.7  # how often a contribution that may be listed is

    def __post_init__(self) -> None:
        self.eager = self.chance.choice([0.15, 0.4, 0.8])
        root = Node(genesis_state(self.math, RUN, self._random()))
        self.nodes.append(root)
        for number in range(1, self.chance.randint(3, 5) + 1):
            peer = PeerId(bytes([number]) * 32)
            ledger = joined(peer, root.state)
            self.lives[peer] = Life(
                root, root.state.anchor_N, ledger, torch.zeros_like(ledger.residual_N), kept=(root,)
            )
        self.saved = dict(self.lives)

    def _random(self) -> Tensor:
        return torch.tensor([self.chance.uniform(-1, 1) for _ in range(LAYOUT.numel)], dtype=self.math.dtype)

    def run(self, events: int) -> World:
        doings = [self.inner] * 4 + [self.cut] * 3 + [self.commit] * 3 + [self.head] * 6 + [self.withdraw] * 2
        for _ in range(events):
            peer = self.chance.choice(list(self.lives))
            self.chance.choice([*doings, self.restart])(peer)
            self.worst = max([self.worst, *(self.imbalance(one) for one in self.lives)])
        return self

    # ---------------------------------------------------------------- what may happen

    def inner(self, peer: PeerId) -> None:
        life = self.lives[peer]
        if life.cut_at is not None and not self.overlap:
            return
        update_N = self._random() * 0.1
        self.lives[peer] = replace(
            life, theta_N=life.theta_N + update_N, updates_N=life.updates_N + update_N, cut_at=None, trained=True
        )

    def cut(self, peer: PeerId) -> None:
        life = self.lives[peer]
        if not (life.ledger.may_cut and life.trained):
            return
        seq, tokens = life.next_seq, self.chance.randint(1, 50)
        ledger, blob = cut(self.math, life.ledger, life.node.state, life.theta_N, seq, (tokens, 1))
        root = blob_digest(blob)
        entry = Entry(peer, seq, 1, root, 0, len(LAYOUT.units), tokens, 1)
        sent_N = torch.cat([OpenedContribution(self.math, entry, blob).unit(unit.index) for unit in LAYOUT.units])
        self.blobs[root] = blob
        self.announced[peer, seq] = Announced(entry, life.node.version, sent_N.double(), life.ledger.residual_N)
        self.lives[peer] = replace(life, ledger=ledger, next_seq=seq + 1, cut_at=life.node, trained=False)
        self.saved[peer] = self.lives[peer]  # on disk before anybody hears of it
        self.met["cut"] += 1

    def commit(self, peer: PeerId) -> None:
        parent = self.chance.choice([self.lives[peer].node, *self.nodes[-4:]])
        entries = [
            one.entry
            for (author, seq), one in self.announced.items()
            if 0 <= parent.version - one.version <= MAX_AGE_VERSIONS
            and not parent.state.chain.has_listed(author, seq)
            and self.chance.random() < self.eager
        ]
        if entries:
            others = set(self.lives) - {one.author for one in entries}
            commit = CommitList(entries=tuple(sorted(entries)), admitted=tuple(sorted(others)))
            self.nodes.append(Node(after_commit(self.math, parent.state, commit, self.blobs.__getitem__), parent))

    def head(self, peer: PeerId) -> None:
        life = self.lives[peer]
        target = self.chance.choice(self.nodes[-6:])
        path = target.ancestors()
        common = next(node for node in life.node.ancestors() if node in path)
        depth = life.node.version - common.version
        if target is life.node or depth > UNDO_DEPTH or common not in life.kept:
            return  # a skipped round, or a fork too deep for HEAD
        moved = self.move_head(
            self.math, life.ledger, life.theta_N, Hop(life.node.state, target.state, common.state.chain)
        )
        forward = tuple(reversed(path[: path.index(common)]))
        kept = (*life.kept[: life.kept.index(common) + 1], *forward)[-1 - UNDO_DEPTH :]
        self.count(life, target, depth, moved)
        exact = life.cut_at is life.node and moved.listed == tuple(life.ledger.pending) and not moved.undone
        if exact and self.move_head is _move:
            assert torch.equal(moved.theta_N, target.state.anchor_N), "listed, no overlap: theta is the anchor, bitwise"
            self.met["bitwise"] += 1
        self.lives[peer] = replace(
            life, node=target, theta_N=moved.theta_N, ledger=moved.ledger, kept=kept, cut_at=None
        )
        self.saved[peer] = self.lives[peer]

    def withdraw(self, peer: PeerId) -> None:
        life = self.lives[peer]
        for seq in life.ledger.pending:
            if life.node.version - self.announced[peer, seq].version > MAX_AGE_VERSIONS:
                self.lives[peer] = replace(life, ledger=withdraw(life.ledger, seq))
                self.met["withdrawn"] += 1
                return

    def restart(self, peer: PeerId) -> None:
        """Killed: what it did since its last save is a declared loss; what it had announced is not lost."""
        self.met["restart"] += self.saved[peer] is not self.lives[peer]
        self.lives[peer] = self.saved[peer]

    # ---------------------------------------------------------------- what must hold

    def count(self, life: Life, target: Node, depth: int, moved: Moved) -> None:
        assert moved.unknown == ()
        self.met[f"undo of depth {depth}, nothing of mine"] += depth > 0 and not moved.undone
        self.met[f"undo of depth {depth}"] += bool(moved.undone)
        self.met["undo and list at once"] += bool(moved.undone) and bool(moved.listed)
        self.met["listed"] += bool(moved.listed)
        self.met["left out"] += bool(life.ledger.pending) and not moved.listed
        self.met["withdrawn, yet listed"] += any(seq in life.ledger.withdrawn for seq in moved.listed)
        self.met["several commits at once"] += target.version - life.node.version + depth > 1
        self.met["train on while pending"] += bool(life.ledger.pending) and life.cut_at is None

    def imbalance(self, peer: PeerId) -> float:
        """How far the identity is off, relative to the largest of its terms."""
        life = self.lives[peer]
        anchor_N = life.node.state.anchor_N
        listed = [
            one
            for (author, seq), one in self.announced.items()
            if author == peer and life.node.state.chain.has_listed(author, seq)
        ]
        terms = [life.updates_N, life.ledger.residual_N, anchor_N, -life.theta_N]
        terms += [one.sent_N for one in listed]
        terms += [one.before_N * (1 - self.math.error_decay) for one in listed]
        return float(torch.stack(terms).sum(0).abs().max() / torch.stack(terms).abs().max())


CODECS: dict[str, Codec] = {"raw": RawCodec(), "int8": Int8Codec(4), "largest": LargestOnly()}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("beta", [1.0, 0.95, 0.9])
@pytest.mark.parametrize("overlap", [False, True], ids=["blocking", "overlap"])
def test_nothing_is_lost_and_nothing_counted_twice(codec: str, beta: float, overlap: bool) -> None:
    """1e-12: an event rounds each of some ten terms a few times at 1.1e-16, and 200 events add up in the worst case."""
    for seed in range(4):
        world = World(_math(CODECS[codec], beta), Random(seed), overlap).run(200)
        assert world.worst <= 1e-12, f"seed {seed}"


def test_the_lives_meet_every_case() -> None:
    met: Counter[str] = Counter()
    for seed in range(8):
        met += World(_math(LargestOnly(), 0.95), Random(seed), overlap=bool(seed % 2)).run(400).met
    for case in (
        "cut",
        "listed",
        "left out",
        "bitwise",
        "undo of depth 1",
        "undo of depth 2",
        "undo and list at once",
        "withdrawn",
        "withdrawn, yet listed",
        "several commits at once",
        "train on while pending",
        "restart",
    ):
        assert met[case] > 0, f"{case} never happened: {met}"


# ---------------------------------------------------------------- shortcuts that look right


def _residual_and_difference(math: RunMath, ledger: Ledger, theta_N: Tensor, hop: Hop) -> Moved:
    """Left out: what was to be sent goes back to the residual, and stays in theta too. Counts it twice."""
    moved = move_head(ledger, hop.old, hop.new, theta_N, hop.base)
    if moved.listed or not moved.ledger.pending:
        return moved
    record = next(iter(moved.ledger.pending.values()))
    residual_N = record.before_N * math.error_decay + record.delta_N
    return replace(moved, ledger=replace(moved.ledger, residual_N=residual_N))


def _progress_since_cut(math: RunMath, ledger: Ledger, theta_N: Tensor, hop: Hop) -> Moved:
    """Left out: the new anchor, plus progress since the cut only. Loses what was cut."""
    moved = move_head(ledger, hop.old, hop.new, theta_N, hop.base)
    if moved.listed or not moved.ledger.pending:
        return moved
    record = next(iter(moved.ledger.pending.values()))
    return replace(moved, theta_N=moved.theta_N + record.delta_N)


def _theta_stays(math: RunMath, ledger: Ledger, theta_N: Tensor, hop: Hop) -> Moved:
    """A new anchor, and theta where it was: the step of the others turns into progress of mine."""
    return replace(move_head(ledger, hop.old, hop.new, theta_N, hop.base), theta_N=theta_N)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("wrong", [_residual_and_difference, _progress_since_cut, _theta_stays])
def test_the_check_catches_shortcuts(wrong: MoveHead, codec: str) -> None:
    for seed in range(3):
        world = World(_math(CODECS[codec], 1.0), Random(seed), overlap=True, move_head=wrong).run(120)
        assert world.worst > 0.01, f"seed {seed}: {world.met}"


# ---------------------------------------------------------------- single operations


ME = PeerId(b"\x01" * 32)
OTHER = PeerId(b"\x02" * 32)


def _start(math: RunMath) -> SharedState:
    generator = torch.Generator().manual_seed(3)
    return genesis_state(math, RUN, torch.randn(LAYOUT.numel, generator=generator))


def _trained(state: SharedState, seed: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return state.anchor_N + 0.01 * torch.randn(LAYOUT.numel, generator=generator).to(state.anchor_N.dtype)


def _commit_of(math: RunMath, state: SharedState, author: PeerId, seq: int, blob: bytes) -> SharedState:
    entry = Entry(author, seq, 1, blob_digest(blob), 0, len(LAYOUT.units), 10, 1)
    commit = CommitList(entries=(entry,), admitted=(OTHER if author == ME else ME,))
    return after_commit(math, state, commit, lambda root: blob)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_commit_that_lists_me_leaves_theta_at_the_anchor(codec: str, dtype: torch.dtype) -> None:
    math = _math(CODECS[codec], 1.0, dtype)
    state = _start(math)
    theta_N = _trained(state)
    ledger, blob = cut(math, joined(ME, state), state, theta_N, 1, (10, 1))
    new = _commit_of(math, state, ME, 1, blob)
    moved = move_head(ledger, state, new, theta_N)
    assert bytes_of(moved.theta_N) == bytes_of(new.anchor_N), "bit for bit"
    assert torch.equal(moved.ledger.residual_N, ledger.pending[1].after_N) and moved.listed == (1,)
    assert moved.ledger.may_cut and moved.ledger.listed[1].listed_at == 1


def test_a_cut_changes_neither_theta_nor_residual_and_waits_for_the_one_before() -> None:
    math = _math(Int8Codec(4), 0.9)
    state = _start(math)
    theta_N = _trained(state)
    kept = theta_N.clone()
    before = replace(joined(ME, state), residual_N=torch.ones(LAYOUT.numel, dtype=torch.float64))
    ledger, blob = cut(math, before, state, theta_N, 1, (10, 1))
    assert torch.equal(theta_N, kept) and torch.equal(ledger.residual_N, before.residual_N) and before.may_cut
    entry = Entry(ME, 1, 1, blob_digest(blob), 0, 3, 10, 1)
    sent_N = torch.cat([OpenedContribution(math, entry, blob).unit(unit) for unit in range(3)]).double()
    target_N = 0.9 * before.residual_N + (state.anchor_N - theta_N)
    assert torch.allclose(sent_N + ledger.pending[1].after_N, target_N, rtol=1e-15, atol=1e-15)
    with pytest.raises(LocalError, match="pending"):
        cut(math, ledger, state, theta_N, 2, (10, 1))


def test_a_listed_number_without_a_record_costs_the_residual_and_nothing_else() -> None:
    """As after the loss of the disk: whatever it held may be in the residual too, and is never counted twice."""
    math = _math(RawCodec(), 1.0)
    state = _start(math)
    _, blob = cut(math, joined(ME, state), state, _trained(state), 1, (10, 1))
    new = _commit_of(math, state, ME, 1, blob)
    reborn = replace(joined(ME, state), residual_N=torch.ones(LAYOUT.numel, dtype=torch.float64))
    theta_N = _trained(state, seed=9)
    moved = move_head(reborn, state, new, theta_N)
    assert moved.unknown == (1,) and moved.listed == () and not bool(moved.ledger.residual_N.any())
    assert torch.equal(moved.theta_N, new.anchor_N + (theta_N - state.anchor_N))


def test_what_both_sides_of_a_fork_list_can_be_undone_on_the_other_side_too() -> None:
    """Side a lists my number at version 1, side b at version 2. Its record must last as long as b's listing may go."""
    math = _math(RawCodec(), 1.0)
    state = _start(math)
    theta_N = _trained(state)
    mine, blob = cut(math, joined(ME, state), state, theta_N, 1, (10, 1))
    foreign = [cut(math, joined(OTHER, state), state, _trained(state, seed=5), 1, (10, 1))[1]]
    a1 = _commit_of(math, state, ME, 1, blob)
    b1 = _commit_of(math, state, OTHER, 1, foreign[0])
    b2 = _commit_of(math, b1, ME, 1, blob)
    b3 = _commit_of(math, b2, OTHER, 2, foreign[0])
    on_a = move_head(mine, state, a1, theta_N)
    on_b2 = move_head(on_a.ledger, a1, b2, on_a.theta_N, state.chain)
    on_b3 = move_head(on_b2.ledger, b2, b3, on_b2.theta_N, b2.chain)
    back = move_head(on_b3.ledger, b3, b1, on_b3.theta_N, b1.chain)
    assert on_b2.listed == on_b2.undone == () and back.undone == (1,) and 1 in back.ledger.pending
    progress_N, made_N = back.theta_N - b1.anchor_N, theta_N - state.anchor_N
    assert torch.allclose(progress_N, made_N, rtol=0, atol=1e-13), "all that was done is on top of the anchor again"


def test_records_last_as_long_as_an_undo_can_reach() -> None:
    math = _math(RawCodec(), 1.0)
    state = _start(math)
    ledger, blob = cut(math, joined(ME, state), state, _trained(state), 1, (10, 1))
    theta_N = _trained(state)
    _, foreign = cut(math, joined(OTHER, state), state, _trained(state, seed=5), 1, (10, 1))
    for version in range(1, 4):
        author, seq, content = (ME, 1, blob) if version == 1 else (OTHER, version, foreign)
        new = _commit_of(math, state, author, seq, content)
        moved = move_head(ledger, state, new, theta_N)
        state, ledger, theta_N = new, moved.ledger, moved.theta_N
        assert (1 in ledger.listed) == (version <= UNDO_DEPTH)
