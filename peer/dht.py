"""The DHT as a noticeboard: peers pin up their status, and find each other by reading all of it.

A DHTNode of hivemind's runs inside our event loop, over the p2pd that the transport uses too. What others want to store with
us passes `StatusValidator` first, so that honest nodes neither keep nor pass on what is forged, oversized, of another run,
or set to expire in a far future; what is read is verified once more by `accept_records`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from hivemind.dht import DHTNode
from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage
from hivemind.p2p import P2P, PeerID
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.serializer import MSGPackSerializer

from peer import serializer_guard
from peer.control import to_daemon_id
from peer.socket_dir import SocketDirectory
from swarm.dht.records import (
    MAX_RECORD_BYTES,
    NUM_PREFIXES,
    RECORD_LIFETIME_S,
    Record,
    accept_records,
    expires_in_time,
    open_record,
    prefix_of,
    record_key,
    record_keys,
)
from swarm.digest import Digest, digest_of
from swarm.errors import LocalError, RemoteError, TimedOut, Unreachable
from swarm.identity import PeerId

log = logging.getLogger(__name__)

RPC_TIMEOUT_S: Final = 3.0
READ_TIMEOUT_S: Final = 30.0  # of a whole search: several rounds of RPCs
MAX_STORED_KEYS: Final = 4 * NUM_PREFIXES  # ours are the run's 16; nothing else passes the validator
MAX_REMEMBERED: Final = 1 << 15  # verdicts: the same record comes from each of its replicas
NUM_REPLICAS: Final = 5


class StatusValidator(RecordValidatorBase):  # type: ignore[misc]  # hivemind is untyped
    """Lets a node accept, keep and pass on only verified statuses of one run that expire in time."""

    def __init__(self, run: Digest) -> None:
        self.num_rejected = 0
        self._run = run
        self._prefixes = {DHTID.generate(source=key).to_bytes(): index for index, key in enumerate(record_keys(run))}
        self._verdicts: dict[Digest, bool] = {}

    def validate(self, record: DHTRecord) -> bool:
        """Whether the record is what an honest peer of this run would store there."""
        prefix = self._prefixes.get(record.key)
        good = (
            prefix is not None
            and len(record.value) <= MAX_RECORD_BYTES + 8
            and len(record.subkey) <= 80
            and expires_in_time(record.expiration_time, time.time())
            and self._is_genuine(prefix, record.subkey, record.value)
        )
        self.num_rejected += not good
        return good

    def _is_genuine(self, prefix: int, subkey: bytes, value: bytes) -> bool:
        name = digest_of("record", bytes([prefix]), subkey, value)
        if name not in self._verdicts:
            if len(self._verdicts) >= MAX_REMEMBERED:
                self._verdicts.clear()
            try:
                open_record(self._run, prefix, MSGPackSerializer.loads(subkey), MSGPackSerializer.loads(value))
                self._verdicts[name] = True
            except (RemoteError, ValueError):
                self._verdicts[name] = False
        return self._verdicts[name]

    def sign_value(self, record: DHTRecord) -> bytes:
        """The value as it is: statuses are sealed already."""
        return record.value  # type: ignore[no-any-return]

    def strip_value(self, record: DHTRecord) -> bytes:
        """The value as it is."""
        return record.value  # type: ignore[no-any-return]


class Noticeboard:
    """The statuses of one run in the DHT. Survives the daemon: `attach` and `detach` follow it."""

    def __init__(self, run: Digest) -> None:
        self._run = run
        self._validator = StatusValidator(run)
        self._num_rejected = 0
        self._p2p: P2P | None = None
        self._node: DHTNode | None = None

    @property
    def num_rejected(self) -> int:
        """Records refused so far, when somebody wanted to store them here or when they were read."""
        return self._num_rejected + self._validator.num_rejected

    @property
    def num_neighbours(self) -> int:
        """Nodes in the routing table."""
        return 0 if self._node is None else len(self._node.protocol.routing_table.uid_to_peer_id)

    async def attach(self, control_path: str, sockets: SocketDirectory) -> None:
        """Starts a node over the daemon whose control socket that is."""
        serializer_guard.install()
        use_hivemind_log_handler("nowhere")  # its own would write to the terminal from within our loop
        # hivemind keeps its own socket in /tmp, where nobody would remove it after a sudden death: into ours with it.
        own_p2p: Any = type("_OwnP2P", (P2P,), {"_UNIX_SOCKET_PREFIX": f"/unix{sockets.path}/"})
        self._p2p = await own_p2p.replicate(Multiaddr(f"/unix{control_path}"))
        self._node = await DHTNode.create(
            p2p=self._p2p,
            client_mode=False,
            record_validator=self._validator,
            num_replicas=NUM_REPLICAS,
            wait_timeout=RPC_TIMEOUT_S,
            parallel_rpc=32,
            cache_locally=False,  # a status is read to be news
            cache_on_store=False,
            cache_nearest=0,
            reuse_get_requests=False,  # sorts waiting searches by what they wait for, which NaN cannot
            cache_refresh_before_expiry=0,
            cache_size=MAX_STORED_KEYS,
        )
        self._node.protocol.storage = DHTLocalStorage(maxsize=MAX_STORED_KEYS)

    async def detach(self, *, daemon_lives: bool) -> None:
        """Ends the node. Idempotent."""
        node, p2p, self._node, self._p2p = self._node, self._p2p, None, None
        if node is not None:
            node.is_alive = False
            if daemon_lives:  # a dead one would never acknowledge that the handlers are gone
                with suppress(Exception):  # it may die at this moment, and hivemind raises whatever it likes
                    async with asyncio.timeout(1.0):
                        await node.shutdown()
        if p2p is not None:
            control = p2p._client.control
            await p2p.shutdown()
            await _reap(control._read_task, control._write_task)

    async def introduce(self, peer: PeerId) -> bool:
        """Makes a connected peer's node and ours known to each other; False when it runs none that answers."""
        node = self._live()
        found = await node.protocol.call_ping(PeerID(to_daemon_id(peer)))
        if found is not None:
            await node.find_nearest_nodes([node.node_id])
        return found is not None

    async def publish(self, author: PeerId, sealed: bytes) -> bool:
        """Pins up a sealed status for RECORD_LIFETIME_S; False when no node keeps it. It replaces the author's last."""
        if len(sealed) > MAX_RECORD_BYTES:
            raise LocalError(f"a status of {len(sealed)} bytes; the limit of a record is {MAX_RECORD_BYTES}")
        stored = await self._live().store(
            record_key(self._run, prefix_of(author)),
            sealed,
            time.time() + RECORD_LIFETIME_S,
            subkey=author.base58,
        )
        return bool(stored)

    async def read(self, prefixes: Sequence[int] = tuple(range(NUM_PREFIXES))) -> tuple[Record, ...]:
        """The newest verified status of each peer under those prefixes, sorted by peer id."""
        keys = {record_key(self._run, prefix): prefix for prefix in prefixes}
        # A search ends early at the first answer that expires late enough. No answer satisfies NaN, so the sub-keys of all
        # nodes are merged, and nobody can hide the others by claiming to hold a record that never expires.
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                found = await self._live().get_many(tuple(keys), sufficient_expiration_time=math.nan)
        except TimeoutError:
            raise TimedOut(f"the DHT did not answer within {READ_TIMEOUT_S:g} s") from None
        records, rejected = accept_records(_items(found, keys), self._run)
        self._num_rejected += rejected
        return records

    def _live(self) -> DHTNode:
        if self._node is None:
            raise Unreachable("the DHT node is down with its daemon")
        return self._node


def _items(found: dict[str, Any], keys: dict[str, int]) -> list[tuple[int, object, object, float]]:
    """(prefix, sub-key, value, age) of everything read; a key that holds no dictionary gives one item that nobody accepts."""
    items: list[tuple[int, object, object, float]] = []
    put_before_s = time.time() + RECORD_LIFETIME_S  # what was put there now expires then
    for key, prefix in keys.items():
        answer = found.get(key)
        if answer is None:
            continue
        if not isinstance(answer.value, dict):
            items.append((prefix, None, None, 0.0))
            continue
        for subkey, entry in answer.value.items():
            items.append((prefix, subkey, entry.value, max(0.0, put_before_s - entry.expiration_time)))
    return items


async def _reap(*tasks: asyncio.Task[None] | None) -> None:
    """Waits for hivemind's cancelled tasks and takes their errors, which it would leave for the log."""
    await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
