"""How every command meets the terminal: neither a letter nor a reader that is missing is told with a traceback, and which
signals end it."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

NOBODY_READS: Final = 128 + signal.SIGPIPE  # what a shell shows of any tool that wrote into a pipe without a reader


def ending_signals() -> tuple[signal.Signals, ...]:
    """The signals by which people end a command: Ctrl+C, SIGTERM, and a terminal that is closed, unless it was started to
    outlive that (`nohup`)."""
    outlives = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM) if outlives else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Around all that a command does. A terminal that has no letter for a name shows "?" for it.

    Raises SystemExit with NOBODY_READS, silently, where what it writes has no reader any more, as before `| head`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # of a stream whose file was exchanged below it: it stays as it is
                stream.reconfigure(errors="replace")
    out = sys.stdout  # typer puts something in its place that hides a broken pipe
    try:
        yield
    except BrokenPipeError:
        raise SystemExit(NOBODY_READS) from None
    except SystemExit as ending:
        if isinstance(ending.__context__, BrokenPipeError):  # typer and rich make it exit code 1
            raise SystemExit(NOBODY_READS) from None
        raise
    finally:
        try:
            out.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # the interpreter flushes once more
            raise SystemExit(NOBODY_READS) from None
