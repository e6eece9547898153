"""Faults on purpose: what the variable may say, that each happens once and where it was asked for, and that off is off."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer import fault_point
from peer.fault_point import DEEDS, PHASES, ROLES, Fault, Mark
from swarm.errors import ConfigError


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    fault_point.arm(None)


@pytest.mark.parametrize("role", ["", *ROLES])
def test_a_fault_is_read_as_it_is_written(role: str, tmp_path: Path) -> None:
    for phase in PHASES:
        for deed in DEEDS:
            fault = Fault(phase, deed, tmp_path / "marks", 7, role)
            assert Fault.parse(str(fault)) == fault


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("phase=lunch;do=kill;marker=/m", "phase='lunch' is none of training"),
        ("phase=training;do=explode;marker=/m", "do='explode' is none of kill"),
        ("phase=training;do=kill;marker=/m;role=king", "role='king' is none of leader"),
        ("phase=training;do=kill;marker=/m;version=-1", "version='-1' is not a number"),
        ("phase=training;do=kill", "marker is missing"),
        ("do=kill;marker=/m", "phase is missing"),
        ("phase=training;phase=training;do=kill;marker=/m", "each once"),
        ("kill", "'kill' is not understood"),
        ("orders=", "give a file"),
        ("orders=/o;pace=soon", "pace='soon' is not a number"),
        ("orders=/o;pace=nan", "0 to 60 seconds"),
        ("orders=/o;speed=3", "'speed=3' is not understood"),
    ],
)
def test_a_mistake_is_told(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="BARNRAISE_FAULT") as raised:
        fault_point.arm(text)
    assert said in str(raised.value)


@pytest.mark.parametrize("nothing", [None, ""])
@pytest.mark.parametrize("phase", PHASES)
def test_off_is_off(phase: str, nothing: str | None, tmp_path: Path) -> None:
    fault_point.arm(f"phase={phase};do=mark;marker={tmp_path / 'marks'}")
    fault_point.arm(nothing)
    fault_point.reached(phase)
    assert not list(tmp_path.iterdir())
    fault_point.arm(f"phase={phase};do=mark;marker={tmp_path / 'marks'}")
    fault_point.reached(phase)
    assert list(tmp_path.iterdir())


def test_it_happens_once_at_its_phase(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    fault_point.arm(f"phase=save-done;do=mark;marker={marks}")
    for phase in ("training", "save-done", "save-done"):
        fault_point.reached(phase)
    mark = Mark.read(marks)
    assert mark is not None
    assert (mark.phase, mark.version, mark.role, mark.do, mark.pid) == ("save-done", 0, "joiner", "mark", os.getpid())


@pytest.mark.parametrize("wish", ["version=1", "role=leader"])
def test_it_waits_for_version_and_role(wish: str, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    fault_point.arm(f"phase=training;do=mark;marker={marks};{wish}")
    fault_point.reached("training")
    assert Mark.read(marks) is None


def test_orders_come_one_after_the_other(tmp_path: Path) -> None:
    orders = tmp_path / "order"
    fault_point.arm(f"orders={orders}")
    fault_point.reached("training")
    for phase in ("training", "save-blobs"):
        marker = tmp_path / phase
        orders.write_text(f"phase={phase};do=mark;marker={marker}")
        fault_point.reached("cut-saved")
        assert orders.exists()
        fault_point.reached(phase)
        assert not orders.exists()
        mark = Mark.read(marker)
        assert mark is not None and mark.phase == phase


def test_of_several_with_one_marker_the_first_does_it(tmp_path: Path) -> None:
    marker = tmp_path / "mark"
    for phase in ("training", "save-blobs"):
        fault_point.arm(f"phase={phase};do=mark;marker={marker}")
        fault_point.reached(phase)
    mark = Mark.read(marker)
    assert mark is not None and mark.phase == "training"


def test_what_it_does_comes_before_anything_else(tmp_path: Path) -> None:
    """Of the two threads of a process, the one that reached the point goes on with nothing."""
    script = (
        "import sys, threading; from peer import fault_point; fault_point.arm(sys.argv[1]);"
        "t = threading.Thread(target=lambda: [fault_point.reached('training'), print('after', flush=True)]);"
        "t.start(); t.join()"
    )
    for deed in ("kill", "stop"):
        marks = tmp_path / deed
        child = subprocess.Popen(
            [sys.executable, "-c", script, f"phase=training;do={deed};marker={marks}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        try:
            if deed == "stop":
                _, status = os.waitpid(child.pid, os.WUNTRACED)
                assert os.WIFSTOPPED(status)
                assert select.select([child.stdout], [], [], 0) == ([], [], [])  # nothing was said
                child.send_signal(signal.SIGCONT)
                assert child.stdout.read() == "after\n"
                assert child.wait() == 0
            else:
                assert child.stdout.read() == ""
                assert child.wait() == -signal.SIGKILL
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        mark = Mark.read(marks)
        assert mark is not None and mark.pid == child.pid
