"""What the processes of a soak use, over time: samples, and whether they are flat.

A slope is robust: the median of the slopes between pairs of samples of one life (Theil and Sen), pooled over all lives that
last; the first minutes of a life, in which caches fill, do not count.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

WARM_UP_S: Final = 90.0  # of a life, before its samples count
LASTS_S: Final = 180.0  # a life has a slope when its samples behind the warm-up span so much
LONG_S: Final = 900.0  # from which span on a slope per hour counts: over few minutes it is mostly noise
_MAX_SAMPLES: Final = 120  # of one life that pairs are made of: every k-th of a longer one
_MIB: Final = float(1 << 20)


@dataclass(frozen=True, slots=True)
class Measure:
    """What is measured, and what counts as flat: both the slope and the growth must hold."""

    name: str
    unit: str
    slope_per_h: float  # at most
    growth: float  # at most, from the median of the first third of a long life to that of the last


MEASURES: Final = (
    Measure("peer memory", "MiB", 24.0, 12.0),
    Measure("peer descriptors", "", 12.0, 6.0),
    Measure("peer threads", "", 6.0, 3.0),
    Measure("p2pd memory", "MiB", 24.0, 12.0),
    Measure("p2pd descriptors", "", 24.0, 12.0),
    Measure("home", "MiB", 12.0, 6.0),
    Measure("monitor memory", "MiB", 24.0, 12.0),
)
Life = tuple[str, int]  # a name, and a process id


@dataclass(slots=True)
class Series:
    """The samples of one measure, by life: (seconds, value)."""

    lives: dict[Life, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, life: Life, at_s: float, value: float) -> None:
        self.lives[life].append((at_s, value))

    def lasting(self) -> list[list[tuple[float, float]]]:
        """The samples behind the warm-up of the lives that last."""
        kept = ([one for one in life if one[0] >= life[0][0] + WARM_UP_S] for life in self.lives.values())
        return [life for life in kept if len(life) > 2 and life[-1][0] - life[0][0] >= LASTS_S]

    def slope_per_h(self) -> float | None:
        """The pooled robust slope per hour; None when no life lasts."""
        slopes = [slope for life in self.lasting() for slope in pair_slopes(life)]
        return 3600.0 * statistics.median(slopes) if slopes else None

    def start_and_end(self) -> tuple[float, float] | None:
        """Medians of the first and the last third of the longest life; None when no life lasts."""
        longest = max(self.lasting(), key=lambda life: life[-1][0] - life[0][0], default=None)
        if longest is None:
            return None
        third = max(1, len(longest) // 3)
        values = [value for _, value in longest]
        return statistics.median(values[:third]), statistics.median(values[-third:])

    def longest_s(self) -> float:
        """What the samples of the longest life span, its warm-up left out."""
        return max((life[-1][0] - life[0][0] for life in self.lasting()), default=0.0)

    def thinned(self) -> dict[str, list[tuple[int, float]]]:
        """Every k-th sample of each life, its seconds from its start."""
        return {
            f"{name}/{pid}": [
                (round(at_s - life[0][0]), round(value, 2)) for at_s, value in life[:: 1 + len(life) // 60]
            ]
            for (name, pid), life in self.lives.items()
        }

    def newest(self, since_s: float) -> list[float]:
        """The last value of each life that has one since then."""
        return [life[-1][1] for life in self.lives.values() if life[-1][0] >= since_s]


def pair_slopes(samples: Sequence[tuple[float, float]]) -> list[float]:
    """The slopes between all pairs of samples, per second; of a long series, of every k-th sample."""
    thinned = samples[:: max(1, len(samples) // _MAX_SAMPLES)]
    return [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(thinned, 2) if b[0] > a[0]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One law, and whether it held; None: too short to say."""

    law: str
    held: bool | None
    found: str

    def line(self) -> str:
        word = "too short to say" if self.held is None else "held" if self.held else "BROKEN"
        return f"{word:<16}  {self.law}: {self.found}"


