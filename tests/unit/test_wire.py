"""Canonical msgpack: one encoding a value, limits before anything is built, an error of ours for everything else."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import wire
from swarm.errors import MalformedBytes
from tests.unit.message_examples import damaged, wire_values

quick = settings(deadline=None, max_examples=150)


def _as_lists(value: object) -> object:
    return [_as_lists(one) for one in value] if isinstance(value, list | tuple) else value


@quick
@given(wire_values)
def test_a_value_comes_back(value: object) -> None:
    raw = wire.encode(value)
    assert wire.decode(raw) == value and wire.encode(wire.decode(raw)) == raw


@quick
@given(wire_values.map(lambda value: tuple(value) if isinstance(value, list) else value))
def test_tuples_travel_as_lists(value: object) -> None:
    assert wire.decode(wire.encode(value)) == _as_lists(value)


@quick
@given(st.data())
def test_harmed_bytes_are_refused_or_canonical(data: st.DataObject) -> None:
    raw = data.draw(damaged(wire.encode(data.draw(wire_values))))
    try:
        value = wire.decode(raw)
    except MalformedBytes:
        return
    assert wire.encode(value) == raw


@quick
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_canonical(raw: bytes) -> None:
    try:
        value = wire.decode(raw)
    except MalformedBytes:
        return
    assert wire.encode(value) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xcc\x05",  # 5 in two bytes
        b"\xd0\x05",  # 5 as a signed byte
        b"\xca\x3f\x80\x00\x00",  # 1.0 in four bytes
        b"\xdc\x00\x01\xc0",  # a list of one with a wide header
        b"\xd9\x01a",  # a short string with a wide header
        b"\xa1\xff",  # not UTF-8
        b"\xa3\xed\xa0\x80",  # half a surrogate pair
        b"\x81\xa1a\x01",  # a map
        b"\xc1",  # never used
        b"\xd4\x01\x00",  # an extension
        b"\xc7\x01\x05x",  # another
        b"\xc0\xc0",  # two values
        msgpack.packb(msgpack.Timestamp(1, 0)),
    ],
    ids=bytes.hex,
)
def test_other_forms_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedBytes):
        wire.decode(raw)


def test_depth_is_bounded() -> None:
    deepest = b"\x91" * wire.MAX_DEPTH + b"\xc0"
    assert wire.encode(wire.decode(deepest)) == deepest
    for levels in (wire.MAX_DEPTH + 1, 5_000, wire.MAX_FRAME_BYTES - 1):
        with pytest.raises(MalformedBytes, match="deeper"):
            wire.decode(b"\x91" * levels + b"\xc0")


def test_the_number_of_values_is_bounded() -> None:
    def nested(count: int) -> bytes:
        return b"\xdd" + count.to_bytes(4, "big") + b"\x90" * count

    assert len(wire.decode(nested(100_000))) == 100_000
    with pytest.raises(MalformedBytes, match="values"):
        wire.decode(nested(wire.MAX_VALUES))


@pytest.mark.parametrize("header", [b"\xdd", b"\xdb", b"\xc6", b"\x92\xdd"], ids=bytes.hex)
@pytest.mark.parametrize("behind", [0, 1000], ids=str)
def test_declared_lengths_are_believed_only_when_the_bytes_are_there(header: bytes, behind: int) -> None:
    raw = header + b"\xff\xff\xff\xff" + bytes(behind)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBytes):
            wire.decode(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000, "nothing of the declared length may be allocated"


@pytest.mark.parametrize("filler", [b"\x90", b"\xc0", b"\xcd\x01\x01", b"\x91\xc0"], ids=bytes.hex)
def test_a_full_frame_takes_bounded_memory(filler: bytes) -> None:
    count = (wire.MAX_FRAME_BYTES - 5) // len(filler)
    raw = b"\xdd" + count.to_bytes(4, "big") + filler * count
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBytes):
            wire.decode(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What MAX_VALUES allows: an empty list of 56 bytes and its place in the outer one, and one more copy of the frame.
    assert peak < wire.MAX_VALUES * 64 + 2 * wire.MAX_FRAME_BYTES


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(MalformedBytes, match="at most 10"):
        wire.decode(b"\xc1" * 11, max_bytes=10)


@quick
@given(st.binary(max_size=100))
def test_a_frame_announces_its_payload(payload: bytes) -> None:
    framed = wire.frame(payload)
    assert wire.frame_length(framed[:4]) == len(payload) and framed[4:] == payload


def test_frames_are_bounded() -> None:
    with pytest.raises(MalformedBytes):
        wire.frame(bytes(wire.MAX_FRAME_BYTES + 1))
    with pytest.raises(MalformedBytes):
        wire.frame_length((wire.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(MalformedBytes):
        wire.frame_length(b"\x00\x00\x00")
    assert wire.frame_length(wire.MAX_FRAME_BYTES.to_bytes(4, "big")) == wire.MAX_FRAME_BYTES
