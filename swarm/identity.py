"""Who is who: an Ed25519 key is the peer, its 32 public bytes are its name, and both libp2p stacks use the same key.

A libp2p peer id of an Ed25519 key *is* the public key behind a fixed prefix, so a signature verifies without a look-up.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from swarm.errors import BadSignature, MalformedBytes, StateError

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
# identity multihash, 36 bytes | protobuf PublicKey {Type: Ed25519, Data: 32 bytes} (libp2p specs, peer-ids)
_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")
# protobuf PrivateKey {Type: Ed25519, Data: 64 bytes = seed | public}
_PRIVATE_KEY_PREFIX: Final = bytes.fromhex("08011240")
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@lru_cache(maxsize=4096)  # the same few thousand ids stand in every reason
def _base58_encode(raw: bytes) -> str:
    number, text = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + text


def _base58_decode(text: str) -> bytes:
    number = 0
    for letter in text:
        digit = _BASE58.find(letter)
        if digit < 0:
            raise ValueError(f"{letter!r} is not a base58 letter")
        number = number * 58 + digit
    body = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes(len(text) - len(text.lstrip("1"))) + body


@dataclass(frozen=True, order=True, slots=True)
class PeerId:
    """A peer's (or maintainer's) public key. Sorts by bytes, prints short."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise ValueError(f"a peer id has {KEY_BYTES} bytes, not {len(self.raw)}")

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, PeerId) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.raw)  # bytes remember theirs; the generated one builds a tuple for every look-up

    @property
    def base58(self) -> str:
        """The libp2p form, `12D3KooW...`, as in multiaddresses."""
        return _base58_encode(_PEER_ID_PREFIX + self.raw)

    @classmethod
    def from_base58(cls, text: str) -> PeerId:
        """Reads the libp2p form; raises MalformedBytes for anything but an Ed25519 peer id."""
        if len(text) > 64:
            raise MalformedBytes(f"a peer id has at most 64 letters, not {len(text)}")
        try:
            raw = _base58_decode(text)
        except ValueError as error:
            raise MalformedBytes(f"not a peer id: {error}") from None
        if len(raw) != len(_PEER_ID_PREFIX) + KEY_BYTES or not raw.startswith(_PEER_ID_PREFIX):
            raise MalformedBytes(f"not an Ed25519 peer id: {text[:64]!r}")
        return cls(raw[len(_PEER_ID_PREFIX) :])

    def verify(self, signature: bytes, signed: bytes) -> None:
        """Returns if this key signed those bytes, else raises BadSignature."""
        try:
            _public_key(self.raw).verify(signature, signed)
        except (InvalidSignature, ValueError):
            raise BadSignature(f"not signed by {self}") from None

    def __str__(self) -> str:
        return self.base58[-8:]


@lru_cache(maxsize=4096)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)


class Keypair:
    """A private key with its peer id."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.peer_id = PeerId(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @classmethod
    def generate(cls) -> Keypair:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Keypair:
        """The key of a 32-byte seed: the same peer in every run of a test."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        return self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    def sign(self, to_sign: bytes) -> bytes:
        """A 64-byte signature."""
        return self._key.sign(to_sign)

    def to_libp2p(self) -> bytes:
        """The private key as libp2p's protobuf, the content of p2pd's `-id` file."""
        return _PRIVATE_KEY_PREFIX + self.seed + self.peer_id.raw

    @classmethod
    def from_libp2p(cls, raw: bytes) -> Keypair:
        """Reads what `to_libp2p` wrote; raises MalformedBytes."""
        body = raw[len(_PRIVATE_KEY_PREFIX) :]
        if not raw.startswith(_PRIVATE_KEY_PREFIX) or len(body) != 2 * KEY_BYTES:
            raise MalformedBytes("not an Ed25519 private key in libp2p's form")
        keypair = cls.from_seed(body[:KEY_BYTES])
        if keypair.peer_id.raw != body[KEY_BYTES:]:
            raise MalformedBytes("the private key does not belong to the public key stored beside it")
        return keypair


def load_or_create_keypair(path: Path) -> Keypair:
    """The key stored at `path`; when there is none, a new one, stored readable by its owner alone. Raises StateError."""
    try:
        return Keypair.from_libp2p(path.read_bytes())
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; this peer's key cannot be read") from None
    except MalformedBytes as error:
        raise StateError(f"{path}: {error}; restore it from a backup, or remove it to become a new peer") from None
    keypair = Keypair.generate()
    store_keypair(path, keypair)
    return keypair


def store_keypair(path: Path, keypair: Keypair) -> None:
    """Stores a key at `path`, readable by its owner alone; a key that is there is replaced. Raises StateError."""
    try:
        _store(path, keypair.to_libp2p())
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; this peer's key cannot be written") from None


def _store(path: Path, secret: bytes) -> None:
    """Writes a new file whole or not at all: half a key would be refused at every later start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)  # a name outlives a power cut once its folder is synced
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
