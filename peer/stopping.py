"""Ctrl+C, SIGTERM and a closed terminal: say goodbye, save, exit 0 within five seconds; a second one exits at once.

A thread of its own reads which signals came, from a socket that the interpreter's C handler writes to. Nothing is raised in
the main thread: an exception out of a signal handler can land in a destructor or in a weak reference's callback, where Python
reports and drops it, and whatever a handler locks may be held by the very code that it interrupts.

Before there is a network, the first signal ends the process: there is nothing to undo. While the peer starts, it closes the
network and ends the process; while it trains, it asks the trainer to stop. A timer makes sure that the process is gone in
time: a save that takes longer is abandoned, and the generation before it stands.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NoReturn

from swarm.streams import ending_signals

if TYPE_CHECKING:  # they import torch, which takes seconds: a signal must find this file's thread before
    from peer.handoff import Handoff
    from peer.network_thread import NetworkThread

GRACE_S: Final = 4.5  # of the five seconds that are promised; the rest is for the process to go
_CLOSING_S: Final = 3.0  # for the network, when there is nothing to save


class Stopping:
    """Installed once by the command line, in the main thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of the next two: what the first signal finds decides what it does
        self._handoff: Handoff | None = None
        self._leaves_unstarted = False
        self._thread: NetworkThread | None = None

    def install(self) -> None:
        """From now on signals are heard. Main thread only."""
        heard, written = socket.socketpair()
        written.setblocking(False)
        signal.set_wakeup_fd(written.detach())
        numbers = ending_signals()
        for number in numbers:
            signal.signal(number, lambda *_: None)  # only so that the interpreter tells the socket
        threading.Thread(target=self._listen, args=(heard, numbers), name="stopping", daemon=True).start()

    def daemon_of(self, thread: NetworkThread) -> None:
        """The network whose daemon must not outlive us."""
        self._thread = thread

    def train(self, handoff: Handoff) -> None:
        """From now on a signal asks the trainer to stop. Does not return if the process is leaving."""
        with self._lock:
            self._handoff = handoff
        self._wait_if_leaving()

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Keeps to itself what goes wrong because the network is closed on leaving."""
        try:
            yield
        except BaseException:
            self._wait_if_leaving()
            raise

    def _wait_if_leaving(self) -> None:
        with self._lock:
            leaves = self._leaves_unstarted
        if leaves:
            threading.Event().wait()  # the process ends under us

    def _listen(self, heard: socket.socket, ending: tuple[signal.Signals, ...]) -> None:
        count = 0
        while True:
            for number in heard.recv(16):
                if number in ending:
                    count += 1
                    threading.Thread(target=self._first if count == 1 else self._second, daemon=True).start()

    def _first(self) -> None:
        if self._thread is None:
            self._leave_at_once(0, "stopped before anything began")
        timer = threading.Timer(
            GRACE_S, self._leave_at_once, args=(0, "saving took too long; the save before it stands")
        )
        timer.daemon = True
        timer.start()
        if sys.stderr.isatty():
            _write("stopping: saving, and saying goodbye (once more to leave at once)")
        with self._lock:
            handoff = self._handoff
            self._leaves_unstarted = handoff is None
        if handoff is not None:
            handoff.stop("asked to stop")
            return
        self._thread.stop(_CLOSING_S)
        self._leave_at_once(0, "stopped before training began")

    def _second(self) -> None:
        self._leave_at_once(1, "left at once; the last save stands")

    def _leave_at_once(self, code: int, why: str) -> NoReturn:
        # The daemon has a parent-death signal; its socket folder is all that could stay behind.
        if self._thread is not None:
            self._thread.remove_sockets()
        if sys.stderr.isatty():
            _write(f"barnraise: {why}", "\x1b[?25h")  # the moving last line hides the cursor
        os._exit(code)


def _write(line: str, behind: str = "") -> None:
    """A line on the terminal past all locks, on a line of its own; none on a paused one."""
    with contextlib.suppress(OSError, ValueError):
        number = sys.stderr.fileno()
        if select.select([], [number], [], 0)[1]:
            os.write(number, f"\r\x1b[K{line}\r\n{behind}".encode())
