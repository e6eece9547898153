"""Downloads that are not whole yet: one file each, `<digest>.part`, with every chunk that has come at its place.

A broken download leaves its file, and whoever goes on with it hashes what is there against the chunk digests; so a file may
be anything, and need not be synced. Files that nobody writes are bounded in bytes and age, the oldest go first.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Container
from pathlib import Path
from typing import BinaryIO, Final

from peer.disk import disk_errors
from swarm.digest import DIGEST_BYTES, Digest

MAX_PARTIAL_BYTES: Final = 4294967296  # 4 GiB
MAX_PARTIAL_AGE_S: Final = 21600.0  # six hours: a state that old is nowhere any more
_PARTIAL: Final = ".part"
_BLOCK_BYTES: Final = 512  # of what a file says it takes; one with holes takes less than its length


class Partials:
    """The unfinished downloads in a store's folder. Both threads use it."""

    def __init__(self, folder: Path, unix_s: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._unix_s = unix_s
        self._lock = threading.Lock()
        self._open: Counter[Digest] = Counter()

    def path(self, root: Digest) -> Path:
        """Where a download of this blob is gathered."""
        return self._folder / (root.hex() + _PARTIAL)

    def open(self, root: Digest) -> BinaryIO:
        """Its file, for reading and writing, with what an earlier try has left; to be ended by `end`. Raises OSError."""
        with self._lock:
            self._open[root] += 1
        try:
            path = self.path(root)
            path.touch(0o600)
            return path.open("r+b")
        except BaseException:
            self.end(root, keep=True)
            raise

    def end(self, root: Digest, *, keep: bool) -> None:
        """Nobody writes it any more; what came so far is kept for another try, or not."""
        with self._lock:
            self._open[root] -= 1
            if self._open[root] > 0:
                return
            del self._open[root]
        if not keep:
            self.path(root).unlink(missing_ok=True)

    def is_open(self, root: Digest) -> bool:
        """Whether it is being fetched now."""
        with self._lock:
            return root in self._open

    def sweep(self, wanted: Container[Digest] | None = None) -> None:
        """Removes those that are too old or too many, or, with `wanted`, that are not in it. Raises StateError."""
        with disk_errors(self._folder):
            kept = []
            for path in self._folder.glob(f"*{_PARTIAL}"):
                root = _root_of(path)
                with self._lock:
                    is_open = root is not None and root in self._open
                if root is None or is_open:
                    continue  # a draft of `put`, or under way
                is_whole = path.with_suffix("").exists()  # it has become so in another way
                if is_whole or (wanted is not None and root not in wanted):
                    path.unlink(missing_ok=True)
                    continue
                about = path.stat()
                kept.append((about.st_mtime, about.st_blocks * _BLOCK_BYTES, path))
            left = MAX_PARTIAL_BYTES
            for at_s, num_bytes, path in sorted(kept, reverse=True):
                left -= num_bytes
                if left < 0 or not 0 <= self._unix_s() - at_s <= MAX_PARTIAL_AGE_S:
                    path.unlink(missing_ok=True)

    def clear_drafts(self) -> None:
        """Removes what is a draft and no download: of a process that was killed while it wrote. Raises StateError."""
        with disk_errors(self._folder):
            for path in self._folder.glob(f"*{_PARTIAL}"):
                if _root_of(path) is None:
                    path.unlink(missing_ok=True)


def _root_of(path: Path) -> Digest | None:
    name = path.name.removesuffix(_PARTIAL)
    try:
        return Digest.from_hex(name) if len(name) == 2 * DIGEST_BYTES else None
    except ValueError:
        return None
