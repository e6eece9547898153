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
from swarm.schema import U32, U63, MaxLen, Range, to_value

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
VOTING_COMMITS: Final = 3  # a member has a vote from the commit that lists it to the second one after it
MIN_ADMITTED: Final = 4  # newcomers that one commit may admit, or as many as there are voters
MAX_DEPARTED: Final = 256  # peers that left the roster whose work may still be listed; those who left last


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


@dataclass(frozen=True, order=True, slots=True)
class Departed:
    """Who left the roster lately, and for how many commits more its contributions may be listed."""

    peer: PeerId
    commits: Annotated[int, Range(1, MAX_AGE_VERSIONS)]


@dataclass(frozen=True, slots=True)
class CommitList:
    """What one commit binds: contributions in the order they are summed, and who is admitted to the roster."""

    entries: Annotated[tuple[Entry, ...], MaxLen(MAX_ENTRIES)]  # sorted by (author, seq)
    admitted: Annotated[tuple[PeerId, ...], MaxLen(MAX_ROSTER)]  # sorted, no authors of entries
    barred: Annotated[tuple[Digest, ...], MaxLen(MAX_BARRED)] = ()  # heads that rank below everything
    minority: bool = False  # issued without a majority of the voters
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
    voting: Annotated[bytes, MaxLen(MAX_ROSTER)] = b""  # for each of the roster: commits for which it has a vote
    departed: Annotated[tuple[Departed, ...], MaxLen(MAX_DEPARTED)] = ()  # sorted; none of the roster

    def __post_init__(self) -> None:
        if not len(self.roster) == len(self.entered) == len(self.dialable) == len(self.voting):
            raise ValueError(
                f"a roster of {len(self.roster)} with {len(self.entered)} versions, {len(self.dialable)} dialable bytes"
                f" and {len(self.voting)} voting bytes"
            )

    @property
    def voters(self) -> tuple[PeerId, ...]:
        """Members whose work was listed lately, sorted: they alone lead, and count in a majority."""
        return tuple(peer for peer, lives in zip(self.roster, self.voting, strict=True) if lives)

    @property
    def order(self) -> tuple[PeerId, ...]:
        """Whose turn it is to lead, view by view: the dialable voters, then the other voters, each sorted."""
        members = tuple(zip(self.roster, self.dialable, self.voting, strict=True))
        first = (peer for peer, can_be_dialled, votes in members if votes and can_be_dialled)
        return (*first, *(peer for peer, can_be_dialled, votes in members if votes and not can_be_dialled))

    def is_dialable(self, peer: PeerId) -> bool:
        """Whether a member was dialled by another one lately, as far as the chain knows."""
        place = self._place_of(peer)
        return place is not None and self.dialable[place] > 0

    def entered_at(self, peer: PeerId) -> int:
        """The version at which a member entered the roster; of others this one."""
        place = self._place_of(peer)
        return self.version if place is None else self.entered[place]

    def may_author(self, peer: PeerId) -> bool:
        """Whether a commit on this head may list that peer's work: it is on one of the last MAX_AGE_VERSIONS + 1 rosters.
        At genesis there is none, and whoever is there begins."""
        if not self.roster or self._place_of(peer) is not None:
            return True
        place = bisect_left(self.departed, peer, key=lambda one: one.peer)
        return place < len(self.departed) and self.departed[place].peer == peer

    def _place_of(self, peer: PeerId) -> int | None:
        """Where a member stands in the roster."""
        place = bisect_left(self.roster, peer)
        return place if place < len(self.roster) and self.roster[place] == peer else None

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
    _check_members(state, commit, authors)
    if commit.dialable and (
        len(commit.dialable) != len(authors) + len(commit.admitted)
        or not any(commit.dialable)
        or max(commit.dialable) > UNSEATED
    ):
        raise InvalidList("who is dialable is not said of each member of the next roster, or of none")
    _check_size(state, commit, authors)


def _check_members(state: ChainState, commit: CommitList, authors: set[PeerId]) -> None:
    """Work is listed of members alone, and few are admitted at once. Where no voter was found for long, whoever is left
    begins anew: a commit that lists none of the voters, and that nothing proves."""
    voters = set(state.voters)
    if not state.roster or (commit.minority and not authors & voters):
        return
    stranger = next((peer for peer in sorted(authors) if not state.may_author(peer)), None)
    if stranger is not None:
        raise InvalidList(f"{stranger} is no member, and was none in the last {MAX_AGE_VERSIONS} versions")
    stay = voters & (authors | set(commit.admitted))
    if not commit.minority and not is_majority(len(stay), len(voters)):
        raise InvalidList(f"{len(stay)} of {len(voters)} voters stay on the roster, which is no majority")
    newcomers = len(set(commit.admitted) - set(state.roster))
    if newcomers > max_admitted(len(voters)):
        raise InvalidList(f"{newcomers} newcomers are admitted, at most {max_admitted(len(voters))} are allowed")


def max_admitted(num_voters: int) -> int:
    """How many newcomers one commit may admit."""
    return max(MIN_ADMITTED, num_voters)


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
    """What the chain remembers of each member: since when it is one, and for how many commits it counts as dialable and has
    a vote; and of who left the roster."""
    entered = dict(zip(state.roster, state.entered, strict=True))
    lives = dict(zip(state.roster, state.dialable, strict=True))
    votes = dict(zip(state.roster, state.voting, strict=True))
    authors = {entry.author for entry in commit.entries}
    on_it = set(roster)
    left = {one.peer: one.commits - 1 for one in state.departed} | dict.fromkeys(state.roster, MAX_AGE_VERSIONS)
    left = {peer: commits for peer, commits in left.items() if commits and peer not in on_it}
    latest = sorted(left, key=lambda peer: (-left[peer], peer.raw))[:MAX_DEPARTED]

    def lives_of(peer: PeerId, said: int) -> int:
        if said == ATTESTED:
            return DIALABLE_COMMITS
        return 0 if said == UNSEATED else max(0, lives.get(peer, 0) - 1)

    said = commit.dialable or bytes(len(roster))
    return {
        "entered": tuple(entered.get(peer, state.version + 1) for peer in roster),
        "dialable": bytes(map(lives_of, roster, said)),
        "voting": bytes(VOTING_COMMITS if peer in authors else max(0, votes.get(peer, 0) - 1) for peer in roster),
        "departed": tuple(Departed(peer, left[peer]) for peer in sorted(latest)),
    }


def is_majority(count: int, roster_size: int) -> bool:
    """Whether `count` peers are a majority of a roster: 1 of 1, 2 of 2, 2 of 3, 3 of 4 ..."""
    return 2 * count > roster_size


def leader_of(view: int, order: tuple[PeerId, ...]) -> PeerId | None:
    """The one rightful leader of a view; None while there is no roster."""
    return order[view % len(order)] if order else None
