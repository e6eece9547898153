"""The leader's decisions as pure functions of what it knows: the decision, and the reason that goes on every screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from swarm.chain import ATTESTED, MAX_ROSTER, UNSEATED, ChainState, CommitList, Entry, is_majority, max_admitted
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Contribution
from swarm.round.docket import NEW_VERSIONS, Waiting, weights
from swarm.words import counted

MAX_EVIDENCE_BYTES: Final = (
    200 << 10
)  # statuses in a commit: what is left of a frame beside the longest list and roster


@dataclass(frozen=True, slots=True)
class LostHead:
    """A head whose blobs these members could not get, each in its own signed words."""

    head: Digest
    reports: tuple[tuple[PeerId, bytes], ...]


@dataclass(frozen=True, slots=True)
class RoundView:
    """What a leader knows of the round at `chain` now. Peers and contributions are sorted."""

    me: PeerId
    chain: ChainState
    members: tuple[PeerId, ...]  # the roster, or where there is none those who opened
    awaited: tuple[PeerId, ...]  # members that are live and at this head
    voters: frozenset[
        PeerId
    ]  # who counts in a majority: members whose work was listed lately, or all of those who opened
    present: tuple[PeerId, ...]  # everyone live and at this head, members or not
    waiting: tuple[Waiting, ...]
    tokens: int  # done since their cuts by `awaited`, pending ones included
    since_head_s: float
    since_hint_s: float | None  # None: no cut hint has gone out
    since_majority_s: float  # since a majority of `voters` was live
    since_regained_s: float  # since when a majority has been live without a break
    is_followed: bool  # a majority of `voters` has said that it is at this head in our view
    lease_tokens: int  # of one member and round
    votes: Mapping[PeerId, bytes]  # of voters that are here, for this head and our state; none where there is no roster
    state_digest: Digest  # ours
    lost: tuple[LostHead, ...] = ()  # reported by us, at this head
    attested: frozenset[PeerId] = frozenset()  # peers that somebody else has dialled lately
    unseated: frozenset[PeerId] = frozenset()  # leaders who were silent in their turn at this head
    num_elsewhere: int = 0  # voters that are live and at another head
    knows_better: bool = False  # somebody stands at another head that we may have to follow
    turns: tuple[PeerId, ...] | None = None  # in a group larger than a list: whose turn it is to cut, or who was asked
    voters_took_s: float | None = None  # from the hint until all due contributions were held; None: they are not yet
    are_ready: bool = False  # all of these have done the steps after which a member of a small group cuts by itself

    @property
    def due(self) -> tuple[PeerId, ...]:
        """Members whose contributions this round waits for: who has not contributed yet may be somebody who never does."""
        return tuple(sorted((self.voters if self.turns is None else set(self.turns)) & set(self.awaited)))

    @property
    def newcomers(self) -> tuple[PeerId, ...]:
        """Members who have not contributed yet, and have hardly had the time."""
        chain = self.chain
        young = (peer for peer in self.awaited if chain.version - chain.entered_at(peer) < NEW_VERSIONS)
        return tuple(peer for peer in young if peer not in self.voters) if self.turns is None else ()

    @property
    def begins_anew(self) -> bool:
        """Whether none of the voters of this head was found for long: whoever opened goes on without them."""
        return bool(self.chain.roster) and self.voters.isdisjoint(self.chain.voters)

    @property
    def is_proved(self) -> bool:
        """Whether a majority of the voters has voted for this head; at genesis nobody has a vote."""
        num_voters = sum(lives > 0 for lives in self.chain.voting)
        return not num_voters or is_majority(len(self.votes), num_voters)

    @property
    def num_here(self) -> int:
        """Voters that are live and at this head."""
        return len(self.voters & set(self.awaited))


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The manifest's times and targets that decide a round."""

    target_tokens: int
    train_s: float
    exchange_s: float
    isolation_s: float  # without a majority for so long, whoever is left commits alone
    max_listed: int  # contributions in one commit
    local_steps: int  # after which a member has done its share; 0: there is no such number
    heartbeat_s: float  # no list before: who came to this head has had no word of the leader's to answer


