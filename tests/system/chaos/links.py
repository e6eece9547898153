"""Links that can be cut: each peer of a swarm in a network namespace of its own, all on one bridge. Needs no root.

    hub (user namespace, bridge) --- veth --- p1 (namespace)
                                 '-- veth --- p2 ...

To cut a link its end is taken off the bridge: nothing comes through in either direction, and nobody is told, as on a
road and not as with a pulled plug. A machine that allows no user namespaces says why not, and has no links.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Final, Self

_NETWORK: Final = "10.77.0"
_READY_S: Final = 20.0
_HOLD: Final = ("sh", "-c", "echo ready; exec cat")  # ends with its standard input, hence with whoever holds that


class NoLinks(Exception):
    """This machine does not allow it; says why."""


class Links:
    """Namespaces by name. `close` it; a context manager."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises NoLinks."""
        for program in ("unshare", "nsenter", "ip"):
            if shutil.which(program) is None:
                raise NoLinks(f"{program} is not installed")
        self._holders: list[subprocess.Popen[str]] = []
        self._pids: dict[str, int] = {}
        try:
            self._hub = self._hold(["unshare", "--user", "--map-root-user", "--net", *_HOLD])
            self._ip(self._hub, "link", "set", "lo", "up")
            self._ip(self._hub, "link", "add", "bridge", "type", "bridge")
            self._ip(self._hub, "link", "set", "bridge", "up")
            for number, name in enumerate(names, 1):
                self._pids[name] = self._connect(name, number)
        except (OSError, subprocess.SubprocessError) as error:
            self.close()
            said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) and error.stderr else error
            raise NoLinks(f"no network namespaces here: {said}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for holder in reversed(self._holders):
            for pipe in (holder.stdin, holder.stdout, holder.stderr):
                assert pipe is not None
                pipe.close()
            holder.wait(_READY_S)

    def pid(self, name: str) -> int:
        """A process in that namespace."""
        return self._pids[name]

    def address(self, name: str) -> str:
        return f"{_NETWORK}.{1 + list(self._pids).index(name)}"

    def command(self, name: str) -> list[str]:
        """What goes before a command that is to run there."""
        return _inside(self._pids[name])

    def cut(self, name: str) -> None:
        self._ip(self._hub, "link", "set", _end(name), "nomaster")

    def heal(self, name: str) -> None:
        self._ip(self._hub, "link", "set", _end(name), "master", "bridge")

    def _connect(self, name: str, number: int) -> int:
        pid = self._hold([*_inside(self._hub), "unshare", "--net", *_HOLD])
        self._ip(self._hub, "link", "add", _end(name), "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._ip(self._hub, "link", "set", _end(name), "master", "bridge", "up")
        self._ip(pid, "link", "set", "lo", "up")
        self._ip(pid, "address", "add", f"{_NETWORK}.{number}/24", "dev", "eth0")
        self._ip(pid, "link", "set", "eth0", "up")
        return pid

    def _hold(self, command: Sequence[str]) -> int:
        """Starts a process that keeps a namespace alive; returns its id."""
        holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._holders.append(holder)
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            raise OSError(holder.stderr.read().strip() or f"{command[0]} ended")
        return holder.pid

    @staticmethod
    def _ip(pid: int, *words: str) -> None:
        subprocess.run([*_inside(pid), "ip", *words], check=True, capture_output=True, text=True, timeout=_READY_S)


def _inside(pid: int) -> list[str]:
    return ["nsenter", "--target", str(pid), "--user", "--net", "--preserve-credentials"]


def _end(name: str) -> str:
    """The bridge's end of a link."""
    return f"to-{name}"
