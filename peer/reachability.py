"""What the screen says of who can dial this peer: a line once it is known, and when it changes. Pure: facts in, lines out.

A peer cannot tell by itself; others say so, whom they have dialled lately in their statuses, and the leader in each commit.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import Final

from swarm.address import Address, Scope, parse_address
from swarm.errors import MalformedBytes
from swarm.round.participant import Participant

FIRST_S: Final = 60.0  # before that nobody may have tried
AGAIN_S: Final = 60.0  # between two lines of a kind
ALONE_S: Final = 15.0  # without a word of anybody, and nobody who answers a dial
_NETWORK_BITS: Final = {4: 24, 6: 64}


class Verdict(Enum):
    """Who can dial this peer."""

    OUTSIDE = "reachable from outside at {address}"
    NETWORK = "reachable in this network at {near}; forward TCP {port} to help others outside it"
    NOBODY = "not reachable from outside: you still contribute; forward TCP {port} to help others"
    ALONE = "no reachable peer: forward TCP {port}, or start a monitor"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one moment."""

    addresses: tuple[str, ...]  # that others are told, public ones first
    is_dialable: bool  # somebody else has dialled us lately
    is_near: bool  # as far as we know, only peers of our own network have
    has_company: bool  # we hear somebody, or somebody answers a dial of ours


def facts_of(participant: Participant, addresses: tuple[str, ...], now_s: float) -> Facts:
    """Those of now."""
    me, presence = participant.me.peer, participant.presence
    own = _readable(addresses)
    dialled_by = [_readable(heard.status.addresses) for heard in presence.roll.all() if me in heard.status.dialled]
    is_known_outside = any(not theirs or not all(_is_near(one, own) for one in theirs) for theirs in dialled_by)
    is_private = all(one.scope is not Scope.ANYWHERE for one in own)
    return Facts(
        addresses=addresses,
        is_dialable=participant.chain.is_dialable(me) or presence.roll.is_attested(me),
        is_near=not is_known_outside and (is_private or bool(dialled_by)),
        has_company=bool(participant.figures.dialled or presence.fresh(now_s)),
    )


class Reachability:
    """The lines. `port`: where this peer listens; None where it only dials out."""

    def __init__(self, addresses: tuple[str, ...], port: int | None, now_s: float) -> None:
        """`addresses` are on the screen already."""
        self._port = "a port" if port is None else str(port)
        self._began_s = self._company_s = now_s
        self._addresses, self._addresses_s = addresses, -AGAIN_S
        self._reach: Verdict | None = None
        self._reach_s = -AGAIN_S
        self._had_company = self._was_alone = False

    def lines(self, facts: Facts, now_s: float) -> list[str]:
        """What is to be said now: nothing most of the time, and never more than one line of a kind a minute."""
        found = []
        if facts.addresses != self._addresses and now_s - self._addresses_s >= AGAIN_S:
            self._addresses, self._addresses_s = facts.addresses, now_s
            told = ", ".join(map(_short, facts.addresses)) or "none"
            found.append(f"the addresses that others are told of this peer are now: {told}")
        reach = self._judge(facts, now_s)
        is_urgent = reach is Verdict.ALONE and not self._was_alone
        if reach not in (None, self._reach) and (is_urgent or now_s - self._reach_s >= AGAIN_S):
            assert reach is not None
            self._reach, self._reach_s = reach, now_s
            self._was_alone = self._was_alone or reach is Verdict.ALONE
            near = [str(one) for one in _readable(facts.addresses) if one.scope is not Scope.ANYWHERE]
            address, *_ = (*facts.addresses, "")
            found.append(
                reach.value.format(address=_short(address), near=_short(near[0] if near else address), port=self._port)
            )
        return found

    def _judge(self, facts: Facts, now_s: float) -> Verdict | None:
        """Who can dial us; None while nobody can know."""
        is_young = now_s - self._began_s < FIRST_S
        if facts.has_company:
            self._company_s, self._had_company = now_s, True
        if facts.is_dialable:
            return Verdict.NETWORK if facts.is_near else Verdict.OUTSIDE
        if facts.has_company:
            return None if is_young else Verdict.NOBODY
        if now_s - self._company_s < ALONE_S or (is_young and not self._had_company):
            return None
        is_public = any(one.scope is Scope.ANYWHERE for one in _readable(facts.addresses))
        return None if is_public else Verdict.ALONE  # with a public address others may come yet


def _readable(texts: tuple[str, ...]) -> list[Address]:
    found = []
    for text in texts:
        try:
            found.append(parse_address(text))
        except MalformedBytes:
            continue
    return found


def _is_near(address: Address, own: list[Address]) -> bool:
    """Whether an address is of our host, or of a private network in which we have one, too."""
    if any(address.host == one.host for one in own):
        return True
    return address.scope is not Scope.ANYWHERE and any(_network(address) == _network(one) for one in own)


def _network(address: Address) -> object:
    if address.host_kind not in ("ip4", "ip6"):
        return address.host
    ip = ipaddress.ip_address(address.host)
    return ipaddress.ip_network(f"{ip}/{_NETWORK_BITS[ip.version]}", strict=False)


def _short(address: str) -> str:
    return address.split("/p2p/")[0]
