"""Time as an argument: a clock that runs, a clock that is set, and an asyncio loop whose time leaps.

In a `VirtualTimeLoop` nothing waits: when no callback is ready, the time is set to the next timer's. An hour of protocol
takes as long as its Python, and two runs of the same code take the same turns. It suits code that waits for timers and
for itself; a loop that would wait for a thread or a socket with no timer running is a deadlock here, and says so.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from swarm.errors import LocalError

Result = TypeVar("Result")


class Clock(Protocol):
    """Seconds since some fixed moment; never going back."""

    def now_s(self) -> float:
        """The time now."""
        ...


class MonotonicClock:
    """The machine's monotonic time."""

    def now_s(self) -> float:
        return time.monotonic()


class VirtualClock:
    """A time that moves only when it is told to."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def leap_to(self, then_s: float) -> None:
        """Sets the time; a moment that has passed changes nothing."""
        self._now_s = max(self._now_s, then_s)


class _LeapingSelector(selectors.DefaultSelector):
    """Looks for ready sockets without waiting, and has the clock wait instead."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise LocalError("deadlock: every task waits and no timer is running")
        if not ready and timeout:
            self._clock.leap_to(self._clock.now_s() + timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in virtual time, from 0 s on; see the head of this file."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        super().__init__(_LeapingSelector(self.clock))

    def time(self) -> float:
        return self.clock.now_s()


def run_virtual(main: Coroutine[Any, Any, Result]) -> Result:
    """The result of `main` run to its end in a loop of virtual time; tasks that it left behind are cancelled."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
