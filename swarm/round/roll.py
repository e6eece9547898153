"""Who is here: the newest status of every peer heard of, when it was said, and who has been dialled by whom.

Kept in the order in which they came, so that whoever fell silent is found without a look at all the others.
"""

from __future__ import annotations

import math
from collections import Counter
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
    at_s: float  # when it was said: what somebody else heard some time ago is as old as that
    came_s: float  # when it came here, not before `at_s`
    left: bool = False
    spoke_s: float = -math.inf  # when its author itself spoke to us last
    back_s: float = -math.inf  # since when it has, without a long silence


class Roll:
    """The statuses heard, newest per peer."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._heard: dict[PeerId, Heard] = {}  # the one that nothing came of for longest first
        self._attested: Counter[PeerId] = Counter()  # peers that others say they have dialled

    def hear(self, status: PeerStatus, sealed: bytes, now_s: float, age_s: float | None = None) -> bool:
        """Takes a status from its author, or one that was said `age_s` ago to somebody else; returns whether the peer is new
        here or back. Older beats than the known one are ignored.

        Who said goodbye comes back as another incarnation: a status of the one that left was only long on its way.
        """
        known = self._heard.get(status.peer)
        if known is not None and status.beat <= known.status.beat:
            return False
        if known is not None and known.left and status.incarnation <= known.status.incarnation:
            return False
        if known is not None:
            self._drop(status.peer)
        elif len(self._heard) >= MAX_HEARD:
            self._drop(next(iter(self._heard)))
        heard = self._heard[status.peer] = Heard(status, sealed, now_s - (age_s or 0.0), now_s)
        if known is not None:
            heard.at_s = max(heard.at_s, known.at_s)
            heard.spoke_s, heard.back_s = known.spoke_s, known.back_s
        if age_s is None:
            heard.back_s = heard.back_s if now_s - heard.spoke_s <= self._silence_s else now_s
            heard.spoke_s = now_s
        self.attest(status.peer, status.dialled)
        return known is None or known.left

    def leave(self, peer: PeerId, incarnation: int) -> bool:
        """Notes a goodbye of that process or an earlier one; returns whether the peer was here."""
        known = self._heard.get(peer)
        if known is None or known.left or known.status.incarnation > incarnation:
            return False
        known.left = True
        return True

    def attest(self, author: PeerId, dialled: tuple[PeerId, ...], before: tuple[PeerId, ...] = ()) -> None:
        """These answered a dial of `author`'s lately, those of `before` no more. Nobody attests itself."""
        for peer in set(dialled) - {author}:
            self._attested[peer] += 1
        for peer in set(before) - {author}:
            self._attested[peer] -= 1
            if not self._attested[peer]:
                del self._attested[peer]

    def is_attested(self, peer: PeerId) -> bool:
        """Whether somebody else has dialled that peer lately."""
        return self._attested[peer] > 0

    @property
    def attested(self) -> frozenset[PeerId]:
        """All those."""
        return frozenset(self._attested)

    def wait_for(self, seconds: float) -> None:
        """We did not run for so long: nobody was silent to us in that time."""
        for heard in self._heard.values():
            heard.at_s += seconds
            heard.came_s += seconds
            heard.spoke_s += seconds

    def forget_silent(self, now_s: float) -> None:
        """Drops peers not heard of for FORGET_AFTER_S."""
        while self._heard:
            peer, longest = next(iter(self._heard.items()))
            if now_s - longest.came_s <= FORGET_AFTER_S:
                return
            self._drop(peer)

    def get(self, peer: PeerId) -> Heard | None:
        return self._heard.get(peer)

    def lately(self, now_s: float, silence_s: float) -> Iterator[Heard]:
        """Those heard within `silence_s` who have not left, whose word came last first."""
        for heard in reversed(self._heard.values()):
            if now_s - heard.came_s > silence_s:
                return
            if not heard.left and now_s - heard.at_s <= silence_s:
                yield heard

    def fresh(self, now_s: float, silence_s: float) -> tuple[Heard, ...]:
        """Those heard within `silence_s` who have not left, by peer id."""
        return tuple(sorted(self.lately(now_s, silence_s), key=_by_id))

    def all(self) -> tuple[Heard, ...]:
        """Everyone remembered, by peer id."""
        return tuple(sorted(self._heard.values(), key=_by_id))

    def _drop(self, peer: PeerId) -> None:
        self.attest(peer, (), self._heard.pop(peer).status.dialled)

    def __len__(self) -> int:
        return len(self._heard)


def _by_id(heard: Heard) -> bytes:
    return heard.status.peer.raw
