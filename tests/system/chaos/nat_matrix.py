"""The cells of the NAT lab, one after the other: each on a lab of its own."""

from __future__ import annotations

import os
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tests.system.chaos.nat_arena import NatArena
from tests.system.chaos.nat_cells import NatCell
from tests.system.chaos.nat_lab import Lab
from tests.system.chaos.nat_run import NatRun
from tests.system.chaos.nat_trial import NatOutcome, try_nat_cell
from tests.system.launcher import Launcher


@dataclass(frozen=True, slots=True)
class NatResult:
    """What became of a cell."""

    cell: NatCell
    outcome: NatOutcome
    seconds: float
    load: float  # of the machine: the mean length of its run queue in the last minute
    folder: Path  # of what its peers wrote, where it did not hold

    @property
    def held(self) -> bool:
        return not self.outcome.faults

    @property
    def line(self) -> str:
        seen = self.outcome
        led = (
            f"{seen.led_before or '-'} led, then {seen.led_after or '-'}"
            if self.cell.leaves
            else f"{seen.led_after} led"
        )
        delays = ", ".join(f"{host} {wait}" for host, wait in seen.delays.items())
        shares = ", ".join(f"{host} {share}" for host, share in seen.shares.items())
        head = f"{'held' if self.held else 'LOST':<5} {self.cell.name:<40} {self.seconds:5.1f} s"
        figures = (
            f"{seen.what} {delays or '-'} of {seen.bound_s:g} s  longest {seen.longest_s:.1f}  included {shares or '-'}"
        )
        why = "" if self.held else f"  {'; '.join(seen.faults)} (see {self.folder})"
        return f"{head}  {led}  {figures}  load {self.load:.1f}{why}"

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self.outcome),
            "cell": self.cell.name,
            "held": self.held,
            "seconds": self.seconds,
            "load": self.load,
        }


def run_nat_cells(
    cells: Sequence[NatCell], folder: Path, launcher: Launcher, tell: Callable[[NatResult], None], repeat: int = 1
) -> None:
    """Tells of each as it is done. What a failed one wrote stays in `folder`. Raises NoNamespaces."""
    run = NatRun(folder / "nat-run", launcher.cache)
    numbers = count(1)
    for _ in range(repeat):
        for cell in cells:
            tell(_try(cell, folder / f"nat-{next(numbers)}", launcher, run))


def _try(cell: NatCell, folder: Path, launcher: Launcher, run: NatRun) -> NatResult:
    outcome = NatOutcome()
    began_s = time.monotonic()
    try:
        with Lab() as lab, NatArena(folder, launcher, run, lab, cell.order) as arena:
            outcome = try_nat_cell(arena, cell)
    except AssertionError as error:
        if _was_stopped(error):  # what the clean-up then found missing is no outcome
            raise KeyboardInterrupt from None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failure.txt").write_text(traceback.format_exc())
        outcome.faults.append((str(error) or "something is left behind").splitlines()[0])
    result = NatResult(cell, outcome, time.monotonic() - began_s, os.getloadavg()[0], folder)
    if result.held:
        shutil.rmtree(folder)
    return result


def _was_stopped(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def nat_summary(results: Sequence[NatResult]) -> list[str]:
    """A line for each cell: median and worst of its delays, and the worst share of any peer."""
    lines = []
    for name in dict.fromkeys(one.cell.name for one in results):
        of_cell = [one for one in results if one.cell.name == name]
        delays = [one.outcome.worst_s for one in of_cell if one.outcome.delays]
        shares = [share for one in of_cell for share in one.outcome.shares.values()]
        middle = f"median {statistics.median(delays):.1f}, worst {max(delays):.1f}" if delays else "no figures"
        worst = min(shares, key=lambda one: one.included / max(1, one.rounds), default="-")
        seen = of_cell[0].outcome
        lines.append(
            f"{name:<40} held {sum(one.held for one in of_cell)} of {len(of_cell)}  {seen.what}: {middle} of"
            f" {seen.bound_s:g} s  least included {worst}"
        )
    return lines
