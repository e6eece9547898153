"""Who is here: the newest status of every peer heard of, and when it was heard.

Kept in the order of their last words, so that whoever fell silent is found without a look at all the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from swarm.identity import PeerId
from swarm.messages import PeerStatus

MAX_HEARD: Final = 4096  # peers remembered; the one silent for longest makes room
FORGET_AFTER_S: Final = 600.0  # a peer silent for so long is dropped from the roll


@dataclass(slots=True)
class Heard:
    """One peer: its newest status by `beat`, and whether it said goodbye since."""

    status: PeerStatus
    sealed: bytes
    at_s: float
    left: bool = False


class Roll:
    """The statuses heard, newest per peer."""

    def __init__(self) -> None:
        self._heard: dict[PeerId, Heard] = {}  # the one silent for longest first

    def hear(self, status: PeerStatus, sealed: bytes, now_s: float) -> bool:
        """Takes a status; returns whether the peer is new here or back. Older beats than the known one are ignored.

        Who said goodbye comes back as another incarnation: a status of the one that left was only long on its way.
        """
        known = self._heard.get(status.peer)
        if known is not None and status.beat <= known.status.beat:
            return False
        if known is not None and known.left and status.incarnation <= known.status.incarnation:
            return False
        if known is not None:
            del self._heard[status.peer]
        elif len(self._heard) >= MAX_HEARD:
            del self._heard[next(iter(self._heard))]
        self._heard[status.peer] = Heard(status, sealed, now_s)
        return known is None or known.left

    def leave(self, peer: PeerId) -> bool:
        """Notes a goodbye; returns whether the peer was here."""
        known = self._heard.get(peer)
        if known is None or known.left:
            return False
        known.left = True
        return True

    def forget_silent(self, now_s: float) -> None:
        """Drops peers not heard of for FORGET_AFTER_S."""
        while self._heard:
            peer, longest = next(iter(self._heard.items()))
            if now_s - longest.at_s <= FORGET_AFTER_S:
                return
            del self._heard[peer]

    def get(self, peer: PeerId) -> Heard | None:
        return self._heard.get(peer)

    def lately(self, now_s: float, silence_s: float) -> Iterator[Heard]:
        """Those heard within `silence_s` who have not left, the last word first."""
        for heard in reversed(self._heard.values()):
            if now_s - heard.at_s > silence_s:
                return
            if not heard.left:
                yield heard

    def fresh(self, now_s: float, silence_s: float) -> tuple[Heard, ...]:
        """Those heard within `silence_s` who have not left, by peer id."""
        return tuple(sorted(self.lately(now_s, silence_s), key=_by_id))

    def all(self) -> tuple[Heard, ...]:
        """Everyone remembered, by peer id."""
        return tuple(sorted(self._heard.values(), key=_by_id))

    def __len__(self) -> int:
        return len(self._heard)


def _by_id(heard: Heard) -> bytes:
    return heard.status.peer.raw
