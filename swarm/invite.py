"""The string a contributor pastes to join a run: which run, and where some of its peers can be dialled.

    barnraise1-<base32 of: checksum (4 bytes) | canonical msgpack [run, [[peer, [[kind, host, port], ...]], ...]]>

The 1 is the version of this form. Base32 in lower case has no letters that a mail program breaks or a reader mixes up with
others; white space anywhere inside is ignored. Neighbouring addresses of one peer share its id, which halves the length. The
run id lets the joiner verify the manifest that some peer then hands out: an invite itself needs no signature.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, cast

from swarm import wire
from swarm.address import MAX_ADDRESS_BYTES, Address, HostKind, Scope, parse_address
from swarm.digest import DIGEST_BYTES, Digest, digest_of
from swarm.errors import ConfigError, MalformedBytes
from swarm.identity import PeerId

MAX_ADDRESSES: Final = 16
MAX_MEMBERS: Final = 8  # whose addresses are chosen for an invite
_VERSION: Final = 1
_PREFIX: Final = f"barnraise{_VERSION}-"
_CHECKSUM_BYTES: Final = 4  # a mistyped invite passes once in four thousand million times
# 16 addresses of the longest kind, each with an id of its own, in base32; four times that for white space.
_MAX_LETTERS: Final = 4 * 8 * MAX_ADDRESSES * (MAX_ADDRESS_BYTES + 64) // 5
_ANY_VERSION: Final = re.compile(r"barnraise([0-9]{1,6})-(.*)", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Invite:
    """A run and 1 to 16 addresses of its peers, in the order in which they should be tried.

    Addresses are brought into their canonical text; raises ConfigError if one cannot be read or the number is off.
    """

    run: Digest
    addresses: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.addresses) <= MAX_ADDRESSES:
            raise ConfigError(f"an invite holds 1 to {MAX_ADDRESSES} addresses, not {len(self.addresses)}")
        try:
            canonical = tuple(str(parse_address(text)) for text in self.addresses)
        except MalformedBytes as error:
            raise ConfigError(f"an invite cannot hold this address: {error}") from None
        object.__setattr__(self, "addresses", canonical)

    def encode(self) -> str:
        """The invite as one word to paste."""
        parsed = [parse_address(text) for text in self.addresses]
        peers = [
            [peer.raw, [[one.host_kind, one.host, one.port] for one in group]]
            for peer, group in groupby(parsed, key=lambda one: one.peer)
        ]
        body = wire.encode([self.run.raw, peers])
        return _PREFIX + base64.b32encode(_checksum(body) + body).decode().rstrip("=").lower()

    @classmethod
    def parse(cls, text: str) -> Invite:
        """The invite that was pasted; raises ConfigError with one line that says what is wrong with it."""
        if len(text) > _MAX_LETTERS:
            raise ConfigError(f"an invite has at most {_MAX_LETTERS} letters, this text has {len(text)}")
        token = "".join(text.split()).strip("\"'`<>").lower()
        if not token:
            raise ConfigError(f"the invite is empty; paste the whole word that begins with {_PREFIX}")
        found = _ANY_VERSION.fullmatch(token)
        if found is None or int(found[1]) == 0:
            raise ConfigError(f"{token[:24]!r} is not an invite; an invite is one long word that begins with {_PREFIX}")
        if int(found[1]) > _VERSION:
            raise ConfigError(
                f"this invite has version {int(found[1])} and this program reads version {_VERSION}; update barnraise"
            )
        body = _checked_body(found[2])
        try:
            invite = _from_body(body)
        except MalformedBytes as error:
            raise ConfigError(f"this invite was made wrongly, ask for another: {error}") from None
        if invite.encode() != token:
            raise ConfigError("this invite was made wrongly, ask for another: it is not in canonical form")
        return invite


def choose_addresses(dialable: Iterable[Iterable[str]], others: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], str]:
    """The addresses that an invite should hold, and what to say of them, "" if they are good; none when there are none.

    Each item holds the addresses of one member, the best member first; `dialable`: of those whom somebody else has dialled.
    Addresses that only few can dial are taken where there are no others: those of a local network, then those of a machine.
    """
    sets = [[_readable(member) for member in members] for members in (dialable, others)]
    ways = [
        (members, scope, known) for members, known in zip(sets, (True, False), strict=True) for scope in list(Scope)[:2]
    ]
    ways += [(members, Scope.MACHINE, True) for members in sets]
    for members, scope, is_known in ways:
        found = [[str(one) for one in member if one.scope == scope] for member in members]
        named = [member for member in found if member][:MAX_MEMBERS]
        if named:
            chosen = (one for member in named for one in member[: MAX_ADDRESSES // len(named)])
            return tuple(dict.fromkeys(chosen)), _LIMITS[scope] or ("" if is_known else _UNTRIED)
    return (), ""


_UNTRIED: Final = "nobody is known to have dialled these addresses yet"
_LIMITS: Final = {
    Scope.ANYWHERE: "",
    Scope.NETWORK: "only machines in the same local network can join by this invite: no other address is known",
    Scope.MACHINE: "only this machine can join by this invite: no other address is known",
}


def _readable(texts: Iterable[str]) -> list[Address]:
    found = []
    for text in texts:
        try:
            found.append(parse_address(text))
        except MalformedBytes:
            continue
    return found


def _checksum(body: bytes) -> bytes:
    return digest_of("invite", body).raw[:_CHECKSUM_BYTES]


def _checked_body(letters: str) -> bytes:
    try:
        raw = base64.b32decode(letters.upper() + "=" * (-len(letters) % 8))
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) <= _CHECKSUM_BYTES or _checksum(raw[_CHECKSUM_BYTES:]) != raw[:_CHECKSUM_BYTES]:
        raise ConfigError(
            f"the invite is cut short or mistyped (its checksum does not fit); copy it again from {_PREFIX} to its end"
        )
    return raw[_CHECKSUM_BYTES:]


def _from_body(body: bytes) -> Invite:
    value = wire.decode(body)
    run, peers = _fields(value, bytes, list)
    if len(run) != DIGEST_BYTES:
        raise MalformedBytes(f"a run id has {DIGEST_BYTES} bytes, not {len(run)}")
    addresses: list[str] = []
    for entry in peers:
        peer, hosts = _fields(entry, bytes, list)
        if len(addresses) + len(hosts) > MAX_ADDRESSES:
            raise MalformedBytes(f"more than {MAX_ADDRESSES} addresses")
        for one in hosts:
            kind, host, port = _fields(one, str, str, int)
            try:
                addresses.append(str(Address(cast(HostKind, kind), host, port, PeerId(peer))))
            except ValueError as error:
                raise MalformedBytes(str(error)) from None
    return Invite(Digest(run), tuple(addresses))  # which reads each address again, with all its checks


def _fields(value: Any, *kinds: type) -> Any:
    if not isinstance(value, list) or [type(one) for one in value] != list(kinds):
        raise MalformedBytes(f"a list of {', '.join(kind.__name__ for kind in kinds)} is due")
    return value
