"""What the two threads of a peer hand each other: immutable values, over this file alone.

    network thread (asyncio)  --orders-->  trainer (main thread)      queue; `give` never blocks
    trainer                   --reports->  network thread             `call_soon_threadsafe`; order is kept

Nothing else is shared but the blob store, whose files never change. The trainer calls `next_order` and `report`; the
network calls `give` and `listen`; the thread of signals calls `stop`, which is the one order that overtakes the others.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from swarm.chain import ChainState
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import CheckpointRecord, Commit, StateRecord, TimeSplit
from swarm.round.facts import CutDone
from swarm.round.root import Root


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Genesis: these members start; each gets a lease from it."""

    members: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class CutNow:
    """Cut at the next inner-step boundary."""

    reason: str


@dataclass(frozen=True, slots=True)
class ApplyCommits:
    """Move from `base` through `commits`; their blobs are in the store."""

    base: Digest
    commits: tuple[Commit, ...]
    roots: tuple[Root, ...]  # of the heads behind them
    caught_up: bool = False  # it came from another peer's log


@dataclass(frozen=True, slots=True)
class AdoptState:
    """Move to a snapshot whose unit blobs are in the store."""

    record: StateRecord
    root: Root  # of its head
    keep_progress: bool


@dataclass(frozen=True, slots=True)
class SetView:
    """The view to save, so that a restart finds its leader."""

    view: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Save and end."""

    reason: str


Order = OpenRound | CutNow | ApplyCommits | AdoptState | SetView | Stop


@dataclass(frozen=True, slots=True)
class Progress:
    """The trainer's figures, for the status."""

    tokens_since_cut: int = 0
    steps_since_cut: int = 0
    tokens_per_s: float = 0.0
    train_loss: float | None = None
    heldout_loss: float | None = None
    heldout_version: int = 0
    time: TimeSplit = field(default_factory=TimeSplit)
    waits_for: str = ""  # why no inner step is due; "" while one is


@dataclass(frozen=True, slots=True)
class Moved:
    """The trainer is at a new head, and it is on disk."""

    record: StateRecord
    chains: tuple[ChainState, ...]  # that it can go back to, newest first
    roots: tuple[Root, ...]  # of each of them
    log: tuple[Commit, ...]
    still_pending: tuple[int, ...]
    undone: int  # own contributions that are pending again
    dropped_tokens: int  # of work given up, declared
    caught_up: bool


def undone_commits(before: Sequence[ChainState], moved: Moved) -> int:
    """How many commits of the chain that we were on are not on the way to the head that we moved to.

    `before`: our head and those before it, newest first. A snapshot brings no log: then only what it shows by itself
    counts, a version that is no higher than ours was, or contributions of ours that are pending again.
    """
    after = moved.record.chain
    on_the_way = {after.head, *(commit.parent for commit in moved.log)}
    for depth, chain in enumerate(before):
        if chain.head in on_the_way:
            return depth
    return max(before[0].version - after.version + 1, min(1, moved.undone)) if before else 0


@dataclass(frozen=True, slots=True)
class MoveFailed:
    """The trainer could not carry out an order to move; nothing has changed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint is on disk; its files are `files`, by digest."""

    record: CheckpointRecord
    files: tuple[tuple[Digest, str], ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The held-out loss of a version's anchor."""

    version: int
    loss: float


@dataclass(frozen=True, slots=True)
class CheckpointSkipped:
    """There was no room for the checkpoint of that version."""

    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class StepDropped:
    """An inner step without finite numbers."""

    reason: str


@dataclass(frozen=True, slots=True)
class TrainerEnded:
    """The trainer will send nothing more."""

    reason: str


Report = Progress | CutDone | Moved | MoveFailed | Kept | CheckpointSkipped | Evaluation | StepDropped | TrainerEnded


class Handoff:
    """The two queues. Made in the main thread before the network thread starts."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._stop: Stop | None = None
        self._lock = threading.Lock()
        self._early: list[Report] = []
        self._deliver: Callable[[Report], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def give(self, order: Order) -> None:
        """An order for the trainer."""
        self._orders.put(order)

    def stop(self, reason: str) -> None:
        """Ends the trainer at its next look, before any other order. Safe in any thread."""
        if self._stop is None:
            self._stop = Stop(reason)
        self._orders.put(self._stop)  # wakes a trainer that waits

    @property
    def stopping(self) -> Stop | None:
        return self._stop

    def next_order(self, wait_s: float) -> Order | None:
        """The next order; None when none comes within `wait_s`."""
        if self._stop is not None:
            return self._stop
        try:
            order = self._orders.get(block=wait_s > 0, timeout=wait_s or None)
        except queue.Empty:
            return None
        return self._stop or order

    def listen(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Report], None]) -> None:
        """From now on `deliver` gets every report, in the loop's thread, those before this call first."""
        with self._lock:
            self._loop, self._deliver = loop, deliver
            for report in self._early:
                loop.call_soon_threadsafe(deliver, report)
            self._early.clear()

    def report(self, report: Report) -> None:
        """A report for the network thread; dropped once its loop is closed."""
        with self._lock:
            if self._loop is None or self._deliver is None:
                self._early.append(report)
            else:
                with suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
                    self._loop.call_soon_threadsafe(self._deliver, report)
