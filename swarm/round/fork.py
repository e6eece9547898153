"""Which of two heads to follow, and who stands where: counted by the voters of the root alone.

Ours and theirs part at F, the last head that is on both. In this order:

1. A head that a majority at F could not reach is barred, and loses.
2. What is proved is not left: a root of ours beyond F stays; of theirs beyond F wins, up to the root. So does a commit on our
   own head by who leads us there, that we have missed.
3. More voters of the root at F win, by where each stands now: beyond F on their side, or on our side or at F itself. If
   more stand together at a third head, theirs is not the one to follow.
4. The larger (tokens, version, head).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from swarm.chain import ChainState
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.round.root import Root


class Verdict(Enum):
    """What follows from what is known."""

    MOVE = "move"
    STAY = "stay"
    TIE = "tie"  # as many voters stand there as anywhere, and its head is larger: for who finds nothing better
    ASK = "ask"  # it depends on voters of whom nothing is known


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about another branch: how many of its commits to take, and why."""

    verdict: Verdict
    depth: int
    reason: str
    sure: int = 0  # commits to take whatever the voters say
    voters: tuple[PeerId, ...] = ()  # whose stands count


@dataclass(frozen=True, slots=True)
class Ours:
    """Our branch: our head and those before it that we can go back to, newest first, each with its root."""

    chains: Sequence[ChainState]
    roots: Sequence[Root]

    @property
    def tip(self) -> ChainState:
        return self.chains[0]

    @property
    def root(self) -> Root:
        return self.roots[0]


@dataclass(frozen=True, slots=True)
class Theirs:
    """Another branch, checked from `base`, one of our heads, on: its heads behind it, oldest first, and its root."""

    base: ChainState
    chains: Sequence[ChainState]
    barred: frozenset[Digest]  # by the first commit on `base`: what a majority there could not reach
    root: Root
    is_led: bool = False  # the first commit, on our own head, was issued by who may lead us there

    @property
    def tip(self) -> ChainState:
        return self.chains[-1] if self.chains else self.base


@dataclass(frozen=True, slots=True)
class Sides:
    """Voters of the root by where they stand."""

    theirs: frozenset[PeerId]
    ours: frozenset[PeerId]
    unknown: frozenset[PeerId]
    elsewhere: int = 0  # the most that stand together at another head


def follow(ours: Ours, theirs: Theirs, stands: Mapping[PeerId, Digest], silent: Collection[PeerId]) -> Decision:
    """Whether to go over to their branch, and how far. `stands`: where voters stand, in words that are fresh, our own too.
    `silent`: voters that were asked and did not answer."""
    place = next(place for place, chain in enumerate(ours.chains) if chain.head == theirs.base.head)
    above = ours.chains[:place]  # what we would leave
    whole = len(theirs.chains)
    lost = next((chain for chain in theirs.chains if chain.head in ours.tip.barred), None)
    if lost is not None:
        return Decision(Verdict.STAY, 0, f"its log leads over head {lost.head}, which is barred")
    if not whole:
        return Decision(Verdict.STAY, 0, f"its log leads to version {theirs.tip.version}, which we have")
    is_barred = bool(above) and above[-1].head in theirs.barred
    began_apart = bool(above) and not theirs.base.version  # then no root of theirs counts: anybody can begin
    is_first = began_apart and ours.root.version == above[-1].version  # and no root of ours: nobody has proved it
    if ours.root.version > theirs.base.version and not is_barred and not is_first:
        text = f"its log leaves our chain at version {theirs.base.version}, and {ours.root.version} is proved"
        return Decision(Verdict.STAY, 0, text)
    # What is proved, what bars our branch and what our leader issued is taken in any case; what comes behind it is not.
    sure = max(0 if began_apart else theirs.root.version - theirs.base.version, int(is_barred or theirs.is_led), 0)
    if sure == whole:
        return Decision(Verdict.MOVE, whole, "")
    voters = ours.root.voters if began_apart else ours.roots[place].voters
    if theirs.root.version > theirs.base.version and not began_apart:
        voters = theirs.root.voters
    passed = {theirs.base.head, *(chain.head for chain in (*above, *theirs.chains[:sure]))}
    sides = sides_of(voters, stands, {chain.head for chain in theirs.chains[sure:]}, passed, silent)
    verdict = count(sides, is_larger=theirs.tip.key > ours.tip.key)
    reason = f"{len(sides.theirs)} of {len(voters)} voters stand there, {len(sides.ours)} with us"
    if sure and verdict in (Verdict.STAY, Verdict.TIE):
        return Decision(Verdict.MOVE, sure, reason)
    return Decision(verdict, whole, reason, sure, tuple(voters))


def sides_of(
    voters: Sequence[PeerId],
    stands: Mapping[PeerId, Digest],
    theirs: Collection[Digest],
    ours: Collection[Digest],
    silent: Collection[PeerId] = (),
) -> Sides:
    """Who of these voters stands on which side."""
    known = {peer: stands[peer] for peer in voters if peer in stands}
    others = Counter(head for head in known.values() if head not in theirs and head not in ours)
    return Sides(
        frozenset(peer for peer, head in known.items() if head in theirs),
        frozenset(peer for peer, head in known.items() if head in ours),
        frozenset(peer for peer in voters if peer not in known and peer not in silent),
        max(others.values(), default=0),
    )


def count(sides: Sides, *, is_larger: bool) -> Verdict:
    """More voters win, at least one; of as many the larger head may. ASK where those not heard of could turn it."""
    lead = len(sides.theirs) - max(len(sides.ours), sides.elsewhere)
    if abs(lead) > len(sides.unknown):
        return Verdict.MOVE if lead > 0 else Verdict.STAY
    if sides.unknown:
        return Verdict.ASK
    if lead == 0 and sides.theirs:
        return Verdict.TIE if is_larger else Verdict.STAY
    return Verdict.MOVE if lead > 0 else Verdict.STAY
