"""How our messages reach other peers: over a connection, by a new dial, or by one hop over a third peer.

    request -> is it connected, or may it be dialled? --yes--> straight --Unreachable--.
                                  '--no----------------------------------> by one hop -+-> the answer, or Unreachable

Whoever could not be reached straight is not tried again at each message: a dial that nobody answers takes seconds. Blobs are
asked for over the transport itself, never by a hop.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from swarm.digest import Digest
from swarm.errors import MalformedBytes, NetworkError, Refusal, RemoteError, TimedOut, Unreachable
from swarm.identity import Keypair, PeerId
from swarm.messages import MAX_FORWARDED_BYTES, Forward, Refused, open_message, seal_message
from swarm.net.forward import MAX_FORWARDERS
from swarm.net.transport import Handler, Transport
from swarm.round.presence import Presence

REDIAL_EVERY_S: Final = 5.0  # of one peer: libp2p refuses an address for as long after a dial that failed
HOP_TIMEOUT_S: Final = 3.0  # of one forwarder: to it, on to the receiver, and all the way back
REDIAL_TIMEOUT_S: Final = 4.0
_MAX_REMEMBERED: Final = 1024


class Routes:
    """A transport that finds a way; it adds nothing to the promise but that requests take a way round."""

    def __init__(self, transport: Transport, keypair: Keypair, run: Digest, first_number: int) -> None:
        """`first_number`: above that of every forward of a life before."""
        self._transport = transport
        self._keypair = keypair
        self._run = run
        self._number = first_number
        self._presence: Presence | None = None
        self._unreached_s: OrderedDict[PeerId, float] = OrderedDict()  # when a dial was in vain the last time
        self._silent_s: OrderedDict[PeerId, float] = OrderedDict()  # when a third left a forward without an answer

    def learn_from(self, presence: Presence) -> None:
        """From now on addresses and third peers are those that were heard of."""
        self._presence = presence

    @property
    def peer_id(self) -> PeerId:
        return self._transport.peer_id

    def addresses(self) -> tuple[str, ...]:
        return self._transport.addresses()

    def serve(self, handler: Handler) -> None:
        self._transport.serve(handler)

    async def connected(self) -> frozenset[PeerId]:
        return await self._transport.connected()

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        return await self._transport.connect(address, timeout_s=timeout_s)

    async def close(self) -> None:
        await self._transport.close()

    async def within_reach(self, holders: Iterable[PeerId]) -> list[PeerId]:
        """Whom to ask for a blob that these hold: those to whom a connection is open or may be opened, as a dial in vain
        takes seconds; for the others those that they have dialled, who fetch such blobs. All, if that leaves nobody."""
        presence = self._presence
        if presence is None:
            return list(holders)
        connected = await self._transport.connected()

        def is_within(peer: PeerId) -> bool:
            return peer in connected or (presence.roll.is_attested(peer) and self._may_dial(peer))

        known = dict.fromkeys(holders)
        for holder in list(known):
            if not is_within(holder):
                known.update(dict.fromkeys(presence.carriers(holder)))
        return [peer for peer in known if is_within(peer)] or list(known)

    async def request(self, to: PeerId, payload: bytes, *, timeout_s: float) -> bytes:
        forwarders = () if self._presence is None else self._presence.forwarders(to)
        is_connected = to in await self._transport.connected()
        if is_connected or not forwarders or self._may_dial(to):
            try:
                return await self._straight(to, payload, timeout_s, is_connected)
            except Unreachable:
                if not forwarders or len(payload) > MAX_FORWARDED_BYTES:
                    raise
        return await self._by_one_hop(to, payload, forwarders)

    def _may_dial(self, to: PeerId) -> bool:
        """Whether a dial is worth its time: none was in vain lately, or others can dial it."""
        unreached_s = self._unreached_s.get(to)
        if unreached_s is None:
            return True
        since_s = asyncio.get_running_loop().time() - unreached_s
        return since_s > REDIAL_EVERY_S and self._presence is not None and self._presence.roll.is_attested(to)

    async def _straight(self, to: PeerId, payload: bytes, timeout_s: float, is_connected: bool) -> bytes:
        """Over a connection, an old one or a new one. Who is connected and does not answer is slow, not out of reach."""
        try:
            answer = await self._transport.request(to, payload, timeout_s=timeout_s)
        except (Unreachable, TimedOut) as error:
            if is_connected and isinstance(error, TimedOut):
                raise
            if not await self._redial(to):
                _remember(self._unreached_s, to)
                raise Unreachable(str(error)) from None
            answer = await self._transport.request(to, payload, timeout_s=timeout_s)
        self._unreached_s.pop(to, None)
        return answer

    async def _redial(self, to: PeerId) -> bool:
        """Dials the addresses that a peer tells of itself, unless that was in vain just now; whether one answered."""
        heard = None if self._presence is None else self._presence.roll.get(to)
        now_s = asyncio.get_running_loop().time()
        if heard is None or now_s - self._unreached_s.get(to, -REDIAL_EVERY_S) < REDIAL_EVERY_S:
            return False
        for address in heard.status.addresses:
            with contextlib.suppress(NetworkError, RemoteError):
                if await self._transport.connect(address, timeout_s=REDIAL_TIMEOUT_S) == to:
                    return True
        return False

    async def _by_one_hop(self, to: PeerId, payload: bytes, forwarders: tuple[PeerId, ...]) -> bytes:
        """Over the first third that passes it on. Who did not answer the last time is asked last: a connection to somebody
        who has died looks well for minutes, and each message would wait for it."""
        reasons = []
        for third in sorted(forwarders, key=lambda one: self._silent_s.get(one, -math.inf))[:MAX_FORWARDERS]:
            self._number += 1
            sealed = seal_message(self._keypair, self._run, Forward(to, self._number, payload))
            try:
                answer = await self._transport.request(third, sealed, timeout_s=HOP_TIMEOUT_S)
                self._silent_s.pop(third, None)
                return self._not_refused(third, answer)
            except NetworkError as error:
                _remember(self._silent_s, third)
                reasons.append(f"over {third}: {error}")
            except RemoteError as error:
                reasons.append(f"over {third}: {error}")
        raise Unreachable(f"{to} is not reached; " + "; ".join(reasons))

    def _not_refused(self, third: PeerId, answer: bytes) -> bytes:
        """The answer, if it is the receiver's; raises Refusal with the reason of a third that did not pass it on."""
        if not answer:
            return answer
        author, message = open_message(answer, run=self._run)
        if author != third:
            return answer
        if isinstance(message, Refused):
            raise Refusal(message.reason)
        raise MalformedBytes(f"{third} answered in the name of another")


def _remember(times: OrderedDict[PeerId, float], peer: PeerId) -> None:
    """Notes the time now; of too many the oldest goes."""
    times.pop(peer, None)
    times[peer] = asyncio.get_running_loop().time()
    while len(times) > _MAX_REMEMBERED:
        times.popitem(last=False)
