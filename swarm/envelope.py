"""Signed envelopes: a body bound to one run, one purpose, one protocol version and one author.

Layout: canonical msgpack `[version, run, purpose, author, body, signature]`. The signature covers a tagged digest of
everything before it, so that a message signed for one run or purpose is worth nothing in another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from swarm import wire
from swarm.digest import DIGEST_BYTES, Digest, digest_of
from swarm.errors import BadSignature, MalformedBytes
from swarm.identity import KEY_BYTES, SIGNATURE_BYTES, Keypair, PeerId

PROTOCOL_VERSION: Final = 2
MAX_PURPOSE_LETTERS: Final = 32


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an opened envelope says; the signature has been checked."""

    run: Digest
    purpose: str
    author: PeerId
    body: Any  # the decoded wire value, still to be read as a message


def _to_sign(run: bytes, purpose: str, author: bytes, body: bytes) -> bytes:
    return digest_of("envelope", bytes([PROTOCOL_VERSION]), run, purpose.encode(), author, body).raw


def seal(keypair: Keypair, run: Digest, purpose: str, body: Any) -> bytes:
    """The signed bytes of a wire value."""
    packed = wire.encode(body)
    signature = keypair.sign(_to_sign(run.raw, purpose, keypair.peer_id.raw, packed))
    return wire.encode([PROTOCOL_VERSION, run.raw, purpose, keypair.peer_id.raw, packed, signature])


def open_envelope(raw: bytes, *, run: Digest | None, max_bytes: int = wire.MAX_FRAME_BYTES) -> Envelope:
    """The content of a signed envelope.

    `run=None` accepts any run (a monitor that does not know it yet). Raises MalformedBytes or BadSignature; the body is
    not parsed before its signature holds.
    """
    value = wire.decode(raw, max_bytes=max_bytes)
    if not isinstance(value, list) or len(value) != 6:
        raise MalformedBytes("an envelope has 6 fields")
    version, run_raw, purpose, author_raw, body, signature = value
    if type(version) is not int or version != PROTOCOL_VERSION:  # True and 1.0 are equal to 1, and other bytes
        raise MalformedBytes(f"protocol version {str(version)[:20]}; this build speaks {PROTOCOL_VERSION}")
    if not (
        isinstance(run_raw, bytes)
        and len(run_raw) == DIGEST_BYTES
        and isinstance(purpose, str)
        and len(purpose) <= MAX_PURPOSE_LETTERS
        and isinstance(author_raw, bytes)
        and len(author_raw) == KEY_BYTES
        and isinstance(body, bytes)
        and isinstance(signature, bytes)
        and len(signature) == SIGNATURE_BYTES
    ):
        raise MalformedBytes("an envelope's fields are version, run, purpose, author, body, signature")
    if run is not None and run_raw != run.raw:
        raise BadSignature(f"meant for run {run_raw.hex()[:12]}, this is run {run}")
    author = PeerId(author_raw)
    author.verify(signature, _to_sign(run_raw, purpose, author_raw, body))
    return Envelope(Digest(run_raw), purpose, author, wire.decode(body, max_bytes=max_bytes))
