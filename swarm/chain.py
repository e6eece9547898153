"""The chain: which contributions were committed, in one order that everyone shares. No tensors here.

`ChainState` is what a head stands for besides the parameters: version, tokens, data cursor, listed sequence numbers and
roster. `apply` is the only way from one head to the next, and equal heads have equal states:

    head_0 = H("genesis", run, digest of version 0)      head' = H("head", head, canonical(list))

The list carries no term, leader, time or signature: a take-over that issues the same list again yields the same head.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from swarm import wire
from swarm.digest import Digest, digest_of
from swarm.errors import RemoteError
from swarm.identity import PeerId
from swarm.schema import U32, U63, MaxLen, to_value

MAX_ROSTER: Final = 4096  # members of one run; a list of all of them stays under a frame
MAX_ENTRIES: Final = 1024  # contributions of one commit
MAX_HOLES: Final = 32  # unlisted numbers remembered below a peer's highest; older ones can never be listed
MAX_NUMBER: Final = (
    1 << 32
) - 1  # of a contribution: so a state of MAX_ROSTER authors with all their holes fits a frame
MAX_BARRED: Final = 64  # heads that lost their blobs; the newest are remembered
MAX_RECENT: Final = 8  # heads before the present one that a chain remembers
MAX_AGE_VERSIONS: Final = 2  # a contribution may be listed so many versions after the one it was cut at
DIALABLE_COMMITS: Final = 3  # a member counts as dialable from the commit that attests it to the second one after it
ATTESTED: Final = 1  # in `CommitList.dialable`: another member has dialled it lately
UNSEATED: Final = 2  # it was silent when it was its turn to lead


class InvalidList(RemoteError):
    """A commit list that breaks a rule of the chain; whoever issued it is wrong."""


@dataclass(frozen=True, order=True, slots=True)
class Entry:
    """One contribution in a commit list. `tokens` is its weight, already capped by the author's leases."""

    author: PeerId
    seq: U63
    incarnation: U63
    root: Digest
    first_unit: U32
    end_unit: U32  # units [first_unit, end_unit)
    tokens: U63
    steps: U32


@dataclass(frozen=True, order=True, slots=True)
class ListedNumbers:
    """The sequence numbers of one author that a chain lists: all up to `highest` but the holes."""

    author: PeerId
    highest: U32
    holes: Annotated[tuple[U32, ...], MaxLen(MAX_HOLES)] = ()  # ascending, each below `highest`
    tokens: U63 = 0  # of all that is listed

    def __contains__(self, seq: int) -> bool:
        return seq <= self.highest and seq not in self.holes

    def including(self, seq: int, tokens: int) -> ListedNumbers:
        """The same with `seq` listed; of more than MAX_HOLES holes the oldest count as listed from then on."""
        more = self.tokens + tokens
        if seq <= self.highest:
            return replace(self, holes=tuple(hole for hole in self.holes if hole != seq), tokens=more)
        skipped = range(max(self.highest + 1, seq - MAX_HOLES), seq)
        return ListedNumbers(self.author, seq, (*self.holes, *skipped)[-MAX_HOLES:], more)


@dataclass(frozen=True, slots=True)
class CommitList:
    """What one commit binds: contributions in the order they are summed, and who is admitted to the roster."""

    entries: Annotated[tuple[Entry, ...], MaxLen(MAX_ENTRIES)]  # sorted by (author, seq)
    admitted: Annotated[tuple[PeerId, ...], MaxLen(MAX_ROSTER)]  # sorted, no authors of entries
    barred: Annotated[tuple[Digest, ...], MaxLen(MAX_BARRED)] = ()  # heads that rank below everything
    minority: bool = False  # issued without a majority of the roster
    dialable: Annotated[bytes, MaxLen(MAX_ROSTER)] = b""  # ATTESTED, UNSEATED or 0 for each of `roster`; empty: all 0

    @property
    def tokens(self) -> int:
        return sum(entry.tokens for entry in self.entries)

    @property
    def roster(self) -> tuple[PeerId, ...]:
        """The next roster, sorted: the authors and those admitted."""
        return tuple(sorted({entry.author for entry in self.entries} | set(self.admitted), key=lambda peer: peer.raw))


