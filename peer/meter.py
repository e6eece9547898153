"""How much passed one way, how fast, and for how long."""

from __future__ import annotations

import math
from typing import Final

RATE_HALF_LIFE_S: Final = 10.0


class Meter:
    """Bytes counted, their rate as a mean that forgets half of itself every RATE_HALF_LIFE_S, and the time in which any were
    on their way. Times are of one clock, passed in."""

    def __init__(self, now_s: float) -> None:
        self.num_bytes = 0
        self._rate = 0.0
        self._at_s = now_s
        self._moving = 0
        self._began_s = now_s
        self._busy_s = 0.0

    def add(self, num_bytes: int, now_s: float) -> None:
        """Counts bytes that passed at `now_s`."""
        self._rate = self.bytes_per_s(now_s) + num_bytes * math.log(2) / RATE_HALF_LIFE_S
        self._at_s = max(now_s, self._at_s)
        self.num_bytes += num_bytes

    def bytes_per_s(self, now_s: float) -> float:
        """The smoothed rate, bytes/s."""
        return float(self._rate * 0.5 ** (max(0.0, now_s - self._at_s) / RATE_HALF_LIFE_S))

    def begin(self, now_s: float) -> None:
        """One more is on its way; several at once are the time of one."""
        if not self._moving:
            self._began_s = now_s
        self._moving += 1

    def end(self, now_s: float) -> None:
        """One of them has arrived, or was given up."""
        self._moving -= 1
        if not self._moving:
            self._busy_s += max(0.0, now_s - self._began_s)

    def busy_s(self, now_s: float) -> float:
        """Seconds in which at least one was on its way."""
        return self._busy_s + (max(0.0, now_s - self._began_s) if self._moving else 0.0)
