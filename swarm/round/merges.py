"""Branches that were offered to ours, seen from who may be its leader: the best one is fetched, and merged by a commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swarm import chain as chains
from swarm.chain import ChainState, Merge
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import MergeOffer

MAX_OFFERS: Final = 16  # branches on the table; honest ones are as many as the swarm was split in


@dataclass(slots=True)
class Offered:
    """One branch, by whom it was offered, and since when."""

    merge: Merge
    holders: set[PeerId]
    since_s: float


class Merges:
    """The offers on the table; empty after each head, since whoever is not merged offers again."""

    def __init__(self, gather_s: float) -> None:
        self._gather_s = gather_s  # several peers of a branch come with different heads of it: the last one is wanted
        self._offers: dict[Digest, Offered] = {}

    def offered(self, offer: MergeOffer, chain: ChainState, now_s: float) -> bool:
        """Takes an offer; returns whether it is new and may be merged. Raises InvalidList for one that may not."""
        known = self._offers.get(offer.merge.root)
        if known is not None and known.merge == offer.merge:
            known.holders.add(offer.author)
            return False
        chains.check_merge(chain, offer.merge)
        if len(self._offers) >= MAX_OFFERS:
            return False
        self._offers[offer.merge.root] = Offered(offer.merge, {offer.author}, now_s)
        return True

    def wanted(self, now_s: float) -> Offered | None:
        """The branch to merge next: of those on the table the one with most tokens, once offers had time to gather."""
        best = max(self._offers.values(), key=lambda one: (one.merge.tokens, one.merge.left.raw), default=None)
        if best is None or now_s - min(one.since_s for one in self._offers.values()) < self._gather_s:
            return None
        return best

    def fail(self, root: Digest) -> None:
        """Its blob could not be had: the next one may."""
        self._offers.pop(root, None)

    def clear(self) -> None:
        """A new head."""
        self._offers.clear()
