"""States that others are fetching from us: kept for a while although we have moved on, so that a download can be finished.

Bounded in number and time, and only while the disk has room: a joiner must not fill it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from peer.blob_store import BlobStore
from swarm.digest import Digest
from swarm.messages import StateRecord

LEASED_STATES: Final = 2
LEASE_S: Final = 600.0  # from the last time that somebody asked for it or its blobs
MAX_LEASE_S: Final = 7200.0  # in all
_ACTIVE_S: Final = 60.0  # a state that nobody asked for so long makes room for a newer one
_RENEWED_S: Final = 10.0  # leases are renewed in steps of this
_ROOM: Final = 2  # times its bytes must be free on the disk


@dataclass(slots=True)
class _Lease:
    roots: frozenset[Digest]
    since_s: float
    used_s: float
    until_s: float = 0.0


class ServedStates:
    """Pins for the states that were served lately, by the store's clock."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._leases: list[_Lease | None] = [None] * LEASED_STATES

    def serve(self, record: StateRecord) -> None:
        """Somebody is being told of that state, and will come for its blobs."""
        now_s = self._store.clock()
        roots = frozenset(unit.root for unit in record.units)
        if any(lease is not None and lease.roots == roots and lease.until_s > now_s for lease in self._leases):
            self.asked(next(iter(roots), None))
            return
        place = next((place for place, lease in enumerate(self._leases) if self._is_free(lease, now_s)), None)
        if place is None or not self._store.has_space(_ROOM * sum(unit.num_bytes for unit in record.units)):
            return
        self._leases[place] = _Lease(roots, now_s, now_s)
        self._renew(place, now_s)

    def asked(self, root: Digest | None) -> None:
        """Somebody asks for a blob."""
        now_s = self._store.clock()
        for place, lease in enumerate(self._leases):
            if lease is not None and root in lease.roots and now_s < lease.until_s:
                self._renew(place, now_s)

    def _renew(self, place: int, now_s: float) -> None:
        lease = self._leases[place]
        assert lease is not None
        lease.used_s = now_s
        until_s = min(now_s + LEASE_S, lease.since_s + MAX_LEASE_S)
        if until_s - lease.until_s >= _RENEWED_S:
            lease.until_s = until_s
            self._store.pin(f"served state {place}", lease.roots, until_s=until_s)

    @staticmethod
    def _is_free(lease: _Lease | None, now_s: float) -> bool:
        return lease is None or now_s >= min(lease.until_s, lease.used_s + _ACTIVE_S)
