"""What a peer has seen of those it fetches blobs from, over all blobs: how fast each is, and whether it sent right bytes.

Many `BlobFetch` share one of these, so that the requests to a holder are bounded in all, a liar costs one chunk and not one
of each blob, and a slow link is not asked for more than it can carry before anybody loses patience. Pure: times come in.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from swarm.identity import PeerId

MAX_IN_FLIGHT: Final = 4  # chunks asked of one holder at once: fills 300 Mbit/s at a round trip of 100 ms
MAX_STANDINGS: Final = 1024  # holders remembered
FORGIVE_S: Final = 600.0  # so long after a wrong answer a holder is asked only for what nobody else has
MAX_BUSY: Final = 60  # times in a row that a holder may say it is busy: some four minutes
_BUSY_REST_S: Final = 0.5  # after the first "busy", doubled with each further one
_MOST_BUSY_REST_S: Final = 4.0
_KEEP_FULL_S: Final = 0.5  # requests enough to keep a holder sending for so long while an answer is on its way
_GUESS_S: Final = 1.0  # for a chunk from a holder that has sent none yet
_REMEMBERED: Final = 8  # chunks that a holder's pace is a mean of


@dataclass(slots=True)
class Standing:
    """One holder. `in_flight` counts the chunks asked of it that have no outcome yet."""

    in_flight: int = 0
    is_proved: bool = False  # its last chunk was right, and not long ago if it owes us more
    wrong_at_s: float | None = None
    num_busy: int = 0  # in a row
    rests_until_s: float = 0.0  # it has said that it is busy
    served: float = 0.0  # chunks, of which old ones fade
    _took_s: float = 0.0  # the time in which those came
    _heard_s: float = 0.0  # its last outcome, or the first of the requests under way

    def is_doubtful(self, now_s: float) -> bool:
        """Whether it has sent wrong bytes lately."""
        return self.wrong_at_s is not None and now_s - self.wrong_at_s < FORGIVE_S

    def room(self, most: int, now_s: float) -> int:
        """How many more chunks may be asked of it now, when `most` at once are allowed at all."""
        if now_s < self.rests_until_s:
            return 0
        if not self.is_proved:
            return 1 - self.in_flight  # until it has proved itself a liar costs one chunk
        return min(most, max(2, 1 + math.ceil(_KEEP_FULL_S / max(self.pace_s, 1e-3)))) - self.in_flight

    @property
    def pace_s(self) -> float:
        """Seconds a chunk while it was asked for some."""
        return self._took_s / self.served if self.served else _GUESS_S

    def silence_s(self, now_s: float) -> float:
        """For how long it has owed us an answer."""
        return now_s - self._heard_s if self.in_flight else 0.0

    def due_s(self, rank: int, now_s: float) -> float:
        """Seconds until the `rank`-th chunk from now is here, as far as can be told; a silent holder looks ever slower."""
        return rank * max(self.pace_s, self.silence_s(now_s))

    def asked(self, now_s: float) -> None:
        """One more chunk was asked of it."""
        if not self.in_flight:
            self._heard_s = now_s
        self.in_flight += 1

    def landed(self, now_s: float) -> None:
        """One chunk asked of it has its outcome, whichever."""
        self._took_s += max(0.0, now_s - self._heard_s)
        self._heard_s = max(now_s, self._heard_s)
        self.in_flight = max(0, self.in_flight - 1)

    def given_up(self, now_s: float) -> None:
        """One chunk asked of it is waited for no longer, as another holder was sooner. That is no sign of life."""
        if self.silence_s(now_s) > _GUESS_S:
            self.is_proved = False
        if self.in_flight == 1:
            self._took_s += self.silence_s(now_s)
        self.in_flight = max(0, self.in_flight - 1)

    def sent_right(self) -> None:
        """The chunk that has just landed was right."""
        self.is_proved, self.num_busy = True, 0
        self.served += 1
        if self.served > _REMEMBERED:
            self.served, self._took_s = self.served / 2, self._took_s / 2

    def sent_wrong(self, now_s: float) -> None:
        """It has sent bytes that are not what they should be."""
        self.is_proved, self.wrong_at_s = False, now_s

    def is_busy(self, now_s: float) -> None:
        """It has said that it has no room for us now."""
        self.num_busy += 1
        self.rests_until_s = now_s + min(_MOST_BUSY_REST_S, _BUSY_REST_S * 2.0 ** (self.num_busy - 1))


class Holders:
    """The standing of every holder met lately."""

    def __init__(self, max_in_flight: int = MAX_IN_FLIGHT) -> None:
        self.max_in_flight = max_in_flight
        self._standings: OrderedDict[PeerId, Standing] = OrderedDict()

    def __getitem__(self, peer: PeerId) -> Standing:
        """That of one peer; a new one for a stranger."""
        known = self._standings.setdefault(peer, Standing())
        if len(self._standings) > MAX_STANDINGS:
            idle = (one for one, standing in self._standings.items() if not standing.in_flight and one != peer)
            oldest = next(idle, None)
            if oldest is not None:
                del self._standings[oldest]
        return known

    def has_room(self, peer: PeerId, now_s: float) -> bool:
        """Whether another chunk may be asked of that peer now."""
        return self[peer].room(self.max_in_flight, now_s) > 0
