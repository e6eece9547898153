"""Heads that were claimed and could not be reached, and who claimed them.

Whoever led us to a head that we could not get is not believed for a while, longer each time: neither a liar nor a peer whose
link gives nothing out keeps us from our rounds. The heads are told to everybody, as lost; a majority that lost the same one
bars it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from swarm.chain import ChainState
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import MAX_LOST

MAX_DOUBT_S: Final = 120.0  # the longest that a peer's claim of a better head is not looked at
_MAX_DOUBTED: Final = 256


class Doubts:
    """Back-off per peer, and the lost heads."""

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s  # doubled with each failure in a row
        self._peers: dict[PeerId, tuple[int, float]] = {}  # failures in a row, and until when
        self._lost: dict[Digest, None] = {}

    @property
    def lost(self) -> tuple[Digest, ...]:
        """Heads that nobody gave us, oldest first."""
        return tuple(self._lost)

    def is_doubted(self, peer: PeerId, now_s: float) -> bool:
        """Whether what this peer says of its head is not to be looked at now."""
        return now_s < self._peers.get(peer, (0, 0.0))[1]

    def failed(self, peers: Iterable[PeerId], heads: Iterable[Digest], now_s: float) -> None:
        """These peers claimed these heads, and none could be reached."""
        for peer in peers:
            failures = self._peers.pop(peer, (0, 0.0))[0] + 1
            self._peers[peer] = (failures, now_s + min(MAX_DOUBT_S, self._first_s * 2**failures))
        for head in heads:
            self._lost[head] = None
        while len(self._peers) > _MAX_DOUBTED:
            del self._peers[next(iter(self._peers))]
        while len(self._lost) > MAX_LOST:
            del self._lost[next(iter(self._lost))]

    def reached(self, chain: ChainState, by: Iterable[PeerId]) -> None:
        """We are at a new head: what it bars, or has behind it, is lost no more, and who led us there was right."""
        for peer in by:
            self._peers.pop(peer, None)
        done = {chain.head, *chain.recent, *chain.barred}
        self._lost = {head: None for head in self._lost if head not in done}
