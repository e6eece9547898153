"""The noticeboard's records: under which key a peer pins up its status, and what of the things read there is believed.

Anyone may write anything into the DHT. A record counts only when it is a sealed status of this run whose author is the peer
it hangs under; of several by one author the newest beat counts. The rest is counted and forgotten.
Keys are spread over prefixes by the author's id, so that no node has to hold, and nobody to read at once, the whole swarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from swarm.digest import Digest
from swarm.errors import MalformedBytes, RemoteError
from swarm.identity import PeerId
from swarm.messages import MAX_SEALED_BYTES, PeerStatus, open_as

NUM_PREFIXES: Final = 16
RECORD_LIFETIME_S: Final = 60.0  # a dead peer is gone from the board after this
CLOCK_SLACK_S: Final = 60.0  # of somebody else's clock
MAX_RECORD_BYTES: Final = MAX_SEALED_BYTES


@dataclass(frozen=True, slots=True)
class Record:
    """A verified status and the sealed bytes it came in, ready to be passed on."""

    status: PeerStatus
    sealed: bytes
    age_s: float = 0.0  # since it was put there, by the clocks of its author and of this machine


def prefix_of(peer: PeerId) -> int:
    """Which of the NUM_PREFIXES keys a peer's record hangs under."""
    return peer.raw[0] % NUM_PREFIXES


def record_key(run: Digest, prefix: int) -> str:
    """The DHT key of a prefix."""
    if not 0 <= prefix < NUM_PREFIXES:
        raise ValueError(f"prefix {prefix}: there are {NUM_PREFIXES}")
    return f"{run.hex()[:16]}.peers.{prefix}"


def record_keys(run: Digest) -> tuple[str, ...]:
    """All keys of a run, in order of their prefixes."""
    return tuple(record_key(run, prefix) for prefix in range(NUM_PREFIXES))


def prefixes_to_read(chance: Random) -> tuple[int, tuple[int, ...]]:
    """Which prefix to look at now, and which others where that shows too few: in a large swarm one is enough, another one
    each time, so that nobody reads thousands of records at every look."""
    first, *others = chance.sample(range(NUM_PREFIXES), NUM_PREFIXES)
    return first, tuple(others)


def open_record(run: Digest, prefix: int, subkey: object, value: object) -> Record:
    """The verified record found at that place; raises MalformedBytes or BadSignature."""
    if not isinstance(subkey, str) or not isinstance(value, bytes):
        raise MalformedBytes(f"a record is bytes under a peer id, not {type(value).__name__}")
    if len(value) > MAX_RECORD_BYTES:
        raise MalformedBytes(f"a record of {len(value)} bytes; the limit is {MAX_RECORD_BYTES}")
    author = PeerId.from_base58(subkey)
    if author.base58 != subkey or prefix_of(author) != prefix:
        raise MalformedBytes(f"a record of {author} in a place that is not its own")
    status = open_as(PeerStatus, value, run=run)
    if status.peer != author:
        raise MalformedBytes(f"a status of {status.peer} under the id of {author}")
    return Record(status, value)


def expires_in_time(expiration_s: object, now_s: float) -> bool:
    """Whether a record's expiry is one that an honest peer gives it: a far one would displace every later record."""
    return (
        isinstance(expiration_s, float)
        and math.isfinite(expiration_s)
        and expiration_s <= now_s + RECORD_LIFETIME_S + CLOCK_SLACK_S
    )


def accept_records(
    raw_items: Iterable[tuple[int, object, object, float]],  # (prefix, subkey, value, age in seconds) as they were read
    run: Digest,
) -> tuple[tuple[Record, ...], int]:
    """The newest verified record of each author, sorted by peer id, and how many items were refused. Never raises."""
    newest: dict[PeerId, Record] = {}
    rejected = 0
    for prefix, subkey, value, age_s in raw_items:
        try:
            record = replace(open_record(run, prefix, subkey, value), age_s=age_s)
        except RemoteError:
            rejected += 1
            continue
        known = newest.get(record.status.peer)
        if known is None or known.status.beat < record.status.beat:
            newest[record.status.peer] = record
    return tuple(newest[peer] for peer in sorted(newest)), rejected