@dataclass(frozen=True, slots=True)
class ChainState:
    """What a head stands for, parameters aside. Equal for equal `head`."""

    head: Digest
    version: U63
    tokens: U63  # of all entries since genesis
    cursor: U63  # the first sample slot of this version's leases
    listed: Annotated[tuple[ListedNumbers, ...], MaxLen(MAX_ROSTER)]  # sorted by author
    roster: Annotated[tuple[PeerId, ...], MaxLen(MAX_ROSTER)]  # sorted; empty only at genesis
    entries: U32  # contributions in the last commit; 0 at genesis
    barred: Annotated[tuple[Digest, ...], MaxLen(MAX_BARRED)] = ()
    recent: Annotated[tuple[Digest, ...], MaxLen(MAX_RECENT)] = ()  # the heads before it, newest first
    entered: Annotated[
        tuple[U63, ...], MaxLen(MAX_ROSTER)
    ] = ()  # for each of the roster: the version since which it is
    dialable: Annotated[bytes, MaxLen(MAX_ROSTER)] = b""  # for each of the roster: commits for which it counts as such

    def __post_init__(self) -> None:
        if not len(self.roster) == len(self.entered) == len(self.dialable):
            raise ValueError(
                f"a roster of {len(self.roster)} with {len(self.entered)} versions and {len(self.dialable)} dialable bytes"
            )

    @property
    def order(self) -> tuple[PeerId, ...]:
        """Whose turn it is to lead, view by view: the dialable members, then the others, each sorted."""
        members = tuple(zip(self.roster, self.dialable, strict=True))
        return (*(peer for peer, lives in members if lives), *(peer for peer, lives in members if not lives))

    def is_dialable(self, peer: PeerId) -> bool:
        """Whether a member was dialled by another one lately, as far as the chain knows."""
        place = bisect_left(self.roster, peer)
        return place < len(self.roster) and self.roster[place] == peer and self.dialable[place] > 0

    def entered_at(self, peer: PeerId) -> int:
        """The version at which a member entered the roster; of others this one."""
        place = bisect_left(self.roster, peer)
        return self.entered[place] if place < len(self.roster) and self.roster[place] == peer else self.version

    @property
    def key(self) -> tuple[int, int, bytes]:
        """The order on heads of one run: more tokens, then the higher version, then the larger hash."""
        return self.tokens, self.version, self.head.raw

    def has_listed(self, author: PeerId, seq: int) -> bool:
        numbers = self._numbers_of(author)
        return numbers is not None and seq in numbers

    def highest_seq(self, author: PeerId) -> int:
        """The highest number listed for that author; 0 when there is none."""
        numbers = self._numbers_of(author)
        return 0 if numbers is None else numbers.highest

    def ranks_above(self, other: ChainState) -> bool:
        """Whether this head takes the place of the other: it bars it, or has the larger key and is not barred there."""
        if other.head in self.barred:
            return True
        return self.key > other.key and self.head not in other.barred

    def _numbers_of(self, author: PeerId) -> ListedNumbers | None:
        place = bisect_left(self.listed, author, key=lambda numbers: numbers.author)
        found = place < len(self.listed) and self.listed[place].author == author
        return self.listed[place] if found else None

    def digest(self) -> Digest:
        return digest_of("chain", wire.encode(to_value(self)))


def genesis(run: Digest, parameters: Digest) -> ChainState:
    """The chain state of version 0."""
    head = digest_of("genesis", run.raw, parameters.raw)
    return ChainState(head=head, version=0, tokens=0, cursor=0, listed=(), roster=(), entries=0)


def head_after(head: Digest, commit: CommitList) -> Digest:
    """The head that a commit list leads to from `head`."""
    return digest_of("head", head.raw, wire.encode(to_value(commit)))


