"""The first thing that can go wrong: another Python, a terminal with few letters, a level of the log, a version asked for."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SPEAKS = """
import logging, sys, warnings
from swarm.streams import standard_streams
from peer.main import set_up_logs
from peer.screen import Screen
standard_streams().__enter__()
screen = Screen(quiet=False, json_events=None)
set_up_logs(screen)
for level in (10, 20, 30, 40):
    logging.getLogger("peer.some.where").log(level, "ours %d", level)
    logging.getLogger("swarm.some.where").log(level, "theirs %d", level)
    logging.getLogger("another.library").log(level, "another's %d", level)
warnings.warn("of Python's own")
screen.say("n\\u00e4me \\u2713")
screen.say("and on it goes")
screen.close()
"""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def test_another_python_is_told_which_one_to_use() -> None:
    said = python("-I", "-S", "run_peer.py", "--name", "two words")
    assert said.returncode == 2 and said.stdout == "" and len(said.stderr.splitlines()) == 1
    assert "has no typer" in said.stderr and "python run_peer.py" in said.stderr
    assert ("make setup" in said.stderr) != (ROOT / ".venv" / "bin" / "python").exists()
    assert shlex.split(said.stderr)[-3:] == ["run_peer.py", "--name", "two words"]


@pytest.mark.parametrize(
    ("level", "shown"), [("", (30, 40)), ("debug", (10, 20, 30, 40)), ("INFO", (20, 30, 40)), ("ERROR", (40,))]
)
def test_a_level_of_the_log_is_honoured(level: str, shown: tuple[int, ...]) -> None:
    said = python("-c", SPEAKS, BARNRAISE_LOG=level)
    assert said.returncode == 0
    for whose in ("ours", "theirs"):
        assert [number for number in (10, 20, 30, 40) if f"{whose} {number}" in said.stderr] == list(shown)
    assert "another's 20" not in said.stderr and "another's 30" in said.stderr
    assert "WARNING py.warnings" in said.stderr and "of Python's own" in said.stderr


def test_a_level_that_there_is_not_is_refused() -> None:
    said = python("run_peer.py", "--local", BARNRAISE_LOG="loud")
    assert said.returncode == 2
    assert said.stderr == "barnraise: BARNRAISE_LOG = 'loud': one of DEBUG, INFO, WARNING, ERROR, CRITICAL\n"


def test_a_terminal_without_a_letter_silences_nothing() -> None:
    said = python("-c", SPEAKS, PYTHONIOENCODING="ascii")
    assert said.stdout.splitlines() == ["n?me ?", "and on it goes"]


@pytest.mark.parametrize("command", [["run_peer.py"], ["-m", "peer"], ["-m", "peer", "peer"]])
def test_the_version_is_told(command: list[str]) -> None:
    said = python(*command, "--version")
    assert said.returncode == 0 and said.stdout.startswith("barnraise 0.")


def test_a_shell_can_complete_commands() -> None:
    said = python("-m", "peer", _BARNRAISE_COMPLETE="source_bash")
    assert said.returncode == 0 and "complete" in said.stdout
