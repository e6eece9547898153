"""`make chaos`: real peers are killed, frozen and cut off at every step of a round. Last line: `N cells, N held`.

python -m tests.system.chaos                        all cells
python -m tests.system.chaos --only leader/commit   those whose name has this in it; repeatable
python -m tests.system.chaos --short | --list | --json FILE | --repeat 3 | --lanes 2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.system.chaos.arena import JOINER, MONITOR, NAMES
from tests.system.chaos.cells import LINK, Cell, all_cells, short_cells
from tests.system.chaos.links import Links, NoLinks
from tests.system.chaos.matrix import Matrix, Result
from tests.system.launcher import Launcher


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C: nothing may be left behind
    cells = short_cells() if options.short else all_cells()
    if options.only:
        names = {cell.name for cell in cells}
        wanted = [{word} if word in names else {name for name in names if word in name} for word in options.only]
        cells = [cell for cell in cells if cell.name in set().union(*wanted)]
    if options.list:
        for cell in cells:
            print(cell.name)
        print(f"{len(cells)} cells")
        return 0
    if not cells:
        print(f"no cell has {' or '.join(options.only)} in its name; see --list", file=sys.stderr)
        return 2
    why_no_links = _why_no_links(cells)
    if why_no_links:
        left_out = [cell for cell in cells if cell.fault == LINK]
        for cell in left_out:
            print(f"left out  {cell.name}: {why_no_links}", flush=True)
        cells = [cell for cell in cells if cell.fault != LINK]
    folder = Path(tempfile.mkdtemp(prefix="barnraise-chaos-"))
    results: list[Result] = []
    began_s = time.monotonic()

    def tell(result: Result) -> None:
        results.append(result)
        print(result.line, flush=True)

    try:
        with contextlib.closing(Launcher(folder)) as launcher:
            matrix = Matrix(folder, launcher, tell)
            for _ in range(options.repeat):
                matrix.run(cells, options.lanes, not why_no_links)
    except KeyboardInterrupt:
        print("stopped; everything it started has ended", flush=True)
    held = sum(result.held for result in results)
    minutes = (time.monotonic() - began_s) / 60
    if options.json is not None:
        options.json.write_text(json.dumps([_as_json(result) for result in results], indent=1) + "\n")
    if held == len(results):
        shutil.rmtree(folder)
    print(f"{minutes:.1f} minutes, {options.lanes} swarms at a time")
    print(f"{len(results)} cells, {held} held")
    return 0 if held == len(results) == len(cells) * options.repeat else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help="a cell, or all with this in their names",
    )
    parser.add_argument("--short", action="store_true", help="a few cells that stand for the others")
    parser.add_argument("--list", action="store_true", help="name the cells and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was seen of each cell")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="so many times in a row")
    parser.add_argument("--lanes", type=int, default=3, metavar="N", help="swarms at a time")
    return parser.parse_args()


def _why_no_links(cells: list[Cell]) -> str:
    """Why no link can be cut on this machine; "" when it can, or need not."""
    if all(cell.fault != LINK for cell in cells):
        return ""
    try:
        Links((*NAMES, JOINER, MONITOR)).close()
    except NoLinks as error:
        return str(error)
    return ""


def _as_json(result: Result) -> dict[str, Any]:
    return {**asdict(result), "cell": result.cell.name, "held": result.held}


if __name__ == "__main__":
    sys.exit(main())
