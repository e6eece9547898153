"""Network namespaces without root: each lives as long as the process that holds it, so none can be left behind.

The first namespace belongs to a user namespace of its own, in which we are root; the others are made in there. Whoever holds
them ends with its standard input, hence with us, whatever becomes of us.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

_READY_S: Final = 20.0
_HOLD: Final = ("sh", "-c", "echo ready; exec cat")


class NoNamespaces(Exception):
    """This machine does not allow it; says why."""


def inside(pid: int) -> list[str]:
    """What goes before a command that is to run in the user and network namespace of that process."""
    return ["nsenter", "--target", str(pid), "--user", "--net", "--preserve-credentials"]


class Namespaces:
    """Namespaces on this machine, gone once it is closed. A context manager."""

    def __init__(self, programs: Sequence[str] = ()) -> None:
        """`programs`: what else is needed. Raises NoNamespaces."""
        for program in ("unshare", "nsenter", "ip", *programs):
            if shutil.which(program) is None:
                raise NoNamespaces(f"{program} is not installed")
        self._holders: list[subprocess.Popen[str]] = []
        self._inodes: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def or_say_why(self) -> Iterator[None]:
        """Closes everything and raises NoNamespaces when a step in this block fails."""
        try:
            yield
        except (OSError, subprocess.SubprocessError) as error:
            self.close()
            said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) and error.stderr else error
            raise NoNamespaces(f"no network namespaces here: {said}") from None
        except BaseException:
            self.close()
            raise

    def hold(self, beside: int | None = None) -> int:
        """A new network namespace with its loopback up; returns the process that holds it. `beside`: a holder, whose user
        namespace it belongs to; None for the first one."""
        fresh = ["unshare", "--net"] if beside is not None else ["unshare", "--user", "--map-root-user", "--net"]
        holder = subprocess.Popen(
            [*(inside(beside) if beside is not None else []), *fresh, *_HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl+C is for us: they end when we say so
        )
        self._holders.append(holder)
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            raise OSError(holder.stderr.read().strip() or f"{fresh[0]} ended")
        self._inodes.add(os.stat(f"/proc/{holder.pid}/ns/net").st_ino)
        self.run(holder.pid, "ip", "link", "set", "lo", "up")
        return holder.pid

    def run(self, pid: int, *command: str) -> None:
        """Runs a command in a namespace; raises CalledProcessError."""
        subprocess.run([*inside(pid), *command], check=True, capture_output=True, text=True, timeout=_READY_S)

    def close(self) -> None:
        for holder in reversed(self._holders):
            for pipe in (holder.stdin, holder.stdout, holder.stderr):
                assert pipe is not None
                pipe.close()
            holder.wait(_READY_S)
        self._holders.clear()

    def strangers(self) -> list[int]:
        """Processes that live in one of the namespaces, besides those that hold them."""
        holders = {holder.pid for holder in self._holders}
        found = []
        for path in Path("/proc").glob("[0-9]*/ns/net"):
            with contextlib.suppress(OSError):
                if path.stat().st_ino in self._inodes and int(path.parts[2]) not in holders:
                    found.append(int(path.parts[2]))
        return found
