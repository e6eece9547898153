"""Where a peer can be dialled: multiaddresses `/ip4/1.2.3.4/tcp/4001/p2p/12D3KooW...`, in the forms that are used here.

Only TCP (QUIC has bugs in one of the two libp2p stacks), only with the peer id at the end: an address without one could be
answered by anybody. Neither torch nor a libp2p stack is needed to read them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal, get_args

from swarm.errors import MalformedBytes
from swarm.identity import PeerId

HostKind = Literal["ip4", "ip6", "dns", "dns4", "dns6"]
MAX_ADDRESS_BYTES: Final = 160  # a DNS name of 86 letters fits; a status has room for eight of them
_KINDS: Final = get_args(HostKind)
_MAX_TOLD: Final = 4  # addresses that nobody answered at, in a line for people
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_HOME_NETWORKS: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
)
_DNS_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)


class Scope(IntEnum):
    """From where an address can be dialled at all, the widest first."""

    ANYWHERE = 0
    NETWORK = 1  # private: from the same local network
    MACHINE = 2  # loopback: from the same machine


@dataclass(frozen=True, order=True, slots=True)
class Address:
    """One way to dial a peer; `str()` is its one canonical text (IPv6 shortened, DNS names in lower case)."""

    host_kind: HostKind
    host: str
    port: int
    peer: PeerId

    def __str__(self) -> str:
        return f"/{self.host_kind}/{self.host}/tcp/{self.port}/p2p/{self.peer.base58}"

    @property
    def scope(self) -> Scope:
        """From where it can be dialled, as far as its text tells."""
        if self.host_kind not in ("ip4", "ip6"):
            return Scope.MACHINE if self.host.rsplit(".")[-1] == "localhost" else Scope.ANYWHERE
        ip = ipaddress.ip_address(self.host)
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if ip.is_loopback or ip.is_unspecified:
            return Scope.MACHINE
        return Scope.NETWORK if any(ip in network for network in _HOME_NETWORKS) else Scope.ANYWHERE


def parse_address(text: str) -> Address:
    """The address that a multiaddress string stands for; raises MalformedBytes that says which part is wrong."""
    endpoint, found, peer = _short_enough(text).partition("/p2p/")
    if not found:
        raise MalformedBytes(f"{text!r} is not an address of the form /ip4/1.2.3.4/tcp/4001/p2p/12D3KooW...")
    kind, host, port = parse_endpoint(endpoint)
    if not port:
        raise MalformedBytes("'0' is not a TCP port from 1 to 65535")
    return Address(kind, host, port, PeerId.from_base58(peer))


def parse_endpoint(text: str) -> tuple[HostKind, str, int]:
    """Kind of host, host and port of `/ip4/1.2.3.4/tcp/4001`; port 0, at which one may listen, is one of them.

    Raises MalformedBytes that says which part is wrong.
    """
    parts = _short_enough(text).split("/")
    if len(parts) != 5 or parts[0] or parts[3] != "tcp":
        raise MalformedBytes(f"{text!r} is not of the form /ip4/1.2.3.4/tcp/4001")
    _, kind, host, _, port = parts
    return _host_kind(kind), _host(kind, host), _port(port)


def _short_enough(text: str) -> str:
    if (num_bytes := len(text.encode("utf-8", "replace"))) > MAX_ADDRESS_BYTES:
        raise MalformedBytes(f"an address has at most {MAX_ADDRESS_BYTES} bytes, not {num_bytes}")
    return text


def _host_kind(kind: str) -> HostKind:
    for known in _KINDS:
        if kind == known:
            return known  # type: ignore[no-any-return]  # get_args forgets that these are the literals
    raise MalformedBytes(f"{kind!r} is not a kind of host; known are {', '.join(_KINDS)}")


def _host(kind: str, host: str) -> str:
    try:
        if kind == "ip4":
            return str(ipaddress.IPv4Address(host))
        if kind == "ip6":
            if "%" in host:
                raise ValueError("a zone means nothing to another machine")
            return str(ipaddress.IPv6Address(host))
    except ValueError as error:
        raise MalformedBytes(f"{host!r} is not an {kind} address: {error}") from None
    labels = host.split(".")
    if len(host) > 253 or not all(_DNS_LABEL.fullmatch(label) for label in labels):
        form = "" if host.isascii() else "; other letters than ASCII have a form that begins with xn--"
        raise MalformedBytes(f"{host!r} is not a DNS name{form}")
    return host.lower()


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise MalformedBytes(f"{text!r} is not a TCP port from 1 to 65535")
    return int(text)


def worth_dialling(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those of an invite or an address book that may lead to their peers, each once; what is no address falls out.

    A loopback address leads to its peer on that peer's own machine alone, and anywhere else to whatever runs there. Where
    there are others it is left out; where there are none, that machine may be this one.
    """
    found: dict[str, Scope] = {}
    for text in addresses:
        try:
            address = parse_address(text)
        except MalformedBytes:
            continue
        found[str(address)] = address.scope
    farther = tuple(text for text, scope in found.items() if scope is not Scope.MACHINE)
    return farther or tuple(found)


def nobody_answers(reasons: Mapping[str, str]) -> str:
    """What to tell people when nobody answered at any of these addresses, each with its reason."""
    if not reasons:
        return "nobody answers: no address is known; ask a peer of the run for a fresh invite"
    tried = [f"{address.partition('/p2p/')[0]} ({reason})" for address, reason in reasons.items()]
    more = f" and {len(tried) - _MAX_TOLD} more" if len(tried) > _MAX_TOLD else ""
    hint = "are those peers running? Ask a member for a fresh invite (barnraise invite)"
    if all(parse_address(address).scope is Scope.MACHINE for address in reasons):
        hint = (
            "such an address leads to a peer on the same machine only: is it running here? "
            "On another machine you need the invite of a peer that was started without --local"
        )
    return f"nobody answers at {', '.join(tried[:_MAX_TOLD])}{more}; {hint}"
