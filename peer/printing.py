"""The thread that prints: whoever has a line to show hands it over and goes on, whether or not the terminal takes any.

A terminal that is paused (Ctrl+S), or a pipe that nobody reads, lets a write wait for as long as it likes; the network's
loop must not. The queue is bounded: the oldest lines make room, and how many is said once there is somebody to read it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

MAX_WAITING: Final = 1000  # lines
Print = Callable[[], None]


class Printer:
    """Carries out prints in order, in a thread of its own. All methods may be called from any thread, and none waits
    but `drain`."""

    def __init__(self, say_dropped: Callable[[int], None]) -> None:
        """`say_dropped` prints that so many lines were dropped; called in the printer's thread."""
        self._say_dropped = say_dropped
        self._waiting: deque[Print] = deque()
        self._latest: Print | None = None  # the line that changes: only its newest text matters
        self._num_dropped = 0
        self._is_printing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, print_line: Print) -> None:
        """A line to be printed after those before it."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self._num_dropped += 1
            self._waiting.append(print_line)
            self._wake()

    def put_latest(self, print_line: Print) -> None:
        """What is printed once nothing else waits; takes the place of the one before."""
        with self._changed:
            self._latest = print_line
            self._wake()

    def drain(self, timeout_s: float) -> bool:
        """Waits until all is printed, at most so long; returns whether it is."""
        ends_s = time.monotonic() + timeout_s
        with self._changed:
            while self._waiting or self._latest is not None or self._is_printing:
                left_s = ends_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="printer", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _next(self) -> tuple[int, Print]:
        """How many lines were dropped before the next one, and that one; waits until there is one."""
        with self._changed:
            self._is_printing = False
            self._changed.notify_all()
            while not self._waiting and self._latest is None:
                self._changed.wait()
            self._is_printing = True
            dropped, self._num_dropped = self._num_dropped, 0
            if self._waiting:
                return dropped, self._waiting.popleft()
            latest, self._latest = self._latest, None
            assert latest is not None
            return dropped, latest

    def _run(self) -> None:
        while True:
            dropped, print_line = self._next()
            try:
                if dropped:
                    self._say_dropped(dropped)
                print_line()
            except (OSError, ValueError, SystemExit):
                pass  # nobody reads any more (rich ends its process when a pipe breaks): the peer goes on


class QueuedLogs(logging.Handler):
    """Log records as lines on standard error, printed by a printer."""

    def __init__(self, printer: Printer) -> None:
        super().__init__()
        self._printer = printer

    def emit(self, record: logging.LogRecord) -> None:
        """Formats the record here and now; its arguments may change later."""
        try:
            line = self.format(record) + "\n"
        except Exception:
            self.handleError(record)
            return

        def print_line() -> None:
            sys.stderr.write(line)
            sys.stderr.flush()

        self._printer.put(print_line)
