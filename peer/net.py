"""The Transport promise over p2pd: each exchange is a libp2p stream of its own, handed to us through a unix socket.

The transport outlives the daemon: `attach` ties it to a running one, `detach` says that it is gone (requests then raise
Unreachable at once), and a later `attach` carries on with the same handler and counters. Who serves what: p2pd connects to
our socket for each incoming stream and names the peer whose key the connection proved.

After a failed dial the daemon refuses that address at once for 5 s ("dial backoff"), longer after each further failure; a
dial from the other side gets through meanwhile.

Limits of serving, so that nobody can exhaust us: a stream beyond MAX_OPEN_STREAMS or MAX_STREAMS_PER_REMOTE is closed unread;
a slot, of which one remote may hold only a part, is taken before the first byte is allocated for a request.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from hivemind.proto import p2pd_pb2

from peer.control import Control, DaemonRefused, from_daemon_id, read_message
from peer.meter import Meter
from peer.own_addresses import announceable
from peer.sealing import ASIDE_BYTES
from swarm import wire
from swarm.address import Address, parse_address
from swarm.errors import NetworkError, RemoteError, TimedOut, Unreachable
from swarm.identity import PeerId
from swarm.net.transport import IDLE_STREAM_TIMEOUT_S, MAX_OPEN_REQUESTS, PROTOCOL_ID, Handler

log = logging.getLogger(__name__)

MAX_OPEN_STREAMS: Final = 512  # waiting for a slot or served; more are closed unread
MAX_STREAMS_PER_REMOTE: Final = 128
MAX_SLOTS_PER_REMOTE: Final = MAX_OPEN_REQUESTS // 4  # four greedy peers are needed to keep everybody else waiting
MAX_KNOWN: Final = 1024  # addresses to dial again after the daemon was restarted
CONNECTED_FOR_S: Final = 0.5  # between two questions to the daemon who is connected
OPEN_TIMEOUT_S: Final = 4.0  # for a stream, a dial included; the answer has what is left
INCOMING_SOCKET: Final = "in.sock"
_DOWN: Final = "the network daemon is down"


class HivemindTransport:
    """Transport over a p2pd of ours. Lives in one event loop; its tasks are children of `tasks`."""

    def __init__(self, peer_id: PeerId, tasks: asyncio.TaskGroup, *, local: bool) -> None:
        self.known: OrderedDict[PeerId, Address] = OrderedDict()  # where a peer last answered, oldest first
        self._peer_id = peer_id
        self._tasks = tasks
        self._local = local
        now_s = asyncio.get_running_loop().time()
        self._up, self._down = Meter(now_s), Meter(now_s)
        self._addresses: tuple[str, ...] = ()
        self._connected: frozenset[PeerId] = frozenset()
        self._connected_at_s = -math.inf
        self._handler: Handler | None = None
        self._control: Control | None = None  # None: no daemon, for now or for ever
        self._why_down = _DOWN
        self._closed = False
        self._server: asyncio.AbstractServer | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._streams_of: Counter[PeerId] = Counter()
        self._slots_of: dict[PeerId, asyncio.Semaphore] = {}
        self._slots = asyncio.Semaphore(MAX_OPEN_REQUESTS)

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def up_bytes(self) -> int:
        """Bytes of requests and answers sent since the start, frames included, libp2p's own overhead not."""
        return self._up.num_bytes

    @property
    def down_bytes(self) -> int:
        """Bytes of requests and answers received since the start."""
        return self._down.num_bytes

    @property
    def up_bytes_per_s(self) -> float:
        return self._up.bytes_per_s(asyncio.get_running_loop().time())

    @property
    def down_bytes_per_s(self) -> float:
        return self._down.bytes_per_s(asyncio.get_running_loop().time())

    @property
    def up_s(self) -> float:
        """Seconds in which at least one long frame, of a blob that is, was being sent."""
        return self._up.busy_s(asyncio.get_running_loop().time())

    @property
    def down_s(self) -> float:
        """Seconds in which at least one long frame was being received."""
        return self._down.busy_s(asyncio.get_running_loop().time())

    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def serve(self, handler: Handler) -> None:
        self._handler = handler

    async def attach(self, control: Control, incoming_path: str) -> None:
        """Begins to use the daemon behind `control`, which hands incoming streams to a socket at `incoming_path`."""
        if self._closed:
            raise Unreachable("this transport is closed")
        self._server = await asyncio.start_unix_server(self._on_stream, path=incoming_path)
        await control.handle(PROTOCOL_ID, incoming_path)
        self._control = control
        await self.refresh_addresses()

    async def refresh_addresses(self) -> None:
        """Asks the daemon for our addresses again: it learns the public one from others."""
        control = self._live()
        try:
            _, found = await control.identify()
        except (OSError, EOFError, DaemonRefused, ValueError) as error:
            raise Unreachable(f"{_DOWN} ({_plain(error)})") from None
        self._addresses = announceable(tuple(f"{text}/p2p/{self._peer_id.base58}" for text in found), self._local)

    async def detach(self, reason: str) -> None:
        """The daemon is gone, or about to be: ends what is being served; requests raise Unreachable for that reason."""
        self._control, self._why_down = None, reason
        if self._server is not None:
            self._server.close()
            self._server = None
        serving = self._serving - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)

    async def close(self) -> None:
        self._closed = True
        control = self._control
        await self.detach("this transport is closed")
        if control is not None:
            with suppress(OSError, EOFError, DaemonRefused, ValueError):
                async with asyncio.timeout(1.0):
                    for peer in await control.peers():
                        await control.disconnect(peer)

    async def connected(self) -> frozenset[PeerId]:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._connected_at_s > CONNECTED_FOR_S:
            try:
                self._connected = frozenset(await self._live().peers())
            except (OSError, EOFError, DaemonRefused, ValueError, Unreachable):
                self._connected = frozenset()
            self._connected_at_s = now_s
        return self._connected

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        parsed = parse_address(address)
        control = self._live()
        try:
            async with asyncio.timeout(timeout_s):
                await control.connect(parsed)
        except TimeoutError:
            raise TimedOut(f"{address}: no answer within {timeout_s:g} s") from None
        except (OSError, EOFError, DaemonRefused, ValueError) as error:
            log.debug("%s: %s", address, error)
            raise Unreachable(f"{address}: {_in_words(str(error))}") from None
        self.known[parsed.peer] = parsed
        self.known.move_to_end(parsed.peer)
        while len(self.known) > MAX_KNOWN:
            self.known.popitem(last=False)
        return parsed.peer

    async def request(self, to: PeerId, payload: bytes, *, timeout_s: float) -> bytes:
        framed = wire.frame(payload)
        control = self._live()
        try:
            async with asyncio.timeout(timeout_s):
                async with asyncio.timeout(min(timeout_s, OPEN_TIMEOUT_S)):
                    reader, writer = await control.open_stream(to, PROTOCOL_ID)
                try:
                    writer.write(framed)
                    await writer.drain()
                    self._count(self._up, len(framed))
                    return await self._read_frame(reader)
                finally:
                    writer.transport.abort()  # all is sent and read, or the exchange has failed
        except TimeoutError:
            raise TimedOut(f"{to} did not answer within {timeout_s:g} s") from None
        except (OSError, EOFError, DaemonRefused, ValueError) as error:
            raise Unreachable(f"{to}: {_plain(error)}") from None

    def _live(self) -> Control:
        if self._control is None:
            raise Unreachable(self._why_down)
        return self._control

    @contextmanager
    def _moving(self, meter: Meter, num_bytes: int) -> Iterator[None]:
        """A frame on its way; only those of blobs are timed."""
        if num_bytes < ASIDE_BYTES:
            yield
            return
        clock = asyncio.get_running_loop().time
        meter.begin(clock())
        try:
            yield
        finally:
            meter.end(clock())

    def _count(self, meter: Meter, num_bytes: int) -> None:
        meter.add(num_bytes, asyncio.get_running_loop().time())

    async def _read_frame(self, reader: asyncio.StreamReader) -> bytes:
        length = wire.frame_length(await reader.readexactly(wire.FRAME_HEADER.size))
        with self._moving(self._down, length):
            payload = await reader.readexactly(length)
        self._count(self._down, wire.FRAME_HEADER.size + length)
        return payload

    # --- serving: p2pd -> _on_stream -> a task of _serve -> _answer ---

    def _on_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed or self._handler is None or len(self._serving) >= MAX_OPEN_STREAMS:
            writer.transport.abort()
            return
        task = self._tasks.create_task(self._serve(reader, writer), name="answer")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One incoming stream from its first byte to its end. Whatever a remote sends, only its stream ends."""
        writer.transport.set_write_buffer_limits(high=0)  # a drain then means that p2pd has it all
        try:
            info = p2pd_pb2.StreamInfo()
            async with asyncio.timeout(IDLE_STREAM_TIMEOUT_S):
                await read_message(reader, info)
            remote = from_daemon_id(info.peer)
            if self._streams_of[remote] < MAX_STREAMS_PER_REMOTE:
                await self._in_turn(remote, lambda: self._answer(remote, reader, writer))
        except (RemoteError, NetworkError, OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
            log.debug("closed a stream: %r", error)
        except Exception:
            # A fault of ours that some remote's bytes brought out: it costs the stream, and is told, not hidden.
            log.exception("a request could not be answered")
        finally:
            writer.transport.abort()  # whoever has its answer has it all by now; everybody else gets none

    async def _in_turn(self, remote: PeerId, answer: Callable[[], Awaitable[None]]) -> None:
        self._streams_of[remote] += 1
        slots = self._slots_of.setdefault(remote, asyncio.Semaphore(MAX_SLOTS_PER_REMOTE))
        try:
            async with slots, self._slots:
                await answer()
        finally:
            self._streams_of[remote] -= 1
            if not self._streams_of[remote]:
                del self._streams_of[remote], self._slots_of[remote]

    async def _answer(self, remote: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(IDLE_STREAM_TIMEOUT_S):
            payload = await self._read_frame(reader)
        if self._handler is None:
            return
        framed = wire.frame(await self._handler(remote, payload))
        async with asyncio.timeout(IDLE_STREAM_TIMEOUT_S):
            with self._moving(self._up, len(framed)):
                writer.write(framed)
                await writer.drain()
        self._count(self._up, len(framed))


# What libp2p says of a dial in vain, among its own names and numbers; and what that means.
_DIALS_IN_VAIN: Final = (
    ("connection refused", "connection refused"),
    ("dial backoff", "it did not answer a moment ago"),
    ("no route to host", "no way leads there"),
    ("network is unreachable", "no way leads there"),
    ("i/o timeout", "no answer"),
    ("deadline exceeded", "no answer"),
    ("peer id mismatch", "another peer answers there"),
    ("dial to self", "that is this peer itself"),
    ("no such host", "there is no such name"),
    ("failed to negotiate", "something else than a peer of a run answers there"),
    ("no good addresses", "this machine cannot dial such an address"),
)


def _in_words(said: str) -> str:
    """Why a dial was in vain, from what the daemon said of it."""
    return next((words for sign, words in _DIALS_IN_VAIN if sign in said.lower()), "it could not be dialled")


def _plain(error: Exception) -> str:
    """The reason in one short line."""
    if isinstance(error, EOFError):
        return "closed without an answer"
    return " ".join(str(error).split())[:200] or type(error).__name__
