"""The leader's side of a round: soft state that any peer can rebuild, and never a tensor.

Lives inside `Participant` of whoever is the rightful leader of its view, and is thrown away with the view or the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from swarm.chain import ChainState, CommitList
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Commit, CutHint, Holders, LeaderBrief, PeerStatus, RoundOpened
from swarm.round.choose import Deadlines, LostHead, RoundView, choose_hint, choose_list, choose_merge
from swarm.round.docket import Docket
from swarm.round.merges import Offered
from swarm.round.roll import Heard
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
    has_skipped: bool = False

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
            holders=tuple(_holders(one.holders) for one in listed if one),
            reason=self.reason,
            evidence=_evidence(chosen, round_view),
        )
        return self.issued

    def merge(self, offered: Offered, round_view: RoundView, deadlines: Deadlines) -> Commit | None:
        """The commit that averages a branch in, whose blob we hold; at most one commit is issued."""
        chosen = None if self.issued is not None else choose_merge(offered.merge, round_view, deadlines)
        if chosen is None:
            return None
        self.reason = f"merges the branch {offered.merge.left} of {offered.merge.tokens} tokens"
        holders = _holders({*offered.holders, round_view.me})
        evidence = _evidence(chosen, round_view)
        self.issued = Commit(self.view, self.head, chosen, (), (holders,), self.reason, evidence)
        return self.issued

    def skips(self, round_view: RoundView, deadlines: Deadlines) -> bool:
        """Whether the round's time is over without a commit; said once."""
        over = round_view.since_hint_s is not None and round_view.since_hint_s >= deadlines.exchange_s
        if self.has_skipped or self.issued is not None or not over:
            return False
        self.has_skipped = True
        return True

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


def _holders(peers: Iterable[PeerId]) -> Holders:
    return Holders(tuple(sorted(peers))[:_MAX_HOLDERS_NAMED])


def _evidence(chosen: CommitList, round_view: RoundView) -> tuple[bytes, ...]:
    """The statuses that say that the barred heads are lost."""
    said = [lost.reports for lost in round_view.lost if lost.head in chosen.barred]
    return tuple(dict.fromkeys(sealed for reports in said for _, sealed in reports))


def brief(turn: Turn, state_digest: Digest, leading: Leading | None) -> Iterator[object]:
    """What a leader answers to any heartbeat at its head."""
    reason = leading.reason if leading else "the leader has just taken over"
    chain = turn.chain
    yield LeaderBrief(turn.view, chain.version, chain.head, chain.tokens, state_digest, reason[:400])
    if not turn.roster and turn.opened:
        yield RoundOpened(turn.view, chain.head, turn.opened)
