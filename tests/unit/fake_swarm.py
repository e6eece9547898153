"""A swarm in memory for the coordinator's tests: peers that answer sealed questions with sealed answers, and their faults.

Runs under trio's mock clock. Bytes cross, never objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from swarm.address import parse_address
from swarm.digest import Digest, blob_digest, chunks_of, digest_of, leaves_of
from swarm.errors import TimedOut, Unreachable
from swarm.events import Event, event_bytes
from swarm.identity import Keypair, PeerId
from swarm.messages import (
    Activity,
    BlobInfo,
    CheckpointRecord,
    Chunk,
    Events,
    GetBlob,
    GetCheckpoint,
    GetChunk,
    GetEvents,
    GetPeers,
    KnownStatus,
    Peers,
    PeerStatus,
    Refused,
    TimeSplit,
    open_message,
    seal_message,
)

RUN = digest_of("test-run")


def a_digest(name: str) -> Digest:
    return digest_of("test", name.encode())


def a_status(peer: PeerId, **changes: Any) -> PeerStatus:
    """A plausible status with some fields changed."""
    status = PeerStatus(
        peer=peer,
        beat=1,
        name="ada",
        device="RTX 4090",
        activity=Activity.TRAINING,
        incarnation=1,
        view=0,
        version=7,
        head=a_digest("head 7"),
        tokens=7000,
        state_digest=a_digest("state 7"),
        tokens_since_cut=10,
        steps_since_cut=1,
        tokens_per_s=1000.0,
        up_bytes=5_000_000,
        down_bytes=9_000_000,
        up_bytes_per_s=2e5,
        down_bytes_per_s=3e5,
        train_loss=3.5,
        heldout_loss=3.25,
        heldout_version=7,
        checkpoint_version=4,
        waits_for="",
        addresses=(),
        pending=None,
        holding=(),
        time=TimeSplit(),
    )
    return replace(status, **changes)


@dataclass
class FakePeer:
    """One peer of the fake swarm. `fault` replaces its answers: it may sleep, raise, or return any bytes."""

    keypair: Keypair
    port: int
    status: PeerStatus
    up: bool = True
    frozen: bool = False
    events: list[bytes] = field(default_factory=list)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    record: CheckpointRecord | None = None
    fault: Callable[[Any], Awaitable[bytes | None]] | None = None
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def peer_id(self) -> PeerId:
        return self.keypair.peer_id

    @property
    def address(self) -> str:
        return f"/ip4/10.0.0.1/tcp/{self.port}/p2p/{self.peer_id.base58}"

    def tell(self, at_s: float, event: Event) -> None:
        self.events.append(event_bytes(at_s, event))

    def beat(self, **changes: Any) -> None:
        """Changes the status."""
        self.status = replace(self.status, beat=self.status.beat + 1, **changes)

    def seal(self, message: object) -> bytes:
        return seal_message(self.keypair, RUN, message)

    def sealed_status(self) -> bytes:
        return self.seal(self.status)


def fresh(*sealed: bytes) -> tuple[KnownStatus, ...]:
    """Statuses that were heard just now."""
    return tuple(KnownStatus(one, 0.0) for one in sealed)


class FakeSwarm:
    """All peers, and a Transport to reach them."""

    def __init__(self, size: int) -> None:
        self.peers: list[FakePeer] = []
        for number in range(size):
            keypair = Keypair.from_seed(bytes([number + 1]) * 32)
            peer = FakePeer(keypair, 4001 + number, a_status(keypair.peer_id, name=f"peer{number}"))
            peer.status = replace(peer.status, addresses=(peer.address,))
            self.peers.append(peer)

    def transport(self) -> FakeTransport:
        return FakeTransport(self)

    def by_id(self, peer: PeerId) -> FakePeer | None:
        return next((one for one in self.peers if one.peer_id == peer), None)

    def answer(self, peer: FakePeer, message: Any) -> bytes:
        """What an honest peer answers."""
        match message:
            case GetPeers(offset):
                others = (one for one in self.peers if one is not peer and (one.up or one.status.beat > 1))
                known = fresh(peer.sealed_status(), *(one.sealed_status() for one in others))
                return peer.seal(Peers(len(known), known[offset : offset + 64]))
            case GetEvents(since):
                page = peer.events[since : since + 256]
                return peer.seal(Events(min(len(peer.events), since + len(page)), tuple(page)))
            case GetCheckpoint(version):
                record = peer.record
                if record is None or (version is not None and version != record.version):
                    return peer.seal(Refused(f"checkpoint {version} is not kept"))
                return peer.seal(record)
            case GetBlob(root) if root in peer.blobs:
                blob = peer.blobs[root]
                return peer.seal(BlobInfo(len(blob), leaves_of(blob)))
            case GetChunk(root, index) if root in peer.blobs:
                return peer.seal(Chunk(bytes(list(chunks_of(peer.blobs[root]))[index])))
        return peer.seal(Refused("not held"))

    @staticmethod
    def blob(data: bytes) -> tuple[Digest, bytes]:
        return blob_digest(data), data


class FakeTransport:
    """The Transport of a monitor in the fake swarm."""

    def __init__(self, swarm: FakeSwarm) -> None:
        self._swarm = swarm
        self._connected: set[PeerId] = set()
        self.keypair = Keypair.from_seed(b"m" * 32)

    @property
    def peer_id(self) -> PeerId:
        return self.keypair.peer_id

    def addresses(self) -> tuple[str, ...]:
        return ()

    def serve(self, handler: object) -> None: ...

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        await trio.lowlevel.checkpoint()
        found = parse_address(address)
        peer = self._swarm.by_id(found.peer)
        if peer is None or not peer.up or peer.port != found.port:
            raise Unreachable(f"{found.host}:{found.port}: connection refused")
        if peer.frozen:
            await self._time_out(timeout_s)
        self._connected.add(found.peer)
        return found.peer

    async def request(self, to: PeerId, payload: bytes, *, timeout_s: float) -> bytes:
        await trio.sleep(0.01)
        peer = self._swarm.by_id(to)
        if peer is None or not peer.up or to not in self._connected:
            self._connected.discard(to)
            raise Unreachable(f"no connection to {to}")
        if peer.frozen:
            await self._time_out(timeout_s)
        _, message = open_message(payload, run=RUN)
        peer.asked[type(message).__name__] += 1
        if peer.fault is not None:
            with trio.move_on_after(timeout_s):
                answer = await peer.fault(message)
                return self._swarm.answer(peer, message) if answer is None else answer
            raise TimedOut("no answer")
        return self._swarm.answer(peer, message)

    async def _time_out(self, timeout_s: float) -> None:
        await trio.sleep(timeout_s)
        raise TimedOut(f"no answer within {timeout_s} s")

    async def close(self) -> None: ...
