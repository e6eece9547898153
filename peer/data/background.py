"""Opens the windows in a thread of their own, so that a peer joins the network while text is read and tokenized.

The thread is started here and ends with `close`: the next report of progress stops it, and the cache goes on from there
at the next start. It is a daemon: a fetch that hangs does not hold up the end of the process. It shares one thing with
its starter, the latest progress, a tuple that is replaced whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from peer.data.cache import Progress
from peer.data.windows import Windows
from swarm.errors import TimedOut


class _Stopped(Exception):
    """Raised inside the thread by its own report of progress once nobody wants the windows any more."""


class BackgroundWindows:
    """Windows that are being opened. Either `result` gives them or the error, once `done`; or they were closed."""

    def __init__(self, open_them: Callable[[Progress], Windows]) -> None:
        """Starts the thread; `open_them(progress)` runs there, usually `open_windows` with its arguments bound."""
        self._open_them = open_them
        self._stop = threading.Event()
        self._done = threading.Event()
        self._windows: Windows | None = None
        self._error: BaseException | None = None
        self.progress: tuple[float, str] = (0.0, "opening the text")  # finished fraction of the stage, and the stage
        self._thread = threading.Thread(target=self._run, name="windows", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `result` answers at once."""
        return self._done.is_set()

    def result(self, timeout_s: float | None = None) -> Windows:
        """The windows; waits for them. Raises what opening them raised, or TimedOut."""
        if not self._done.wait(timeout_s):
            raise TimedOut(f"the text is not ready after {timeout_s} s: {self.progress[1]}")
        if self._error is not None:
            raise self._error
        assert self._windows is not None
        return self._windows

    def close(self, timeout_s: float = 2.0) -> None:
        """Stops the thread at its next report and closes windows that were opened; waits at most `timeout_s`."""
        self._stop.set()
        self._thread.join(timeout_s)
        if self._windows is not None:
            self._windows.close()

    def _report(self, fraction: float, what: str) -> None:
        if self._stop.is_set():
            raise _Stopped
        self.progress = (fraction, what)

    def _run(self) -> None:
        try:
            self._windows = self._open_them(self._report)
        except _Stopped:
            self._error = TimedOut("the text was closed before it was ready")
        except Exception as error:  # the boundary of this thread: it rises in whoever asks for the result
            self._error = error
        finally:
            self._done.set()
