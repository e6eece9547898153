"""How a commit reaches a large group without its leader sending it to everybody: down a tree that the commit itself gives.

Everyone whom the commit names stands in a circle by peer id, turned by the head it follows, so that it is not always the
same who pass on. The first FANOUT get it from the leader, place i sends to the FANOUT places from FANOUT * (i + 1). Those
behind a message that is lost see the new head in a heartbeat's answer, and fetch the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from swarm.identity import PeerId
from swarm.messages import Commit

RELAYED_ABOVE: Final = 64  # peers to whom a leader sends its commit itself
FANOUT: Final = 8


def sent_by_leader(commit: Commit, leader: PeerId, others: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Whom the leader sends its commit to: all, or the first of the circle and those whom the commit does not name."""
    circle = _circle(commit, leader)
    if len(circle) <= RELAYED_ABOVE:
        return tuple(sorted({*circle, *others} - {leader}))
    return (*circle[:FANOUT], *sorted(set(others) - {*circle, leader}))


def passed_on_by(commit: Commit, leader: PeerId, me: PeerId) -> tuple[PeerId, ...]:
    """Whom a member passes this commit on to."""
    circle = _circle(commit, leader)
    if len(circle) <= RELAYED_ABOVE or me not in circle:
        return ()
    first = FANOUT * (circle.index(me) + 1)
    return circle[first : first + FANOUT]


def _circle(commit: Commit, leader: PeerId) -> tuple[PeerId, ...]:
    """Everyone on the next roster but the leader."""
    authors = {entry.author for entry in commit.commit.entries}
    peers = sorted((authors | set(commit.commit.admitted)) - {leader}, key=lambda peer: peer.raw)
    first = int.from_bytes(commit.parent.raw[:4], "big") % max(1, len(peers))
    return (*peers[first:], *peers[:first])
