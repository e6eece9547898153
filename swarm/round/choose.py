"""The leader's decisions as pure functions of what it knows: the decision, and the reason that goes on every screen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from swarm.chain import ATTESTED, MAX_ROSTER, UNSEATED, ChainState, CommitList, Entry, is_majority
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Contribution
from swarm.round.docket import Waiting, tokens_due
from swarm.words import counted

MAX_EVIDENCE_BYTES: Final = (
    320 << 10
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
    present: tuple[PeerId, ...]  # everyone live and at this head, members or not
    waiting: tuple[Waiting, ...]
    tokens: int  # done since their cuts by `awaited`, pending ones included
    since_head_s: float
    since_hint_s: float | None  # None: no cut hint has gone out
    since_majority_s: float  # since a majority of `members` was live
    since_regained_s: float  # since when a majority has been live without a break
    is_followed: bool  # a majority of `members` has said that it is at this head in our view
    lease_tokens: int  # of one member and round
    lost: tuple[LostHead, ...] = ()  # reported by us, at this head
    electorate: frozenset[PeerId] = frozenset()  # the members as a set
    attested: frozenset[PeerId] = frozenset()  # peers that somebody else has dialled lately
    unseated: frozenset[PeerId] = frozenset()  # leaders who were silent in their turn at this head
    turns: tuple[PeerId, ...] | None = None  # in a group larger than a list: whose turn it is to cut, or who was asked
    are_ready: bool = False  # all of these have done the steps after which a member of a small group cuts by itself

    @property
    def due(self) -> tuple[PeerId, ...]:
        """Members whose contributions this round waits for."""
        if self.turns is None:
            return self.awaited
        return tuple(sorted(set(self.turns) & set(self.awaited)))


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
    held = [one for one in view.waiting if one.is_held(view.electorate) or (isolated and view.me in one.holders)]
    entries = tuple(sorted(_entry(one, view) for one in _first([one.contribution for one in held], view, deadlines)))
    authors = {entry.author for entry in entries}
    due = view.due
    missing = [peer for peer in due if peer not in authors]
    tokens = sum(entry.tokens for entry in entries)
    # Who was cut off with us has the whole of the deadline again, from when it is back: it could not exchange before.
    hinted_s = view.since_hint_s or 0.0
    late = (hinted_s if isolated else min(hinted_s, view.since_regained_s)) >= deadlines.exchange_s
    if not entries:
        return None, _why_nothing(view, deadlines)
    if not (view.is_followed or isolated):
        return None, "asks the members where they stand: no majority has answered yet"
    if due and (not missing or len(entries) == deadlines.max_listed):
        reason = f"all are held: {counted(len(authors), 'contribution')}"
    elif deadlines.target_tokens and tokens >= deadlines.target_tokens:
        reason = f"{tokens} tokens of {deadlines.target_tokens} are held"
    elif late:
        reason = f"deadline of {deadlines.exchange_s:g} s, without {_names(missing)}"
    else:
        return None, f"waits for {_names(missing)} ({len(authors)} of {len(due)} contributions held)"
    if view.since_head_s < deadlines.heartbeat_s:
        return None, f"{reason}; hears who is here first, for one heartbeat"
    admitted = tuple(peer for peer in view.present if peer not in authors)[: MAX_ROSTER - len(authors)]
    return _with_dialable(CommitList(entries, admitted, choose_barred(view), _is_minority(view)), view), reason


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
    """Heads that a majority of the roster could not reach: what comes next is listed instead of them."""
    barred, num_bytes = [], 0
    for lost in view.lost:
        said = witnesses(lost, view.chain.roster)
        num_bytes += sum(map(len, said))
        if said and num_bytes <= MAX_EVIDENCE_BYTES:
            barred.append(lost.head)
    return tuple(barred)


def witnesses(lost: LostHead, roster: tuple[PeerId, ...]) -> tuple[bytes, ...]:
    """The shortest statuses with which a majority of the roster reports that head; none where there is no majority."""
    members = frozenset(roster)
    said = sorted({peer: sealed for peer, sealed in lost.reports if peer in members}.values(), key=len)
    return tuple(said[: len(roster) // 2 + 1]) if is_majority(len(said), len(roster)) else ()


def _with_dialable(chosen: CommitList, view: RoundView) -> CommitList:
    """Who of the next roster is dialable, for all that the leader knows; who was silent in its turn to lead loses that."""
    said = bytes(
        UNSEATED if peer in view.unseated else ATTESTED if peer in view.attested else 0 for peer in chosen.roster
    )
    return replace(chosen, dialable=said) if any(said) else chosen


def _is_isolated(view: RoundView, deadlines: Deadlines) -> bool:
    """Whether whoever is here may go on alone. Who was frozen hears the others again before it has looked who is here."""
    return view.since_majority_s >= deadlines.isolation_s and _is_minority(view)


def _is_minority(view: RoundView) -> bool:
    roster = view.chain.roster or view.members
    return not is_majority(len(set(view.awaited) & set(roster)), len(roster))


def _entry(contribution: Contribution, view: RoundView) -> Entry:
    return Entry(
        author=contribution.author,
        seq=contribution.seq,
        incarnation=contribution.incarnation,
        root=contribution.root,
        first_unit=contribution.first_unit,
        end_unit=contribution.end_unit,
        tokens=tokens_due(contribution, view.chain, view.lease_tokens),
        steps=contribution.steps,
    )


def _why_nothing(view: RoundView, deadlines: Deadlines) -> str:
    if not is_majority(len(set(view.awaited) & set(view.members)), len(view.members)):
        left = max(0.0, deadlines.isolation_s - view.since_majority_s)
        return f"{len(view.awaited)} of {len(view.members)} members are here: no majority; alone in {left:.0f} s"
    if view.waiting:
        return f"no contribution is held by a majority yet ({len(view.waiting)} announced)"
    return f"training: {view.tokens} tokens so far"


def _names(peers: list[PeerId]) -> str:
    shown = ", ".join(str(peer) for peer in peers[:3])
    return shown + (f" and {len(peers) - 3} more" if len(peers) > 3 else "")
