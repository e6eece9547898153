"""What a contributor sees: what was found, each commit as a line, and why nothing seems to happen.

On a terminal the last line is live; in a pipe there are only lines. Text from other peers is stripped before it is shown.
Nobody who shows something waits for the terminal: a thread prints.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
from pathlib import Path
from typing import IO, Any, Final

from rich.console import Console
from rich.status import Status
from rich.text import Text

from peer.printing import Printer
from swarm import events
from swarm.errors import StateError
from swarm.events import Event, event_json
from swarm.words import counted, so_often

LAST_LINES_S: Final = 1.0  # that the end waits for a terminal to take the last lines


def plain(text: str) -> str:
    """Text without control characters, escape sequences or direction marks."""
    return "".join(letter for letter in text if letter.isprintable())


class Screen:
    """Lines on standard output, and events as JSON lines in a file. Used by both threads."""

    def __init__(self, *, quiet: bool, json_events: Path | None) -> None:
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._status: Status | None = None  # the printer's own, as is all of the console
        self.printer = Printer(self._say_dropped)
        self._file: IO[str] | None = None
        if json_events is not None:
            try:
                json_events.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(json_events, "a", buffering=1)  # noqa: SIM115  closed by `close`
            except OSError as error:
                raise StateError(f"--json-events {json_events}: {error.strerror}") from None

    def say(self, line: str, style: str = "") -> None:
        """One line."""
        self._print(Text(plain(line), style=style))

    def fact(self, label: str, value: str) -> None:
        """One line of what was found."""
        self._print(Text.assemble((f"  {label:<12}", "dim"), plain(value)))

    def live(self, line: str) -> None:
        """The last line of a terminal; nothing in a pipe."""
        if not self._console.is_terminal or self._console.quiet:
            return
        self.printer.put_latest(lambda: self._show_live(Text(plain(line))))

    def record(self, at_unix_s: float, event: Event) -> None:
        """An event: to the file always, to the screen when it says something to people."""
        self._write(json.dumps(_without_nan(event_json(at_unix_s, event)), allow_nan=False) + "\n")
        line = describe(event)
        if line:
            self.say(line)

    def _write(self, line: str) -> None:
        """A line to the event file. A disk that takes no more ends the file, not the peer, and that is said once."""
        with self._lock:
            file = self._file
            try:
                if file is not None:
                    file.write(line)
                return
            except OSError as error:
                self._file, reason = None, error.strerror
                with contextlib.suppress(OSError):
                    assert file is not None
                    file.close()
        self.say(f"--json-events: {reason}; no more events are written", style="yellow")

    def close(self) -> None:
        """Takes the live line away and closes the file; what is recorded later goes to the screen alone. A terminal that
        takes nothing is waited for a moment, not for ever."""
        with self._lock:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
        self.printer.put(self._end_live)
        self.printer.drain(LAST_LINES_S)

    # ---------------------------------------------------------------- in the printer's thread

    def _print(self, text: Text) -> None:
        if not self._console.quiet:
            self.printer.put(lambda: self._console.print(text))

    def _show_live(self, text: Text) -> None:
        if self._status is None:
            self._status = self._console.status(text, spinner="dots")
            self._status.start()
        else:
            self._status.update(text)

    def _end_live(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _say_dropped(self, count: int) -> None:
        self._console.print(Text(f"{counted(count, 'line')} not shown: nobody took them", style="yellow"))


def _without_nan(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null stands for both."""
    return {name: None if isinstance(one, float) and not math.isfinite(one) else one for name, one in fields.items()}


def describe(event: Event) -> str:
    """The event as a line for people; "" when it is not for them."""
    match event:
        case events.RoundCommitted():
            left = f", without {event.num_left_out}" if event.left_out else ""
            alone = " (minority)" if event.minority else ""
            listed = counted(event.num_listed, "contribution")
            return (
                f"version {event.version:>5}  {event.tokens_in_all:>13,} tokens  {listed}{left}"
                f"{alone}  {event.duration_s:5.1f} s  state {event.state_digest}"
            )
        case events.Evaluated(version, loss):
            return f"version {version:>5}  held-out loss {loss:.4f}"
        case events.LossJumped(version, loss, before):
            return f"version {version:>5}  held-out loss jumped to {loss:.4f}, from {before:.4f} in the versions before"
        case events.CaughtUp():
            size = event.num_bytes / 1e6
            return f"caught up with version {event.version} by {event.how}: {size:.1f} MB in {event.seconds:.1f} s"
        case events.CheckpointKept(version, num_bytes):
            return f"version {version:>5}  kept as a checkpoint, {num_bytes / 1e6:.1f} MB"
        case events.ViewChanged(view, leader, reason):
            return f"view {view}: {leader} leads ({reason})"
        case events.Undone(version, depth, reason):
            return f"undid {counted(depth, 'commit')} on the way to version {version}: {reason}"
        case events.HeadsBarred(version, heads):
            return f"version {version} takes the place of {counted(len(heads), 'head')} whose contributions nobody could get"
        case events.StateDiffered(version, own, others):
            return f"another state at version {version}: ours is {own}, somebody else's {others}"
        case events.PeerMisbehaved(peer, reason, times):
            return f"refused: {peer} sent something wrong{so_often(times)}: {reason}"
        case events.PeerJoined(peer, name):
            return f"{name} ({peer}) is here"
        case events.PeerLeft(peer, reason):
            return f"{peer} left: {reason}"
        case events.DaemonRestarted():
            return f"network daemon restarted: {event.reason}"
        case events.CheckpointSkipped(_, version, reason):
            return f"version {version:>5}  not kept as a checkpoint: {reason}"
        case events.StepNotApplied(_, reason):
            return f"an inner step was dropped: {reason}"
        case events.WorkDropped(_, tokens, reason):
            return f"{counted(tokens, 'token')} of work given up: {reason}"
        case events.RoundSkipped(version, reason):
            return f"no commit on version {version}: {reason}"
        case _:
            return ""


def error_line(error: BaseException) -> None:
    """The one line that an error shows."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"barnraise: {plain(text) or type(error).__name__}", file=sys.stderr, flush=True)
