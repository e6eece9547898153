"""Where this peer listens and which addresses it tells others: read from its options before anything heavy is loaded."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

from swarm.address import Address, parse_address, parse_endpoint
from swarm.errors import ConfigError, MalformedBytes, StateError
from swarm.identity import KEY_BYTES, PeerId
from swarm.messages import MAX_ADDRESSES

_NOT_KNOWN_YET: Final = PeerId(bytes(KEY_BYTES))  # an id that is as long as any
_MACHINE: Final = 2


def listening_port(listen: str) -> tuple[str, int]:
    """The host and port of `/ip4/HOST/tcp/PORT` or `/ip6/...`, port 0 for any free one; raises ConfigError."""
    try:
        kind, host, port = parse_endpoint(listen)
        if kind not in ("ip4", "ip6"):
            raise MalformedBytes("a name has no place of its own to listen at")
    except MalformedBytes as error:
        raise ConfigError(
            f"listen address {listen[:200]!r}: give one like /ip4/0.0.0.0/tcp/4001 (port 0 for any free one): {error}"
        ) from None
    return host, port


def with_port(listen: str, port: int) -> str:
    """The listening address with another port."""
    head, _, _ = listen.rpartition("/")
    return f"{head}/{port}"


def check_port_free(listen: str) -> None:
    """Returns if one may listen there; raises StateError (port taken) or ConfigError (no such address here)."""
    host, port = listening_port(listen)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # With REUSEADDR remains of closed connections do not count as taken; a listener always does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if probe.family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise StateError(f"port {port} needs more rights than this user has; choose one above 1023") from None
        except OSError as error:
            if "in use" in (error.strerror or ""):
                raise StateError(
                    f"port {port} is taken at {host}: stop the program that listens there or choose another port"
                ) from None
            raise ConfigError(f"cannot listen at {listen}: {error.strerror}") from None


def refuse_wrong_addresses(
    listen: tuple[str, ...], announce: tuple[str, ...], me: PeerId | None, *, local: bool
) -> None:
    """Raises ConfigError for what one cannot listen at or announce. Whether a port is free, the daemon will see."""
    for address in listen:
        listening_port(address)
        check_port_free(with_port(address, 0))
    announced(announce, me, local=local)


def announced(texts: tuple[str, ...], me: PeerId | None, *, local: bool) -> tuple[str, ...]:
    """The addresses of `--announce` as others read them, without the peer's id; raises ConfigError if any is of no use.

    An id at the end must be `me`; None: it is not known yet, and any will do.
    """
    found: dict[str, None] = {}
    for text in texts:
        address = _announced(text, me)
        if not announceable((str(address),), local):
            whom = "peers on this machine (--local)" if local else "other machines"
            raise ConfigError(
                f"--announce {text}: {whom} cannot dial it; give the address that they reach this peer at, or leave it out"
            )
        found[str(address).partition("/p2p/")[0]] = None
    if len(found) > MAX_ADDRESSES:
        raise ConfigError(f"--announce: {len(found)} addresses, at most {MAX_ADDRESSES}; leave the others out")
    return tuple(found)


def _announced(text: str, me: PeerId | None) -> Address:
    own = me or _NOT_KNOWN_YET
    try:
        address = parse_address(text if "/p2p/" in text else f"{text}/p2p/{own.base58}")
    except MalformedBytes as error:
        raise ConfigError(
            f"--announce {text[:200]!r}: give a TCP address like /ip4/203.0.113.7/tcp/4001 or "
            f"/dns4/peer.example.org/tcp/4001: {error}"
        ) from None
    if me is not None and address.peer != me:
        raise ConfigError(
            f"--announce {text}: that is the id of another peer, this one is {me.base58}; leave out /p2p/..."
        )
    return address


def announceable(addresses: tuple[str, ...], local: bool) -> tuple[str, ...]:
    """The addresses worth telling others: loopback only when `local`, else all that another machine may dial.

    Public ones first; at most MAX_ADDRESSES; what is not an address of ours (circuits, QUIC) falls out.
    """
    keyed: list[tuple[int, int, str]] = []
    for text in dict.fromkeys(addresses):
        try:
            address = parse_address(text)
        except MalformedBytes:
            continue
        rank = _rank(address)
        if rank is not None and (rank == _MACHINE) == local:
            keyed.append((rank, len(keyed), str(address)))
    return tuple(text for _, _, text in sorted(keyed)[:MAX_ADDRESSES])


def _rank(address: Address) -> int | None:
    """0 public, 1 in the local network, 2 on this machine, None nowhere."""
    if address.host_kind not in ("ip4", "ip6"):
        return 0
    ip = ipaddress.ip_address(address.host)
    if ip.is_unspecified or ip.is_link_local or ip.is_multicast:
        return None
    return _MACHINE if ip.is_loopback else 1 if ip.is_private else 0
