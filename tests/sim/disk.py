"""A disk in memory: what outlives a process, behind the interfaces of the product's `BlobStore` and `Generations`.

A blob is there at once. A generation is in the writer's eyes at once too, but on the disk only when the life that wrote it
gets to it (`Life.play`): a process that dies in between comes back from the generation before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peer.saved import KEPT_GENERATIONS, SavedState
from swarm.digest import Digest, blob_digest
from swarm.errors import StateError

if TYPE_CHECKING:
    from tests.sim.books import Account

WRITE_S = 0.02


@dataclass(frozen=True)
class Written:
    """A generation, and the account of its author when it was written."""

    saved: SavedState
    account: Account


@dataclass
class Disk:
    """What outlives a process."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    generations: list[Written] = field(default_factory=list)  # newest first
    is_full: bool = False
    lost: frozenset[Digest] = frozenset()  # blobs that were on it when it was lost: others had been told so
    collected: set[Digest] = field(default_factory=set)  # blobs that were on it, and that nobody pinned any more
    write_s: float = WRITE_S  # to write one generation

    def write(self, written: Written) -> None:
        self.generations = [written, *self.generations][:KEPT_GENERATIONS]


class DiskBlobs:
    """Blobs by digest. What nobody pins is removed by `collect`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._pins: dict[str, frozenset[Digest]] = {}

    def put(self, parts: bytes | Sequence[bytes], *, durable: bool = True) -> Digest:
        blob = parts if isinstance(parts, bytes) else b"".join(parts)
        root = blob_digest(blob)
        if root not in self._disk.blobs:
            self.keep(root, blob)
        return root

    def keep(self, root: Digest, blob: bytes) -> None:
        """A blob that was fetched; its digest has been checked."""
        if self._disk.is_full:
            raise StateError("the disk is full")
        self._disk.blobs[root] = blob

    def has(self, root: Digest) -> bool:
        return root in self._disk.blobs

    def size(self, roots: Iterable[Digest]) -> int:
        return sum(len(self._disk.blobs.get(root, b"")) for root in roots)

    def read(self, root: Digest, *, check: bool = False) -> bytes:
        if root not in self._disk.blobs:
            raise StateError(f"blob {root} is not here")
        return self._disk.blobs[root]

    def open_checked(self, root: Digest) -> bytes:
        return self.read(root)

    def pin(self, owner: str, roots: Iterable[Digest]) -> None:
        self._pins[owner] = frozenset(roots)

    def collect(self) -> int:
        doomed = self._disk.blobs.keys() - set().union(*self._pins.values())
        for root in doomed:
            del self._disk.blobs[root]
        self._disk.collected |= doomed
        return len(doomed)

    def __len__(self) -> int:
        return len(self._disk.blobs)


class DiskGenerations:
    """The generations of one life: those it found, and those it writes."""

    def __init__(self, disk: Disk, write: Callable[[SavedState], None]) -> None:
        self._disk = disk
        self._write = write
        self._seen = [written.saved for written in disk.generations]

    def write(self, state: SavedState) -> None:
        if self._disk.is_full:
            raise StateError("the disk is full")
        self._seen = [state, *self._seen][:KEPT_GENERATIONS]
        self._write(state)

    def kept(self) -> list[SavedState]:
        return self._seen
