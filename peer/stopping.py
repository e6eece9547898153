"""Ctrl+C and SIGTERM: say goodbye, save, exit 0 within five seconds; a second one exits at once.

Signals arrive in the main thread, between two bytecodes. Before there is a network, the first one ends the process: there is
nothing to undo. While the peer starts, it interrupts whatever goes on; while it trains, it asks the trainer to stop. A timer
makes sure that the process is gone in time: a save that takes longer is abandoned, and the generation before it stands.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # they import torch, which takes seconds: a signal must find this file's handlers before
    from peer.handoff import Handoff
    from peer.network_thread import NetworkThread

GRACE_S: Final = 4.5  # of the five seconds that are promised; the rest is for the process to go


class Stopping:
    """Installed once by the command line, in the main thread."""

    def __init__(self) -> None:
        self._handoff: Handoff | None = None
        self._thread: NetworkThread | None = None
        self.signalled = False

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def daemon_of(self, thread: NetworkThread) -> None:
        """The network whose daemon must not outlive us."""
        self._thread = thread

    def train(self, handoff: Handoff) -> None:
        """From now on a signal asks the trainer to stop."""
        self._handoff = handoff
        if self.signalled:
            handoff.stop("asked to stop")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signalled:
            self._leave_at_once(1, "left at once; the last save stands")
        self.signalled = True
        if self._thread is None:
            self._leave_at_once(0, "stopped before anything began")
        timer = threading.Timer(
            GRACE_S, self._leave_at_once, args=(0, "saving took too long; the save before it stands")
        )
        timer.daemon = True
        timer.start()
        if sys.stderr.isatty():
            _write("stopping: saving, and saying goodbye (once more to leave at once)")
        if self._handoff is None:
            raise KeyboardInterrupt
        self._handoff.stop("asked to stop")

    def _leave_at_once(self, code: int, why: str) -> None:
        # The daemon has a parent-death signal; its socket folder is all that could stay behind.
        if self._thread is not None:
            self._thread.remove_sockets()
        if sys.stderr.isatty():
            _write(f"barnraise: {why}", "\x1b[?25h")  # the moving last line hides the cursor
        os._exit(code)


def _write(line: str, behind: str = "") -> None:
    """A line on the terminal from inside a signal handler: past all locks, on a line of its own; none on a paused one."""
    with contextlib.suppress(OSError, ValueError):
        number = sys.stderr.fileno()
        if select.select([], [number], [], 0)[1]:
            os.write(number, f"\r\x1b[K{line}\r\n{behind}".encode())
