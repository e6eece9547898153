"""Votes seen from one peer: its own, and those that others said in their statuses, each looked at once a head."""

from __future__ import annotations

from collections.abc import Iterable

from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import PeerStatus
from swarm.round.commits import Seals
from swarm.votes import VOTE_BYTES, Stand


class Ballot:
    """The votes for where we stand."""

    def __init__(self, me: PeerId, seals: Seals) -> None:
        self._me = me
        self._seals = seals
        self._stand: Stand | None = None
        self._own = b""
        self._checked: dict[tuple[PeerId, bytes], bool] = {}

    def own(self, stand: Stand) -> bytes:
        """Our vote for where we stand."""
        self._turn_to(stand)
        return self._own

    def issue(self, view: int, head: Digest) -> bytes:
        """Our signature of a commit that we issue."""
        return self._seals.issue(view, head)

    def votes(self, stand: Stand, statuses: Iterable[PeerStatus], voters: frozenset[PeerId]) -> dict[PeerId, bytes]:
        """The votes of these for where we stand, ours first; only those of voters, and that are signed by them."""
        self._turn_to(stand)
        found = {self._me: self._own} if self._me in voters else {}
        for status in statuses:
            if status.peer in voters and status.state_digest == stand.state_digest and self._is_good(status, stand):
                found[status.peer] = status.vote
        return found

    def _is_good(self, status: PeerStatus, stand: Stand) -> bool:
        if len(status.vote) != VOTE_BYTES or status.head != stand.head:
            return False
        key = (status.peer, status.vote)
        if key not in self._checked:
            self._checked[key] = self._seals.verifier.is_vote(status.peer, status.vote, stand)
        return self._checked[key]

    def _turn_to(self, stand: Stand) -> None:
        if stand != self._stand:
            self._stand, self._own = stand, self._seals.vote(stand)
            self._checked.clear()