def check_list(state: ChainState, commit: CommitList) -> None:
    """Returns if `commit` may follow `state`; raises InvalidList naming the rule it breaks."""
    if not commit.entries:
        raise InvalidList("a commit without contributions")
    order = [(entry.author.raw, entry.seq) for entry in commit.entries]
    if order != sorted(set(order)):
        raise InvalidList("entries are not sorted by author and number, or one is there twice")
    for entry in commit.entries:
        if entry.seq == 0 or state.has_listed(entry.author, entry.seq):
            raise InvalidList(f"number {entry.seq} of {entry.author} is already on this chain")
        if entry.seq > MAX_NUMBER:
            raise InvalidList(f"number {entry.seq} of {entry.author}, at most {MAX_NUMBER} are allowed")
        if entry.tokens == 0 or entry.first_unit >= entry.end_unit:
            raise InvalidList(f"number {entry.seq} of {entry.author} carries no tokens or no units")
    authors = {entry.author for entry in commit.entries}
    if list(commit.admitted) != sorted(set(commit.admitted) - authors, key=lambda peer: peer.raw):
        raise InvalidList("admitted peers are not sorted, or one is there twice or an author too")
    if commit.dialable and (
        len(commit.dialable) != len(authors) + len(commit.admitted)
        or not any(commit.dialable)
        or max(commit.dialable) > UNSEATED
    ):
        raise InvalidList("who is dialable is not said of each member of the next roster, or of none")
    _check_size(state, commit, authors)


def _check_size(state: ChainState, commit: CommitList, authors: set[PeerId]) -> None:
    """Holds every state to what a message can carry: one that grew past it could be given to nobody."""
    if len(authors) + len(commit.admitted) > MAX_ROSTER:
        raise InvalidList(f"a roster of {len(authors) + len(commit.admitted)}, at most {MAX_ROSTER} are allowed")
    known = {numbers.author for numbers in state.listed}
    if len(known | authors) > MAX_ROSTER:
        raise InvalidList(f"{len(known | authors)} authors on one chain, at most {MAX_ROSTER} are allowed")
    if state.tokens + commit.tokens >= 1 << 63:
        raise InvalidList(f"{state.tokens + commit.tokens} tokens on one chain, less than {1 << 63} are allowed")


def left_tokens(own: ChainState, other: ChainState) -> int:
    """The tokens that `own` lists and `other` lacks. Where each has numbers of an author that the other lacks, what is
    less is taken to be in what is more: which tokens were in which number is not remembered."""
    theirs = {numbers.author: numbers.tokens for numbers in other.listed}
    return sum(max(0, numbers.tokens - theirs.get(numbers.author, 0)) for numbers in own.listed)


def apply(state: ChainState, commit: CommitList, lease_windows: int) -> ChainState:
    """The chain state behind `commit`. Raises InvalidList.

    The cursor moves past the leases of everyone who had one: the roster, or at genesis, where there is none, the authors
    and those admitted.
    """
    check_list(state, commit)
    roster = commit.roster
    by_author = {numbers.author: numbers for numbers in state.listed}
    for entry in commit.entries:
        known = by_author.get(entry.author) or ListedNumbers(entry.author, 0)
        by_author[entry.author] = known.including(entry.seq, entry.tokens)
    return ChainState(
        head=head_after(state.head, commit),
        version=state.version + 1,
        tokens=state.tokens + commit.tokens,
        cursor=state.cursor + lease_windows * len(state.roster or roster),
        listed=tuple(by_author[author] for author in sorted(by_author, key=lambda peer: peer.raw)),
        roster=roster,
        entries=len(commit.entries),
        barred=(*state.barred, *commit.barred)[-MAX_BARRED:],
        recent=(state.head, *state.recent)[:MAX_RECENT],
        **_members_after(state, commit, roster),
    )


def _members_after(state: ChainState, commit: CommitList, roster: tuple[PeerId, ...]) -> dict[str, Any]:
    """What the chain remembers of each member: since when it is one, and for how many commits it counts as dialable."""
    entered = dict(zip(state.roster, state.entered, strict=True))
    lives = dict(zip(state.roster, state.dialable, strict=True))

    def lives_of(peer: PeerId, said: int) -> int:
        if said == ATTESTED:
            return DIALABLE_COMMITS
        return 0 if said == UNSEATED else max(0, lives.get(peer, 0) - 1)

    said = commit.dialable or bytes(len(roster))
    return {
        "entered": tuple(entered.get(peer, state.version + 1) for peer in roster),
        "dialable": bytes(map(lives_of, roster, said)),
    }


def is_majority(count: int, roster_size: int) -> bool:
    """Whether `count` peers are a majority of a roster: 1 of 1, 2 of 2, 2 of 3, 3 of 4 ..."""
    return 2 * count > roster_size


def leader_of(view: int, order: tuple[PeerId, ...]) -> PeerId | None:
    """The one rightful leader of a view; None while there is no roster."""
    return order[view % len(order)] if order else None
