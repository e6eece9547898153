"""Faults as data: a frozen dataclass each, peers by number, times in virtual seconds. The world says which ones happened."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where in its round a leader is when it is struck."""

    TRAINING = "training"  # the head was reached, no hint has gone out
    HINTED = "hinted"  # the hint is out
    ANNOUNCED = "announced"  # another member's contribution has been announced to it
    COMMITTING = "committing"  # it has decided on a commit, and nobody has been sent it
    ONE_TOLD = "one-told"  # exactly one other member has been sent the commit


class Disk(StrEnum):
    """What is left on the disk of a process that was killed."""

    KEPT = "kept"
    OLDER = "older"  # its newest generation is damaged: it begins from the one before
    LOST = "lost"  # nothing, its key included: whoever comes back is somebody new


@dataclass(frozen=True)
class Crash:
    """A process is killed. It comes back at `back_s`, or never."""

    peer: int
    at_s: float
    back_s: float | None = None
    disk: Disk = Disk.KEPT


@dataclass(frozen=True)
class StrikeLeader:
    """Whoever leads at `version` is killed in a phase (and comes back `back_after_s` later), or frozen for a while."""

    version: int
    phase: Phase
    back_after_s: float | None = None
    freeze: bool = False


@dataclass(frozen=True)
class StrikeEffect:
    """Whoever leads at `version` is killed in front of its n-th effect there, or frozen."""

    version: int
    effect: int
    back_after_s: float
    freeze: bool = False


@dataclass(frozen=True)
class StrikeOutput:
    """A process is killed in front of the n-th write or report of its trainer."""

    peer: int
    output: int
    back_after_s: float


@dataclass(frozen=True)
class Freeze:
    """A process is stopped; what arrives waits, and timers are late."""

    peer: int
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Partition:
    """Nothing passes between `side` and all others. One peer against one is a cut link."""

    side: tuple[int, ...]
    from_s: float
    to_s: float
    other: tuple[int, ...] | None = None  # None: everyone else
    one_way: bool = False  # only what `side` sends is lost


@dataclass(frozen=True)
class Slow:
    """A peer's inner steps and its encoding take so many times as long."""

    peer: int
    factor: float
    from_s: float
    to_s: float


@dataclass(frozen=True)
class SlowDisk:
    """Each write of a peer's state takes so long."""

    peer: int
    write_s: float
    from_s: float
    to_s: float


@dataclass(frozen=True)
class SlowLink:
    """What a peer sends and gets takes longer: latency one way, bytes a second of its uplink."""

    peer: int
    latency_s: float
    bytes_per_s: float
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Lossy:
    """One-way messages are lost, or arrive twice, with these probabilities; each is late by up to `late_s`."""

    loss: float
    duplicate: float
    from_s: float
    to_s: float
    late_s: float = 0.0  # more than a message's distance from the next one: they overtake each other


@dataclass(frozen=True)
class DiskFull:
    """A peer cannot write: it cannot move, and a process that must write ends."""

    peer: int
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Skew:
    """A peer's clocks are wrong, all its life: the monotonic one's rate, and the date on what it pins up."""

    peer: int
    rate: float
    wall_offset_s: float


@dataclass(frozen=True)
class Hidden:
    """A peer cannot be dialled: it is reached over connections that it opened itself, or not at all."""

    peer: int


@dataclass(frozen=True)
class Withhold:
    """These peers give nobody a contribution's blob, their own included."""

    peers: tuple[int, ...]
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Liar:
    """A peer's statuses claim a head that ranks above all others, and that it does not have."""

    peer: int
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Usurper:
    """A peer commits its own work alone, in views that are far away or not its own."""

    peer: int
    from_s: float
    to_s: float


class Lie(StrEnum):
    """What a forger serves beside its claim."""

    LOG = "log"  # commits of ids that never were members
    MINER = "miner"  # commits in which a member shrinks the roster to itself and ids that it invents
    SNAPSHOT = "snapshot"  # a state alone, which no log leads to


@dataclass(frozen=True)
class Forger:
    """A peer claims a head of far more tokens and serves what it forged; invented ids vouch for it with their votes."""

    peer: int
    from_s: float
    to_s: float
    lie: Lie
    ids: int = 4


@dataclass(frozen=True)
class BitFlip:
    """A bit flips in a peer's memory: from then on it tells another state digest, until it takes another state."""

    peer: int
    at_s: float


@dataclass(frozen=True)
class Join:
    """New peers start from version 0, one after the other; invited by `introducer`, if it is a number."""

    at_s: float
    count: int = 1
    over_s: float = 0.0
    introducer: int | None = None


@dataclass(frozen=True)
class Leave:
    """A peer says goodbye and is gone."""

    peer: int
    at_s: float


Fault = (
    Crash
    | StrikeLeader
    | StrikeEffect
    | StrikeOutput
    | Freeze
    | Partition
    | Slow
    | SlowDisk
    | SlowLink
    | Lossy
    | DiskFull
    | Skew
    | Hidden
    | Withhold
    | Liar
    | Usurper
    | Forger
    | BitFlip
    | Join
    | Leave
)


def over_at_s(faults: tuple[Fault, ...]) -> float:
    """When the last fault with a time of its own is over."""
    ends = [0.0]
    for fault in faults:
        ends += [getattr(fault, name, 0.0) or 0.0 for name in ("at_s", "back_s", "to_s")]
        if isinstance(fault, Join):
            ends.append(fault.at_s + fault.over_s)
    return max(ends)
