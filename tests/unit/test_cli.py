"""The command line is an interface: option names stay, help is quick, has examples and loads neither torch nor hivemind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RUN_PEER = [str(ROOT / "run_peer.py")]
BARNRAISE = ["-c", "from peer.cli import barnraise; barnraise()"]
PEER_OPTIONS = {
    "--announce",
    "--config",
    "--data",
    "--device",
    "--help",
    "--home",
    "--join",
    "--json-events",
    "--listen",
    "--local",
    "--max-disk-gb",
    "--max-upload-mbit",
    "--name",
    "--new",
    "--prefer-torch",
    "--quiet",
    "--rounds",
    "--tokenizer",
    "--version",
}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the project, with a terminal wide enough for any line."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment
    )


def options_in(text: str) -> set[str]:
    """The options that a help text lists: what stands at the beginning of a row of its table."""
    return set(re.findall(r"^\W*(?:-\w,? +)?(--[a-z][a-z-]*)", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("command", "typed"), [(RUN_PEER, "python run_peer.py"), ([*BARNRAISE, "peer"], "barnraise peer")], ids=str
)
def test_options_of_a_peer(command: list[str], typed: str) -> None:
    shown = python(*command, "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    assert options_in(shown.stdout) == PEER_OPTIONS
    examples = re.findall(r"^ *((?:python run_peer\.py|barnraise).*?)(?:  .*)?$", shown.stdout, re.MULTILINE)
    options = ("", " --join barnraise1-...", " --new --config my-run.toml", " --local --rounds 5")
    assert examples == [typed + words for words in options]


def test_options_of_new() -> None:
    shown = python(*BARNRAISE, "new", "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    assert options_in(shown.stdout) == {"--out", "--home", "--data", "--tokenizer", "--port", "--local", "--help"}
    assert "-o" in shown.stdout and "CONFIG.toml" in shown.stdout
    assert "barnraise new my-run.toml -o run.manifest" in shown.stdout


def test_commands() -> None:
    shown = python(*BARNRAISE, "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    for command in ("peer", "new", "invite", "demo", "monitor", "status", "pull"):
        assert re.search(rf"^\W*{command} ", shown.stdout, re.MULTILINE), command


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["peer", "--help"],
        ["new", "--help"],
        ["demo", "--help"],
        ["peer", "--join", "nonsense"],
        ["peer", "--listen", "4001"],
        ["peer", "--announce", "/ip4/203.0.113.7/udp/4001"],
        ["new", "/nowhere"],
        ["invite", "--home", "/nowhere"],
    ],
    ids=" ".join,
)
def test_a_look_and_a_slip_load_neither_torch_nor_hivemind(arguments: list[str]) -> None:
    code = f"""
import os, sys
sys.argv = ["barnraise", *{arguments!r}]
from peer.cli import barnraise

def check(code):
    heavy = sorted({{"torch", "hivemind", "transformers", "libp2p", "coordinator"}} & set(sys.modules))
    sys.stdout.flush()
    os.write(1, f"\\nheavy: {{heavy}}".encode())
    leave(code)

leave, os._exit = os._exit, check
try:
    barnraise()
except SystemExit as ended:
    check(ended.code)
"""
    shown = python("-c", code)
    assert shown.stdout.endswith("heavy: []"), shown


@pytest.mark.parametrize(
    "command", [[*RUN_PEER], [*BARNRAISE, "new", "examples/tiny.toml"], ["-m", "coordinator", "status"]]
)
def test_a_data_folder_in_the_way_is_one_line(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARNRAISE_DATA", "/dev/null")
    ended = python(*command)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and "Traceback" not in ended.stderr


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "command", [[*BARNRAISE, "--version"], [*BARNRAISE, "new", "--help"], [*RUN_PEER, "--help"]], ids=str
)
def test_without_a_reader_it_ends_silently(command: list[str], buffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    try:
        ended = subprocess.run(
            [sys.executable, *command], stdout=writing, stderr=subprocess.PIPE, timeout=60, cwd=ROOT, env=environment
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_option_that_is_not_there_is_refused_by_name() -> None:
    shown = python(*RUN_PEER, "--jion", "x")
    assert shown.returncode == 2 and shown.stdout == ""
    assert "--jion" in shown.stderr and "Traceback" not in shown.stderr
