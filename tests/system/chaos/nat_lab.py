"""A small internet: public hosts, and homes behind NAT whose routers let nothing in that was not asked for. Needs no root.

    wan (bridge) --- A, B, M          public hosts
                 '-- router --- C     a home; likewise D and E

Addresses of homes are private ones: what is sent there from elsewhere is lost without a word, as it is on the internet.
"""

from __future__ import annotations

from typing import Final, Self

from tests.system.namespaces import Namespaces, NoNamespaces, inside

PUBLIC: Final = "ABM"
HOMES: Final = "CDE"
_WAN: Final = "10.99.0"
_FIRST_PUBLIC: Final = 10
_FIRST_ROUTER: Final = 21
_FIRST_HOME: Final = 31
_MAX_QUEUE: Final = ("burst", "32kbit", "latency", "400ms")  # of a slow uplink: what a home router buffers


class Lab:
    """Hosts by letter. A context manager."""

    def __init__(self) -> None:
        """Raises NoNamespaces."""
        self._namespaces = Namespaces(("iptables", "tc"))
        self._pids: dict[str, int] = {}
        with self._namespaces.or_say_why():
            self._wan = self._namespaces.hold()
            self._run(self._wan, "ip link add bridge type bridge")
            self._run(self._wan, "ip link set bridge up")
            self._run(self._wan, f"ip address add {_WAN}.1/24 dev bridge")
            for number, host in enumerate(PUBLIC, _FIRST_PUBLIC):
                self._pids[host] = self._on_the_wan(host, number)
            for number, host in enumerate(HOMES):
                router = self._on_the_wan(f"{host}-router", _FIRST_ROUTER + number)
                self._pids[host] = self._home(router, f"192.168.{_FIRST_HOME + number}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._namespaces.close()

    def pid(self, host: str) -> int:
        """A process in that host's namespace."""
        return self._pids[host]

    def command(self, host: str) -> list[str]:
        """What goes before a command that is to run there."""
        return inside(self._pids[host])

    def address(self, host: str) -> str:
        """The IPv4 address of a public host."""
        return f"{_WAN}.{_FIRST_PUBLIC + PUBLIC.index(host)}"

    def addresses_of_home(self, host: str) -> tuple[str, str]:
        """Its router's, and its own behind that."""
        number = HOMES.index(host)
        return f"{_WAN}.{_FIRST_ROUTER + number}", f"192.168.{_FIRST_HOME + number}.2"

    def slow_uplink(self, host: str, mbit: int) -> None:
        """All that the host sends goes at that rate from now on."""
        self._run(self._pids[host], f"tc qdisc add dev eth0 root tbf rate {mbit}mbit {' '.join(_MAX_QUEUE)}")

    def strangers(self) -> list[int]:
        """Processes that live in there besides the lab's own."""
        return self._namespaces.strangers()

    def _on_the_wan(self, name: str, number: int) -> int:
        pid = self._namespaces.hold(self._wan)
        self._run(self._wan, f"ip link add to-{name} type veth peer name eth0 netns {pid}")
        self._run(self._wan, f"ip link set to-{name} master bridge up")
        self._settle(pid, "eth0", f"{_WAN}.{number}")
        self._run(pid, f"ip route add default via {_WAN}.1")
        return pid

    def _home(self, router: int, network: str) -> int:
        pid = self._namespaces.hold(self._wan)
        self._run(router, f"ip link add lan type veth peer name eth0 netns {pid}")
        self._settle(router, "lan", f"{network}.1")
        self._settle(pid, "eth0", f"{network}.2")
        self._run(pid, f"ip route add default via {network}.1")
        for rule in (
            "-t nat -A POSTROUTING -o eth0 -j MASQUERADE",
            "-P FORWARD DROP",
            "-A FORWARD -i lan -j ACCEPT",
            "-A FORWARD -m state --state ESTABLISHED,RELATED -j ACCEPT",
            "-A INPUT -i eth0 -m state --state NEW -j DROP",
        ):
            self._run(router, f"iptables {rule}")
        self._namespaces.run(router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        return pid

    def _settle(self, pid: int, device: str, address: str) -> None:
        self._run(pid, f"ip address add {address}/24 dev {device}")
        self._run(pid, f"ip link set {device} up")

    def _run(self, pid: int, command: str) -> None:
        self._namespaces.run(pid, *command.split())


def why_no_lab() -> str:
    """Why there can be no such lab on this machine; "" when there can."""
    try:
        with Lab():
            return ""
    except NoNamespaces as error:
        return str(error)
