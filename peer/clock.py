"""The clock of silences: it goes on while the machine sleeps, which the loop's own does not."""

from __future__ import annotations

import time


def awake_or_asleep_s() -> float:
    """Seconds since the machine was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
