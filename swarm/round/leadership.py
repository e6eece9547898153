"""Leading a round, while the view says that it is ours: open, hint a cut, commit.

What to decide is in `choose.py`, what a round remembers in `leader.py`; here it is looked at and sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from swarm.chain import is_majority
from swarm.config import RunConfig
from swarm.events import RoundSkipped
from swarm.identity import PeerId
from swarm.messages import Activity, RoundOpened
from swarm.round.ballot import Ballot
from swarm.round.choose import Deadlines, LostHead, RoundView
from swarm.round.docket import Waiting
from swarm.round.exchange import Exchange
from swarm.round.facts import Figures, Received
from swarm.round.leader import Leading, lost_by
from swarm.round.looks import Looks
from swarm.round.outbox import Outbox
from swarm.round.passage import Passage
from swarm.round.relay import sent_by_leader
from swarm.round.rotation import Work, next_to_cut
from swarm.round.turn import Turn
from swarm.schema import line
from swarm.votes import Stand


@dataclass(frozen=True, slots=True)
class Seat:
    """What one participant knows, as far as a leader needs it."""

    turn: Turn
    exchange: Exchange
    passage: Passage
    out: Outbox
    ballot: Ballot


class Leadership:
    """Our rounds as leader. Soft state: it can be thrown away at any time."""

    def __init__(
        self, seat: Seat, config: RunConfig, deadlines: Deadlines, own_report: Callable[[], tuple[PeerId, bytes]]
    ) -> None:
        self._seat = seat
        self._config = config
        self._deadlines = deadlines
        self._own_report = own_report
        self._last: Leading | None = None
        self._looks = Looks()

    @property
    def now(self) -> Leading | None:
        """Our round as leader of this view at this head, once it has begun."""
        last, turn = self._last, self._seat.turn
        return last if last is not None and (last.view, last.head) == (turn.view, turn.chain.head) else None

    def reset(self) -> None:
        """A new head; or the one that we were to move to was not reached."""
        self._last = None

    def lead(self, own: Figures, stand: Stand, now_s: float) -> str | None:
        """Whatever a leader that stands there should do now; returns the reason why we ourselves should cut, or None."""
        turn, passage, out = self._seat.turn, self._seat.passage, self._seat.out
        leading = self.now
        if leading is None:
            leading = self._last = Leading(turn.view, turn.chain.head, began_s=now_s)
            self._looks.reset()
        if not turn.members and (passage.knows_better or not self._open_round(leading, now_s)):
            return None  # where a round goes on already, none is opened
        if not self._looks.is_due(max(len(turn.members), len(turn.presence.roll)), now_s):
            return None
        view = self._round_view(leading, own, stand, now_s)
        if self._is_wrong(view):
            turn.step_down("most of the voters have another state", out)
            return None
        hint = leading.hint(view, self._deadlines, now_s)
        for peer in (view.present if view.turns is None else view.turns) if hint is not None else ():
            out.send(peer, hint)
        commit = leading.commit(view, self._deadlines, self._seat.exchange.docket, self._seat.ballot)
        if leading.skips(view, self._deadlines):
            out.happened(RoundSkipped(turn.chain.version, line(leading.reason)))
        if commit is not None:
            for peer in sent_by_leader(commit, turn.presence.me, (*view.present, *turn.members)):
                out.send(peer, commit)
            passage.receive(Received(turn.presence.me, commit), now_s)
            passage.go_on(now_s)
        leading.see(view.waiting, now_s)
        leading.asks_others(view, self._deadlines)
        is_asked = hint is not None and (view.turns is None or turn.presence.me in view.turns)
        return hint.reason if hint is not None and is_asked else None

    def _is_wrong(self, view: RoundView) -> bool:
        """Whether a majority of the voters has one other state than ours: it commits nothing that we issue."""
        if view.is_proved or len(view.voters) < 2 or not self._seat.turn.roster:
            return False
        others = [one.state_digest for one in self._seat.turn.answering() if one.peer in view.voters]
        most = Counter(one for one in others if one != view.state_digest).most_common(1)
        return bool(most) and is_majority(most[0][1], len(view.voters))

    def _open_round(self, leading: Leading, now_s: float) -> bool:
        turn, out = self._seat.turn, self._seat.out
        here = tuple(sorted({turn.presence.me, *(status.peer for status in turn.answering())}))
        if not leading.opens(here, self._config.round.min_peers, self._config.round.heartbeat_s, now_s):
            return False
        turn.open(here)
        turn.presence.start(now_s)
        for peer in here:
            out.send(peer, RoundOpened(turn.view, turn.chain.head, here))
        return True

    def _round_view(self, leading: Leading, own: Figures, stand: Stand, now_s: float) -> RoundView:
        turn = self._seat.turn
        chain, members, presence = turn.chain, turn.members, turn.presence
        idle = (Activity.SYNCING, Activity.LEAVING)
        docket = self._seat.exchange.docket
        present = {
            status.peer: status
            for status in turn.answering()
            if status.activity not in idle
            and (status.peer in turn.voters or not docket.is_two_faced(status.peer, status.incarnation))
        }
        awaited = tuple(peer for peer in members if presence.is_awaited(peer, now_s))
        stands = turn.stands()
        waiting = docket.waiting()
        done = [Work(presence.me, own.tokens_since_cut, own.steps_since_cut)]
        done += [
            Work(peer, present[peer].tokens_since_cut, present[peer].steps_since_cut)
            for peer in awaited
            if peer in present
        ]
        turns, are_ready = leading.asked, False
        if len(members) > self._deadlines.max_listed:
            done = self._next_to_cut(done, waiting, leading)
            turns = turns or tuple(one.peer for one in done)
            steps, authors = self._deadlines.local_steps, {one.contribution.author for one in waiting}
            are_ready = steps > 0 and all(one.steps >= steps or one.peer in authors for one in done)
        return RoundView(
            me=presence.me,
            chain=chain,
            members=members,
            awaited=awaited,
            voters=turn.voters,
            votes=self._seat.ballot.votes(stand, present.values(), turn.voters) if turn.roster else {},
            state_digest=stand.state_digest,
            present=tuple(sorted({presence.me, *present})),
            waiting=waiting,
            tokens=sum(one.tokens for one in done) + sum(one.contribution.tokens for one in waiting),
            since_head_s=now_s - presence.head_since_s,
            since_hint_s=None if leading.hinted_s is None else now_s - leading.hinted_s,
            since_majority_s=now_s - presence.majority_s,
            since_regained_s=now_s - presence.regained_s,
            is_followed=turn.is_followed(),
            lease_tokens=self._config.lease_tokens,
            lost=self._lost(now_s),
            attested=presence.roll.attested,
            unseated=presence.given_up,
            num_elsewhere=sum(stands.get(peer, chain.head) != chain.head for peer in turn.voters),
            knows_better=self._seat.passage.knows_better,
            turns=turns,
            are_ready=are_ready,
        )

    def _lost(self, now_s: float) -> tuple[LostHead, ...]:
        turn, lost = self._seat.turn, self._seat.passage.doubts.lost
        return lost_by(turn.chain, turn.presence.fresh(now_s), lost, self._own_report) if lost else ()

    def _next_to_cut(self, done: list[Work], waiting: tuple[Waiting, ...], leading: Leading) -> list[Work]:
        """In a group larger than a list: whose turn it is."""
        members = self._seat.turn.electorate
        authors = {one.contribution.author for one in waiting}
        inside = (one for one in done if one.peer in members)
        return list(next_to_cut(inside, authors, leading.passed_over, self._deadlines.max_listed))
