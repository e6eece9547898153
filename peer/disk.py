"""Writing so that a power cut or a full disk leaves the old content or the new, and the errors of it in one line.

The rule, for everything that a peer keeps:

1. Bytes are synced before a name leads to them: written to a draft beside it (`.part`), synced, renamed.
2. A name is synced, that is its folder, before anything relies on it: a blob before the generation that names it, a
   generation before what it says is told to anybody, a new folder's name before the files in it count as kept.
3. What something new replaces is removed after the new is on disk, and what leads to it (a generation, a checkpoint's
   record) before what it leads to. Removing itself is not synced: whatever comes back with a power cut is removed again.
4. Whoever owns a folder removes the drafts in it when it starts; its draft names are few, so they do not pile up.

Whatever is read back is checked against its digest or checksum; a file that is there proves nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from swarm.errors import StateError


class disk_errors:
    """Turns the system's errors about a path into one line for the person at the keyboard."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StateError(f"{self._path.parent}: the disk is full; free some space and start again") from None
            raise StateError(f"{self._path}: {error.strerror or error}") from None


def room_left(folder: Path, max_gb: float) -> int:
    """Bytes that may still be written: what the disk has free, and what a limit on that folder leaves (0: no limit)."""
    with disk_errors(folder):
        free = shutil.disk_usage(folder).free
    if not max_gb:
        return free
    used = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            used += path.lstat().st_size
    return min(free, int(max_gb * 1e9) - used)


def write_whole(path: Path, content: bytes, partial: Path, *, durable: bool = True) -> None:
    """Puts `content` at `path` by way of `partial`, a name beside it; nothing is left there. Raises StateError.

    `durable`: it outlives a power cut once this returns.
    """
    with disk_errors(path):
        try:
            with open(partial, "wb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with suppress(OSError):  # half a file on a full disk would keep it full
                partial.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


def make_folder(path: Path) -> None:
    """Makes a folder with its parents; their names outlive a power cut once this returns. Raises StateError."""
    with disk_errors(path):
        missing = [one for one in (path, *path.parents) if not one.exists()]
        path.mkdir(parents=True, exist_ok=True)
        # The last one also when it was there: who made it may have been killed before he came to this.
        for made in (*reversed(missing[1:]), path):
            with suppress(PermissionError):  # a parent that is not ours to read has kept its entries for long
                sync(made.parent)


def sweep(folder: Path, *patterns: str) -> None:
    """Removes what a killed process left in its own folder: files by these glob patterns. Raises StateError."""
    with disk_errors(folder):
        for pattern in patterns:
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns once a file's bytes, or a folder's entries, are on the disk: a rename alone outlives no power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
