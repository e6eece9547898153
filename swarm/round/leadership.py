"""Leading a round, while the view says that it is ours: open, hint a cut, merge a branch, commit.

What to decide is in `choose.py`, what a round remembers in `leader.py`; here it is looked at and sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from swarm.config import RunConfig
from swarm.events import RoundSkipped
from swarm.identity import PeerId
from swarm.messages import Activity, Commit, RoundOpened
from swarm.round.choose import Deadlines, RoundView
from swarm.round.exchange import Exchange
from swarm.round.facts import Fetch, Received
from swarm.round.leader import Leading, lost_by
from swarm.round.merges import Merges
from swarm.round.outbox import Outbox
from swarm.round.passage import Passage
from swarm.round.turn import Turn

GATHERING_BEATS: Final = 2  # heartbeats in which the peers of a branch bring their last heads to be merged


@dataclass(frozen=True, slots=True)
class Seat:
    """What one participant knows, as far as a leader needs it."""

    turn: Turn
    exchange: Exchange
    passage: Passage
    out: Outbox


class Leadership:
    """Our rounds as leader. Soft state: it can be thrown away at any time."""

    def __init__(
        self, seat: Seat, config: RunConfig, deadlines: Deadlines, own_report: Callable[[], tuple[PeerId, bytes]]
    ) -> None:
        self.merges = Merges(GATHERING_BEATS * config.round.heartbeat_s)
        self._seat = seat
        self._config = config
        self._deadlines = deadlines
        self._own_report = own_report
        self._last: Leading | None = None

    @property
    def now(self) -> Leading | None:
        """Our round as leader of this view at this head, once it has begun."""
        last, turn = self._last, self._seat.turn
        return last if last is not None and (last.view, last.head) == (turn.view, turn.chain.head) else None

    def reset(self) -> None:
        """A new head, or the one that we were to move to was not reached. Who is not merged offers itself again."""
        self._last = None
        self.merges.clear()

    def lead(self, own_tokens: int, now_s: float) -> str | None:
        """Whatever a leader should do now; returns the reason for which we ourselves should cut, or None."""
        turn, passage, out = self._seat.turn, self._seat.passage, self._seat.out
        leading = self._last = self.now or Leading(turn.view, turn.chain.head, began_s=now_s)
        if passage.knows_better:
            return None  # a better head is on its way: what we issued here would only be undone
        if not turn.members and not self._open_round(leading, now_s):
            return None
        view = self._round_view(leading, own_tokens, now_s)
        hint = leading.hint(view, self._deadlines, now_s)
        for peer in view.present if hint is not None else ():
            out.send(peer, hint)
        commit = self._merging_commit(leading, view, now_s)
        commit = commit or leading.commit(view, self._deadlines, self._seat.exchange.docket)
        if leading.skips(view, self._deadlines):
            out.happened(RoundSkipped(turn.chain.version, leading.reason[:400]))
        if commit is not None:
            for peer in sorted({*view.present, *turn.members}):
                out.send(peer, commit)
            passage.receive(Received(turn.presence.me, commit), now_s)
            passage.go_on(now_s)
        return None if hint is None else hint.reason

    def _merging_commit(self, leading: Leading, view: RoundView, now_s: float) -> Commit | None:
        """The commit that merges a branch offered to us, once its blob is here."""
        for one in self.merges.ask():
            if not self._seat.exchange.holds(one.merge.root):
                self._seat.out.add(Fetch(one.merge, tuple(sorted(one.holders))))
        offered = self.merges.wanted(self._seat.exchange.holds, now_s)
        return None if offered is None else leading.merge(offered, view, self._deadlines)

    def _open_round(self, leading: Leading, now_s: float) -> bool:
        turn, out = self._seat.turn, self._seat.out
        here = tuple(sorted({turn.presence.me, *(status.peer for status in turn.at_head())}))
        if not leading.opens(here, self._config.round.min_peers, self._config.round.heartbeat_s, now_s):
            return False
        turn.open(here)
        turn.presence.start(now_s)
        for peer in here:
            out.send(peer, RoundOpened(turn.view, turn.chain.head, here))
        return True

    def _round_view(self, leading: Leading, own_tokens: int, now_s: float) -> RoundView:
        turn = self._seat.turn
        chain, members, presence = turn.chain, turn.members, turn.presence
        idle = (Activity.SYNCING, Activity.LEAVING)
        present = {status.peer: status for status in turn.at_head() if status.activity not in idle}
        awaited = tuple(peer for peer in members if presence.is_awaited(peer, now_s))
        waiting = self._seat.exchange.docket.waiting()
        working = own_tokens + sum(present[peer].tokens_since_cut for peer in awaited if peer in present)
        return RoundView(
            me=presence.me,
            chain=chain,
            members=members,
            awaited=awaited,
            present=tuple(sorted({presence.me, *present})),
            waiting=waiting,
            tokens=working + sum(one.contribution.tokens for one in waiting),
            since_head_s=now_s - presence.head_since_s,
            since_hint_s=None if leading.hinted_s is None else now_s - leading.hinted_s,
            since_majority_s=now_s - presence.majority_s,
            is_followed=turn.is_followed(),
            lease_tokens=self._config.lease_tokens,
            lost=lost_by(chain, presence.fresh(now_s), self._seat.passage.doubts.lost, self._own_report),
        )
