"""Digests: BLAKE3, and for blobs a Merkle root over 1 MiB chunks, so that any chunk from any holder can be checked.

Leaf, inner and record hashes carry different tags: none can be passed off as another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

CHUNK_BYTES: Final = 1 << 20  # large enough to fill a 100 Mbit/s line for 80 ms, small enough to lose to a bad donor
DIGEST_BYTES: Final = 32
_LEAF: Final = b"barnraise.leaf\x00"
_INNER: Final = b"barnraise.inner\x00"
_ROOT: Final = b"barnraise.root\x00"


@dataclass(frozen=True, order=True, slots=True)
class Digest:
    """32 bytes that name something. Prints short; `hex()` is the whole of it."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != DIGEST_BYTES:
            raise ValueError(f"a digest has {DIGEST_BYTES} bytes, not {len(self.raw)}")

    def __hash__(self) -> int:
        return hash(self.raw)  # bytes remember theirs; the generated one builds a tuple for every look-up

    def hex(self) -> str:
        return self.raw.hex()

    @classmethod
    def from_hex(cls, text: str) -> Digest:
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.raw.hex()[:12]


ZERO_DIGEST: Final = Digest(bytes(DIGEST_BYTES))


def digest_of(tag: str, *parts: bytes) -> Digest:
    """The digest of a record: its tag, then each part behind its length, so that no two part lists read alike."""
    h = blake3(f"barnraise.{tag}\x00".encode())
    for part in parts:
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return Digest(h.digest())


def num_chunks(num_bytes: int) -> int:
    """How many chunks a blob of that many bytes has; an empty blob has one, empty."""
    return max(1, -(-num_bytes // CHUNK_BYTES))


def chunk_length(num_bytes: int, index: int) -> int:
    """The bytes in chunk `index` of a blob of `num_bytes`."""
    return min(CHUNK_BYTES, num_bytes - index * CHUNK_BYTES)


def leaf_digest(chunk: bytes | memoryview) -> Digest:
    """The digest of one chunk."""
    h = blake3(_LEAF)
    h.update(chunk)
    return Digest(h.digest())


def root_of_leaves(num_bytes: int, leaves: Iterable[Digest]) -> Digest:
    """The root of a blob from its length and its chunks' digests. An odd node moves up a level unchanged."""
    level = [leaf.raw for leaf in leaves]
    if len(level) != num_chunks(num_bytes):
        raise ValueError(f"{num_bytes} bytes have {num_chunks(num_bytes)} chunks, not {len(level)}")
    while len(level) > 1:
        pairs = [blake3(_INNER + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) - len(level) % 2 :]
    return Digest(blake3(_ROOT + num_bytes.to_bytes(8, "little") + level[0]).digest())


def chunks_of(blob: bytes | memoryview) -> Iterator[memoryview]:
    """The chunks of a blob, in order, without copying."""
    view = memoryview(blob).cast("B")
    for index in range(num_chunks(len(view))):
        yield view[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


def leaves_of(blob: bytes | memoryview) -> tuple[Digest, ...]:
    """The digests of a blob's chunks."""
    return tuple(leaf_digest(chunk) for chunk in chunks_of(blob))


def blob_digest(blob: bytes | memoryview) -> Digest:
    """The name of a blob."""
    view = memoryview(blob).cast("B")
    return root_of_leaves(len(view), leaves_of(view))
