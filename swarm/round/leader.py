"""The leader's side of a round: soft state that any peer can rebuild, and never a tensor.

Lives inside `Participant` of whoever is the rightful leader of its view, and is thrown away with the view or the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from swarm.chain import ChainState, CommitList, head_after
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import HOLDING_NAMED, Activity, Commit, CutHint, Holders, LeaderBrief, PeerStatus, RoundOpened
from swarm.round.ballot import Ballot
from swarm.round.choose import Deadlines, LostHead, RoundView, are_held, choose_hint, choose_list, witnesses
from swarm.round.docket import Docket, Waiting
from swarm.round.looks import PROMPT_PEERS
from swarm.round.roll import Heard
from swarm.round.turn import Turn
from swarm.schema import line
from swarm.votes import Votes, gather

OPENING_HEARTBEATS: Final = 3  # without a roster a leader waits so long for others who start at the same time

MAX_REPEATS: Final = 8  # contributions that an answer to a heartbeat names again
_MAX_HOLDERS_NAMED: Final = 16  # per entry of a commit: more sources than anyone fetches from at once
MIN_HOLDERS_NAMED: Final = 4  # of an entry of a long list
_HOLDERS_IN_ALL: Final = 256  # of all entries, while each has the least


@dataclass(slots=True)
class Leading:
    """One leader's round: from a head to the commit it issues on it, in one view. A commit is issued at most once."""

    view: int
    head: Digest
    began_s: float
    hinted_s: float | None = None
    issued: Commit | None = None
    reason: str = "the round has just begun"
    is_alone: bool = False  # no majority has answered
    voters_took_s: float | None = None  # from the hint until all that is due was held
    has_skipped: bool = False
    asked: tuple[PeerId, ...] | None = None  # in a group larger than a list: who is to cut
    passed_over: frozenset[PeerId] = frozenset()  # who was asked in vain
    seen_s: dict[Digest, float] = field(default_factory=dict)  # since when each contribution and the commit are known

    def hint(self, round_view: RoundView, deadlines: Deadlines, now_s: float) -> CutHint | None:
        """A cut hint to send now, at most once."""
        reason = choose_hint(round_view, deadlines)
        if reason is None or self.issued is not None:
            return None
        self.hinted_s, self.asked = now_s, round_view.turns
        return CutHint(self.view, self.head, reason)

    def commit(self, round_view: RoundView, deadlines: Deadlines, docket: Docket, ballot: Ballot) -> Commit | None:
        """The commit to issue now, at most once; otherwise `reason` says what is missing."""
        if self.issued is not None:
            return None
        if self.voters_took_s is None and are_held(round_view):
            self.voters_took_s = round_view.since_hint_s
        self.is_alone = not round_view.is_followed
        chosen, self.reason = choose_list(replace(round_view, voters_took_s=self.voters_took_s), deadlines)
        if chosen is None:
            return None
        listed = [docket.get(entry.root) for entry in chosen.entries]
        self.issued = Commit(
            view=self.view,
            parent=self.head,
            commit=chosen,
            announcements=tuple(one.sealed for one in listed if one is not None),
            holders=tuple(_holders(one.holders, place, len(listed)) for place, one in enumerate(listed) if one),
            reason=self.reason,
            evidence=_evidence(chosen, round_view),
            votes=_votes(round_view),
            issued=ballot.issue(self.view, head_after(self.head, chosen)),
        )
        return self.issued

    def skips(self, round_view: RoundView, deadlines: Deadlines) -> bool:
        """Whether the round's time is over without a commit; said once."""
        over = round_view.since_hint_s is not None and round_view.since_hint_s >= deadlines.exchange_s
        if self.has_skipped or self.issued is not None or not over:
            return False
        self.has_skipped = True
        return True

    def asks_others(self, round_view: RoundView, deadlines: Deadlines) -> None:
        """In a group larger than a list: those who were asked have brought nothing in their time, so others are."""
        over = round_view.since_hint_s is not None and round_view.since_hint_s >= deadlines.exchange_s
        if self.asked is not None and self.issued is None and over:
            self.passed_over |= frozenset(self.asked)
            self.asked = self.hinted_s = None

    def opens(self, here: tuple[PeerId, ...], min_peers: int, heartbeat_s: float, now_s: float) -> bool:
        """Without a roster: whether those here start now; otherwise `reason` says what is missing."""
        if len(here) < min_peers:
            self.reason = f"{len(here)} of {min_peers} peers are here"
            return False
        if now_s - self.began_s < OPENING_HEARTBEATS * heartbeat_s:
            self.reason = "gathering whoever starts now"
            return False
        return True

    def see(self, waiting: Iterable[Waiting], now_s: float) -> None:
        """Notes what is known by now."""
        for one in waiting:
            self.seen_s.setdefault(one.contribution.root, now_s)
        if self.issued is not None:
            self.seen_s.setdefault(self.head, now_s)

    def repeats(
        self, status: PeerStatus, docket: Docket, known_s: float = math.inf
    ) -> Iterator[tuple[object, bytes | None]]:
        """What an earlier message did not bring to the sender of this status, each with its seal if another signed it; of
        what has been known since `known_s`."""
        if self.issued is not None:
            if self.seen_s.get(self.head, known_s) <= known_s:
                yield self.issued, None
            return
        is_asked = self.asked is None or status.peer in self.asked
        if self.hinted_s is not None and status.pending is None and is_asked:
            yield CutHint(self.view, self.head, "the hint again"), None
        held = frozenset(status.holding)
        is_short = len(held) >= HOLDING_NAMED  # it holds more than it names: what it said before counts too
        missing = [
            one
            for one in docket.waiting()
            if one.contribution.root not in held
            and not (is_short and status.peer in one.holders)
            and self.seen_s.get(one.contribution.root, known_s) <= known_s
        ]
        first = status.beat * MAX_REPEATS % max(1, len(missing))  # each in its turn
        for one in (missing[first:] + missing[:first])[:MAX_REPEATS] if len(missing) > MAX_REPEATS else missing:
            yield one.contribution, one.sealed


