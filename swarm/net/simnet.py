"""A network in memory that keeps the Transport promise: what crosses it are bytes, and what it does follows from a seed.

A request is dialled, its bytes queue at the sender's uplink, travel for the latency of that pair, and the answer comes
back the same way. A cut link and a frozen peer lose nothing and say nothing: what was sent arrives when the link heals or
the peer thaws, as with TCP, and whoever asked times out before. A killed peer refuses. Peers know each other once either
has dialled the other. Runs in any asyncio loop; with `swarm.net.clock.VirtualTimeLoop` it takes no time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, Final

from swarm.address import parse_address
from swarm.errors import MalformedBytes, RemoteError, TimedOut, Unreachable
from swarm.identity import Keypair, PeerId
from swarm.net.transport import MAX_OPEN_REQUESTS, Handler
from swarm.wire import MAX_FRAME_BYTES

_JITTER: Final = 0.5  # a message takes from one to one and a half times the latency
_PORT: Final = 4001


class SimNet:
    """All links between the transports made here.

    Args:
        seed: the only source of chance; a pair's delays depend on it and on the pair alone.
        latency_s: one way, before jitter.
        bandwidth: bytes per second of each peer's uplink; the downlink is free.
    """

    def __init__(self, seed: int, latency_s: float = 0.02, bandwidth: float = 12.5e6) -> None:
        self._seed = seed
        self._latency_s = latency_s
        self._bandwidth = bandwidth
        self._transports: dict[PeerId, SimTransport] = {}
        self._hosts: dict[PeerId, str] = {}
        self._chance: dict[tuple[PeerId, PeerId], random.Random] = {}
        self._met: set[frozenset[PeerId]] = set()
        self._cuts: set[frozenset[PeerId]] = set()
        self._frozen: set[PeerId] = set()
        self._uplink_free_s: dict[PeerId, float] = {}
        self._opened = asyncio.Event()  # set, and replaced, whenever a link or a peer comes back

    def transport(self, keypair: Keypair, *, dialable: bool = True) -> SimTransport:
        """A transport for this key; the one it had before, if any, is closed."""
        peer = keypair.peer_id
        self.kill(peer)
        number = len(self._hosts) + 1
        self._hosts.setdefault(peer, f"/ip4/10.0.{number // 250}.{number % 250 + 1}/tcp/{_PORT}/p2p/{peer.base58}")
        made = SimTransport(self, peer, (self._hosts[peer],) if dialable else ())
        self._transports[peer] = made
        return made

    def cut(self, a: PeerId, b: PeerId) -> None:
        """From now on nothing passes between the two."""
        self._cuts.add(frozenset((a, b)))

    def heal(self, a: PeerId, b: PeerId) -> None:
        """Ends a cut; what was under way arrives."""
        self._cuts.discard(frozenset((a, b)))
        self._something_opened()

    def freeze(self, peer: PeerId) -> None:
        """Stops a peer as SIGSTOP would: its connections stay open, nothing comes out of it and nothing is answered.

        The coroutines of its owner run on, but whatever they send stays behind until `thaw`.
        """
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        """Lets a frozen peer go on, with everything that arrived in between."""
        self._frozen.discard(peer)
        self._something_opened()

    def kill(self, peer: PeerId) -> None:
        """Ends a peer's transport without a goodbye; a new one may be made for its key."""
        transport = self._transports.pop(peer, None)
        if transport is not None:
            transport.end()
        self._frozen.discard(peer)
        self._met = {pair for pair in self._met if peer not in pair}
        self._something_opened()

    # ---------------------------------------------------------------- for the transports

    def find(self, peer: PeerId) -> SimTransport:
        """The running transport of a peer; raises Unreachable."""
        found = self._transports.get(peer)
        if found is None:
            raise Unreachable(f"nobody answers as {peer}")
        return found

    def meet(self, a: PeerId, b: PeerId) -> None:
        self._met.add(frozenset((a, b)))

    def all_met(self, peer: PeerId) -> frozenset[PeerId]:
        """Those with a connection to it."""
        return frozenset().union(*(pair for pair in self._met if peer in pair)) - {peer}

    def have_met(self, a: PeerId, b: PeerId) -> bool:
        return frozenset((a, b)) in self._met

    def forget(self, transport: SimTransport) -> None:
        if self._transports.get(transport.peer_id) is transport:
            self.kill(transport.peer_id)

    async def carry(self, sender: PeerId, receiver: PeerId, num_bytes: int) -> None:
        """Returns when so many bytes from `sender` have reached `receiver`."""
        loop = asyncio.get_running_loop()
        await self._until_open(sender, receiver)
        self._uplink_free_s[sender] = (
            max(loop.time(), self._uplink_free_s.get(sender, 0.0)) + num_bytes / self._bandwidth
        )
        await asyncio.sleep(self._uplink_free_s[sender] - loop.time() + self._delay_s(sender, receiver))
        await self._until_open(sender, receiver)

    def _delay_s(self, sender: PeerId, receiver: PeerId) -> float:
        pair = (sender, receiver)
        if pair not in self._chance:
            self._chance[pair] = random.Random(f"{self._seed}/latency/{sender.base58}/{receiver.base58}")
        return self._latency_s * (1 + _JITTER * self._chance[pair].random())

    async def _until_open(self, a: PeerId, b: PeerId) -> None:
        while frozenset((a, b)) in self._cuts or a in self._frozen or b in self._frozen:
            await self._opened.wait()

    def _something_opened(self) -> None:
        self._opened.set()
        self._opened = asyncio.Event()


