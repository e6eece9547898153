"""Where others could be reached the last time: lets a peer come back to its swarm when its invite's addresses are gone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from peer.data.cache import write_atomically
from swarm import wire
from swarm.errors import MalformedBytes, StateError
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
        """Puts these peers' addresses first and writes the book if that changed anything."""
        heard = [address for status in statuses for address in status.addresses]
        new = tuple(dict.fromkeys([*heard, *self._addresses]))[:MAX_REMEMBERED]
        if new != self._addresses:
            self._addresses = new
            write_atomically(self._path, wire.encode(list(new)))

    def _read(self) -> tuple[str, ...]:
        try:
            value = wire.decode(self._path.read_bytes())
        except (OSError, MalformedBytes, StateError):
            return ()  # a lost address book costs a look at the invite, nothing else
        if not isinstance(value, list):
            return ()
        return tuple(one for one in value if isinstance(one, str))[:MAX_REMEMBERED]
