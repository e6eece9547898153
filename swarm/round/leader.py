"""The leader's side of a round: soft state that any peer can rebuild, and never a tensor.

Lives inside `Participant` of whoever is the rightful leader of its view, and is thrown away with the view or the head.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.messages import Commit, CutHint, Holders
from swarm.round.choose import Deadlines, RoundView, choose_hint, choose_list
from swarm.round.docket import Docket

_MAX_HOLDERS_NAMED = 16  # per entry of a commit: more sources than anyone fetches from at once


@dataclass(slots=True)
class Leading:
    """One leader's round: from a head to the commit it issues on it. A commit is issued at most once per head."""

    began_s: float
    hinted_s: float | None = None
    issued: Commit | None = None
    reason: str = "the round has just begun"

    def hint(self, round_view: RoundView, deadlines: Deadlines, view: int, now_s: float) -> CutHint | None:
        """A cut hint to send now, at most once."""
        reason = choose_hint(round_view, deadlines)
        if reason is None or self.issued is not None:
            return None
        self.hinted_s = now_s
        return CutHint(view, round_view.chain.head, reason)

    def commit(self, round_view: RoundView, deadlines: Deadlines, view: int, docket: Docket) -> Commit | None:
        """The commit to issue now, at most once; otherwise `reason` says what is missing."""
        if self.issued is not None:
            return None
        chosen, self.reason = choose_list(round_view, deadlines)
        if chosen is None:
            return None
        listed = [docket.get(entry.root) for entry in chosen.entries]
        self.issued = Commit(
            view=view,
            parent=round_view.chain.head,
            commit=chosen,
            announcements=tuple(one.sealed for one in listed if one is not None),
            holders=tuple(Holders(tuple(sorted(one.holders))[:_MAX_HOLDERS_NAMED]) for one in listed if one),
            reason=self.reason,
        )
        return self.issued
