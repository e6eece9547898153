"""Whom this peer can dial: tries some addresses anew now and then, and keeps connections to those that answer.

Others learn from `dialled` who is dialable from outside, as nobody can tell that of itself; and peers that cannot be dialled
are connected so to those who can, over whom they hear of each other. One task, a child of the node's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from peer.clock import awake_or_asleep_s
from swarm.address import Address, parse_address
from swarm.errors import MalformedBytes, NetworkError, RemoteError
from swarm.identity import PeerId
from swarm.messages import MAX_DIALLED
from swarm.net.transport import Transport
from swarm.round.participant import Participant

LOOK_EVERY_S: Final = 1.0  # for whom a dial is due
DIAL_AGAIN_S: Final = 240.0  # somebody who answered: twice within the time for which it counts
COUNTS_FOR_S: Final = 600.0
SECOND_TRY_S: Final = 2.0  # after the first dial in vain of who had answered before
FIRST_REST_S: Final = 10.0  # after a dial in vain; doubled with each further one
LONGEST_REST_S: Final = 300.0
DIAL_ANEW_TIMEOUT_S: Final = 3.0
AT_ONCE: Final = 4


class Answers(Protocol):
    """Whether the address is answered, within so long, by the peer that it names."""

    async def __call__(self, address: Address, *, timeout_s: float) -> bool: ...


@dataclass(slots=True)
class _Known:
    """What we found of one peer: when it answered a dial the last time, and when the next one is due."""

    answered_s: float | None = None
    due_s: float = 0.0
    failures: int = 0


class Reach:
    """Dials; `dialled` are those whose answer counts."""

    def __init__(
        self,
        participant: Participant,
        transport: Transport,
        reached: Mapping[PeerId, Address],  # peers that were dialled at the start, when nobody was connected yet
        answers: Answers,
    ) -> None:
        self._participant = participant
        self._transport = transport
        self._reached = reached
        self._answers = answers
        self._known = {peer: _Known(answered_s=awake_or_asleep_s()) for peer in reached}

    @property
    def dialled(self) -> tuple[PeerId, ...]:
        """Who answered a dial lately, at most MAX_DIALLED: members behind us in the circle of ids first."""
        now_s = awake_or_asleep_s()
        found = {
            peer
            for peer, known in self._known.items()
            if known.answered_s is not None and now_s - known.answered_s <= COUNTS_FOR_S
        }
        return tuple(self._in_turn(found))[:MAX_DIALLED]

    async def run(self) -> None:
        """Dials until it is cancelled."""
        while True:
            due = await self._due()
            async with asyncio.TaskGroup() as dials:
                for peer, addresses in due:
                    dials.create_task(self._dial(peer, addresses))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _due(self) -> list[tuple[PeerId, tuple[Address, ...]]]:
        """Whom to dial now: those that answered some time ago, or whose connection has ended; and others, until there are
        enough."""
        presence, now_s = self._participant.presence, awake_or_asleep_s()
        there = {heard.status.peer: heard for heard in presence.roll.all() if not heard.left}
        self._known = {peer: known for peer, known in self._known.items() if peer in there or peer in self._reached}
        connected, dialled = await self._transport.connected(), self.dialled
        for peer in dialled:
            if peer not in connected:
                known = self._known[peer]
                known.due_s = known.due_s if known.failures else min(known.due_s, now_s)
        wanted = list(dialled) + self._in_turn({*there, *self._reached} - set(dialled))
        due: list[tuple[PeerId, tuple[Address, ...]]] = []
        for peer in wanted:
            if peer not in dialled and len(dialled) + len(due) >= MAX_DIALLED:
                break
            if self._known.setdefault(peer, _Known()).due_s <= now_s:
                due.append((peer, self._addresses_of(peer)))
        return [(peer, addresses) for peer, addresses in due if addresses][:AT_ONCE]

    def _in_turn(self, peers: set[PeerId]) -> list[PeerId]:
        """Members before others, each from our own id on: so everybody is dialled by some, whoever they are."""
        me, members = self._participant.me.peer, frozenset(self._participant.members)
        return sorted(peers - {me}, key=lambda peer: (peer not in members, peer.raw < me.raw, peer.raw))

    def _addresses_of(self, peer: PeerId) -> tuple[Address, ...]:
        heard, reached = self._participant.presence.roll.get(peer), self._reached.get(peer)
        found = [] if reached is None else [reached]
        for text in () if heard is None else heard.status.addresses:
            with contextlib.suppress(MalformedBytes):
                found.append(parse_address(text))
        return tuple(dict.fromkeys(address for address in found if address.peer == peer))

    async def _dial(self, peer: PeerId, addresses: tuple[Address, ...]) -> None:
        known, now_s = self._known[peer], awake_or_asleep_s()
        for address in addresses:
            if await self._answers(address, timeout_s=DIAL_ANEW_TIMEOUT_S):
                known.answered_s, known.due_s, known.failures = now_s, now_s + DIAL_AGAIN_S, 0
                with contextlib.suppress(NetworkError, RemoteError):
                    await self._transport.connect(str(address), timeout_s=DIAL_ANEW_TIMEOUT_S)
                return
        if known.answered_s is not None and not known.failures:
            # A busy machine answers late: nobody is given up for that.
            known.failures, known.due_s = 1, now_s + SECOND_TRY_S
            return
        known.answered_s = None
        known.due_s = now_s + min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** max(0, known.failures - 1))
        known.failures += 1
