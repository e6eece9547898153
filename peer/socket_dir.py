"""A private directory for one daemon's sockets, removed by us, or by the next peer if we died too suddenly.

Its owner holds a lock on a file inside; the kernel lets go of it with the owner's last breath, so a directory whose lock
is free is nobody's, whatever became of process ids in the meantime.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Final

from swarm.errors import StateError

_PREFIX: Final = "barnraise-net-"
_LOCK: Final = "owner.lock"
_LONGEST_NAME: Final = 32  # of a socket in it
_MAX_SOCKET_PATH: Final = 107  # sockaddr_un holds 108 with the closing zero


class SocketDirectory:
    """A directory that only this user may enter, and the lock that says it is in use."""

    def __init__(self, parent: Path | None = None) -> None:
        """Creates it below `parent` (the system's temporary folder), after removing those of dead owners there."""
        parent = _short_parent() if parent is None else parent
        remove_stale(parent)
        for _ in range(8):  # another peer may take a new directory for a stale one before it is locked
            self.path = parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            self.path.mkdir(mode=0o700)
            self._lock = _lock(self.path, create=True)
            if self._lock is not None:
                return
        raise StateError(f"{parent}: cannot keep a directory of sockets there; is something else cleaning it?")

    def socket(self, name: str) -> str:
        """The path of a socket of that name."""
        path = str(self.path / name)
        if len(path.encode()) > _MAX_SOCKET_PATH:
            raise StateError(
                f"{path}: longer than a socket's path may be ({_MAX_SOCKET_PATH} bytes); set TMPDIR shorter"
            )
        return path

    def remove(self) -> None:
        """Removes the directory with all in it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_stale(parent: Path) -> int:
    """Removes the directories below `parent` whose owners are dead; returns how many."""
    removed = 0
    for path in parent.glob(f"{_PREFIX}*"):
        lock = _lock(path, create=False)
        if lock is None:
            continue
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
        removed += 1
    return removed


def _lock(path: Path, *, create: bool) -> int | None:
    """The descriptor of the directory's locked lock file; None if another holds it, or it is gone or not ours."""
    try:
        flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        descriptor = os.open(path / _LOCK, flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have removed the directory between our open and our lock.
        if os.fstat(descriptor).st_uid == os.getuid() and os.path.samestat(os.fstat(descriptor), os.stat(path / _LOCK)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _short_parent() -> Path:
    """The system's temporary folder, or /tmp where that one's name leaves no room for a socket's path."""
    parent = Path(tempfile.gettempdir())
    own = len(_PREFIX) + 20 + _LONGEST_NAME
    return parent if len(str(parent).encode()) + own <= _MAX_SOCKET_PATH else Path("/tmp")
