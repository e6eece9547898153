"""Tokens a second of a whole swarm: what its peers say, as far as what was committed bears it out.

Whoever likes can say any number, under as many names as it likes. So those count whose contributions were listed lately,
and all together at most a few times the tokens of those rounds in their time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # the view keeps a line of these figures
    from coordinator.view import PeerSeen, RoundSeen

_ROUNDS: Final = 6  # the last ones that are looked at
_MOST: Final = 8.0  # times the rate of those rounds: peers train faster than they commit, as exchanges take time


def tokens_per_s(live: Collection[PeerSeen], known: Iterable[RoundSeen]) -> float:
    """The sum over those of the live peers that take part; before the first of these rounds is `known`, over all of them."""
    rounds = _believed(known, len(live))
    if not rounds:
        return sum(peer.status.tokens_per_s for peer in live)
    authors = {author for one in rounds for author in one.event.listed}
    are_all_named = not any(one.event.more_listed for one in rounds)
    said = sum(peer.status.tokens_per_s for peer in live if peer.status.peer in authors or not are_all_named)
    seconds = sum(one.event.duration_s for one in rounds)
    return min(said, _MOST * sum(one.event.tokens for one in rounds) / seconds) if seconds > 0 else said


def _believed(known: Iterable[RoundSeen], num_live: int) -> list[RoundSeen]:
    """The last rounds that two peers tell of, where there are two."""
    told = [one for one in known if len(one.digests) >= min(2, num_live)]
    return sorted(told, key=lambda one: one.event.version)[-_ROUNDS:]
