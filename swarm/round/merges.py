"""Branches that were offered to ours, seen from who may be its leader: the best one is fetched, and merged by a commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from swarm import chain as chains
from swarm.chain import ChainState, InvalidList, Merge
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
    is_asked: bool = False  # its blob is here or on its way


class Merges:
    """The offers on the table. Those that may still be merged stay there from head to head: in a swarm whose rounds are
    short, offers would never have had time to gather otherwise."""

    def __init__(self, gather_s: float) -> None:
        self._gather_s = gather_s  # several peers of a branch come with different heads of it: the last one is wanted
        self._offers: dict[Merge, Offered] = {}  # of two that tell one blob differently both stand

    def offered(self, offer: MergeOffer, chain: ChainState, now_s: float) -> None:
        """Takes an offer. Raises InvalidList for a branch that may not be merged."""
        known = self._offers.get(offer.merge)
        if known is None:
            chains.check_merge(chain, offer.merge)
            known = Offered(offer.merge, set(), now_s)
        # Whoever offers another branch, or another head of it, offers the one before no more; nobody waits anew for it.
        for one in self._offers.values():
            if offer.author in one.holders:
                known.since_s = min(known.since_s, one.since_s)
                one.holders.discard(offer.author)
        known.holders.add(offer.author)
        self._offers = {merge: one for merge, one in self._offers.items() if one.holders}
        if len(self._offers) < MAX_OFFERS:
            self._offers[offer.merge] = known

    def ask(self) -> tuple[Offered, ...]:
        """Those whose blobs are to be fetched now. Whoever takes the lead asks for what was offered before, too."""
        unasked = tuple(one for one in self._offers.values() if not one.is_asked)
        for one in unasked:
            one.is_asked = True
        return unasked

    def wanted(self, holds: Callable[[Digest], bool], now_s: float) -> Offered | None:
        """The branch to merge next: the one with most tokens of those whose blobs are here, once offers had time to gather.
        One whose blob does not come keeps nobody waiting."""
        if not self._offers or now_s - min(one.since_s for one in self._offers.values()) < self._gather_s:
            return None
        here = (one for one in self._offers.values() if holds(one.merge.root))
        return max(here, key=lambda one: (one.merge.tokens, one.merge.left.raw), default=None)

    def fail(self, root: Digest) -> None:
        """Its blob could not be had: the next one may."""
        self._offers = {merge: one for merge, one in self._offers.items() if merge.root != root}

    def move(self, chain: ChainState) -> None:
        """A new head: what may be merged there, too, stays; a blob that has not come, or went, is asked for again."""
        self._offers = {merge: one for merge, one in self._offers.items() if _may_follow(chain, merge)}
        for one in self._offers.values():
            one.is_asked = False

    def clear(self) -> None:
        """A head that we were to move to was not reached: a merge may have been why. Who is not merged offers again."""
        self._offers.clear()


def _may_follow(chain: ChainState, merge: Merge) -> bool:
    try:
        chains.check_merge(chain, merge)
    except InvalidList:
        return False
    return True
