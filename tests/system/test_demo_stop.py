"""A demo that is stopped on its way leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from swarm.streams import NOBODY_READS
from tests.system.swarm_of_processes import GENEROUS_S

pytestmark = pytest.mark.system


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_demo_that_is_stopped_ends_all_that_it_started(tmp_path: Path, number: int) -> None:
    """On SIGTERM its peers went on for ever."""
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "peer", "demo", "--short", "--out", str(out)]
    with open(tmp_path / "log", "wb") as log:
        demo = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ))
    try:
        until_s = time.monotonic() + GENEROUS_S
        while not (out / "peer-3.log").exists():
            assert demo.poll() is None and time.monotonic() < until_s, (tmp_path / "log").read_text()
            time.sleep(0.1)
        started = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(number)
        assert demo.wait(GENEROUS_S) == 130
        _, alive = psutil.wait_procs(started, timeout=5.0)
        assert started and not alive
        said = (tmp_path / "log").read_text()
        assert "starting three peers" in said and "everything it started has ended" in said and "Traceback" not in said
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()


def test_a_demo_whose_reader_has_gone_ends_silently(tmp_path: Path) -> None:
    """As `barnraise demo | head -1` does: its monitor writes into the same pipe, and was reported as a failure."""
    command = [sys.executable, "-m", "peer", "demo", "--short", "--out", str(tmp_path / "demo")]
    with open(tmp_path / "err", "wb") as err:
        demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, env=dict(os.environ))
    try:
        assert demo.stdout is not None and demo.stdout.readline()
        until_s = time.monotonic() + GENEROUS_S
        while not (tmp_path / "demo" / "peer-3.log").exists():
            assert demo.poll() is None and time.monotonic() < until_s
            time.sleep(0.1)
        started = psutil.Process(demo.pid).children(recursive=True)
        demo.stdout.close()
        assert demo.wait(GENEROUS_S) == NOBODY_READS
        _, alive = psutil.wait_procs(started, timeout=5.0)
        assert started and not alive
        assert (tmp_path / "err").read_text() == ""
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
