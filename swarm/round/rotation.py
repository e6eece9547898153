"""Whose turn it is to contribute, in a group that is larger than a commit lists.

Those who wait for a commit already come first, then those with the most work since their last cut: so everybody's turn comes,
whoever leads, and nobody has to remember an order.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Set
from dataclasses import dataclass

from swarm.identity import PeerId


@dataclass(frozen=True, slots=True)
class Work:
    """What one member has done since its last cut."""

    peer: PeerId
    tokens: int
    steps: int


def next_to_cut(done: Iterable[Work], has_cut: Set[PeerId], passed_over: Set[PeerId], most: int) -> tuple[Work, ...]:
    """At most `most` of these, in the order of their turns; ties go to the lower id. Who was asked at this head in vain
    (`passed_over`) comes last."""

    def rank(one: Work) -> tuple[bool, bool, int, bytes]:
        return one.peer not in has_cut, one.peer in passed_over, -one.tokens, one.peer.raw

    return tuple(heapq.nsmallest(most, done, key=rank))
