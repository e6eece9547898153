"""A trainer without tensors: inner steps are time, a blob is a name and a length, a state digest is a hash of the head.

It follows the real one in what the round machine can see: one order or step at a time, a cut at a step boundary and only
with nothing pending, HEAD with listed, undone and withdrawn numbers, and a disk that is written before anybody hears.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from swarm import chain as chains
from swarm.chain import MAX_AGE_VERSIONS, ChainState
from swarm.digest import Digest, digest_of
from swarm.messages import Commit, Contribution
from swarm.round.facts import CatchUpEnded, CutDone, Figures, HeadReached, Measured
from tests.sim.wires import seal

if TYPE_CHECKING:
    from tests.sim.world import Life

KEPT_STATES = 3
KEPT_COMMITS = 16
UNDO_DEPTH = 2
ENCODE_S = 0.3
APPLY_S = 0.2
STEP_TOKENS = 4096

Cut = tuple[Contribution, bytes]


@dataclass(frozen=True)
class Disk:
    """What outlives a process."""

    chains: tuple[ChainState, ...]  # the present one last
    log: tuple[Commit, ...] = ()
    pending: dict[int, Cut] = field(default_factory=dict)
    listed: dict[int, Cut] = field(default_factory=dict)
    withdrawn: dict[int, Cut] = field(default_factory=dict)
    tokens: int = 0
    steps: int = 0
    since_version: int = 0
    next_seq: int = 1
    incarnation: int = 0
    view: int = 0
    blobs: frozenset[Digest] = frozenset()


def state_digest(chain: ChainState) -> Digest:
    return digest_of("state", chain.head.raw)


class StubTrainer:
    """One life's trainer. `now` is the state as it is; `life.peer.disk` as it was written last."""

    def __init__(self, life: Life, disk: Disk) -> None:
        self._life = life
        self.now = disk
        self._orders: deque[Callable[[], None]] = deque()
        self._is_busy = False
        self._cut_hinted = False
        self._cut_at_s = 0.0

    @property
    def chain(self) -> ChainState:
        return self.now.chains[-1]

    def request_cut(self) -> None:
        self._cut_hinted = not self.now.pending
        self.go_on()

    def apply(self, base: Digest, commits: tuple[Commit, ...]) -> None:
        """Orders a move from a head we can go back to, through these commits."""
        self._orders.append(lambda: self._apply(base, commits))
        self.go_on()

    def adopt(self, chain: ChainState) -> None:
        """Orders a move to a whole state."""
        self._orders.append(lambda: self._move((chain,), ()))
        self.go_on()

    def go_on(self) -> None:
        """One pass of the training loop, if it stands still and something is due."""
        if self._is_busy:
            return
        speed = self._life.peer.slowness
        config = self._life.world.config.round
        full = 0 < config.local_steps <= self.now.steps
        if self._orders:
            self._spend(APPLY_S, self._orders.popleft())
        elif (self._cut_hinted or full) and not self.now.pending and self.now.steps:
            self._spend(ENCODE_S * speed, self._cut)
        elif self._life.machine.me.peer in self._life.machine.members and self._may_step():
            self._spend(self._life.peer.step_s * speed, self._step)

    def _may_step(self) -> bool:
        config = self._life.world.config.round
        late = self._life.world.now_s - self._cut_at_s > config.exchange_deadline_s
        return not self.now.pending or config.overlap or late

    def _spend(self, seconds: float, then: Callable[[], None]) -> None:
        def done() -> None:
            self._is_busy = False
            then()
            self.go_on()

        self._is_busy = True
        self._life.after(seconds, done)

    def _step(self) -> None:
        self.now = replace(self.now, tokens=self.now.tokens + STEP_TOKENS, steps=self.now.steps + 1)
        self._life.take(Measured(Figures(tokens_since_cut=self.now.tokens, steps_since_cut=self.now.steps)))

    def _cut(self) -> None:
        now, author = self.now, self._life.peer.id
        contribution = Contribution(
            author=author,
            incarnation=now.incarnation,
            seq=now.next_seq,
            root=digest_of("blob", author.raw, now.incarnation.to_bytes(8, "big"), now.next_seq.to_bytes(8, "big")),
            num_bytes=self._life.world.blob_bytes,
            first_unit=0,
            end_unit=1,
            tokens=now.tokens,
            steps=now.steps,
            since_version=now.since_version,
            version=self.chain.version,
            head=self.chain.head,
        )
        sealed = seal(author, contribution)
        self.now = replace(
            now,
            pending={**now.pending, now.next_seq: (contribution, sealed)},
            next_seq=now.next_seq + 1,
            tokens=0,
            steps=0,
            since_version=self.chain.version,
        )
        self._cut_hinted = False
        self._cut_at_s = self._life.world.now_s
        self._life.world.note_cut(contribution)
        self._life.store(contribution.root)
        self._save()
        self._life.take(Measured(Figures()))
        self._life.take(CutDone(contribution, sealed))

    def _apply(self, base: Digest, commits: tuple[Commit, ...]) -> None:
        if not self._life.world.fate.may_write(self._life.peer):
            self._life.take(CatchUpEnded("the disk is full"))
            return
        heads = [chain.head for chain in self.now.chains]
        kept = list(self.now.chains[: heads.index(base) + 1])
        log = tuple(self.now.log)
        while log and chains.head_after(log[-1].parent, log[-1].commit) != base:
            log = log[:-1]
        for commit in commits:
            assert commit.parent == kept[-1].head
            assert all(entry.root in self.now.blobs for entry in commit.commit.entries), "moves without the blobs"
            kept.append(self._life.world.follow(kept[-1], commit.commit))
        self._move(tuple(kept[-KEPT_STATES:]), (*log, *commits)[-KEPT_COMMITS:])

    def _move(self, kept: tuple[ChainState, ...], log: tuple[Commit, ...]) -> None:
        """HEAD: own numbers listed or undone in between; what no commit can list any more goes into the next cut."""
        now, new, author = self.now, kept[-1], self._life.peer.id
        cuts = {**now.withdrawn, **now.listed, **now.pending}
        listed = {seq: cut for seq, cut in cuts.items() if new.has_listed(author, seq)}
        unlisted = {seq: cut for seq, cut in cuts.items() if seq not in listed and seq not in now.withdrawn}
        old = {seq: cut for seq, cut in unlisted.items() if cut[0].version + MAX_AGE_VERSIONS < new.version}
        self.now = replace(
            now,
            chains=kept,
            log=log,
            pending={seq: cut for seq, cut in unlisted.items() if seq not in old},
            listed={seq: cut for seq, cut in listed.items() if cut[0].version + 2 * UNDO_DEPTH >= new.version},
            withdrawn=old or {seq: cut for seq, cut in now.withdrawn.items() if seq not in listed},
            tokens=now.tokens + sum(cut[0].tokens for cut in old.values()),
            steps=now.steps + sum(cut[0].steps for cut in old.values()),
            since_version=now.since_version if now.steps or old else new.version,
            next_seq=max(now.next_seq, new.highest_seq(author) + 1),
        )
        self._cut_hinted &= self.now.steps > 0  # who could not follow a hint in time follows it now, or it never would
        self._save()
        self._life.take(Measured(Figures(tokens_since_cut=self.now.tokens, steps_since_cut=self.now.steps)))
        self._life.take(HeadReached(new, state_digest(new), tuple(sorted(self.now.pending))))

    def _save(self) -> None:
        self.now = replace(self.now, view=self._life.machine.view)
        self._life.peer.disk = self.now
