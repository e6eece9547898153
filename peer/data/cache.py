"""Files of the data cache: written whole or not at all, and read as a hint that may be absent or broken."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from swarm.errors import StateError

Progress = Callable[[float, str], None]  # the finished fraction of the present stage, and what it is; may raise to stop

_LOCK_RETRY_S: Final = 0.5


def no_progress(fraction: float, what: str) -> None:
    """Progress that nobody watches."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says against writing at `path` into a StateError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StateError(f"{path}: the disk is full; make room, or choose another folder with --home") from None
        raise StateError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Puts `content` at `path`, on disk when this returns; a reader sees the old content or the new. Raises StateError."""
    beside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            _sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Puts a value at `path` as JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object at `path`; None when there is none that can be read: a cache is made anew then."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Holds the lock file at `path`, so that one process at a time works behind it. The system frees it if we are killed."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        pause = threading.Event()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(0.0, "another process is preparing the same text")
                pause.wait(_LOCK_RETRY_S)
        yield
