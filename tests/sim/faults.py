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


@dataclass(frozen=True)
class Crash:
    """A process is killed; its disk stays. It comes back at `back_s`, or never."""

    peer: int
    at_s: float
    back_s: float | None = None


@dataclass(frozen=True)
class StrikeLeader:
    """Whoever leads at `version` is killed in a phase (and comes back `back_after_s` later), or frozen for a while."""

    version: int
    phase: Phase
    back_after_s: float | None = None
    freeze: bool = False


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


@dataclass(frozen=True)
class Slow:
    """A peer's inner steps and its encoding take so many times as long."""

    peer: int
    factor: float
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Lossy:
    """One-way messages are lost, or arrive twice, with these probabilities."""

    loss: float
    duplicate: float
    from_s: float
    to_s: float


@dataclass(frozen=True)
class DiskFull:
    """A peer cannot write its state: no head can be moved to."""

    peer: int
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Join:
    """A new peer starts from version 0."""

    at_s: float


@dataclass(frozen=True)
class Leave:
    """A peer says goodbye and is gone."""

    peer: int
    at_s: float


Fault = Crash | StrikeLeader | Freeze | Partition | Slow | Lossy | DiskFull | Join | Leave


def over_at_s(faults: tuple[Fault, ...]) -> float:
    """When the last fault with a time of its own is over."""
    ends = [0.0]
    for fault in faults:
        ends += [getattr(fault, name, 0.0) or 0.0 for name in ("at_s", "back_s", "to_s")]
    return max(ends)