class Leaks:
    """All series, and the counts that belong to no life."""

    def __init__(self) -> None:
        self.series = {measure.name: Series() for measure in MEASURES}
        self.most: dict[str, int] = {}  # of what is counted over the whole swarm, the most at once
        self.last: dict[str, int] = {}
        self.extra_p2pd = 0  # samples in a row with more daemons than peers
        self.most_extra_p2pd = 0

    def sample_peer(self, name: str, pid: int, home: Path, now_s: float) -> None:
        """One peer's process, its daemon and its home; nothing of a process that is just ending."""
        life = (name, pid)
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            self._process("peer", life, process, now_s)
            self.series["peer threads"].add(life, now_s, process.num_threads())
            self.series["home"].add(life, now_s, folder_bytes(home) / _MIB)
            daemon = daemon_of(process)
            if daemon is not None:
                self._process("p2pd", (name, daemon.pid), daemon, now_s)

    def sample_monitor(self, pid: int, now_s: float) -> None:
        with contextlib.suppress(psutil.Error, OSError):
            self.series["monitor memory"].add(("monitor", pid), now_s, anonymous_bytes(pid) / _MIB)

    def count(self, processes: Iterable[psutil.Process], temporary: Path, num_peers: int) -> None:
        """What the swarm has in all: daemons, folders of sockets, temporary files, shared memory."""
        alive = list(processes)
        self._count("p2pd processes", sum(is_daemon(one) for one in alive))
        self._count("processes", len(alive))
        self._count("socket folders", sum(1 for _ in temporary.glob("barnraise-net-*")))
        self._count(
            "other temporary files", sum(not one.name.startswith("barnraise-net-") for one in os.scandir(temporary))
        )
        self._count("files in shared memory", sum(shared_memory_files(one.pid) for one in alive))
        # A daemon may outlive its peer's last breath by a moment; one that is there at the next look too is left behind.
        self.extra_p2pd = self.extra_p2pd + 1 if self.last["p2pd processes"] > num_peers else 0
        self.most_extra_p2pd = max(self.most_extra_p2pd, self.extra_p2pd)

    def _process(self, kind: str, life: Life, process: psutil.Process, now_s: float) -> None:
        self.series[f"{kind} memory"].add(life, now_s, anonymous_bytes(process.pid) / _MIB)
        self.series[f"{kind} descriptors"].add(life, now_s, process.num_fds())

    def _count(self, what: str, number: int) -> None:
        self.last[what] = number
        self.most[what] = max(number, self.most.get(what, 0))

    def verdicts(self) -> list[Verdict]:
        found = [self._flat(measure) for measure in MEASURES]
        law = "no daemon outlives its peer for longer than a look"
        found.append(Verdict(law, self.most_extra_p2pd < 2, f"{self.most_extra_p2pd} looks in a row with one too many"))
        shared = self.most.get("files in shared memory", 0)
        found.append(Verdict("nothing in shared memory", shared == 0, f"{shared} files at most"))
        return found

    def _flat(self, measure: Measure) -> Verdict:
        series = self.series[measure.name]
        limits = f"at most {measure.slope_per_h:g} {measure.unit}/h, and {measure.growth:g} in the longest life"
        law = f"{measure.name} flat ({limits})"
        slope, ends = series.slope_per_h(), series.start_and_end()
        if slope is None or ends is None:
            return Verdict(law, None, f"no life of {WARM_UP_S + LASTS_S:.0f} s")
        held = ends[1] - ends[0] <= measure.growth
        if series.longest_s() >= LONG_S:
            held = held and slope <= measure.slope_per_h
        lives = len(series.lasting())
        return Verdict(law, held, f"{slope:+.1f} {measure.unit}/h over {lives} lives, {ends[0]:.1f} -> {ends[1]:.1f}")


def daemon_of(process: psutil.Process) -> psutil.Process | None:
    """The p2pd of a peer's process; None when there is none just now."""
    return next((child for child in process.children() if is_daemon(child)), None)


def is_daemon(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.name() == "p2pd") and process.status() != psutil.STATUS_ZOMBIE
    return False


def anonymous_bytes(pid: int) -> int:
    """Resident memory without the pages of files, which come as code is touched; raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise OSError(f"process {pid} is ending")


def folder_bytes(folder: Path) -> int:
    """What the files below a folder hold; those that vanish meanwhile count as nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                total += path.stat().st_size
    return total


def shared_memory_files(pid: int) -> int:
    """How many files of /dev/shm a process has mapped or open; those without a name any more end with their processes."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        names = {line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line}
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names.add(os.readlink(link).partition("/dev/shm/")[2])
        return sum(bool(name) and not name.endswith(" (deleted)") for name in names)
    return 0
