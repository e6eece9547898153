"""What one peer tells the others of itself: its contributions in flight, the blobs it holds, and its status."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from swarm.chain import MAX_AGE_VERSIONS, ChainState
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import MAX_DIALLED, MAX_HELD, Activity, Answer, Contribution, PeerStatus
from swarm.round.docket import MAX_WAITING
from swarm.round.facts import Figures
from swarm.round.looks import PROMPT_PEERS
from swarm.schema import line
from swarm.status import MAX_WAITS_BYTES

MAX_HELD_BLOBS: Final = 2 * MAX_WAITING  # remembered: of one commit and of what waits behind it
HOLDING_PAUSE_S: Final = (
    2e-3  # between two messages of one member that say what it holds, for each member of a large group
)

HELD_VERSIONS: Final = MAX_AGE_VERSIONS + 2  # a contribution older than that is in a kept log, or never will be
OWN_REMEMBERED: Final = 6  # more than an undo can bring back: two heads, each listing what is two versions old at most
_BEATS_PER_INCARNATION: Final = 1 << 32  # a restart's first beat is above any beat of the life before


@dataclass(frozen=True, slots=True)
class Self:
    """Who this participant is. `incarnation` rises with every start of the process."""

    peer: PeerId
    name: str
    device: str
    incarnation: int


class OwnContributions:
    """Our numbers: those pending, and those listed so lately that an undo may bring them back."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Contribution, bytes]] = {}
        self._pending: tuple[int, ...] = ()

    def add(self, contribution: Contribution, sealed: bytes) -> None:
        """A new one, or one from before a restart: it is pending."""
        self._known[contribution.seq] = (contribution, sealed)
        self._pending = tuple(sorted({*self._pending, contribution.seq}))

    def move(self, still_pending: tuple[int, ...], version: int) -> None:
        """A new head: these are pending now; what no undo can bring back is forgotten."""
        oldest = version - 2 * MAX_AGE_VERSIONS
        young = [seq for seq, own in self._known.items() if own[0].version >= oldest]
        # A branch that was left may have been longer than the chain that won: all of its numbers look young there.
        kept = {*still_pending, *sorted(young)[-OWN_REMEMBERED:]}
        self._known = {seq: own for seq, own in self._known.items() if seq in kept}
        self._pending = tuple(sorted(set(still_pending) & set(self._known)))

    def pending(self) -> tuple[tuple[Contribution, bytes], ...]:
        """Those pending, oldest first."""
        return tuple(self._known[seq] for seq in self._pending)


class HeldBlobs:
    """Roots of contributions held whole, for as long as the shell keeps them from being collected; the oldest make room."""

    def __init__(self) -> None:
        self._roots: dict[Digest, int] = {}  # and the version at which each came

    def add(self, root: Digest, version: int) -> None:
        self._roots.pop(root, None)
        self._roots[root] = version
        while len(self._roots) > MAX_HELD_BLOBS:
            del self._roots[next(iter(self._roots))]

    def holds_for(self, contribution: Contribution) -> bool:
        """Whether the blob stays here for as long as a commit may list the contribution. A peer that went back to an older
        disk may do the same work again: bytes that came before it was done would be collected too early."""
        return self._roots.get(contribution.root, -1) >= contribution.version

    def forget(self, version: int, needed: Iterable[Digest]) -> None:
        """A new head: what came HELD_VERSIONS before may be gone from the disk, unless it is `needed`: pinned by the state
        that is saved."""
        keep = set(needed)
        oldest = version - HELD_VERSIONS
        self._roots = {root: came for root, came in self._roots.items() if came >= oldest or root in keep}

    def __contains__(self, root: Digest) -> bool:
        return root in self._roots


class HoldingNews:
    """Blobs that came since the leader was told last. In a small group it is told at once; in a large one every member tells
    of several at a time, so that the leader hears no more of them in a second than in a group of five hundred."""

    def __init__(self) -> None:
        self._roots: list[Digest] = []
        self._due_s = -math.inf

    def add(self, root: Digest) -> None:
        self._roots.append(root)

    def due(self, num_members: int, now_s: float) -> tuple[Digest, ...]:
        """What to tell now, at most MAX_HELD."""
        if not self._roots or (now_s < self._due_s and num_members > PROMPT_PEERS):
            return ()
        self._due_s = now_s + num_members * HOLDING_PAUSE_S
        told, self._roots = tuple(self._roots[:MAX_HELD]), self._roots[MAX_HELD:]
        return told

    def clear(self) -> None:
        """A new head: our status names what still waits."""
        self._roots.clear()


@dataclass(slots=True)
class Standing:
    """Where we stand, for the status."""

    activity: Activity
    view: int
    chain: ChainState
    state_digest: Digest
    waits_for: str
    pending: bytes | None
    holding: tuple[Digest, ...]
    lost: tuple[Digest, ...]
    answer: Answer | None
    vote: bytes


class Words:
    """The numbers of our heartbeats, the one that our words as a leader carry, and the last one that we heard of a leader."""

    def __init__(self, me: Self) -> None:
        self._incarnation = me.incarnation
        self.count = 0  # heartbeats of this life
        self.said = 0
        self.answer: Answer | None = None

    @property
    def beat(self) -> int:
        """The number of the last heartbeat."""
        return beat_of(self._incarnation, self.count)

    def next(self) -> None:
        """One more heartbeat."""
        self.count += 1

    def say(self) -> int:
        """From now on our words as a leader carry the number of the last heartbeat; returns it."""
        self.said = self.beat
        return self.said

    def hear(self, leader: PeerId, beat: int) -> bool:
        """A word of our leader; returns whether it is another leader than before."""
        known = self.answer
        if known is not None and known.leader == leader and known.beat >= beat:
            return False
        self.answer = Answer(leader, beat)
        return known is None or known.leader != leader


def beat_of(incarnation: int, count: int) -> int:
    """The number of a heartbeat: the `count`-th of that life."""
    return incarnation * _BEATS_PER_INCARNATION + count


def make_status(me: Self, beat: int, standing: Standing, figures: Figures) -> PeerStatus:
    """The heartbeat of this number."""
    return PeerStatus(
        peer=me.peer,
        beat=beat,
        name=me.name,
        device=me.device,
        activity=standing.activity,
        incarnation=me.incarnation,
        view=standing.view,
        version=standing.chain.version,
        head=standing.chain.head,
        tokens=standing.chain.tokens,
        state_digest=standing.state_digest,
        tokens_since_cut=figures.tokens_since_cut,
        steps_since_cut=figures.steps_since_cut,
        tokens_per_s=figures.tokens_per_s,
        up_bytes=figures.up_bytes,
        down_bytes=figures.down_bytes,
        up_bytes_per_s=figures.up_bytes_per_s,
        down_bytes_per_s=figures.down_bytes_per_s,
        train_loss=figures.train_loss,
        heldout_loss=figures.heldout_loss,
        heldout_version=figures.heldout_version,
        checkpoint_version=figures.checkpoint_version,
        waits_for=line(standing.waits_for, MAX_WAITS_BYTES),
        addresses=figures.addresses,
        pending=standing.pending,
        holding=standing.holding,
        time=figures.time,
        lost=standing.lost,
        dialled=figures.dialled[:MAX_DIALLED],
        answer=standing.answer,
        vote=standing.vote,
    )
