"""`make chaos`: real peers are killed, frozen and cut off at every step of a round. Last line: `N cells, N held`.

python -m tests.system.chaos                        all cells, those of the NAT lab last
python -m tests.system.chaos --only leader/commit   those whose name has this in it; repeatable
python -m tests.system.chaos --nat                  those of the NAT lab alone
python -m tests.system.chaos --short | --list | --json FILE | --repeat 3 | --lanes 2
python -m tests.system.chaos --invite-times 5       how long newcomers behind NAT take to be included
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
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from tests.system.chaos.arena import JOINER, MONITOR, NAMES
from tests.system.chaos.cells import LINK, Cell, all_cells, short_cells
from tests.system.chaos.links import Links
from tests.system.chaos.matrix import Matrix, Result
from tests.system.chaos.nat_cells import NatCell, nat_cells, short_nat_cells
from tests.system.chaos.nat_invite import invite_summary, invite_times
from tests.system.chaos.nat_lab import why_no_lab
from tests.system.chaos.nat_matrix import NatResult, nat_summary, run_nat_cells
from tests.system.launcher import Launcher
from tests.system.namespaces import NoNamespaces

_Named = TypeVar("_Named", Cell, NatCell)


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C: nothing may be left behind
    if options.invite_times:
        return _measure_invites(options.invite_times)
    in_matrix = short_cells() if options.short else all_cells()
    in_lab = short_nat_cells() if options.short else nat_cells()
    in_matrix = [] if options.nat else _wanted(in_matrix, options.only)
    in_lab = _wanted(in_lab, options.only)
    if options.list:
        for name in [cell.name for cell in in_matrix] + [cell.name for cell in in_lab]:
            print(name)
        print(f"{len(in_matrix) + len(in_lab)} cells")
        return 0
    if not in_matrix and not in_lab:
        print(f"no cell has {' or '.join(options.only)} in its name; see --list", file=sys.stderr)
        return 2
    in_matrix, with_links = _without_links_if_need_be(in_matrix)
    if in_lab and (why := why_no_lab()):
        print(f"left out  the NAT lab, {len(in_lab)} cells: {why}", flush=True)
        in_lab = []
    folder = Path(tempfile.mkdtemp(prefix="barnraise-chaos-"))
    results: list[Result | NatResult] = []
    began_s = time.monotonic()

    def tell(result: Result | NatResult) -> None:
        results.append(result)
        print(result.line, flush=True)

    try:
        with contextlib.closing(Launcher(folder)) as launcher:
            matrix = Matrix(folder, launcher, tell)
            for _ in range(options.repeat if in_matrix else 0):
                matrix.run(in_matrix, options.lanes, with_links)
            run_nat_cells(in_lab, folder, launcher, tell, options.repeat)
    except KeyboardInterrupt:
        print("stopped; everything it started has ended", flush=True)
    held = sum(result.held for result in results)
    minutes = (time.monotonic() - began_s) / 60
    if options.json is not None:
        options.json.write_text(json.dumps([result.as_json() for result in results], indent=1) + "\n")
    if held == len(results):
        shutil.rmtree(folder)
    for line in nat_summary([one for one in results if isinstance(one, NatResult)]):
        print(line)
    for one in results:
        if not one.held:
            print(one.line)
    print(f"{minutes:.1f} minutes" + (f", {options.lanes} swarms at a time" if in_matrix else ""))
    print(f"{len(results)} cells, {held} held")
    return 0 if held == len(results) == (len(in_matrix) + len(in_lab)) * options.repeat else 1


def _measure_invites(times: int) -> int:
    folder = Path(tempfile.mkdtemp(prefix="barnraise-chaos-"))
    found = []
    try:
        with contextlib.closing(Launcher(folder)) as launcher:
            for one in invite_times(folder, launcher, times):
                found.append(one)
                print(one, flush=True)
    except NoNamespaces as error:
        print(f"left out: {error}")
    except KeyboardInterrupt:
        print("stopped; everything it started has ended", flush=True)
    except AssertionError as error:
        print(f"{(str(error) or 'something did not hold').splitlines()[0]} (see {folder})")
    else:
        shutil.rmtree(folder)
    print(invite_summary(found))
    return 0 if sum(one.included.is_over for one in found) == times else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help="a cell, or all with this in their names",
    )
    parser.add_argument("--nat", action="store_true", help="the cells of the NAT lab alone")
    parser.add_argument("--short", action="store_true", help="a few cells that stand for the others")
    parser.add_argument("--list", action="store_true", help="name the cells and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was seen of each cell")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="so many times in a row")
    parser.add_argument("--lanes", type=int, default=3, metavar="N", help="swarms at a time, outside the NAT lab")
    parser.add_argument(
        "--invite-times", type=int, default=0, metavar="N", help="measure N newcomers behind NAT instead"
    )
    return parser.parse_args()


def _wanted(cells: list[_Named], words: Sequence[str]) -> list[_Named]:
    """Those whose name is one of the words or, where it is nobody's name, has it in it; all, without words."""
    names = {cell.name for cell in cells}
    wanted = [{word} if word in names else {name for name in names if word in name} for word in words]
    return [cell for cell in cells if cell.name in set().union(*wanted)] if words else cells


def _without_links_if_need_be(cells: list[Cell]) -> tuple[list[Cell], bool]:
    """The cells that this machine can try, and whether links can be cut on it. Says which are left out, and why."""
    if all(cell.fault != LINK for cell in cells):
        return cells, True
    try:
        Links((*NAMES, JOINER, MONITOR)).close()
    except NoNamespaces as error:
        for cell in cells:
            if cell.fault == LINK:
                print(f"left out  {cell.name}: {error}", flush=True)
        return [cell for cell in cells if cell.fault != LINK], False
    return cells, True


if __name__ == "__main__":
    sys.exit(main())
