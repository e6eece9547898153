"""The contributions that wait for a commit, and who holds each one whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from swarm.chain import MAX_AGE_VERSIONS, ChainState, is_majority
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Contribution
from swarm.round.roll import MAX_HEARD

MAX_WAITING: Final = 2048  # contributions on the docket; more come only from peers who break the rules
MAX_OPEN: Final = 3  # of one author: one that waits, and what an undo of two commits brings back
NEW_VERSIONS: Final = 3  # heads for which a member's work weighs no more than that of most others
MAX_TWO_FACED: Final = 256  # processes remembered that have signed one number twice; the newest


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
    """Contributions by root; one number of an author is there once: the first that was announced, or the one that a commit
    lists."""

    def __init__(self, me: PeerId, incarnation: int) -> None:
        self._me = me
        self._incarnations = {me: incarnation}  # of who holds something
        self._waiting: dict[Digest, Waiting] = {}
        self._numbers: dict[tuple[PeerId, int], Digest] = {}
        self._open: Counter[PeerId] = Counter()  # on the docket, by author
        self._two_faced: dict[tuple[PeerId, int], None] = {}
        self._opened: dict[bytes, Contribution] = {}
        self._in_order: tuple[Waiting, ...] | None = None

    def announce(self, contribution: Contribution, sealed: bytes, chain: ChainState) -> Waiting | None:
        """Puts a contribution on the docket; None when it is not new, can never be listed, or has no room: each author has a
        little, and members' contributions take the place of others'."""
        if contribution.root in self._waiting or not may_be_listed(contribution, chain):
            return None
        author = contribution.author
        number = (author, contribution.seq)
        if number in self._numbers:
            self._compare(contribution, self._waiting[self._numbers[number]].contribution)
            return None
        if author != self._me and self._open[author] >= MAX_OPEN:
            return None
        if len(self._waiting) >= MAX_WAITING and not self._makes_room(author, chain):
            return None
        return self._put(contribution, sealed)

    def announce_listed(self, contribution: Contribution, sealed: bytes, chain: ChainState) -> Waiting | None:
        """The same for one that a commit lists: all are to fetch that one, whatever they had heard before."""
        known = self._waiting.get(contribution.root)
        if known is not None and known.contribution == contribution:
            return known
        for root in (contribution.root, self._numbers.get((contribution.author, contribution.seq))):
            if root is not None and root in self._waiting:
                self._compare(contribution, self._waiting[root].contribution)
                self._drop(root)
        return self._put(contribution, sealed) if may_be_listed(contribution, chain) else None

    def is_two_faced(self, peer: PeerId, incarnation: int) -> bool:
        """Whether that process has signed two contributions of one number: nobody can follow both."""
        return (peer, incarnation) in self._two_faced

    def _compare(self, one: Contribution, other: Contribution) -> None:
        same = (one.author, one.seq, one.incarnation) == (other.author, other.seq, other.incarnation)
        if same and one != other:
            self._in_order = None
            self._two_faced[one.author, one.incarnation] = None
            while len(self._two_faced) > MAX_TWO_FACED:
                del self._two_faced[next(iter(self._two_faced))]

    def _makes_room(self, author: PeerId, chain: ChainState) -> bool:
        """Whether there is room for a contribution of that author on a full docket, after the last one of a stranger went."""
        members = {self._me, *chain.roster}
        strangers = (root for root, one in reversed(self._waiting.items()) if one.contribution.author not in members)
        root = next(strangers, None) if author in members else None
        if root is not None:
            self._drop(root)
        return root is not None

    def _put(self, contribution: Contribution, sealed: bytes) -> Waiting:
        waiting = self._waiting[contribution.root] = Waiting(contribution, sealed)
        self.hold(contribution.author, contribution.incarnation, (contribution.root,))
        self._numbers[contribution.author, contribution.seq] = contribution.root
        self._open[contribution.author] += 1
        self._opened[sealed] = contribution
        self._in_order = None
        return waiting

    def _drop(self, root: Digest) -> None:
        gone = self._waiting.pop(root)
        del self._numbers[gone.contribution.author, gone.contribution.seq]
        self._open[gone.contribution.author] -= 1
        if not self._open[gone.contribution.author]:
            del self._open[gone.contribution.author]
        self._opened.pop(gone.sealed, None)
        self._in_order = None

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
        """All that may be listed, by author and number; nothing of who has signed one number twice."""
        if self._in_order is None:
            honest = [
                one
                for one in self._waiting.values()
                if not self.is_two_faced(one.contribution.author, one.contribution.incarnation)
            ]
            self._in_order = tuple(sorted(honest, key=lambda one: (one.contribution.author.raw, one.contribution.seq)))
        return self._in_order

    def prune(self, chain: ChainState) -> None:
        """Drops what this chain lists or can never list."""
        for root in [root for root, one in self._waiting.items() if not may_be_listed(one.contribution, chain)]:
            self._drop(root)
        if len(self._incarnations) > MAX_HEARD:
            holders = set().union({self._me}, *(one.holders for one in self._waiting.values()))
            self._incarnations = {peer: known for peer, known in self._incarnations.items() if peer in holders}


def tokens_due(contribution: Contribution, chain: ChainState, lease_tokens: int) -> int:
    """What it weighs in a commit on `chain`: its tokens, but no more than the leases of the rounds in which its author can
    have worked on it: since it says it did, since it is a member, and within the age that a contribution may have."""
    since = max(contribution.since_version, chain.entered_at(contribution.author))
    rounds = min(MAX_AGE_VERSIONS + 1, max(1, chain.version - since + 1))
    return min(contribution.tokens, rounds * lease_tokens)


def weights(contributions: Sequence[Contribution], chain: ChainState, lease_tokens: int) -> tuple[int, ...]:
    """What each weighs in one commit on `chain`: what is due, but of who has been a member for less than NEW_VERSIONS no more
    than the middle one (of an even number the lower) of the others' contributions."""
    due = [tokens_due(one, chain, lease_tokens) for one in contributions]
    are_new = [chain.version - chain.entered_at(one.author) < NEW_VERSIONS for one in contributions]
    others = sorted(tokens for tokens, is_new in zip(due, are_new, strict=True) if not is_new)
    if not others:
        return tuple(due)
    middle = others[(len(others) - 1) // 2]
    return tuple(min(tokens, middle) if is_new else tokens for tokens, is_new in zip(due, are_new, strict=True))


def may_be_listed(contribution: Contribution, chain: ChainState) -> bool:
    """Whether a commit on `chain` may list it: not listed yet, not too old, not from a later version."""
    age = chain.version - contribution.version
    return 0 <= age <= MAX_AGE_VERSIONS and not chain.has_listed(contribution.author, contribution.seq)
