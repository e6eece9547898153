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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from swarm.address import Address, parse_address
from swarm.errors import BarnraiseError, ConfigError, RemoteError, TimedOut, Unreachable
from swarm.identity import Keypair, PeerId
from swarm.net.transport import IDLE_STREAM_TIMEOUT_S, MAX_OPEN_REQUESTS, PROTOCOL_ID, Handler
from swarm.wire import FRAME_HEADER, frame, frame_length

if TYPE_CHECKING:
    from trio_typing import TaskStatus

HANDSHAKE_S: Final = 10.0  # five round trips, on a slow link
MAX_CONNECTIONS: Final = 512  # inbound and outbound together; more inbound ones are closed unheard
MAX_BUFFERED_BYTES: Final = 32 << 20  # unread bytes of one connection; libp2p itself lets a remote send without end
MAX_WAITING_STREAMS: Final = 4 * MAX_OPEN_REQUESTS
MAX_ADDRESSES_KEPT: Final = 8  # of one peer
_CLEANUP_S: Final = 0.5
_MULTISTREAM: Final = b"/multistream/1.0.0\n"
_log = logging.getLogger(__name__)


def _delimited(line: bytes) -> bytes:
    return bytes([len(line)]) + line  # a varint of one byte: all our lines are shorter than 128


# What an asker says first, all at once; a remote that speaks the protocol repeats it. Saves two round trips a request.
_GREETING: Final = _delimited(_MULTISTREAM) + _delimited(PROTOCOL_ID.encode() + b"\n")