class SimTransport:
    """One peer's transport in a `SimNet`; see `swarm.net.transport.Transport` for the promise."""

    def __init__(self, net: SimNet, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self._net = net
        self._peer = peer
        self._addresses = addresses
        self._handler: Handler | None = None
        self._places = asyncio.Semaphore(MAX_OPEN_REQUESTS)
        self._exchanges: set[asyncio.Task[bytes]] = set()  # those that end with this transport: own and served ones
        self._is_closed = False

    @property
    def peer_id(self) -> PeerId:
        return self._peer

    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def serve(self, handler: Handler) -> None:
        self._handler = handler

    async def connected(self) -> frozenset[PeerId]:
        return self._net.all_met(self._peer)

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        there = parse_address(address).peer
        await self._in_time(there, self._dial(there, address), timeout_s)
        return there

    async def request(self, to: PeerId, payload: bytes, *, timeout_s: float) -> bytes:
        if len(payload) > MAX_FRAME_BYTES:
            raise MalformedBytes(f"a request of {len(payload)} bytes exceeds a frame of {MAX_FRAME_BYTES}")
        return await self._in_time(to, self._ask(to, bytes(payload)), timeout_s)

    async def close(self) -> None:
        self.end()
        self._net.forget(self)

    def end(self) -> None:
        """Breaks off every exchange; whoever waits for one gets Unreachable."""
        self._is_closed = True
        for exchange in tuple(self._exchanges):
            exchange.cancel()

    # ---------------------------------------------------------------- one exchange

    async def _in_time(self, to: PeerId, exchange: Coroutine[Any, Any, bytes], timeout_s: float) -> bytes:
        if self._is_closed:
            exchange.close()
            raise Unreachable(f"the transport of {self._peer} is closed")
        task = asyncio.create_task(exchange)
        self._exchanges.add(task)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait((task,))
        except TimeoutError:
            raise TimedOut(f"no answer from {to} within {timeout_s:g} s") from None
        finally:
            task.cancel()  # nothing happens to one that is done
            self._exchanges.discard(task)
        if task.cancelled():
            raise Unreachable(f"the connection with {to} was closed")
        return task.result()

    async def _dial(self, to: PeerId, address: str) -> bytes:
        await self._net.carry(self._peer, to, 0)
        if address not in self._net.find(to).addresses():
            raise Unreachable(f"nobody listens at {address}")
        await self._net.carry(to, self._peer, 0)
        self._net.find(to)
        self._net.meet(self._peer, to)
        return b""

    async def _ask(self, to: PeerId, payload: bytes) -> bytes:
        if not self._net.have_met(self._peer, to):
            raise Unreachable(f"no address of {to} is known")
        await self._net.carry(self._peer, to, len(payload))
        if not self._net.have_met(self._peer, to):
            raise Unreachable(f"{to} died, and the connection with it")
        answer = await self._net.find(to)._answer(self._peer, payload)
        await self._net.carry(to, self._peer, len(answer))
        return answer

    async def _answer(self, asker: PeerId, payload: bytes) -> bytes:
        exchange = asyncio.current_task()
        assert exchange is not None
        self._exchanges.add(exchange)
        try:
            async with self._places:
                if self._handler is None:
                    raise Unreachable(f"{self._peer} serves nothing")
                answer = await self._handler(asker, payload)
        except RemoteError as error:
            raise Unreachable(f"{self._peer} closed the stream unanswered") from error
        finally:
            self._exchanges.discard(exchange)
        if len(answer) > MAX_FRAME_BYTES:
            raise MalformedBytes(f"an answer of {len(answer)} bytes exceeds a frame of {MAX_FRAME_BYTES}")
        return bytes(answer)
