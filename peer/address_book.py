"""Where others could be reached the last time: lets a peer come back to its swarm when its invite's addresses are gone.

Addresses come from other peers' statuses: only those that can be dialled and name the peer that announced them are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Final

from peer.disk import write_whole
from swarm import wire
from swarm.address import parse_address
from swarm.errors import MalformedBytes
from swarm.identity import PeerId
from swarm.messages import PeerStatus

MAX_REMEMBERED: Final = 64


class AddressBook:
    """Addresses of peers in one small file, those heard last first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._addresses = self._read()

    def addresses(self) -> tuple[str, ...]:
        """All remembered addresses, the best guess first."""
        return self._addresses

    def note(self, statuses: Iterable[PeerStatus]) -> None:
        """Puts these peers' addresses first and writes the book if that changed anything. Raises StateError.

        First one address of each peer, then the second ones: many peers are worth more than many addresses of one.
        """
        turns = zip_longest(*(_usable(status.addresses, status.peer) for status in statuses))
        heard = [address for turn in turns for address in turn if address is not None]
        new = tuple(dict.fromkeys([*heard, *self._addresses]))[:MAX_REMEMBERED]
        if new != self._addresses:
            write_whole(self._path, wire.encode(list(new)), self._path.with_name(self._path.name + ".part"))
            self._addresses = new

    def _read(self) -> tuple[str, ...]:
        try:
            value = wire.decode(self._path.read_bytes())
        except (OSError, MalformedBytes):
            return ()  # a lost address book costs a look at the invite, nothing else
        if not isinstance(value, list):
            return ()
        return _usable((one for one in value if isinstance(one, str)), None)[:MAX_REMEMBERED]


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
