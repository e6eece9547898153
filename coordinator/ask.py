"""Questions to peers and their verified answers: over a connection, by a new dial, or by one hop over another peer.

    ask -> straight --Unreachable--> by one hop, over up to MAX_FORWARDERS thirds in turn -> the answer, or Unreachable

A peer behind NAT answers by the hop alone, so a dial is tried only once in a while then: it would cost a time-out each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from coordinator.clean import clean
from swarm.digest import Digest
from swarm.errors import BadSignature, MalformedBytes, NetworkError, Refusal, Unreachable
from swarm.identity import Keypair, PeerId
from swarm.messages import FORWARDED_PAGE_BYTES, Forward, Refused, open_message, seal_message
from swarm.net.forward import MAX_FORWARDERS, ForwardLimits
from swarm.net.transport import Transport

TIMEOUT_S: Final = 3.0  # of one dial or request
DIAL_AGAIN_S: Final = 60.0  # a peer that answers by a hop
ROOM_S: Final = 0.1  # between two looks whether a third takes more


@dataclass(slots=True)
class Way:
    """How a peer is reached: its addresses, the one that worked last first, and the third over whom it answered last."""

    peer: PeerId
    addresses: dict[str, None] = field(default_factory=dict)
    through: PeerId | None = None
    dial_due_s: float = 0.0


class Asker:
    """Asks in our name. `wall_s` tells unix seconds."""

    def __init__(self, transport: Transport, keypair: Keypair, run: Digest, wall_s: Callable[[], float]) -> None:
        self._transport = transport
        self._keypair = keypair
        self._run = run
        self._wall_s = wall_s
        self._number = 0
        self._taken = ForwardLimits()  # what each third still takes from us, as it counts itself

    async def ask(self, way: Way, message: object, kind: type[Any], thirds: Callable[[], list[PeerId]]) -> Any:
        """The answer, signed by that peer; `thirds` tells who is connected to us then. Raises NetworkError or RemoteError."""
        sealed = seal_message(self._keypair, self._run, message)
        reason = ""
        if way.through is None or trio.current_time() >= way.dial_due_s:
            try:
                raw = await self._straight(way, sealed)
                way.through = None
                return opened(raw, way.peer, self._run, kind)
            except Unreachable as error:
                reason = str(error)
                way.dial_due_s = trio.current_time() + DIAL_AGAIN_S
        known = [] if way.through is None else [way.through]
        for third in list(dict.fromkeys([*known, *thirds()]))[:MAX_FORWARDERS]:
            try:
                raw = await self._over(third, way.peer, sealed)
                answer = opened(raw, way.peer, self._run, kind)
            except (
                NetworkError,
                MalformedBytes,
                BadSignature,
            ) as error:
                # Whose fault it is, the third's or the peer's, nobody can tell.
                reason = reason or str(error)
                continue
            way.through = third
            return answer
        raise Unreachable(reason or "nobody is connected to it")

    async def _straight(self, way: Way, sealed: bytes) -> bytes:
        """Addresses are dialled anew where a request finds no connection."""
        try:
            return await self._transport.request(way.peer, sealed, timeout_s=TIMEOUT_S)
        except Unreachable:
            if not way.addresses:
                raise
            await self._redial(way)
            return await self._transport.request(way.peer, sealed, timeout_s=TIMEOUT_S)

    async def _redial(self, way: Way) -> None:
        """Reaches the peer at one of its addresses, all dialled at once: a dead one costs no time. Raises Unreachable."""
        found: list[str] = []
        reasons: list[str] = []

        async def dial(address: str, scope: trio.CancelScope) -> None:
            try:
                if await self._transport.connect(address, timeout_s=TIMEOUT_S) == way.peer:
                    found.append(address)
                    scope.cancel()
            except (NetworkError, MalformedBytes) as error:
                reasons.append(str(error))

        async with trio.open_nursery() as nursery:
            for address in way.addresses:
                nursery.start_soon(dial, address, nursery.cancel_scope)
        if not found:
            raise Unreachable("; ".join(reasons[:3]))
        way.addresses = dict.fromkeys([found[0], *way.addresses])

    async def _over(self, third: PeerId, to: PeerId, sealed: bytes) -> bytes:
        """The bytes that come back when a third passes a question on. Raises NetworkError."""
        self._number = max(self._number + 1, int(self._wall_s() * 1000))  # rises, across restarts as well
        forward = seal_message(self._keypair, self._run, Forward(to, self._number, sealed))
        # Other questions are on their way, whose answers may count there first.
        reserved = len(forward) + FORWARDED_PAGE_BYTES
        await self._wait_for_room(third, reserved)
        raw = await self._transport.request(third, forward, timeout_s=TIMEOUT_S)
        self._taken.spend(third, len(forward) + len(raw) - reserved, trio.current_time())
        author, answer = open_message(raw, run=self._run)
        if author == third and isinstance(answer, Refused):
            raise Unreachable(clean(answer.reason))
        return raw

    async def _wait_for_room(self, third: PeerId, num_bytes: int) -> None:
        """Returns once that third takes so many bytes more from us. Raises Unreachable."""
        until_s = trio.current_time() + TIMEOUT_S
        while refusal := self._taken.refusal(third, num_bytes, trio.current_time()):
            if trio.current_time() >= until_s:
                raise Unreachable(refusal)
            await trio.sleep(ROOM_S)


def opened(raw: bytes, of: PeerId, run: Digest, kind: type[Any] = object) -> Any:
    """The message in that peer's answer; raises Refusal, or MalformedBytes or BadSignature for what is not its answer."""
    author, answer = open_message(raw, run=run)
    if author != of:
        raise MalformedBytes(f"{of} answered with a message of {author}")
    if isinstance(answer, Refused):
        raise Refusal(clean(answer.reason))
    if not isinstance(answer, kind):
        raise MalformedBytes(f"{of} answered with a {type(answer).__name__} where {kind.__name__} is due")
    return answer
