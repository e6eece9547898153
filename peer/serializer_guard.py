"""A guard in front of hivemind's msgpack serializer, which follows nested extension types until the process dies.

hivemind reads DHT requests of anybody with it. Before anything is built, one pass over the headers bounds length, number
of values and nesting, and goes into the two extension types that DHT records are made of; others are refused.
"""

from __future__ import annotations

from typing import Any, Final

from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils.serializer import MSGPackSerializer

MAX_BYTES: Final = 4 << 20  # of one message of p2pd
MAX_VALUES: Final = 1 << 16  # a key with the records of 16,000 peers has 3 values each
MAX_DEPTH: Final = 12  # lists, maps and extensions together; a dictionary of records nests 4
MAX_EXTENSION_DEPTH: Final = 4  # each copies its content once more; a dictionary with tuples for sub-keys nests 2
_TUPLE: Final = 0x40
_DICTIONARY: Final = 0x50  # hivemind.dht.storage.DictionaryDHTValue
_SUBKEYS: Final = (str, bytes, int, float, bool, tuple)
_MARK: Final = "_guarded_by_barnraise"

_FIXED: Final = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin and str: width of the length
_LISTS: Final = {0xDC: 2, 0xDD: 4}
_MAPS: Final = {0xDE: 2, 0xDF: 4}
_FIXED_EXTENSIONS: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_EXTENSIONS: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4}


def check(raw: bytes) -> None:
    """Returns if hivemind may parse `raw`; raises ValueError otherwise. Builds nothing; costs at most MAX_VALUES steps."""
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{len(raw)} bytes where at most {MAX_BYTES} are allowed")
    position, num_values = 0, 0
    to_come = [1]  # values still to come at each open level, innermost last
    ends = [len(raw)]  # the end of the whole and of each extension that is open
    opened_at = [0]  # the level at which each of these began
    while to_come:
        if to_come[-1] == 0:
            if len(to_come) - 1 == opened_at[-1]:  # the one value that a whole or an extension holds is complete
                opened_at.pop()
                if position != ends.pop():
                    raise ValueError("bytes behind a value")
            to_come.pop()
            continue
        to_come[-1] -= 1
        num_values += 1
        if num_values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        position, num_items, content_bytes = _header(raw, position, ends[-1])
        if num_items is None:
            continue
        if len(to_come) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        if content_bytes is not None:
            if len(ends) > MAX_EXTENSION_DEPTH:
                raise ValueError(f"extensions nested deeper than {MAX_EXTENSION_DEPTH}")
            opened_at.append(len(to_come))
            ends.append(position + content_bytes)
        to_come.append(num_items)


def _header(raw: bytes, position: int, end: int) -> tuple[int, int | None, int | None]:
    """Reads one value's header: the position behind it (and behind the body of a scalar), the number of values that follow
    inside (None for a scalar), and for an extension the bytes of its content (None for all else)."""
    if position >= end:
        raise ValueError("truncated")
    byte = raw[position]
    position += 1
    if byte <= 0x7F or byte >= 0xE0 or byte in (0xC0, 0xC2, 0xC3):
        return position, None, None
    num_items: int | None = None
    if byte <= 0x8F:
        num_items = 2 * (byte & 0x0F)
    elif byte <= 0x9F:
        num_items = byte & 0x0F
    elif byte <= 0xBF:
        position += byte & 0x1F
    elif byte in _FIXED:
        position += _FIXED[byte]
    elif byte in _FIXED_EXTENSIONS:
        return _extension(raw, position, end, _FIXED_EXTENSIONS[byte])
    else:
        width = _SIZED.get(byte) or _LISTS.get(byte) or _MAPS.get(byte) or _EXTENSIONS.get(byte)
        if width is None or position + width > end:
            raise ValueError("truncated, or no msgpack")
        length = int.from_bytes(raw[position : position + width], "big")
        position += width
        if byte in _EXTENSIONS:
            return _extension(raw, position, end, length)
        if byte in _SIZED:
            position += length
        else:
            num_items = length * (2 if byte in _MAPS else 1)
    if position > end or (num_items or 0) > end - position:  # each item takes a byte at least
        raise ValueError("truncated")
    return position, num_items, None


def _extension(raw: bytes, position: int, end: int, length: int) -> tuple[int, int, int]:
    if position + 1 + length > end:
        raise ValueError("truncated")
    if raw[position] not in (_TUPLE, _DICTIONARY):
        raise ValueError(f"extension type {raw[position]:#x} is not part of a DHT record")
    return position + 1, 1, length


def _check_dictionary(value: DictionaryDHTValue[Any, Any]) -> None:
    """Its fields are compared and merged later, in tasks that a wrong type would end."""
    if not isinstance(value.maxsize, int | float) or not isinstance(value.latest_expiration_time, int | float):
        raise ValueError("a dictionary's limits are numbers")
    with value.freeze():
        for subkey, (content, expiration_s) in value.items():
            if (
                not isinstance(subkey, _SUBKEYS)
                or not isinstance(content, bytes)
                or not isinstance(expiration_s, float)
            ):
                raise ValueError("a dictionary holds bytes and expiry times")


def install() -> None:
    """Puts the guard in front of hivemind's serializer, for the whole process. To be called before a DHTNode starts."""
    if getattr(MSGPackSerializer.loads, _MARK, False):
        return
    unguarded = MSGPackSerializer.loads

    def loads(buf: bytes) -> Any:
        """What hivemind's own `loads` returns; raises ValueError for whatever it cannot or must not read."""
        check(buf)
        try:
            value = unguarded(buf)
            if isinstance(value, DictionaryDHTValue):
                _check_dictionary(value)
            return value
        except ValueError:
            raise
        except Exception as error:  # a sub-key that is a list, a dictionary of the wrong shape, and the like
            raise ValueError(f"not a DHT record: {type(error).__name__}: {str(error)[:100]}") from None

    setattr(loads, _MARK, True)
    MSGPackSerializer.loads = staticmethod(loads)
