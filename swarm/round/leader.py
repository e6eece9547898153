"""The leader's side of a round: soft state that any peer can rebuild, and never a tensor.

Lives inside `Participant` of whoever is the rightful leader of its view, and is thrown away with the view or the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Commit, CutHint, Holders, LeaderBrief, PeerStatus, RoundOpened
from swarm.round.choose import Deadlines, RoundView, choose_hint, choose_list
from swarm.round.docket import Docket
from swarm.round.turn import Turn

OPENING_HEARTBEATS: Final = 3  # without a roster a leader waits so long for others who start at the same time

_MAX_HOLDERS_NAMED = 16  # per entry of a commit: more sources than anyone fetches from at once


@dataclass(slots=True)
class Leading:
    """One leader's round: from a head to the commit it issues on it, in one view. A commit is issued at most once."""

    view: int
    head: Digest
    began_s: float
    hinted_s: float | None = None
    issued: Commit | None = None
    reason: str = "the round has just begun"

    def hint(self, round_view: RoundView, deadlines: Deadlines, now_s: float) -> CutHint | None:
        """A cut hint to send now, at most once."""
        reason = choose_hint(round_view, deadlines)
        if reason is None or self.issued is not None:
            return None
        self.hinted_s = now_s
        return CutHint(self.view, self.head, reason)

    def commit(self, round_view: RoundView, deadlines: Deadlines, docket: Docket) -> Commit | None:
        """The commit to issue now, at most once; otherwise `reason` says what is missing."""
        if self.issued is not None:
            return None
        chosen, self.reason = choose_list(round_view, deadlines)
        if chosen is None:
            return None
        listed = [docket.get(entry.root) for entry in chosen.entries]
        self.issued = Commit(
            view=self.view,
            parent=self.head,
            commit=chosen,
            announcements=tuple(one.sealed for one in listed if one is not None),
            holders=tuple(Holders(tuple(sorted(one.holders))[:_MAX_HOLDERS_NAMED]) for one in listed if one),
            reason=self.reason,
        )
        return self.issued

    def opens(self, here: tuple[PeerId, ...], min_peers: int, heartbeat_s: float, now_s: float) -> bool:
        """Without a roster: whether those here start now; otherwise `reason` says what is missing."""
        if len(here) < min_peers:
            self.reason = f"{len(here)} of {min_peers} peers are here"
            return False
        if now_s - self.began_s < OPENING_HEARTBEATS * heartbeat_s:
            self.reason = "gathering whoever starts now"
            return False
        return True

    def repeats(self, status: PeerStatus, docket: Docket) -> Iterator[tuple[object, bytes | None]]:
        """What an earlier message did not bring to the sender of this status, each with its seal if another signed it."""
        if self.issued is not None:
            yield self.issued, None
            return
        if self.hinted_s is not None and status.pending is None:
            yield CutHint(self.view, self.head, "the hint again"), None
        for one in docket.waiting():
            if one.contribution.root not in status.holding:
                yield one.contribution, one.sealed


def brief(turn: Turn, state_digest: Digest, leading: Leading | None) -> Iterator[object]:
    """What a leader answers to any heartbeat at its head."""
    reason = leading.reason if leading else "the leader has just taken over"
    chain = turn.chain
    yield LeaderBrief(turn.view, chain.version, chain.head, chain.tokens, state_digest, reason[:400])
    if not turn.roster and turn.opened:
        yield RoundOpened(turn.view, chain.head, turn.opened)
