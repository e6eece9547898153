"""The contributions that wait for a commit, and who holds each one whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from swarm.chain import MAX_AGE_VERSIONS, ChainState, is_majority
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Contribution

MAX_WAITING: Final = 2048  # contributions on the docket; more come only from peers who break the rules


@dataclass(slots=True)
class Waiting:
    """One contribution: announced, and held whole by `holders` (its author among them)."""

    contribution: Contribution
    sealed: bytes
    holders: set[PeerId] = field(default_factory=set)
    _held_by_most_of: frozenset[PeerId] | None = None  # holders only come, so it stays

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

    def __init__(self) -> None:
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
        waiting = Waiting(contribution, sealed, {contribution.author})
        self._waiting[contribution.root] = waiting
        self._numbers.add(number)
        self._opened[sealed] = contribution
        self._in_order = None
        return waiting

    def hold(self, peer: PeerId, roots: Iterable[Digest]) -> None:
        """Notes that a peer holds these whole."""
        for root in roots:
            if root in self._waiting:
                self._waiting[root].holders.add(peer)

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


def may_be_listed(contribution: Contribution, chain: ChainState) -> bool:
    """Whether a commit on `chain` may list it: not listed yet, not too old, not from a later version."""
    age = chain.version - contribution.version
    return 0 <= age <= MAX_AGE_VERSIONS and not chain.has_listed(contribution.author, contribution.seq)
