"""The guard in front of hivemind's serializer: what hivemind itself writes passes, hostile bytes end in ValueError."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer import serializer_guard
from peer.serializer_guard import MAX_BYTES, MAX_DEPTH, MAX_EXTENSION_DEPTH, MAX_VALUES, check

serializer_guard.install()

from hivemind.dht.storage import DictionaryDHTValue  # noqa: E402
from hivemind.utils.serializer import MSGPackSerializer  # noqa: E402

TUPLE, DICTIONARY = 0x40, 0x50

KNOWN_CRASH = """
import msgpack, sys
from hivemind.utils.serializer import MSGPackSerializer
if sys.argv[1] == "guarded":
    from peer import serializer_guard
    serializer_guard.install()
raw = msgpack.packb([])
for _ in range(int(sys.argv[2])):
    raw = msgpack.packb([msgpack.ExtType(0x40, raw)])
try:
    MSGPackSerializer.loads(raw)
except ValueError as error:
    print("refused:", error)
"""


def nested_tuples(depth: int) -> bytes:
    raw: bytes = msgpack.packb([])
    for _ in range(depth):
        raw = msgpack.packb([msgpack.ExtType(TUPLE, raw)])
    return raw


def test_the_record_that_kills_hivemind_is_refused() -> None:
    """20,000 levels overflow the C stack of an unguarded process; guarded it goes on."""
    done = subprocess.run(
        [sys.executable, "-c", KNOWN_CRASH, "guarded", "20000"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.startswith("refused:"), done


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


def depth_of(value: object) -> tuple[int, int]:
    """Levels of nesting, and of tuples (each an extension that holds a list) among them."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return 0, 0
    inner = [depth_of(item) for item in value] or [(0, 0)]
    is_tuple = isinstance(value, tuple)
    return max(d for d, _ in inner) + 1 + is_tuple, max(t for _, t in inner) + is_tuple


@given(values)
def test_what_hivemind_writes_comes_back(value: Any) -> None:
    depth, tuples = depth_of(value)
    raw = MSGPackSerializer.dumps(value)
    if depth <= MAX_DEPTH and tuples <= MAX_EXTENSION_DEPTH:
        assert MSGPackSerializer.loads(raw) == value
    else:
        with pytest.raises(ValueError, match="nested deeper"):
            MSGPackSerializer.loads(raw)


@given(st.dictionaries(st.text(), st.tuples(st.binary(), st.floats(1e9, 3e9)), max_size=8))
def test_dictionaries_of_records_come_back(items: dict[Any, tuple[bytes, float]]) -> None:
    value = DictionaryDHTValue()
    with value.freeze():
        for subkey, (content, expiration) in items.items():
            value.store(subkey, content, expiration)
        back: Any = MSGPackSerializer.loads(MSGPackSerializer.dumps(value))
        with back.freeze():
            assert dict(back.items()) == dict(value.items())
        assert back.latest_expiration_time == value.latest_expiration_time


def small_dictionary() -> bytes:
    value = DictionaryDHTValue()
    with value.freeze():
        value.store(("12D3KooW", 1), b"x" * 40, 2e9)
        value.store(("12D3KooX", 2), b"", 2e9)
        return MSGPackSerializer.dumps(value)


SEEDS = [MSGPackSerializer.dumps([1, ("a", (b"b", 2.0)), {"k": [None, True]}]), small_dictionary(), nested_tuples(3)]


def loads_or_refuses(raw: bytes) -> None:
    with suppress(ValueError):
        MSGPackSerializer.loads(raw)


@given(st.sampled_from(SEEDS), st.data())
def test_truncated_and_flipped_bytes_never_do_more_than_fail(seed: bytes, data: st.DataObject) -> None:
    loads_or_refuses(seed[: data.draw(st.integers(0, len(seed)))])
    flipped = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        flipped[data.draw(st.integers(0, len(seed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    loads_or_refuses(bytes(flipped))


@given(st.binary(max_size=300))
def test_any_bytes_never_do_more_than_fail(raw: bytes) -> None:
    loads_or_refuses(raw)


@settings(max_examples=30)
@given(
    st.sampled_from([b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9", b"\xdc", b"\xde", b"\xda", b"\xc5", b"\xc8"]),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=20),
)
def test_huge_lengths_allocate_nothing(header: bytes, length: int, rest: bytes) -> None:
    raw = header + length.to_bytes(4, "big") + rest
    tracemalloc.start()
    try:
        loads_or_refuses(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x91" * 5000 + b"\xc0",
        b"\x81\xa1k" * 5000 + b"\xc0",
        nested_tuples(MAX_EXTENSION_DEPTH + 1),
        b"\xc4\xff",
        b"\xc0\xc0",
        bytes(MAX_BYTES + 1),
        b"\xdd" + MAX_VALUES.to_bytes(4, "big") + b"\xc0" * MAX_VALUES,
        b"\xc1",
        msgpack.packb(msgpack.ExtType(0x51, b"\x80")),  # a tensor's description has no business in the DHT
        msgpack.packb(msgpack.ExtType(TUPLE, b"")),
        msgpack.packb(msgpack.ExtType(TUPLE, b"\xc0\xc0")),
        msgpack.packb(msgpack.ExtType(TUPLE, b"\x92\xc0"))
        + b"\xc0",  # reaches out of its extension for its second item
        msgpack.packb(msgpack.ExtType(TUPLE, b"\x05")),
        msgpack.packb(msgpack.ExtType(DICTIONARY, b"\x05")),
        msgpack.packb(msgpack.ExtType(DICTIONARY, msgpack.packb(["much", 2e9, []]))),
        msgpack.packb(msgpack.ExtType(DICTIONARY, msgpack.packb([1.0, None, []]))),
        msgpack.packb(msgpack.ExtType(DICTIONARY, msgpack.packb([1.0, 2e9, [[[], b"", 2e9]]]))),
        msgpack.packb(msgpack.ExtType(DICTIONARY, msgpack.packb([1.0, 2e9, [["k", "text", 2e9]]]))),
        msgpack.packb(msgpack.ExtType(DICTIONARY, msgpack.packb([1.0, 2e9, [["k", b"", "late"]]]))),
    ],
    ids=lambda raw: raw[:4].hex() or "empty",
)
def test_each_of_these_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        MSGPackSerializer.loads(raw)


def test_the_limits_themselves_are_allowed() -> None:
    check(b"\x91" * MAX_DEPTH + b"\xc0")
    check(nested_tuples(MAX_EXTENSION_DEPTH))
    check(b"\xdd" + (MAX_VALUES - 1).to_bytes(4, "big") + b"\xc0" * (MAX_VALUES - 1))
    check(msgpack.packb(bytes(MAX_BYTES - 5)))


def test_installing_twice_guards_once() -> None:
    guarded = MSGPackSerializer.loads
    serializer_guard.install()
    assert MSGPackSerializer.loads is guarded
