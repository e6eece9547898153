"""Writing so that a power cut or a full disk leaves the old content or the new, and the errors of it in one line."""

from __future__ import annotations

import errno
import os
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


def sync(path: Path) -> None:
    """Returns once a file's bytes, or a folder's entries, are on the disk: a rename alone outlives no power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
