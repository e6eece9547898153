"""Links that can be cut: each peer of a swarm in a network namespace of its own, all on one bridge. Needs no root.

    hub (user namespace, bridge) --- veth --- p1 (namespace)
                                 '-- veth --- p2 ...

To cut a link its end is taken off the bridge: nothing comes through in either direction, and nobody is told, as on a
road and not as with a pulled plug. A machine that allows no user namespaces says why not, and has no links.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

from tests.system.namespaces import Namespaces, inside

_NETWORK: Final = "10.77.0"


class Links:
    """Namespaces by name. `close` it; a context manager."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises NoNamespaces."""
        self._namespaces = Namespaces()
        self._pids: dict[str, int] = {}
        with self._namespaces.or_say_why():
            self._hub = self._namespaces.hold()
            self._ip(self._hub, "link", "add", "bridge", "type", "bridge")
            self._ip(self._hub, "link", "set", "bridge", "up")
            for number, name in enumerate(names, 1):
                self._pids[name] = self._connect(name, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._namespaces.close()

    def pid(self, name: str) -> int:
        """A process in that namespace."""
        return self._pids[name]

    def address(self, name: str) -> str:
        return f"{_NETWORK}.{1 + list(self._pids).index(name)}"

    def command(self, name: str) -> list[str]:
        """What goes before a command that is to run there."""
        return inside(self._pids[name])

    def cut(self, name: str) -> None:
        self._ip(self._hub, "link", "set", _end(name), "nomaster")

    def heal(self, name: str) -> None:
        self._ip(self._hub, "link", "set", _end(name), "master", "bridge")

    def _connect(self, name: str, number: int) -> int:
        pid = self._namespaces.hold(self._hub)
        self._ip(self._hub, "link", "add", _end(name), "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._ip(self._hub, "link", "set", _end(name), "master", "bridge", "up")
        self._ip(pid, "address", "add", f"{_NETWORK}.{number}/24", "dev", "eth0")
        self._ip(pid, "link", "set", "eth0", "up")
        return pid

    def _ip(self, pid: int, *words: str) -> None:
        self._namespaces.run(pid, "ip", *words)


def _end(name: str) -> str:
    """The bridge's end of a link."""
    return f"to-{name}"
