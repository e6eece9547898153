"""One connection of the coordinator's Transport: noise and yamux over TCP, requests out, requests in.

A connection is one task that ends with its socket; whoever waits on it is woken then. Its requests each carry their own
deadline. A remote that was silent for half of a request's time when its deadline passes loses the connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.exceptions import RawConnError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from swarm.errors import BarnraiseError, RemoteError, Unreachable
from swarm.identity import PeerId
from swarm.net.transport import IDLE_STREAM_TIMEOUT_S, MAX_OPEN_REQUESTS, PROTOCOL_ID, Handler
from swarm.wire import FRAME_HEADER, frame, frame_length

if TYPE_CHECKING:
    from trio_typing import TaskStatus

MAX_BUFFERED_BYTES: Final = 32 << 20  # unread bytes of one connection; libp2p itself lets a remote send without end
MAX_WAITING_STREAMS: Final = 4 * MAX_OPEN_REQUESTS
_CLEANUP_S: Final = 0.5
_MULTISTREAM: Final = b"/multistream/1.0.0\n"
_log = logging.getLogger(__name__)


def _delimited(line: bytes) -> bytes:
    return bytes([len(line)]) + line  # a varint of one byte: all our lines are shorter than 128


# What an asker says first, all at once; a remote that speaks the protocol repeats it. Saves two round trips a request.
_GREETING: Final = _delimited(_MULTISTREAM) + _delimited(PROTOCOL_ID.encode() + b"\n")


class WatchedStream(TrioTCPStream):
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


class BoundedYamux(Yamux):
    """Yamux that ends the connection of a remote that sends more than its windows allow."""

    async def _read_data_body(self, length: int) -> bytes:
        buffered = sum(len(buffer) for buffer in self.stream_buffers.values())
        if buffered + length > MAX_BUFFERED_BYTES:
            raise RawConnError(f"{buffered + length} unread bytes where {MAX_BUFFERED_BYTES} are allowed")
        body: bytes = await super()._read_data_body(length)
        return body


class Connection:
    """A secured, multiplexed connection. `gone` once its task ended; then every request on it is cancelled."""

    def __init__(self, peer: PeerId, tcp: WatchedStream, muxed: BoundedYamux) -> None:
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

    async def live(self, handler: Callable[[], Handler | None], task_status: TaskStatus[None]) -> None:
        """Runs the connection until it breaks or is dropped; `handler` tells who answers requests at the moment."""
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
                        nursery.start_soon(self._answer, handler, stream)
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

    async def _answer(self, handler: Callable[[], Handler | None], stream: YamuxStream) -> None:
        """Serves one stream that the remote opened: at most one request."""
        self._num_streams += 1
        finished = False
        try:
            async with self._serving:
                with trio.fail_after(IDLE_STREAM_TIMEOUT_S):
                    await Multiselect({TProtocol(PROTOCOL_ID): None}).negotiate(MultiselectCommunicator(stream))
                    request = await _read_frame(stream)
                if (answerer := handler()) is None:
                    return
                answer = frame(await answerer(self.peer, request))
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
