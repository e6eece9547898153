"""Bytes to values and back: canonical msgpack with every limit checked before anything is built.

Values are None, bool, int, float, str, bytes, and lists of these: no maps with surprising key orders, no extension types.
A value has exactly one encoding; bytes that are not the encoding of what they decode to are refused.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from swarm.digest import CHUNK_BYTES
from swarm.errors import MalformedBytes

MAX_FRAME_BYTES: Final = CHUNK_BYTES + (64 << 10)  # one chunk, its envelope, and room for the header
MAX_DEPTH: Final = 16  # the deepest message of ours nests 6 lists
MAX_VALUES: Final = 1 << 18  # the state of 4096 members with 32 holes each has 150,000
FRAME_HEADER: Final = struct.Struct(">I")


def encode(value: Any) -> bytes:
    """The canonical encoding of a value made of None, bool, int, float, str, bytes and lists or tuples."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _refuse_extension(code: int, data: bytes) -> None:
    raise MalformedBytes(f"extension type {code} is not part of the protocol")


def check_depth(raw: bytes, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES) -> None:
    """Raises MalformedBytes if the msgpack in `raw` nests deeper than `max_depth`, or holds a map or an extension.

    So it does for more than `max_values` values: what is built takes many times the bytes that announce it. One pass over
    the headers, nothing is built: a hostile record costs its own length and no more.
    """
    position, end, announced = 0, len(raw), 1
    left = 1  # values still to come in the innermost list
    outer: list[int] = []  # and in those around it
    while left or outer:
        if not left:
            left = outer.pop()
            continue
        left -= 1
        if position >= end:
            raise MalformedBytes("truncated")
        size = _SIZES[raw[position]]
        if size:
            position += size
            if position > end:
                raise MalformedBytes("truncated")
            continue
        position, items = _skip_header(raw, position)
        if items is None:
            continue
        if items > end - position:
            raise MalformedBytes(f"a list of {items} items in {end - position} bytes")
        if len(outer) >= max_depth:
            raise MalformedBytes(f"nested deeper than {max_depth} lists")
        announced += items
        if announced > max_values:
            raise MalformedBytes(f"more than {max_values} values")
        outer.append(left)
        left = items
    if position != end:
        raise MalformedBytes(f"{end - position} bytes behind the value")


_FIXED: Final = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin and str: width of the length
_LISTS: Final = {0xDC: 2, 0xDD: 4}


def _size(byte: int) -> int:
    """The bytes of a value that begins with this one, where that alone tells it; else 0."""
    if byte <= 0x7F or byte >= 0xE0 or byte in (0xC0, 0xC2, 0xC3):
        return 1
    if 0xA0 <= byte <= 0xBF:
        return 1 + (byte & 0x1F)
    return 1 + _FIXED[byte] if byte in _FIXED else 0


_SIZES: Final = tuple(map(_size, range(256)))


def _skip_header(raw: bytes, position: int) -> tuple[int, int | None]:
    """The position behind a value whose size its first byte does not tell (of a list: behind its header), and for a list
    how many items follow."""
    byte = raw[position]
    position += 1
    if 0x90 <= byte <= 0x9F:
        return position, byte & 0x0F
    if byte in _SIZED or byte in _LISTS:
        width = _SIZED.get(byte) or _LISTS[byte]
        if position + width > len(raw):
            raise MalformedBytes("truncated")
        length = int.from_bytes(raw[position : position + width], "big")
        position += width
        if byte in _LISTS:
            return position, length
        position += length
    else:
        raise MalformedBytes(f"type byte 0x{byte:02x} is not part of the protocol")
    if position > len(raw):
        raise MalformedBytes("truncated")
    return position, None


def decode(raw: bytes, *, max_bytes: int = MAX_FRAME_BYTES, max_values: int = MAX_VALUES) -> Any:
    """The value whose canonical encoding is `raw`; lists come back as lists. Raises MalformedBytes."""
    if len(raw) > max_bytes:
        raise MalformedBytes(f"{len(raw)} bytes where at most {max_bytes} are allowed")
    check_depth(raw, max_values=max_values)
    try:
        value = msgpack.unpackb(raw, raw=False, ext_hook=_refuse_extension)
    except MalformedBytes:
        raise
    except Exception as error:  # msgpack raises a dozen types; each means the same here
        raise MalformedBytes(f"not msgpack: {type(error).__name__}") from None
    if encode(value) != raw:
        raise MalformedBytes("not in canonical form")
    return value


def frame(payload: bytes) -> bytes:
    """The payload behind its length, as it goes on a stream."""
    if len(payload) > MAX_FRAME_BYTES:
        raise MalformedBytes(f"a frame of {len(payload)} bytes exceeds {MAX_FRAME_BYTES}")
    return FRAME_HEADER.pack(len(payload)) + payload


def frame_length(header: bytes, max_bytes: int = MAX_FRAME_BYTES) -> int:
    """The payload length that a 4-byte header announces; raises MalformedBytes before anything is allocated."""
    if len(header) != FRAME_HEADER.size:
        raise MalformedBytes("truncated frame header")
    (length,) = FRAME_HEADER.unpack(header)
    if length > max_bytes:
        raise MalformedBytes(f"a frame of {length} bytes exceeds {max_bytes}")
    return int(length)
