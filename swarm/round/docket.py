"""The contributions that wait for a commit, and who holds each one whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from swarm.chain import MAX_AGE_VERSIONS, ChainState, is_majority
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Contribution
from swarm.round.roll import MAX_HEARD

MAX_WAITING: Final = 2048  # contributions on the docket; more come only from peers who break the rules


@dataclass(slots=True)
class Waiting:
    """One contribution: announced, and held whole by `holders`, in their own words."""

    contribution: Contribution
    sealed: bytes
    holders: set[PeerId] = field(default_factory=set)
    named: tuple[PeerId, ...] = ()  # who held it as somebody else says: to be asked, not to be counted
    _held_by_most_of: frozenset[PeerId] | None = None  # stays true until a holder goes

    def forget(self, peer: PeerId) -> None:
        """A holder may hold it no more."""
        if peer in self.holders:
            self.holders.discard(peer)
            self._held_by_most_of = None

    def is_held(self, members: frozenset[PeerId]) -> bool:
        """Whether a majority of the members holds it. Cheap for as long as `members` is the same object."""
        if self._held_by_most_of is not members:
            if not is_majority(len(self.holders), len(members)):
                return False
            if not is_majority(len(self.holders & members), len(members)):
                return False
            self._held_by_most_of = members
        return True


class Docket:
    """Contributions by root; one number of an author is there once, the first that was announced."""

    def __init__(self, me: PeerId, incarnation: int) -> None:
        self._me = me
        self._incarnations = {me: incarnation}  # of who holds something
        self._waiting: dict[Digest, Waiting] = {}
        self._numbers: set[tuple[PeerId, int]] = set()
        self._opened: dict[bytes, Contribution] = {}
        self._in_order: tuple[Waiting, ...] | None = None

    def announce(self, contribution: Contribution, sealed: bytes, chain: ChainState) -> Waiting | None:
        """Puts a contribution on the docket; None when it is not new or can never be listed."""
        if contribution.root in self._waiting or not may_be_listed(contribution, chain):
            return None
        if len(self._waiting) >= MAX_WAITING:
            return None
        number = (contribution.author, contribution.seq)
        if number in self._numbers:
            return None
        waiting = Waiting(contribution, sealed)
        self._waiting[contribution.root] = waiting
        self.hold(contribution.author, contribution.incarnation, (contribution.root,))
        self._numbers.add(number)
        self._opened[sealed] = contribution
        self._in_order = None
        return waiting

    def hold(self, peer: PeerId, incarnation: int, roots: Iterable[Digest]) -> None:
        """Notes that a peer holds these whole, in the words of its `incarnation`-th process.

        A new process speaks for itself: what the one before it held may have gone with it, and counts no more.
        """
        known = self._incarnations.setdefault(peer, incarnation)
        if incarnation < known:
            return
        if incarnation > known:
            self._incarnations[peer] = incarnation
            for waiting in self._waiting.values():
                waiting.forget(peer)
        for root in roots:
            if root in self._waiting:
                self._waiting[root].holders.add(peer)

    def hold_here(self, root: Digest) -> None:
        """Notes that this process holds it whole."""
        self.hold(self._me, self._incarnations[self._me], (root,))

    def get(self, root: Digest) -> Waiting | None:
        return self._waiting.get(root)

    def opened(self, sealed: bytes) -> Contribution | None:
        """The contribution on the docket that these signed bytes are; who signed them was looked at when they came."""
        return self._opened.get(sealed)

    def roots(self) -> Iterator[Digest]:
        """In the order in which they were announced."""
        return iter(self._waiting)

    def waiting(self) -> tuple[Waiting, ...]:
        """All, by author and number."""
        if self._in_order is None:
            waiting = self._waiting.values()
            self._in_order = tuple(sorted(waiting, key=lambda one: (one.contribution.author.raw, one.contribution.seq)))
        return self._in_order

    def prune(self, chain: ChainState) -> None:
        """Drops what this chain lists or can never list."""
        self._waiting = {root: one for root, one in self._waiting.items() if may_be_listed(one.contribution, chain)}
        self._numbers = {(one.contribution.author, one.contribution.seq) for one in self._waiting.values()}
        self._opened = {one.sealed: one.contribution for one in self._waiting.values()}
        self._in_order = None
        if len(self._incarnations) > MAX_HEARD:
            holders = set().union({self._me}, *(one.holders for one in self._waiting.values()))
            self._incarnations = {peer: known for peer, known in self._incarnations.items() if peer in holders}


def tokens_due(contribution: Contribution, chain: ChainState, lease_tokens: int) -> int:
    """What it weighs in a commit on `chain`: its tokens, but no more than the leases of the rounds in which its author can
    have worked on it: since it says it did, since it is a member, and within the age that a contribution may have."""
    since = max(contribution.since_version, chain.entered_at(contribution.author))
    rounds = min(MAX_AGE_VERSIONS + 1, max(1, chain.version - since + 1))
    return min(contribution.tokens, rounds * lease_tokens)


def may_be_listed(contribution: Contribution, chain: ChainState) -> bool:
    """Whether a commit on `chain` may list it: not listed yet, not too old, not from a later version."""
    age = chain.version - contribution.version
    return 0 <= age <= MAX_AGE_VERSIONS and not chain.has_listed(contribution.author, contribution.seq)