def lost_by(
    chain: ChainState, fresh: Iterable[Heard], own: tuple[Digest, ...], own_report: Callable[[], tuple[PeerId, bytes]]
) -> tuple[LostHead, ...]:
    """The heads that we could not reach, and who of those at our head says the same of them."""
    wanted = [head for head in own if head not in chain.barred and head != chain.head]
    if not wanted:
        return ()
    reports = [(one.status.peer, one.sealed, one.status.lost) for one in fresh if one.status.head == chain.head]
    mine = own_report()
    return tuple(
        LostHead(head, (mine, *((peer, sealed) for peer, sealed, lost in reports if head in lost))) for head in wanted
    )


def _holders(peers: Iterable[PeerId], place: int, num_entries: int) -> Holders:
    """Who is named as a holder of an entry: all, or some of them in a long list, others for each place in it."""
    most = min(_MAX_HOLDERS_NAMED, max(MIN_HOLDERS_NAMED, _HOLDERS_IN_ALL // num_entries))
    inside = sorted(peers, key=lambda peer: peer.raw)
    if len(inside) > most and num_entries > 1:
        first = place * most % len(inside)
        inside = sorted((inside[first:] + inside[:first])[:most], key=lambda peer: peer.raw)
    return Holders(tuple(inside[:most]))


def _votes(round_view: RoundView) -> Votes | None:
    """The votes for the head that a commit follows."""
    chain = round_view.chain
    num_needed = len(round_view.voters) // 2 + 1
    return gather(chain, round_view.state_digest, round_view.votes, num_needed) if round_view.votes else None


def _evidence(chosen: CommitList, round_view: RoundView) -> tuple[bytes, ...]:
    """The statuses that say that the barred heads are lost."""
    said = [witnesses(lost, round_view.chain.voters) for lost in round_view.lost if lost.head in chosen.barred]
    return tuple(dict.fromkeys(sealed for one in said for sealed in one))


class Briefs:
    """What a leader answers to any heartbeat at its head: the same message to all, for as long as it says the same."""

    def __init__(self) -> None:
        self._last: LeaderBrief | None = None
        self._opened: RoundOpened | None = None

    def of(
        self, status: PeerStatus, turn: Turn, state_digest: Digest, leading: Leading | None, beat: int
    ) -> Iterator[LeaderBrief | RoundOpened]:
        """The answer to this status; `beat` is the number of our last heartbeat."""
        reason = leading.reason if leading else "the leader has just taken over"
        chain = turn.chain
        is_alone = leading is not None and leading.is_alone
        brief = LeaderBrief(
            turn.view, chain.version, chain.head, chain.tokens, state_digest, line(reason), beat, is_alone
        )
        if brief != self._last:
            self._last = brief
        yield self._last or brief
        if turn.roster or not turn.opened:
            return
        if len(turn.opened) > PROMPT_PEERS and status.activity is not Activity.WAITING:
            return  # it knows that it has begun; the names of thousands are long
        opened = RoundOpened(turn.view, chain.head, turn.opened)
        if opened != self._opened:
            self._opened = opened
        yield self._opened or opened
