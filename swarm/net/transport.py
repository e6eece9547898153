"""The promise every network keeps: the in-memory one, the peer's (hivemind's daemon) and the coordinator's (libp2p).

One exchange is one request and one answer, both opaque bytes of at most MAX_FRAME_BYTES; a one-way message gets an empty
answer. On a stream each is a frame: 4 bytes of length, big endian, then the payload. The asker opens the stream, sends one
frame, reads one frame, closes. Protocol id: PROTOCOL_ID. The three shells pass one contract test.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from swarm.identity import PeerId

PROTOCOL_ID: Final = "/barnraise/1"
IDLE_STREAM_TIMEOUT_S: Final = 30.0  # a stream that brings nothing for so long is closed by whoever waits on it
MAX_OPEN_REQUESTS: Final = 64  # served at once per peer; more wait their turn, so that nobody can exhaust us

Handler = Callable[[PeerId, bytes], Awaitable[bytes]]
"""Answers a request from a peer whose identity the connection proves. A RemoteError closes the stream unanswered."""


class Transport(Protocol):
    """Requests to peers by id, and addresses to find them by."""

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses that others may reach us at, `/p2p/<id>` included; empty for one who only dials out."""
        ...

    def serve(self, handler: Handler) -> None:
        """From now on answers requests with `handler`; at most one handler. Without one, requests are refused."""
        ...

    async def connected(self) -> frozenset[PeerId]:
        """Peers to whom a connection is open now, whoever opened it; as of a second ago at most."""
        ...

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        """Dials a multiaddress; returns who is there. Raises Unreachable, TimedOut or MalformedBytes (not an address)."""
        ...

    async def request(self, to: PeerId, payload: bytes, *, timeout_s: float) -> bytes:
        """Sends a request and returns the answer. At most once: never sent again by the transport itself.

        Raises Unreachable when no connection can be made or the other side closes without an answer, TimedOut when
        `timeout_s` pass in all (a frozen remote costs no more), MalformedBytes when the answer is longer than a frame.
        """
        ...

    async def close(self) -> None:
        """Ends every connection and stops serving. Idempotent; later requests raise Unreachable."""
        ...
