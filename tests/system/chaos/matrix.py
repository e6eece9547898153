"""Cells on several swarms at once: each lane takes the next cell that it can try, and a new swarm after one that failed."""

from __future__ import annotations

import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tests.system.chaos.arena import JOINER, MONITOR, NAMES, Arena
from tests.system.chaos.cells import LINK, Cell
from tests.system.chaos.links import Links
from tests.system.chaos.trial import Outcome, try_cell
from tests.system.launcher import Launcher

_STOP_S = 60.0  # a lane that is told to stop may sit out the 20 s of a frozen peer first


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a cell. `why` it did not hold; "" when it did."""

    cell: Cell
    outcome: Outcome | None
    why: str
    seconds: float
    load: float  # of the machine: the mean length of its run queue in the last minute

    @property
    def held(self) -> bool:
        return not self.why

    @property
    def line(self) -> str:
        head = f"{'held' if self.held else 'LOST':<5} {self.cell.name:<34} {self.seconds:5.1f} s"
        if self.outcome is None:
            return f"{head}  load {self.load:.1f}  {self.why.splitlines()[0]}"
        mark, longest = self.outcome.mark, self.outcome.longest
        return (
            f"{head}  {self.outcome.victim:<7} version {mark.version:<4} longest round {longest.seconds:4.1f}"
            f" of {longest.deadline_s:2.0f} s  load {self.load:.1f}"
        )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "cell": self.cell.name, "held": self.held}


class Matrix:
    """Tries cells and tells of each as it is done. What a failed one wrote stays in `folder`."""

    def __init__(self, folder: Path, launcher: Launcher, tell: Callable[[Result], None]) -> None:
        self._folder = folder
        self._launcher = launcher
        self._tell = tell
        self._cells: list[Cell] = []
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._stopping = threading.Event()
        self._arenas: list[Arena] = []

    def run(self, cells: Sequence[Cell], lanes: int, with_links: bool) -> None:
        """Returns when all are tried. `with_links`: one lane has links that can be cut; else there are no such cells."""
        self._cells = list(cells)
        self._stopping.clear()
        linked = [with_links and any(cell.fault == LINK for cell in cells)] + [False] * (lanes - 1)
        threads = [threading.Thread(target=self._lane, args=(one,), daemon=True) for one in linked]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # so that Ctrl+C is heard
                    thread.join(0.2)
        except BaseException:
            self._stopping.set()
            for arena in list(self._arenas):  # whoever waits for its peers hears of their end
                arena.kill_all()
            for thread in threads:
                thread.join(_STOP_S)
            raise

    def _next(self, has_links: bool) -> Cell | None:
        """The next cell for a lane. One with links leaves the others to the others as long as there are any of its own."""
        with self._lock:
            own = [cell for cell in self._cells if (cell.fault == LINK) == has_links]
            if not own and has_links:
                own = self._cells
            if not own or self._stopping.is_set():
                return None
            cell = own[0]
            self._cells.remove(cell)
            return cell

    def _lane(self, has_links: bool) -> None:
        cell = self._next(has_links)
        with ExitStack() as stack:
            links = stack.enter_context(Links((*NAMES, JOINER, MONITOR))) if has_links else None
            while cell is not None:
                folder = self._folder / f"swarm-{next(self._numbers)}"
                cell = self._on_one_swarm(folder, links, cell)

    def _on_one_swarm(self, folder: Path, links: Links | None, cell: Cell) -> Cell | None:
        """Tries cells until one fails; returns the next one, None when there is none. The last one has held only once the
        swarm has ended and left nothing behind."""
        last: Result | None = None
        began_s = time.monotonic()
        try:
            arena = Arena(folder, self._launcher, links)
            self._arenas.append(arena)
            with arena:
                while last is None:
                    began_s = time.monotonic()
                    result = Result(cell, try_cell(arena, cell), "", time.monotonic() - began_s, os.getloadavg()[0])
                    following = self._next(links is not None)
                    if following is None:
                        last = result
                    else:
                        self._tell(result)
                        cell = following
        except Exception as error:
            if self._stopping.is_set():
                return None
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "failure.txt").write_text(traceback.format_exc())
            why = f"{(str(error) or type(error).__name__).splitlines()[0]}{stalls_in(folder)} (see {folder})"
            self._tell(Result(cell, None, why, time.monotonic() - began_s, os.getloadavg()[0]))
            return self._next(links is not None)
        self._tell(last)
        shutil.rmtree(folder)
        return None


def stalls_in(folder: Path) -> str:
    """What the peers of a swarm say of times in which they themselves did not run: a machine that is too busy, or a cell that
    stopped them."""
    said = [
        f"{log.stem}: {line.partition('peer.node: ')[2]}"
        for log in sorted(folder.glob("*.err"))
        for line in log.read_text(errors="replace").splitlines()
        if "did not run for" in line
    ]
    return f"; {'; '.join(said[-3:])}" if said else ""
