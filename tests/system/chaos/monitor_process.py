"""A monitor as a real process that prints one JSON object every five seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.system.launcher import POLL_S, ROOT

GENEROUS_S = 90.0


class MonitorProcess:
    """Its home outlives its processes."""

    def __init__(self, folder: Path, environment: dict[str, str], inside: Sequence[str]) -> None:
        """`inside`: what goes before its command, to run it in a namespace."""
        self._folder = folder
        self._out = folder / "monitor.out"
        self._environment = environment
        self._inside = inside
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, invite: str) -> None:
        assert not self.is_running
        command = [sys.executable, "-m", "coordinator", "monitor", invite, "--json"]
        with self._out.open("wb") as out, (self._folder / "monitor.err").open("ab") as err:
            self._process = subprocess.Popen(
                [*self._inside, *command, "--home", str(self._folder / "monitor")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._environment,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait_sees(self, version: int, num_live: int) -> None:
        """Until it prints so many live peers with equal digests at that version or a later one."""
        ends_at = time.monotonic() + GENEROUS_S
        while time.monotonic() < ends_at:
            assert self.is_running, f"the monitor ended with {self.process.poll()}: {self._errors()}"
            seen = self._last()
            if seen and seen["version"] >= version and seen["num_live"] >= num_live and seen["digests_equal"]:
                return
            time.sleep(POLL_S)
        raise AssertionError(f"the monitor did not see {num_live} peers at version {version}: {self._last()}")

    def end(self) -> None:
        """SIGTERM; it must end well."""
        if self.is_running:
            self.process.terminate()
            assert self.process.wait(GENEROUS_S) == 0, self._errors()

    def _last(self) -> dict[str, Any] | None:
        lines = self._out.read_text().split("\n")[:-1] if self._out.exists() else []
        return json.loads(lines[-1]) if lines else None

    def _errors(self) -> str:
        return (self._folder / "monitor.err").read_text(errors="replace")[-2000:]
