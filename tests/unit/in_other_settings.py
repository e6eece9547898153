"""A snippet of Python in fresh processes, with other threads and CPU capabilities of torch, and what they print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import torch

ROOT: Final = Path(__file__).parents[2]
_CAPABILITIES: Final = ("default", "avx2", "avx512")
_BUILT_FOR: Final = {"DEFAULT": 1, "AVX2": 2, "AVX512": 3}


def capabilities() -> tuple[str, ...]:
    """The settings of ATEN_CPU_CAPABILITY that this CPU can run, the simplest first."""
    return _CAPABILITIES[: _BUILT_FOR.get(torch.backends.cpu.get_cpu_capability(), 1)]


def outputs(snippet: str) -> dict[str, str]:
    """What the snippet prints, by settings: every capability, with 1 and 2 threads in turn."""
    settings = [(one, 1 + place % 2) for place, one in enumerate(capabilities())]
    if len(settings) == 1:
        settings.append(("default", 2))
    running = {}
    for capability, threads in settings:
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(threads)}
        environment["OMP_WAIT_POLICY"] = "passive"  # spinning threads would starve the other processes on two cores
        # Said by the process itself, so that a setting which did not take is no silent success.
        said = "import torch; print(torch.backends.cpu.get_cpu_capability().lower(), torch.get_num_threads())"
        command = [sys.executable, "-c", f"{said}\n{snippet}"]
        running[f"{capability} {threads}"] = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    found = {}
    for setting, process in running.items():
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        first, rest = out.split("\n", 1)
        assert first == setting, f"{setting} was asked for, {first} is what it ran with"
        found[setting] = rest
    return found
