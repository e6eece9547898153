"""p2pd's control socket: one short conversation per call, each on a connection of its own.

hivemind's client leaves its socket open when the daemon refuses or the caller is cancelled; here every path closes it.
A stream opened through `open_stream` *is* its connection from then on: what is written to it arrives at the other peer.
A daemon that refuses raises DaemonRefused; one that is gone raises OSError or EOFError. Both are for `peer/net.py` to map.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from swarm.address import Address
from swarm.errors import MalformedBytes
from swarm.identity import PeerId

MAX_CONTROL_BYTES: Final = 4 << 20  # the daemon's own limit of one message
_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")  # an Ed25519 key as an identity multihash
_REFUSED: Final = 1  # Response.Type ERROR


class DaemonRefused(Exception):
    """The daemon understood and could not: nobody there, no such protocol, a malformed request."""


def to_daemon_id(peer: PeerId) -> bytes:
    """The peer id as libp2p's bytes."""
    return _PEER_ID_PREFIX + peer.raw


def from_daemon_id(raw: bytes) -> PeerId:
    """The peer id in libp2p's bytes; raises MalformedBytes for any key that is not Ed25519."""
    if not raw.startswith(_PEER_ID_PREFIX) or len(raw) != len(_PEER_ID_PREFIX) + 32:
        raise MalformedBytes(f"a peer with a key that is not Ed25519: {raw[:48].hex()}")
    return PeerId(raw[len(_PEER_ID_PREFIX) :])


async def write_message(writer: asyncio.StreamWriter, message: Any) -> None:
    """Sends a protobuf behind its length as a varint."""
    body = message.SerializeToString()
    length, header = len(body), bytearray()
    while length > 0x7F:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    header.append(length)
    writer.write(bytes(header) + body)
    await writer.drain()


async def read_message(reader: asyncio.StreamReader, message: Any) -> None:
    """Fills the protobuf with what comes; raises EOFError or ValueError."""
    length, shift = 0, 0
    while True:
        (byte,) = await reader.readexactly(1)
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte <= 0x7F:
            break
        if shift > 28:
            raise ValueError("the daemon's message has no end")
    if length > MAX_CONTROL_BYTES:
        raise ValueError(f"the daemon's message of {length} bytes exceeds {MAX_CONTROL_BYTES}")
    message.ParseFromString(await reader.readexactly(length))


class Control:
    """The control socket at a path. Holds no connection; may be used by any number of tasks at once."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def identify(self) -> tuple[PeerId, tuple[str, ...]]:
        """The daemon's peer id, and the addresses it believes to have, without `/p2p/<id>`."""
        response = await self._call(p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY))
        texts = []
        for raw in response.identify.addrs:
            try:
                texts.append(str(Multiaddr(raw)))
            except Exception:  # a kind of address that hivemind's reader does not know is none of ours
                continue
        return from_daemon_id(response.identify.id), tuple(texts)

    async def connect(self, address: Address) -> None:
        """Dials the address until its peer has proved who it is."""
        # Without its /p2p part: hivemind's multiaddr encodes Ed25519 peer ids wrongly, and the id has a field of its own.
        raw = Multiaddr(str(address).rpartition("/p2p/")[0]).to_bytes()
        connect = p2pd_pb2.ConnectRequest(peer=to_daemon_id(address.peer), addrs=[raw])
        await self._call(p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=connect))

    async def disconnect(self, peer: PeerId) -> None:
        """Ends every connection to the peer."""
        disconnect = p2pd_pb2.DisconnectRequest(peer=to_daemon_id(peer))
        await self._call(p2pd_pb2.Request(type=p2pd_pb2.Request.DISCONNECT, disconnect=disconnect))

    async def peers(self) -> tuple[PeerId, ...]:
        """Who is connected now, of those with Ed25519 keys."""
        response = await self._call(p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
        return tuple(from_daemon_id(info.id) for info in response.peers if info.id.startswith(_PEER_ID_PREFIX))

    async def handle(self, protocol: str, socket_path: str) -> None:
        """From now on the daemon passes streams of that protocol on to whoever listens at `socket_path`."""
        own = Multiaddr(f"/unix{socket_path}").to_bytes()
        handler = p2pd_pb2.StreamHandlerRequest(addr=own, proto=[protocol], balanced=False)
        await self._call(p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_HANDLER, streamHandler=handler))

    async def open_stream(self, peer: PeerId, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to the peer; the caller closes the writer."""
        request = p2pd_pb2.StreamOpenRequest(peer=to_daemon_id(peer), proto=[protocol])
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            await _exchange(reader, writer, p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=request))
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer

    async def _call(self, request: Any) -> Any:
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            return await _exchange(reader, writer, request)
        finally:
            writer.transport.abort()  # nothing is left to flush, and the daemon needs no goodbye


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Any) -> Any:
    await write_message(writer, request)
    response = p2pd_pb2.Response()
    await read_message(reader, response)
    if response.type == _REFUSED:
        raise DaemonRefused(response.error.msg)
    return response
