"""Who is told of us: by a heartbeat, when we come and when we go. In a large swarm a few are, who tell the others in time."""

from __future__ import annotations

import heapq
import math
from typing import Final

from swarm.chain import leader_of
from swarm.identity import PeerId
from swarm.round.turn import Turn

MAX_LISTENERS: Final = 64  # peers that one peer tells of itself at once, a leader aside
ENOUGH_PEERS: Final = 64  # heard of lately: one key of the noticeboard is enough then, another one each time
MISSED_BEATS: Final = 2  # heartbeats that a leader waits before it asks a member where it is
PROBE_BEATS: Final = 4  # heartbeats between two words of a leader to those it lost sight of
PROBED: Final = 8  # of them, at a time: a swarm that was split meets again by these
_LATELY_S: Final = 60.0


def of_heartbeat(turn: Turn, beats: int, heartbeat_s: float, view_before: int) -> tuple[PeerId, ...]:
    """Members tell their leader. A leader tells members who do not beat, in case they follow another or are elsewhere; and
    all of them once it is in another view than at the heartbeat before, so that nobody waits for it.
    Where there is no roster the first of those here leads, whoever that is: the first ones known are told."""
    presence = turn.presence
    if view_before != turn.view and leader_of(view_before, turn.order) == presence.me:
        return tuple(peer for peer in turn.members if not presence.has_left(peer))
    if not turn.roster:
        here = (heard.status.peer for heard in presence.roll.all() if not heard.left)
        return tuple(heapq.nsmallest(MAX_LISTENERS, here, key=presence.turn_of))
    if not turn.is_ours:
        return (turn.leader,)
    lately = {one.status.peer for one in presence.roll.lately(turn.now_s, MISSED_BEATS * heartbeat_s)}
    silent = [peer for peer in turn.members if peer not in lately and not presence.has_left(peer)]
    return (*silent, *(_lost_from_sight(turn, beats) if beats % PROBE_BEATS == 0 else ()))


def _lost_from_sight(turn: Turn, beats: int) -> list[PeerId]:
    """Some of those who are silent, not members and have not said goodbye: a few each time, all in turn."""
    fresh = {heard.status.peer for heard in turn.presence.fresh(turn.now_s)} | turn.electorate
    known = turn.presence.roll.all()
    silent = [one.status.peer for one in known if not one.left and one.status.peer not in fresh]
    first = beats // PROBE_BEATS * PROBED % max(1, len(silent))
    return (silent[first:] + silent[:first])[:PROBED]


def of_contribution(turn: Turn, dialled: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """Members, and who stands at our head; and our holders."""
    at_head = (status.peer for status in turn.at_head())
    return tuple(sorted({*turn.members, *at_head, *holders_for(turn, dialled)} - {turn.presence.me}))


def holders_for(turn: Turn, dialled: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    """Where nobody can dial us, those that we have dialled and that are no members: who fetches our blob over that connection
    gives it to those who cannot. They hear nothing of the round, so what waits is named to them with each heartbeat."""
    if turn.presence.roll.is_attested(turn.presence.me):
        return ()
    return tuple(peer for peer in dialled if peer not in turn.electorate)


def of_newcomer(turn: Turn) -> tuple[PeerId, ...]:
    """Those at the best heads heard of: they know the way."""
    known = [heard.status for heard in turn.presence.roll.all()]
    best = heapq.nlargest(MAX_LISTENERS, known, key=lambda status: (status.tokens, status.version, -status.beat))
    return tuple(status.peer for status in best)


def of_goodbye(turn: Turn) -> tuple[PeerId, ...]:
    """Those who wait for us: a leader's members, a member's leader; and of the others those heard last."""
    presence = turn.presence
    lately = [heard.status.peer for heard in presence.roll.lately(turn.now_s, math.inf)][:MAX_LISTENERS]
    waiting = turn.members if turn.is_ours else (turn.leader,)
    told = dict.fromkeys((*waiting, *lately))
    return tuple(peer for peer in told if peer != presence.me and not presence.has_left(peer))


def are_few(turn: Turn) -> bool:
    """Whether fewer than ENOUGH_PEERS were heard lately."""
    lately = turn.presence.roll.lately(turn.now_s, _LATELY_S)
    return sum(1 for _ in zip(range(ENOUGH_PEERS), lately, strict=False)) < ENOUGH_PEERS