def choose_hint(view: RoundView, deadlines: Deadlines) -> str | None:
    """The reason to hint a cut now, or None."""
    if view.since_hint_s is not None:
        return None
    if deadlines.target_tokens and view.tokens >= deadlines.target_tokens:
        return f"{view.tokens} tokens of {deadlines.target_tokens} are done"
    if view.since_head_s >= deadlines.train_s:
        return f"the round has trained for {deadlines.train_s:g} s"
    authors = {one.contribution.author for one in view.waiting}
    due = view.due
    if due and all(peer in authors for peer in due):
        return "everyone has cut"
    if due and view.are_ready:
        return f"{len(due)} members have done {deadlines.local_steps} steps"
    return None


def choose_list(view: RoundView, deadlines: Deadlines) -> tuple[CommitList | None, str]:
    """The commit to issue now, or None, with the reason."""
    isolated = _is_isolated(view, deadlines)
    held = [one for one in may_be_chosen(view) if one.is_held(view.voters) or (isolated and view.me in one.holders)]
    first = _first([one.contribution for one in held], view, deadlines)
    weighed = zip(first, weights(first, view.chain, view.lease_tokens), strict=True)
    entries = tuple(sorted(_entry(one, tokens) for one, tokens in weighed))
    authors = {entry.author for entry in entries}
    due = view.due
    missing = [peer for peer in due if peer not in authors]
    tokens = sum(entry.tokens for entry in entries)
    # Who was cut off with us has the whole of the deadline again, from when it is back: it could not exchange before.
    hinted_s = view.since_hint_s or 0.0
    late = (hinted_s if isolated else min(hinted_s, view.since_regained_s)) >= deadlines.exchange_s
    if not entries:
        return None, _why_nothing(view, deadlines)
    if view.knows_better and not view.is_proved:
        return None, "looks at another head first, where others stand"
    if not (isolated or view.is_followed):
        return None, "asks the members where they stand: no majority has answered yet"
    if not (isolated or view.is_proved or view.begins_anew):
        return None, f"{len(view.votes)} of {len(view.voters)} voters have our state, which is no majority"
    late_newcomers = [peer for peer in view.newcomers if peer not in authors]
    if deadlines.target_tokens and tokens >= deadlines.target_tokens:
        reason = f"{tokens} tokens of {deadlines.target_tokens} are held"
    elif due and not missing and late_newcomers and not _is_over_for_newcomers(view, deadlines):
        return None, f"waits a little for {_names(late_newcomers)}, new here"
    elif due and (not missing or len(entries) == deadlines.max_listed):
        reason = f"all are held: {counted(len(authors), 'contribution')}"
    elif late:
        reason = f"deadline of {deadlines.exchange_s:g} s, without {_names(missing)}"
    else:
        return None, f"waits for {_names(missing)} ({len(authors)} of {len(due)} contributions held)"
    if view.since_head_s < deadlines.heartbeat_s:
        return None, f"{reason}; hears who is here first, for one heartbeat"
    chosen = CommitList(entries, _admitted(view, authors), choose_barred(view), _is_minority(view))
    return _with_dialable(chosen, view), reason


def may_be_chosen(view: RoundView) -> tuple[Waiting, ...]:
    """What waits, of those who are or were members; where there is no roster, of those who opened."""
    if view.begins_anew:
        return tuple(one for one in view.waiting if one.contribution.author in view.voters)
    return tuple(one for one in view.waiting if view.chain.may_author(one.contribution.author))


def _admitted(view: RoundView, authors: set[PeerId]) -> tuple[PeerId, ...]:
    """Who else is on the next roster, sorted: those present who are on it, and a few newcomers, others at each head."""
    on_it = frozenset(view.members)
    known = [peer for peer in view.present if peer not in authors and peer in on_it]
    known.sort(key=lambda peer: peer not in view.voters)
    newcomers = [peer for peer in view.present if peer not in authors and peer not in on_it]
    if view.chain.roster:
        first = int.from_bytes(view.chain.head.raw[:4], "big") % max(1, len(newcomers))
        newcomers = (newcomers[first:] + newcomers[:first])[: max_admitted(len(view.voters))]
    return tuple(sorted((known + newcomers)[: MAX_ROSTER - len(authors)]))


