"""The coordinator's shell of the Transport promise: trio and the Python libp2p (TCP, noise, yamux, multistream-select).

Only the layers of libp2p are used, not its host: that one refuses a peer for 60 s after a failed dial, waits without limit
for a frozen remote, and brings peer stores, identify and resource managers that nobody needs here. Here a connection is one
task that ends with its socket; whoever waits on it is woken then.

    open_transport -> nursery -> one task per connection -> yamux's own tasks, one task per stream that the remote opens

A remote that was silent for half of a request's time when its deadline passes loses its connection, so that the next
request dials anew: a restarted peer is reached at once, and a silently vanished one costs one deadline.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX

from coordinator.connection import BoundedYamux, Connection, WatchedStream
from coordinator.groups import first_of
from swarm.address import Address, parse_address
from swarm.errors import BarnraiseError, ConfigError, TimedOut, Unreachable
from swarm.identity import Keypair, PeerId
from swarm.net.transport import Handler
from swarm.wire import frame

if TYPE_CHECKING:
    from trio_typing import TaskStatus

HANDSHAKE_S: Final = 10.0  # five round trips, on a slow link
MAX_INBOUND: Final = 512  # connections that others opened; more are closed unheard
MAX_ADDRESSES_KEPT: Final = 8  # of one peer
_log = logging.getLogger(__name__)


class Libp2pTransport:
    """The Transport of a coordinator. Made by `open_transport`, which owns its tasks."""

    def __init__(self, keypair: Keypair, nursery: trio.Nursery) -> None:
        self.handler: Handler | None = None
        self._peer_id = keypair.peer_id
        self._noise = Noise(create_new_key_pair(keypair.seed), create_noise_key_pair().private_key)
        self._nursery = nursery
        self._connections: dict[PeerId, Connection] = {}
        self._num_inbound = 0
        self._known: dict[PeerId, dict[Address, None]] = {}  # in the order they should be tried
        self._dialling: dict[PeerId, trio.Lock] = {}
        self._listening: tuple[str, ...] = ()
        self.closed = False
        self.ended = trio.Event()

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""
        return self._peer_id

    def addresses(self) -> tuple[str, ...]:
        """The addresses we listen at."""
        return self._listening

    def serve(self, handler: Handler) -> None:
        """From now on answers requests with `handler`."""
        self.handler = handler

    async def connected(self) -> frozenset[PeerId]:
        return frozenset(self._connections)

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        """Dials unless a connection to that peer is alive; see Transport."""
        parsed = parse_address(address)
        with trio.move_on_after(timeout_s):
            if self._live(parsed.peer) is None:
                await self._dial(parsed)
            self._remember(parsed)
            return parsed.peer
        raise TimedOut(f"no answer within {timeout_s:g} s")

    async def request(self, to: PeerId, payload: bytes, *, timeout_s: float) -> bytes:
        """One exchange; a lost connection is dialled anew at the addresses that worked before; see Transport."""
        framed = frame(payload)
        if self.closed:
            raise Unreachable("this transport is closed")
        connection: Connection | None = None
        with trio.move_on_after(timeout_s) as scope:
            connection = self._live(to) or await self._redial(to)
            return await connection.exchange(framed, scope)
        if connection is not None and connection.gone and trio.current_time() < scope.deadline:
            raise Unreachable(f"the connection to {to} was lost")
        raise TimedOut(f"{to} did not answer within {timeout_s:g} s")

    async def close(self) -> None:
        """Ends every connection and stops serving; see Transport."""
        self.stop()
        await self.ended.wait()

    def stop(self) -> None:
        """Begins to close, without waiting for the end."""
        self.closed = True
        self._nursery.cancel_scope.cancel()

    async def listen(self, host: str, port: int) -> None:
        """Accepts connections at an IP address of ours; port 0 takes a free one. Raises ConfigError."""
        kind = f"ip{ipaddress.ip_address(host).version}"
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise ConfigError(f"cannot listen at {host} port {port}: {error.strerror or error}") from None
        for listener in listeners:
            bound = listener.socket.getsockname()[1]
            self._listening += (f"/{kind}/{host}/tcp/{bound}/p2p/{self._peer_id.base58}",)
        self._nursery.start_soon(trio.serve_listeners, self._accept, listeners)

    def _live(self, peer: PeerId) -> Connection | None:
        found = self._connections.get(peer)
        return None if found is None or found.gone else found

    def _remember(self, address: Address) -> None:
        known = self._known.setdefault(address.peer, {})
        known.pop(address, None)
        self._known[address.peer] = dict.fromkeys([address, *known][:MAX_ADDRESSES_KEPT])

    async def _redial(self, peer: PeerId) -> Connection:
        """A new connection to a peer that was reached before; raises Unreachable."""
        async with self._dialling.setdefault(peer, trio.Lock()):
            reasons = []
            for address in tuple(self._known.get(peer, ())):
                if (found := self._live(peer)) is not None:
                    return found
                try:
                    return await self._dial(address)
                except Unreachable as error:
                    reasons.append(f"{address.host}:{address.port}: {error}")
        raise Unreachable("; ".join(reasons) or f"no address of {peer} is known")

    async def _dial(self, address: Address) -> Connection:
        if self.closed:
            raise Unreachable("this transport is closed")
        try:
            tcp = await trio.open_tcp_stream(address.host, address.port)
        except OSError as error:
            cause = first_of(OSError, error.__cause__ or error) or error  # trio groups the errors of several addresses
            number = cause.errno or 0  # below 0: a name was not found
            reason = os.strerror(number) if number > 0 else cause.strerror or str(cause)
            raise Unreachable(reason.lower()) from None
        return await self._secure(tcp, address.peer)

    async def _accept(self, tcp: trio.SocketStream) -> None:
        """Serves one inbound connection from its handshake on."""
        if self._num_inbound >= MAX_INBOUND:
            await trio.aclose_forcefully(tcp)
            return
        self._num_inbound += 1
        try:
            connection = await self._secure(tcp, None)
            await connection.ended.wait()  # trio closes the stream when this returns
        except BarnraiseError as error:
            _log.debug("an inbound connection failed: %s", error)
        finally:
            self._num_inbound -= 1

    async def _secure(self, tcp: trio.SocketStream, dialled: PeerId | None) -> Connection:
        """The connection over a TCP stream, after noise and yamux were agreed on; the stream is closed when it fails."""
        watched = WatchedStream(tcp)
        try:
            with trio.fail_after(HANDSHAKE_S):
                raw = RawConnection(watched, dialled is not None)
                await _negotiate(NOISE, raw, dialled is not None)
                if dialled is not None:
                    secure: Any = await self._noise.secure_outbound(raw, ID.from_base58(dialled.base58))
                else:
                    secure = await self._noise.secure_inbound(raw)
                peer = PeerId.from_base58(secure.get_remote_peer().to_base58())
                await _negotiate(YAMUX, secure, dialled is not None)
                connection = Connection(
                    peer, watched, BoundedYamux(secure, secure.get_remote_peer(), dialled is not None)
                )
                await self._nursery.start(self._keep, connection)
                return connection
        except BaseException as error:
            await trio.aclose_forcefully(tcp)
            if isinstance(error, BarnraiseError) or not isinstance(error, Exception):
                raise
            reason = (
                "no answer"
                if isinstance(error, trio.TooSlowError)
                else "another peer, or something else, answers there"
            )
            raise Unreachable(reason) from None

    async def _keep(self, connection: Connection, *, task_status: TaskStatus[None]) -> None:
        self._connections[connection.peer] = connection
        try:
            await connection.live(lambda: self.handler, task_status)
        finally:
            if self._connections.get(connection.peer) is connection:
                del self._connections[connection.peer]


async def _negotiate(protocol: str, conn: Any, is_initiator: bool) -> None:
    """Agrees on one protocol by multistream-select."""
    if is_initiator:
        await MultiselectClient().select_one_of([TProtocol(protocol)], MultiselectCommunicator(conn))
    else:
        await Multiselect({TProtocol(protocol): None}).negotiate(MultiselectCommunicator(conn))


@asynccontextmanager
async def open_transport(keypair: Keypair, listen: Sequence[tuple[str, int]] = ()) -> AsyncIterator[Libp2pTransport]:
    """A transport that listens at `listen` (host, port) and lives as long as the block; nothing is left behind."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)  # it logs each broken connection as an error
    async with trio.open_nursery() as outer:
        transport: Libp2pTransport = await outer.start(_live, keypair)
        try:
            for host, port in listen:
                await transport.listen(host, port)
            yield transport
        finally:
            transport.stop()  # without a checkpoint: a Cancelled here would hide the error that ends the block


async def _live(keypair: Keypair, *, task_status: TaskStatus[Libp2pTransport]) -> None:
    """Keeps the nursery of a transport apart from the block that uses it: closing must not cancel the user's task."""
    async with trio.open_nursery() as nursery:
        transport = Libp2pTransport(keypair, nursery)
        task_status.started(transport)
        try:
            await trio.sleep_forever()
        finally:
            transport.closed = True
    transport.ended.set()
