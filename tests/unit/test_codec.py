"""Codecs by law: what comes back, how far it may be off, and that only good bytes are read."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swarm import wire
from swarm.allreduce.codec import (
    Codec,
    Int8Codec,
    RawCodec,
    bytes_of,
    make_codec,
    pack_contribution,
    read_contribution,
    vector_from,
)
from swarm.config import CodecConfig
from swarm.digest import blob_digest
from swarm.errors import LocalError, MalformedBytes
from tests.unit.message_examples import damaged, wire_values

quick = settings(deadline=None, max_examples=100)
FLOAT32 = np.finfo(np.float32)
TINY = float(FLOAT32.tiny)  # the smallest normal number
DENORMAL = float(FLOAT32.smallest_subnormal)
HUGE = float(FLOAT32.max)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.lists(finite, max_size=40).map(lambda values: torch.tensor(values, dtype=torch.float32))
codecs = st.sampled_from([RawCodec(), Int8Codec(1), Int8Codec(7), Int8Codec(4096)])


def _bits(vector: Tensor) -> list[int]:
    return vector.view(torch.int32).tolist()


def _pattern(size: int) -> Tensor:
    """Values between -1000 and 1000 by integer arithmetic."""
    return ((torch.arange(size, dtype=torch.int64) * 7919) % 2003 - 1001).to(torch.float32) / 7


@quick
@given(vectors)
def test_raw_is_exact(vector: Tensor) -> None:
    assert _bits(RawCodec().decode(RawCodec().encode(vector), len(vector))) == _bits(vector)


def _check_int8(vector: Tensor, block_size: int) -> None:
    """Half a step of its block, and what rounding adds to it.

    The step s is fl(amax / 127) to within 2 roundings, so amax / s <= 127 (1 + 2^-22) and clamping at 127 costs at most
    127 * 2^-22 steps. x / s rounds by at most 127 * 2^-24 steps before it goes to the nearest integer, and the product
    k * s by as much behind it. Together below 2^-14 steps. Where the step would be no normal number (amax < 127 TINY),
    and one rounding above, the block is zeros.
    """
    codec = Int8Codec(block_size)
    decoded = codec.decode(codec.encode(vector), len(vector))
    for begin in range(0, len(vector), block_size):
        block = vector[begin : begin + block_size].double()
        error = float((block - decoded[begin : begin + block_size].double()).abs().max())
        step = float(block.abs().max()) / 127
        if step < TINY * (1 + 2**-22):
            assert error <= 127 * TINY * (1 + 2**-22)
        if step > TINY * (1 + 2**-22) or bool((decoded[begin : begin + block_size] != 0).any()):
            assert error <= step * (0.5 + 2**-14), (block, decoded)


@quick
@given(vectors, st.integers(1, 16))
def test_int8_is_within_half_a_step(vector: Tensor, block_size: int) -> None:
    _check_int8(vector, block_size)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, TINY, 200 * TINY, DENORMAL])
@pytest.mark.parametrize("block_size", [1, 64, 4096])
def test_int8_at_every_magnitude(scale: float, block_size: int) -> None:
    _check_int8(_pattern(5000) * scale, block_size)


@pytest.mark.parametrize(
    "values",
    [
        [0.0, -0.0, 0.0],
        [HUGE, -HUGE, 1.0],
        [HUGE, HUGE / 2, -HUGE / 3],
        [127 * TINY, TINY, -TINY / 2],
        [190 * DENORMAL, 63 * DENORMAL],
        [DENORMAL],
        [HUGE, DENORMAL],
        [1.0],
        [],
    ],
    ids=str,
)
def test_int8_at_the_edges_of_fp32(values: list[float]) -> None:
    vector = torch.tensor(values, dtype=torch.float32)
    for block_size in (1, 2, 4096):
        _check_int8(vector, block_size)


def test_int8_never_decodes_to_a_denormal() -> None:
    """So that a peer which flushes them to zero gets the same bits."""
    vector = torch.tensor([TINY * 126.9, TINY * 127.1, TINY * 3, DENORMAL * 5])
    for block_size in (1, 2, 4):
        codec = Int8Codec(block_size)
        decoded = codec.decode(codec.encode(vector), 4)
        assert all(value == 0 or abs(value) >= TINY for value in decoded.tolist())


@quick
@given(vectors, codecs)
def test_bytes_are_deterministic_and_settled(vector: Tensor, codec: Codec) -> None:
    payload = codec.encode(vector)
    assert payload == codec.encode(vector.clone()) == codec.encode(vector.double())
    size = len(vector)
    decoded = codec.decode(payload, size)
    assert decoded.dtype == torch.float32 and decoded.shape == (size,) and decoded.is_contiguous()
    assert _bits(decoded) == _bits(codec.decode(memoryview(payload), size))


def test_the_bytes_of_int8() -> None:
    """A step for each block, little-endian, then an integer for each element; the last block is short."""
    vector = torch.tensor([127.0, -127.0, 64.0, 63.4, 254.0, -1.0])
    expected = np.asarray([1.0, 2.0], "<f4").tobytes() + np.asarray([127, -127, 64, 63, 127, 0], "i1").tobytes()
    # 127 * fl(1/127) rounds to 1, and -1 / 2 to the even 0.
    assert Int8Codec(4).encode(vector) == expected


@pytest.mark.parametrize("codec", [RawCodec(), Int8Codec(3)], ids=lambda codec: codec.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_what_is_not_finite_is_neither_sent_nor_read(codec: Codec, bad: float) -> None:
    vector = torch.tensor([1.0, 2.0, 3.0, bad, 5.0], dtype=torch.float64)
    with pytest.raises(LocalError, match="finite"):
        codec.encode(vector)
    payload = bytearray(codec.encode(torch.ones(5)))
    payload[4:8] = bytes_of(torch.tensor([bad]))  # an element of raw, a step of int8
    with pytest.raises(MalformedBytes, match="finite"):
        codec.decode(bytes(payload), 5)


def test_a_step_whose_multiple_is_not_finite_is_refused() -> None:
    payload = bytes_of(torch.tensor([HUGE])) + b"\x7f"
    with pytest.raises(MalformedBytes, match="finite"):
        Int8Codec(4).decode(payload, 1)


@quick
@given(codecs, st.binary(max_size=64), st.integers(0, 20))
def test_any_payload_is_refused_or_finite(codec: Codec, payload: bytes, size: int) -> None:
    try:
        decoded = codec.decode(payload, size)
    except MalformedBytes:
        return
    assert decoded.shape == (size,) and bool(torch.isfinite(decoded).all())


@pytest.mark.parametrize("codec", [RawCodec(), Int8Codec(4096)], ids=lambda codec: codec.name)
def test_a_short_payload_is_refused_before_anything_is_built(codec: Codec) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBytes, match="where"):
            codec.decode(b"1234", 10**9)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000  # torch's own memory is not traced, but a vector of 4 GB would show


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8])
def test_vectors_to_bytes_and_back(dtype: torch.dtype) -> None:
    vector = torch.tensor([1, -2, 3]).to(dtype)
    back = vector_from(bytes_of(vector), dtype)
    assert torch.equal(back, vector)
    back[0] = 9  # its own memory
    assert (
        bytes_of(vector[::2]) == bytes_of(vector)[: vector.element_size()] + bytes_of(vector)[-vector.element_size() :]
    )


def test_the_manifest_names_the_codec() -> None:
    assert make_codec(CodecConfig(name="raw")).name == "raw"
    assert make_codec(CodecConfig(name="int8", block_size=2)).encode(torch.ones(4)) == Int8Codec(2).encode(
        torch.ones(4)
    )


# ---------------------------------------------------------------- the blob that carries the payloads

RAW = RawCodec()


def _blob(first_unit: int = 2) -> bytes:
    return pack_contribution(RAW, first_unit, [b"one", b"", b"three"])


def test_payloads_lie_where_they_are_said_to() -> None:
    blob = _blob()
    places = read_contribution(memoryview(blob), RAW, 2, 3)
    assert [blob[one.offset : one.offset + one.num_bytes] for one in places] == [b"one", b"", b"three"]
    assert [one.digest for one in places] == [blob_digest(one) for one in (b"one", b"", b"three")]
    assert blob == pack_contribution(RAW, 2, [b"one", b"", b"three"])


@pytest.mark.parametrize(("codec", "first", "count"), [(Int8Codec(4), 2, 3), (RAW, 1, 3), (RAW, 2, 2), (RAW, 2, 4)])
def test_another_codec_or_other_units_are_refused(codec: Codec, first: int, count: int) -> None:
    with pytest.raises(MalformedBytes):
        read_contribution(_blob(), codec, first, count)


@quick
@given(st.data())
def test_harmed_blobs_are_refused_or_laid_out_well(data: st.DataObject) -> None:
    blob = data.draw(damaged(_blob()))
    try:
        places = read_contribution(blob, RAW, 2, 3)
    except MalformedBytes:
        return
    assert places[-1].offset + places[-1].num_bytes == len(blob)
    rebuilt = pack_contribution(RAW, 2, [blob[one.offset : one.offset + one.num_bytes] for one in places])
    assert len(rebuilt) == len(blob), "only digests and payloads may differ"


def _with_header(header: object, body: bytes = b"") -> bytes:
    packed = wire.encode(header)
    return b"brncntr1" + len(packed).to_bytes(4, "little") + packed + body


@quick
@given(wire_values | st.tuples(st.just("raw"), st.just(2), wire_values))
def test_any_header_is_refused(header: object) -> None:
    with pytest.raises(MalformedBytes):
        read_contribution(_with_header(header), RAW, 2, 3)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"brncntr1",
        b"brncntr1\xff\xff\xff\xff",
        b"brncntr1\xff\xff\xff\xff" + bytes(300_000),
        b"notours1" + _blob()[8:],
        _with_header(["raw", True, []]),  # True is equal to 1, and has other bytes
        _with_header(["raw", 1, [[True, bytes(32)]]], b"x"),
        _with_header(["raw", 1, [[2**63, bytes(32)]]], b"x"),
        _with_header(["raw", 1, [[-1, bytes(32)]]], b"x"),
        _with_header(["raw", 1, [[1, bytes(31)]]], b"x"),
        _with_header(["raw", 1, [[1, bytes(32)]]], b"xy"),
    ],
    ids=lambda blob: repr(blob[:40]),
)
def test_bad_blobs(blob: bytes) -> None:
    for count in (0, 1):
        with pytest.raises(MalformedBytes):
            read_contribution(blob, RAW, 1, count)
