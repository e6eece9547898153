"""Printing: in order, bounded, and never waited for, whatever the terminal does."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peer.printing import MAX_WAITING, Printer, QueuedLogs
from peer.screen import Screen
from peer.stopping import _write
from swarm.events import Evaluated

LONG_S = 20.0


class Terminal:
    """Takes lines, unless it is paused."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.is_waited_for = threading.Event()
        self.printer = Printer(lambda count: self.lines.append(f"dropped {count}"))

    def take(self, line: str) -> Callable[[], None]:
        def print_line() -> None:
            self.is_waited_for.set()
            assert self.goes_on.wait(LONG_S)
            self.lines.append(line)

        return print_line


def test_lines_come_in_order_and_the_changing_one_comes_last() -> None:
    terminal = Terminal()
    terminal.goes_on.clear()
    terminal.printer.put(terminal.take("first"))
    assert terminal.is_waited_for.wait(LONG_S)
    for number in range(3):
        terminal.printer.put_latest(terminal.take(f"live {number}"))
        terminal.printer.put(terminal.take(f"line {number}"))
    assert not terminal.printer.drain(0.0)
    terminal.goes_on.set()
    assert terminal.printer.drain(LONG_S)
    assert terminal.lines == ["first", "line 0", "line 1", "line 2", "live 2"]


def test_a_paused_terminal_keeps_nobody_waiting_and_costs_the_oldest_lines() -> None:
    terminal = Terminal()
    terminal.goes_on.clear()
    terminal.printer.put(terminal.take("first"))
    assert terminal.is_waited_for.wait(LONG_S)
    for number in range(MAX_WAITING + 7):
        terminal.printer.put(terminal.take(str(number)))
    terminal.goes_on.set()
    assert terminal.printer.drain(LONG_S)
    assert terminal.lines == ["first", "dropped 7", *map(str, range(7, MAX_WAITING + 7))]


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("closed"), SystemExit(1)])
def test_what_cannot_be_printed_ends_nothing(error: BaseException) -> None:
    terminal = Terminal()

    def fail() -> None:
        raise error

    terminal.printer.put(fail)
    terminal.printer.put(terminal.take("after it"))
    assert terminal.printer.drain(LONG_S)
    assert terminal.lines == ["after it"]


def test_log_records_are_lines_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(lambda count: None)
    logger = logging.Logger("test")
    logger.addHandler(QueuedLogs(printer))
    names = ["ada"]
    logger.warning("here are %s", names)
    names.append("bob")  # later, and no part of it
    assert printer.drain(LONG_S)
    assert capsys.readouterr().err == "here are ['ada']\n"


class UnreadPipe:
    """A pipe in place of standard output and error, which nobody reads at first."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.stream = open(writing, "w", buffering=1)  # noqa: SIM115  closed by `close`

    def take_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the test itself: pytest sets its own streams between a fixture and the test."""
        monkeypatch.setattr(sys, "stdout", self.stream)
        monkeypatch.setattr(sys, "stderr", self.stream)

    def close(self) -> None:
        os.close(self.reading)
        with contextlib.suppress(OSError):  # what is still in its buffer goes nowhere
            self.stream.close()

    def read_until(self, done: Callable[[], bool]) -> str:
        """Everything that comes until `done`, and what is left in the pipe then."""
        os.set_blocking(self.reading, False)
        shown = b""
        while not done() or select.select([self.reading], [], [], 0)[0]:
            if select.select([self.reading], [], [], 0.05)[0]:
                shown += os.read(self.reading, 1 << 16)
        return shown.decode()


@pytest.fixture
def unread_pipe() -> Iterator[UnreadPipe]:
    pipe = UnreadPipe()
    yield pipe
    pipe.close()


def test_events_are_written_while_nobody_reads_the_screen(
    unread_pipe: UnreadPipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread_pipe.take_place(monkeypatch)
    screen = Screen(quiet=False, json_events=tmp_path / "events.jsonl")
    count = 4 * MAX_WAITING  # several times what a pipe and the queue hold
    for version in range(count):
        screen.record(1.0, Evaluated(version, 1.0))
        screen.live(f"version {version}")
    screen.close()  # returns
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == count
    shown = unread_pipe.read_until(lambda: screen.printer.drain(0.0)).splitlines()
    assert shown[-1] == f"version {count - 1:>5}  held-out loss 1.0000"
    dropped = sum(int(line.split()[0].replace(",", "")) for line in shown if "not shown: nobody took" in line)
    losses = [line for line in shown if "held-out" in line]
    assert dropped > 0 and losses == sorted(losses)
    assert len(losses) + dropped - count in (0, 1)  # one more: the end of the live line is no line, but may be dropped


def test_a_signal_handler_does_not_wait_for_a_full_pipe(
    unread_pipe: UnreadPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread_pipe.take_place(monkeypatch)
    os.set_blocking(sys.stderr.fileno(), False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(sys.stderr.fileno(), b"." * 4096)
    os.set_blocking(sys.stderr.fileno(), True)
    _write("stopping")  # returns
    assert b"stopping" not in os.read(unread_pipe.reading, 1 << 20)
    _write("stopping")
    assert b"stopping" in os.read(unread_pipe.reading, 1 << 20)