class _WatchedStream(TrioTCPStream):
    """A TCP stream that knows when bytes last came in, and says when it ends: yamux reads a reset one again and again."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.heard_at_s = trio.current_time()
        self.on_end: Callable[[], None] = lambda: None

    async def read(self, n: int | None = None) -> bytes:
        try:
            data: bytes = await super().read(n)
        except Exception:
            self.on_end()
            raise
        if data:
            self.heard_at_s = trio.current_time()
        else:
            self.on_end()
        return data


class _BoundedYamux(Yamux):
    """Yamux that ends the connection of a remote that sends more than its windows allow."""

    async def _read_data_body(self, length: int) -> bytes:
        buffered = sum(len(buffer) for buffer in self.stream_buffers.values())
        if buffered + length > MAX_BUFFERED_BYTES:
            raise RawConnError(f"{buffered + length} unread bytes where {MAX_BUFFERED_BYTES} are allowed")
        body: bytes = await super()._read_data_body(length)
        return body


class _Connection:
    """A secured, multiplexed connection. `gone` once its task ended; then every request on it is cancelled."""

    def __init__(self, peer: PeerId, tcp: _WatchedStream, muxed: _BoundedYamux) -> None:
        self.peer = peer
        self.gone = False
        self.ended = trio.Event()
        self._tcp = tcp
        self._tcp.on_end = self.drop
        self._muxed = muxed
        self._life = trio.CancelScope()
        self._requests: set[trio.CancelScope] = set()
        self._serving = trio.Semaphore(MAX_OPEN_REQUESTS)
        self._num_streams = 0

    def drop(self) -> None:
        """Ends the connection."""
        self.gone = True
        self._life.cancel()

    async def live(self, transport: Libp2pTransport, task_status: TaskStatus[None]) -> None:
        """Runs the connection until it breaks or is dropped."""
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._muxed.start)
                    await self._muxed.event_started.wait()
                    task_status.started()
                    while True:
                        stream = await self._muxed.accept_stream()
                        if self._num_streams >= MAX_WAITING_STREAMS:
                            self.drop()
                        nursery.start_soon(self._answer, transport, stream)
        except Exception as error:  # whatever libp2p raises when a connection ends; it ends here
            _log.debug("connection to %s ended: %r", self.peer, error)
        finally:
            self.gone = True
            for scope in self._requests:
                scope.cancel()
            self.ended.set()
            await trio.aclose_forcefully(self._tcp.stream)

    async def exchange(self, framed: bytes, scope: trio.CancelScope) -> bytes:
        """Sends one request and returns its answer; `scope` is cancelled when the connection goes."""
        began_s, writing, finished = trio.current_time(), True, False
        stream: Any = None
        self._requests.add(scope)
        try:
            stream = await self._muxed.open_stream()
            await stream.write(_GREETING + framed)
            writing = False
            await _expect_greeting(stream)
            answer = await _read_frame(stream)
            await stream.close()
            finished = True
            return answer
        except BarnraiseError:
            raise
        except Exception as error:
            raise Unreachable(f"{self.peer} closed without an answer ({type(error).__name__})") from None
        finally:
            self._requests.discard(scope)
            if not finished:
                silent = self._tcp.heard_at_s < (began_s + trio.current_time()) / 2
                if writing or (scope.cancel_called and silent):
                    self.drop()  # a frame may be half written, or nobody is there any more
                elif stream is not None and not self.gone:
                    await self._reset(stream)

    async def _answer(self, transport: Libp2pTransport, stream: YamuxStream) -> None:
        """Serves one stream that the remote opened: at most one request."""
        self._num_streams += 1
        finished = False
        try:
            async with self._serving:
                with trio.fail_after(IDLE_STREAM_TIMEOUT_S):
                    await Multiselect({TProtocol(PROTOCOL_ID): None}).negotiate(MultiselectCommunicator(stream))
                    request = await _read_frame(stream)
                if transport.handler is None:
                    return
                answer = frame(await transport.handler(self.peer, request))
                with trio.fail_after(IDLE_STREAM_TIMEOUT_S):
                    await stream.write(answer)
                    await stream.close()
            finished = True
        except RemoteError as error:
            _log.debug("refused a request of %s: %s", self.peer, error)
        except Exception as error:  # a task boundary: one bad stream must not end the process
            _log.debug("a stream of %s ended: %r", self.peer, error)
        finally:
            self._num_streams -= 1
            if not finished and not self.gone:
                await self._reset(stream)

    async def _reset(self, stream: YamuxStream) -> None:
        with trio.CancelScope(deadline=trio.current_time() + _CLEANUP_S, shield=True) as scope:
            try:
                await stream.reset()
            except Exception as error:
                _log.debug("could not reset a stream of %s: %r", self.peer, error)
        if scope.cancelled_caught:
            self.drop()


async def _read_exactly(stream: YamuxStream, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        more = await stream.read(num_bytes - len(data))
        if not more:
            raise Unreachable("the stream ended early")
        data += more
    return bytes(data)


async def _read_frame(stream: YamuxStream) -> bytes:
    length = frame_length(await _read_exactly(stream, FRAME_HEADER.size))
    return await _read_exactly(stream, length)


async def _expect_greeting(stream: YamuxStream) -> None:
    for line in (_MULTISTREAM, PROTOCOL_ID.encode() + b"\n"):
        (length,) = await _read_exactly(stream, 1)
        if length != len(line) or await _read_exactly(stream, length) != line:
            raise Unreachable(f"the remote does not speak {PROTOCOL_ID}")


class Libp2pTransport:
    """The Transport of a coordinator. Made by `open_transport`, which owns its tasks."""

    def __init__(self, keypair: Keypair, nursery: trio.Nursery) -> None:
        self.handler: Handler | None = None
        self._peer_id = keypair.peer_id
        self._noise = Noise(create_new_key_pair(keypair.seed), create_noise_key_pair().private_key)
        self._nursery = nursery
        self._connections: dict[PeerId, _Connection] = {}
        self._num_connections = 0
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

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        """Dials unless a connection to that peer is alive; see Transport."""
        parsed = parse_address(address)
        with trio.move_on_after(timeout_s):
            if self._live(parsed.peer) is None:
                await self._dial(parsed)
            self._remember(parsed)
            return parsed.peer
        raise TimedOut(f"{parsed.host}:{parsed.port} did not answer within {timeout_s:g} s")

    async def request(self, to: PeerId, payload: bytes, *, timeout_s: float) -> bytes:
        """One exchange; a lost connection is dialled anew at the addresses that worked before; see Transport."""
        framed = frame(payload)
        if self.closed:
            raise Unreachable("this transport is closed")
        connection: _Connection | None = None
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

    def _live(self, peer: PeerId) -> _Connection | None:
        found = self._connections.get(peer)
        return None if found is None or found.gone else found

    def _remember(self, address: Address) -> None:
        known = self._known.setdefault(address.peer, {})
        known.pop(address, None)
        self._known[address.peer] = dict.fromkeys([address, *known][:MAX_ADDRESSES_KEPT])

    async def _redial(self, peer: PeerId) -> _Connection:
        """A new connection to a peer that was reached before; raises Unreachable."""
        async with self._dialling.setdefault(peer, trio.Lock()):
            reasons = []
            for address in tuple(self._known.get(peer, ())):
                if (found := self._live(peer)) is not None:
                    return found
                try:
                    return await self._dial(address)
                except Unreachable as error:
                    reasons.append(str(error))
        raise Unreachable("; ".join(reasons) or f"no address of {peer} is known")

    async def _dial(self, address: Address) -> _Connection:
        if self.closed:
            raise Unreachable("this transport is closed")
        try:
            tcp = await trio.open_tcp_stream(address.host, address.port)
        except OSError as error:
            cause = error.__cause__ or error
            raise Unreachable(f"{address.host}:{address.port}: {getattr(cause, 'strerror', None) or cause}") from None
        return await self._secure(tcp, address.peer)

    async def _accept(self, tcp: trio.SocketStream) -> None:
        """Serves one inbound connection from its handshake on."""
        if self._num_connections >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(tcp)
            return
        try:
            connection = await self._secure(tcp, None)
        except BarnraiseError as error:
            _log.debug("an inbound connection failed: %s", error)
            return
        await connection.ended.wait()  # trio closes the stream when this returns

    async def _secure(self, tcp: trio.SocketStream, dialled: PeerId | None) -> _Connection:
        """The connection over a TCP stream, after noise and yamux were agreed on; the stream is closed when it fails."""
        watched = _WatchedStream(tcp)
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
                connection = _Connection(
                    peer, watched, _BoundedYamux(secure, secure.get_remote_peer(), dialled is not None)
                )
                await self._nursery.start(self._keep, connection)
                return connection
        except BaseException as error:
            await trio.aclose_forcefully(tcp)
            if isinstance(error, BarnraiseError) or not isinstance(error, Exception):
                raise
            who = dialled or "an unknown peer"
            raise Unreachable(f"no handshake with {who} ({type(error).__name__})") from None

    async def _keep(self, connection: _Connection, *, task_status: TaskStatus[None]) -> None:
        self._num_connections += 1
        self._connections[connection.peer] = connection
        try:
            await connection.live(self, task_status)
        finally:
            self._num_connections -= 1
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
