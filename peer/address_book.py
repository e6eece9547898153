"""Where others could be reached the last time: lets a peer come back to its swarm when its invite's addresses are gone, and
fresh invites be made from its home.

Addresses come from other peers' statuses: only those that can be dialled and name the peer that announced them are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

from peer.disk import write_whole
from swarm import wire
from swarm.address import parse_address
from swarm.errors import MalformedBytes
from swarm.identity import KEY_BYTES, PeerId
from swarm.messages import MAX_ADDRESSES, PeerStatus

MAX_REMEMBERED: Final = 64


@dataclass(frozen=True, slots=True)
class Known:
    """What a book holds: addresses, the best guess first; which of their peers somebody has dialled; our own addresses."""

    addresses: tuple[str, ...] = ()
    dialable: frozenset[PeerId] = frozenset()
    own: tuple[str, ...] = ()


class AddressBook:
    """Addresses of peers in one small file, those that can be dialled first, then those heard last. The file: a list of the
    addresses, then (older ones end before) a list of those peers' ids and a list of our own addresses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._read()
        self._seen: tuple[frozenset[PeerId], tuple[str, ...], tuple[str, ...]] | None = None

    def addresses(self) -> tuple[str, ...]:
        """All remembered addresses, the best guess first."""
        return self._known.addresses

    @property
    def known(self) -> Known:
        """All that it holds."""
        return self._known

    def see(self, dialable: frozenset[PeerId], reached: tuple[str, ...], own: tuple[str, ...]) -> None:
        """Who was dialled by somebody lately, where we reached peers, a status of theirs or not, and where others find us.
        The next `note` writes it. May be called from another thread."""
        self._seen = (dialable, reached, own)

    def note(self, statuses: Iterable[PeerStatus]) -> None:
        """Puts these peers' addresses first and writes the book if that changed anything. Raises StateError.

        First one address of each peer, then the second ones: many peers are worth more than many addresses of one.
        """
        dialable, reached, own = self._seen or (self._known.dialable, (), self._known.own)
        heard = sorted(statuses, key=lambda status: status.peer not in dialable)
        turns = zip_longest(*(_usable(status.addresses, status.peer) for status in heard))
        told = [address for turn in turns for address in turn if address is not None]
        found = dict.fromkeys([*_usable(reached, None), *told, *self._known.addresses])
        addresses = tuple(found)[:MAX_REMEMBERED]
        kept = frozenset(parse_address(one).peer for one in (*addresses, *own)) & dialable
        new = Known(addresses, kept, own)
        if new != self._known:
            value = [*addresses, sorted(peer.raw for peer in kept), list(own)]
            write_whole(self._path, wire.encode(value), self._path.with_name(self._path.name + ".part"))
            self._known = new

    def _read(self) -> Known:
        try:
            value = wire.decode(self._path.read_bytes())
        except (OSError, MalformedBytes):
            return Known()  # a lost address book costs a look at the invite, nothing else
        if not isinstance(value, list):
            return Known()
        lists: list[list[object]] = [*(one for one in value if isinstance(one, list)), [], []]
        ids, own = lists[:2]
        return Known(
            _usable((one for one in value if isinstance(one, str)), None)[:MAX_REMEMBERED],
            frozenset(PeerId(one) for one in ids if isinstance(one, bytes) and len(one) == KEY_BYTES),
            _usable((one for one in own if isinstance(one, str)), None)[:MAX_ADDRESSES],
        )


def _usable(addresses: Iterable[str], of: PeerId | None) -> tuple[str, ...]:
    """Those that can be dialled, in their canonical form; of that peer alone, if one is named."""
    found = []
    for text in addresses:
        try:
            address = parse_address(text)
        except MalformedBytes:
            continue
        if of is None or address.peer == of:
            found.append(str(address))
    return tuple(found)
