"""The kill matrix as data: who is hit, at which point of its work, and what happens to it there.

Left out is what does not exist: a monitor has no cut, a member decides no commit, and a p2pd that is killed in the middle of
a disk write hits nothing that the same death a moment later does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

KILL: Final = "kill"  # SIGKILL; started again once the others have gone on
STOP: Final = "stop"  # SIGSTOP, and SIGCONT 20 s later; p2pd goes on
STOP_ALL: Final = "stop-all"  # the same with its p2pd
DAEMON: Final = "kill-p2pd"  # p2pd alone
LINK: Final = "link"  # nothing passes for 10 s, in either direction
FAULTS: Final = {
    KILL: "SIGKILL, then a restart",
    STOP: "SIGSTOP, SIGCONT 20 s later",
    STOP_ALL: "SIGSTOP of it and its p2pd, SIGCONT 20 s later",
    DAEMON: "its p2pd killed alone",
    LINK: "its link cut for 10 s",
}
_Row = Mapping[str, Sequence[str]]
_MEMBER: Final[_Row] = {
    "training": (KILL, STOP, DAEMON, LINK),
    "cut-encoded": (KILL, STOP_ALL),
    "cut-saved": (KILL, STOP, DAEMON),
    "fetch": (KILL, STOP_ALL, DAEMON, LINK),
    "serve": (KILL, STOP, DAEMON, LINK),
    "commit-accepted": (KILL, STOP_ALL, DAEMON, LINK),
    "head-computed": (KILL, STOP, DAEMON),
    "head-saved": (KILL, STOP_ALL, DAEMON),
    "save-blobs": (KILL, STOP),
    "save-done": (KILL,),
}
_LEADER: Final[_Row] = {
    "training": (KILL, STOP_ALL, DAEMON, LINK),
    "cut-encoded": (KILL,),
    "cut-saved": (KILL, STOP),
    "fetch": (KILL, STOP, DAEMON, LINK),
    "serve": (KILL, STOP_ALL, DAEMON),
    "commit-decided": (KILL, STOP, DAEMON, LINK),
    "commit-alone": (KILL, STOP_ALL, LINK),
    "commit-one-told": (KILL, STOP, DAEMON, LINK),
    "commit-all-told": (KILL, STOP_ALL, DAEMON),
    "head-computed": (KILL, STOP),
    "head-saved": (KILL, STOP),
    "save-blobs": (KILL,),
    "save-done": (KILL,),
}
_JOINER: Final[_Row] = {
    "fetch": (KILL, STOP, DAEMON, LINK),
    "head-computed": (KILL, STOP_ALL),
    "head-saved": (KILL,),
    "save-blobs": (KILL,),
    "save-done": (KILL,),
}
_DONOR: Final[_Row] = {"serve": (KILL, STOP_ALL, DAEMON, LINK)}
_MONITOR: Final[_Row] = {"training": (KILL, STOP), "fetch": (KILL, STOP, LINK), "commit-accepted": (KILL,)}
_BOOTSTRAP: Final[_Row] = {
    "training": (KILL, STOP_ALL, DAEMON, LINK),
    "fetch": (KILL,),
    "commit-accepted": (KILL,),
}
MATRIX: Final[Mapping[str, _Row]] = {
    "member": _MEMBER,
    "leader": _LEADER,
    "joiner": _JOINER,
    "donor": _DONOR,
    "monitor": _MONITOR,
    "bootstrap": _BOOTSTRAP,
}
_LATE: Final = 0.4  # who joins by a snapshot needs a run of some versions
SHORT: Final = (
    "leader/commit-alone/kill",
    "member/fetch/stop-all",
    "member/save-blobs/kill",
    "joiner/fetch/kill",
    "leader/fetch/kill-p2pd",
    "leader/commit-one-told/kill",
    "donor/serve/kill",
    "monitor/training/kill",
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault: `role` is hit at `phase` by `fault`."""

    role: str
    phase: str
    fault: str

    @property
    def name(self) -> str:
        return f"{self.role}/{self.phase}/{self.fault}"


def all_cells() -> list[Cell]:
    """The whole matrix. Neighbours are unlike: a third death of one p2pd within a minute ends its peer, as it should."""
    by_fault = {
        fault: [
            Cell(role, phase, fault) for role, row in MATRIX.items() for phase, faults in row.items() if fault in faults
        ]
        for fault in FAULTS
    }
    placed = [
        (max((place + 0.5) / len(cells), _LATE if cell.role in ("joiner", "donor") else 0.0), cell)
        for cells in by_fault.values()
        for place, cell in enumerate(cells)
    ]
    return [cell for _, cell in sorted(placed, key=lambda one: one[0])]


def short_cells() -> list[Cell]:
    """A few that stand for the others, in this order."""
    by_name = {cell.name: cell for cell in all_cells()}
    return [by_name[name] for name in SHORT]
