"""Starts peers quickly: forks of one process that has loaded torch, which on two slow cores is most of what a start takes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
POLL_S = 0.05


class Launched:
    """A process that is not our child; the part of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int, code_path: Path) -> None:
        self.pid = pid
        self._code_path = code_path

    def poll(self) -> int | None:
        return int(self._code_path.read_text()) if self._code_path.exists() else None

    def wait(self, timeout: float) -> int:
        ends_at = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > ends_at:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(POLL_S)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now, and its code is not written yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Launcher:
    """The process that all others are forks of. Starts at the first use; `close` it. Peers may share the folder `cache`."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.cache.mkdir()
        self._folder = folder
        self._numbers = count()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def start(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        folder: Path,
        *,
        out: Path,
        err: Path,
        file_limit: int | None = None,
        namespace: int | None = None,
    ) -> Launched:
        """Starts `run_peer.py` with those arguments; in the user and network namespace of process `namespace` if given."""
        with self._lock:
            return self._start(
                {
                    "arguments": list(arguments),
                    "environment": environment,
                    "folder": str(folder),
                    "out": str(out),
                    "err": str(err),
                    "code": str(self._folder / f"{next(self._numbers)}.code"),
                    "file_limit": file_limit,
                    "namespace": namespace,
                }
            )

    def _start(self, order: dict[str, Any]) -> Launched:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, ROOT / "tests" / "system" / "preloaded.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Launched(int(self._process.stdout.readline()), Path(order["code"]))

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait(30)
