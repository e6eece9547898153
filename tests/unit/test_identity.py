"""Keys, peer ids in libp2p's form, signatures, and Merkle roots against a recursive reference."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import digest
from swarm.digest import CHUNK_BYTES, Digest, blob_digest, digest_of, leaf_digest, leaves_of, root_of_leaves
from swarm.errors import BadSignature, MalformedBytes, StateError
from swarm.identity import Keypair, PeerId, load_or_create_keypair
from tests.unit.message_examples import AUTHOR, damaged, keypair

quick = settings(deadline=None, max_examples=100)
seeds = st.binary(min_size=32, max_size=32)

# The example of RFC 8032, section 7.1, test 1: seed, public key, and the signature of nothing.
RFC_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
RFC_SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)


def _libp2p_peer_id(public: bytes) -> str:
    """libp2p's published rule, written out: protobuf PublicKey {1: Ed25519 = 1, 2: data}, identity multihash, base58btc."""
    protobuf = bytes([1 << 3 | 0, 1, 2 << 3 | 2, len(public)]) + public
    assert len(protobuf) <= 42, "longer keys would be hashed"
    multihash = bytes([0x00, len(protobuf)]) + protobuf
    letters = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    digits: list[int] = []  # base 58, least significant first, by long division a byte at a time
    for byte in multihash:
        carry = byte
        for place, digit in enumerate(digits):
            carry += digit << 8
            digits[place] = carry % 58
            carry //= 58
        while carry:
            digits.append(carry % 58)
            carry //= 58
    zeros = len(multihash) - len(multihash.lstrip(b"\0"))
    return "1" * zeros + "".join(letters[digit] for digit in reversed(digits))


@quick
@given(seeds)
def test_peer_ids_follow_libp2ps_rule(seed: bytes) -> None:
    peer = Keypair.from_seed(seed).peer_id
    assert peer.base58 == _libp2p_peer_id(peer.raw) and peer.base58.startswith("12D3KooW")
    assert PeerId.from_base58(peer.base58) == peer


def test_the_example_of_libp2ps_specification() -> None:
    """libp2p specs, peer-ids: the Ed25519 key of the test vectors, private and public."""
    private = bytes.fromhex(
        "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
        "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
    )
    keypair = Keypair.from_libp2p(private)
    assert keypair.to_libp2p() == private
    assert keypair.peer_id.raw.hex() == "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"


def test_signatures_are_ed25519() -> None:
    keypair = Keypair.from_seed(RFC_SEED)
    assert keypair.peer_id.raw == RFC_PUBLIC and keypair.sign(b"") == RFC_SIGNATURE
    keypair.peer_id.verify(RFC_SIGNATURE, b"")
    for signature, signed in [(RFC_SIGNATURE, b"x"), (RFC_SIGNATURE[:-1], b""), (b"", b""), (bytes(64), b"")]:
        with pytest.raises(BadSignature):
            keypair.peer_id.verify(signature, signed)


@quick
@given(st.data())
def test_harmed_peer_ids_are_refused(data: st.DataObject) -> None:
    text = data.draw(damaged(AUTHOR.peer_id.base58.encode())).decode("latin-1")
    try:
        peer = PeerId.from_base58(text)
    except MalformedBytes:
        return
    assert peer.base58 == text


@quick
@given(st.text(max_size=70) | st.text("123456789ABCDEFabcdef", max_size=70))
def test_any_text_is_refused_or_a_peer_id(text: str) -> None:
    try:
        peer = PeerId.from_base58(text)
    except MalformedBytes:
        return
    assert peer.base58 == text


@pytest.mark.parametrize(
    "text", ["", "1", "z" * 64, "1" * 10_000_000, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "12D3KooW", "0OIl"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(MalformedBytes) as caught:
        PeerId.from_base58(text)
    assert len(str(caught.value)) < 200


@quick
@given(st.data())
def test_harmed_private_keys_are_refused(data: st.DataObject) -> None:
    raw = data.draw(damaged(AUTHOR.to_libp2p()))
    try:
        keypair = Keypair.from_libp2p(raw)
    except MalformedBytes:
        return
    assert keypair.to_libp2p() == raw


def test_ids_sort_by_bytes_and_have_32() -> None:
    peers = [keypair(number).peer_id for number in range(1, 9)]
    assert sorted(peers) == sorted(peers, key=lambda peer: peer.raw)
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match="32"):
            PeerId(bytes(size))
        with pytest.raises(ValueError, match="32"):
            Digest(bytes(size))


def test_a_key_is_made_once_and_kept_secret(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    first = load_or_create_keypair(path)
    assert load_or_create_keypair(path).seed == first.seed and path.read_bytes() == first.to_libp2p()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_half_written_key_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "key.new").write_bytes(b"half")
    assert load_or_create_keypair(tmp_path / "key").seed == load_or_create_keypair(tmp_path / "key").seed


@pytest.mark.parametrize("content", [b"", b"rubbish", AUTHOR.to_libp2p()[:-1]])
def test_a_bad_key_file_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(StateError, match="restore it"):
        load_or_create_keypair(path)
    assert path.read_bytes() == content


def test_a_key_that_cannot_be_had_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be read"):
        load_or_create_keypair(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="cannot be"):
        load_or_create_keypair(tmp_path / "file" / "key")


def _recursive_root(blob: bytes, chunk_bytes: int) -> bytes:
    """The Merkle root by halves: left takes the largest power of two below the number of leaves (as RFC 6962 splits)."""

    def node(chunks: list[bytes]) -> bytes:
        if len(chunks) == 1:
            return blake3(b"barnraise.leaf\0" + chunks[0]).digest()
        left = 1 << (len(chunks) - 1).bit_length() - 1
        return blake3(b"barnraise.inner\0" + node(chunks[:left]) + node(chunks[left:])).digest()

    chunks = [blob[begin : begin + chunk_bytes] for begin in range(0, max(1, len(blob)), chunk_bytes)]
    return blake3(b"barnraise.root\0" + len(blob).to_bytes(8, "little") + node(chunks)).digest()


@quick
@given(st.binary(max_size=200), st.integers(1, 20))
def test_roots_are_those_of_the_recursive_rule(blob: bytes, chunk_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:  # small chunks make deep trees
        patch.setattr(digest, "CHUNK_BYTES", chunk_bytes)
        assert blob_digest(blob).raw == _recursive_root(blob, chunk_bytes)
        assert root_of_leaves(len(blob), leaves_of(blob)) == blob_digest(memoryview(blob))


@pytest.mark.parametrize("num_bytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_roots_at_full_size(num_bytes: int) -> None:
    blob = hashlib.shake_128(b"blob").digest(num_bytes)
    assert blob_digest(blob).raw == _recursive_root(blob, CHUNK_BYTES)


def test_no_digest_passes_for_another() -> None:
    assert digest_of("a", b"bc") != digest_of("a", b"b", b"c") != digest_of("ab", b"c")
    assert leaf_digest(b"") != blob_digest(b"") != digest_of("leaf")
    with pytest.raises(ValueError, match="chunks"):
        root_of_leaves(CHUNK_BYTES + 1, [leaf_digest(b"")])
