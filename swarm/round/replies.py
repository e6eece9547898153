"""What we answer to a peer's status: where we stand to who is behind; as a leader whatever of the round did not reach it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from swarm.identity import PeerId
from swarm.messages import PeerStatus
from swarm.round.exchange import Exchange
from swarm.round.leader import Briefs, Leading
from swarm.round.looks import PROMPT_PEERS
from swarm.round.outbox import Outbox
from swarm.round.turn import Turn
from swarm.votes import Stand

REPEATED_BEATS: Final = 2  # heartbeats after which a large group is told again what was known so long ago
MAX_TOLD: Final = 16  # peers behind us that a member, not a leader, answers between two of its heartbeats


class Replies:
    """Answers to statuses."""

    def __init__(self, turn: Turn, exchange: Exchange, out: Outbox, heartbeat_s: float) -> None:
        self._turn = turn
        self._exchange = exchange
        self._out = out
        self._heartbeat_s = heartbeat_s
        self._briefs = Briefs()
        self._told = 0  # of those behind us, since our last heartbeat

    def begin_beat(self) -> None:
        """Our heartbeat goes out."""
        self._told = 0

    def tell(self, peer: PeerId, status: Callable[[], PeerStatus], *, now: bool) -> None:
        """It is behind: let it see by how much. The noticeboard of a large swarm is full of such: a few are enough, unless it
        is to be told `now`."""
        self._told += 1
        if now or self._told <= MAX_TOLD:
            self._out.send(peer, status())

    def answer(self, status: PeerStatus, stand: Stand, said: int, leading: Leading | None, now_s: float) -> None:
        """To a member at our head, as its leader: the brief, and whatever an earlier message did not bring there. `said`: the
        number that our words carry."""
        turn, presence = self._turn, self._turn.presence
        ahead = turn.ahead()
        better = presence.roll.get(ahead[0].peer) if ahead else None
        if better is not None:  # all of our branch are to learn of it
            self._out.send(status.peer, better.status, better.sealed)
        for word in self._briefs.of(status, turn, stand.state_digest, leading, said):
            self._out.send(status.peer, word)
        is_large = len(turn.members) > PROMPT_PEERS  # there most of it is only on its way
        known_s = now_s - REPEATED_BEATS * self._heartbeat_s if is_large else math.inf
        for message, sealed in leading.repeats(status, self._exchange.docket, known_s) if leading else ():
            self._out.send(status.peer, message, sealed)