def _first(held: list[Contribution], view: RoundView, deadlines: Deadlines) -> list[Contribution]:
    """Those that one list has room for, the oldest first: whoever waits for long would be withdrawn."""
    room = MAX_ROSTER - len(view.chain.listed)  # for authors who are new on this chain
    first: list[Contribution] = []
    newcomers: set[PeerId] = set()
    for one in sorted(held, key=lambda one: (one.version, one.author.raw, one.seq)):
        if not view.chain.highest_seq(one.author) and one.author not in newcomers:
            if len(newcomers) == room:
                continue
            newcomers.add(one.author)
        first.append(one)
    return first[: deadlines.max_listed]


def choose_barred(view: RoundView) -> tuple[Digest, ...]:
    """Heads that a majority of the voters could not reach: what comes next is listed instead of them."""
    barred, num_bytes = [], 0
    for lost in view.lost:
        said = witnesses(lost, view.chain.voters)
        num_bytes += sum(map(len, said))
        if said and num_bytes <= MAX_EVIDENCE_BYTES:
            barred.append(lost.head)
    return tuple(barred)


def witnesses(lost: LostHead, voters: tuple[PeerId, ...]) -> tuple[bytes, ...]:
    """The shortest statuses with which a majority of the voters reports that head; none where there is no majority."""
    counted_in = frozenset(voters)
    said = sorted({peer: sealed for peer, sealed in lost.reports if peer in counted_in}.values(), key=len)
    return tuple(said[: len(voters) // 2 + 1]) if is_majority(len(said), len(voters)) else ()


def _with_dialable(chosen: CommitList, view: RoundView) -> CommitList:
    """Who of the next roster is dialable, for all that the leader knows; who was silent in its turn to lead loses that."""
    said = bytes(
        UNSEATED if peer in view.unseated else ATTESTED if peer in view.attested else 0 for peer in chosen.roster
    )
    return replace(chosen, dialable=said) if any(said) else chosen


def are_held(view: RoundView) -> bool:
    """Whether all contributions that are due are held."""
    authors = {one.contribution.author for one in view.waiting if one.is_held(view.voters)}
    return bool(view.due) and authors.issuperset(view.due)


def _is_over_for_newcomers(view: RoundView, deadlines: Deadlines) -> bool:
    """Newcomers have as long as the others took, once more, and two heartbeats at least: they may never bring anything."""
    took_s = view.voters_took_s or 0.0
    return (view.since_hint_s or 0.0) >= min(deadlines.exchange_s, max(2 * took_s, 2 * deadlines.heartbeat_s))


def _is_isolated(view: RoundView, deadlines: Deadlines) -> bool:
    """Whether whoever is here may go on alone: not while most are heard elsewhere, although they cannot be followed now. Who
    was frozen hears the others again before it has looked who is here."""
    are_elsewhere = is_majority(view.num_elsewhere, len(view.voters))
    return view.since_majority_s >= deadlines.isolation_s and _is_minority(view) and not are_elsewhere


def _is_minority(view: RoundView) -> bool:
    """Whether no majority is behind this head: of its voters in their signed words, at genesis of those who opened."""
    return not (view.is_proved if any(view.chain.voting) else is_majority(view.num_here, len(view.voters)))


def _entry(contribution: Contribution, tokens: int) -> Entry:
    return Entry(
        author=contribution.author,
        seq=contribution.seq,
        incarnation=contribution.incarnation,
        root=contribution.root,
        first_unit=contribution.first_unit,
        end_unit=contribution.end_unit,
        tokens=tokens,
        steps=contribution.steps,
    )


def _why_nothing(view: RoundView, deadlines: Deadlines) -> str:
    if not is_majority(view.num_here, len(view.voters)):
        left = max(0.0, deadlines.isolation_s - view.since_majority_s)
        return f"{view.num_here} of {len(view.voters)} voters are here: no majority; alone in {left:.0f} s"
    if view.waiting:
        return f"no contribution is held by a majority yet ({len(view.waiting)} announced)"
    return f"training: {view.tokens} tokens so far"


def _names(peers: list[PeerId]) -> str:
    shown = ", ".join(str(peer) for peer in peers[:3])
    return shown + (f" and {len(peers) - 3} more" if len(peers) > 3 else "")
