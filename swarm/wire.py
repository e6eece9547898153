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


def check_depth(raw: bytes, max_depth: int = MAX_DEPTH) -> None:
    """Raises MalformedBytes if the msgpack in `raw` nests deeper than `max_depth`, or holds a map or an extension.

    So it does for more than MAX_VALUES values: what is built takes many times the bytes that announce it. One pass over
    the headers, nothing is built: a hostile record costs its own length and no more.
    """
    position, announced = 0, 1
    to_come = [1]  # values still to come at each open level
    while to_come:
        if to_come[-1] == 0:
            to_come.pop()
            continue
        to_come[-1] -= 1
        if position >= len(raw):
            raise MalformedBytes("truncated")
        position, items = _skip_header(raw, position)
        if items is None:
            continue
        if items > len(raw) - position:
            raise MalformedBytes(f"a list of {items} items in {len(raw) - position} bytes")
        if len(to_come) > max_depth:
            raise MalformedBytes(f"nested deeper than {max_depth} lists")
        announced += items
        if announced > MAX_VALUES:
            raise MalformedBytes(f"more than {MAX_VALUES} values")
        to_come.append(items)
    if position != len(raw):
        raise MalformedBytes(f"{len(raw) - position} bytes behind the value")


_FIXED: Final = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin and str: width of the length
_LISTS: Final = {0xDC: 2, 0xDD: 4}


def _skip_header(raw: bytes, position: int) -> tuple[int, int | None]:
    """The position behind one value's header (and body, unless a list) and, for a list, how many items follow."""
    byte = raw[position]
    position += 1
    if byte <= 0x7F or byte >= 0xE0 or byte in (0xC0, 0xC2, 0xC3):
        return position, None
    if 0x90 <= byte <= 0x9F:
        return position, byte & 0x0F
    if 0xA0 <= byte <= 0xBF:
        position += byte & 0x1F
    elif byte in _FIXED:
        position += _FIXED[byte]
    elif byte in _SIZED or byte in _LISTS:
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


def decode(raw: bytes, *, max_bytes: int = MAX_FRAME_BYTES) -> Any:
    """The value whose canonical encoding is `raw`; lists come back as lists. Raises MalformedBytes."""
    if len(raw) > max_bytes:
        raise MalformedBytes(f"{len(raw)} bytes where at most {max_bytes} are allowed")
    check_depth(raw)
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
