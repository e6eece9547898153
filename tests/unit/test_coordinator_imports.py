"""A monitor is light: it imports neither torch nor hivemind nor the training side, and stays far below its memory limit."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import pkgutil, importlib, sys
import coordinator
for found in pkgutil.iter_modules(coordinator.__path__):
    if found.name != "__main__":
        importlib.import_module(f"coordinator.{found.name}")
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "hivemind", "peer", "transformers", "numpy"})
import psutil
print(heavy, psutil.Process().memory_info().rss >> 20)
"""
IMPORTS_MIB = 115  # of the 130 that a running monitor may have


def test_the_coordinator_is_light() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    heavy, _, rss_mib = done.stdout.strip().rpartition(" ")
    print(f"resident after all imports: {rss_mib} MiB")
    assert heavy == "[]"
    assert int(rss_mib) < IMPORTS_MIB
