"""Frozen dataclasses to wire values and back, checked field by field.

A field's annotation is its schema: `int`, `float`, `bool`, `str`, `bytes`, `Digest`, `PeerId`, a nested message, a
`StrEnum`, `T | None`, or `tuple[T, ...]`; `Annotated` adds limits. A dataclass travels as the list of its fields. Readers and
writers are built once for each type: heartbeats pass here all day.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any, Final, TypeVar

from swarm.digest import DIGEST_BYTES, Digest
from swarm.errors import MalformedBytes
from swarm.identity import KEY_BYTES, PeerId

Message = TypeVar("Message")


@dataclass(frozen=True, slots=True)
class Range:
    """Limits of a number, both inclusive."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MaxLen:
    """The most bytes (of a text in UTF-8) or items a field may have."""

    limit: int


U32 = Annotated[int, Range(0, 2**32 - 1)]
U63 = Annotated[int, Range(0, 2**63 - 1)]
MAX_NAME_BYTES: Final = 64
MAX_LINE_BYTES: Final = 400
Name = Annotated[str, MaxLen(MAX_NAME_BYTES)]  # what people call a peer
Line = Annotated[str, MaxLen(MAX_LINE_BYTES)]  # a reason: one line on a screen
_DEFAULT_MAX_LEN: Final = MaxLen(4096)  # for fields that state no limit


def line(text: object, max_bytes: int = MAX_LINE_BYTES) -> str:
    """The text of an error or a reason, cut to what a field of so many bytes holds; what UTF-8 has no bytes for is "?"."""
    return str(text).encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")


def to_value(item: object) -> Any:
    """The wire value of a message or of one of its fields."""
    kind: Any = type(item)
    if kind in _AS_IT_IS:
        return item
    if kind is tuple:
        return [to_value(part) for part in item]  # type: ignore[attr-defined]
    writer = _writer(kind)
    return writer(item)


def from_value(kind: type[Message], value: Any) -> Message:
    """The message of type `kind` that a decoded wire value stands for; raises MalformedBytes naming the field."""
    wanted: Any = kind
    message: Message = _reader(wanted, kind.__name__, ())(value)
    return message


_AS_IT_IS: Final = frozenset((type(None), bool, int, float, bytes, str))
_Reader = Callable[[Any], Any]


@lru_cache(maxsize=256)
def _writer(kind: Any) -> Callable[[Any], Any]:
    """What turns items of one type into values."""
    if issubclass(kind, Digest | PeerId):
        return attrgetter("raw")
    if issubclass(kind, str):
        return str.__str__  # the bare text of an enumeration's member
    if issubclass(kind, bool | int | float | bytes):
        return lambda item: item
    if issubclass(kind, tuple):
        return lambda item: [to_value(part) for part in item]
    if dataclasses.is_dataclass(kind):
        names = tuple(field.name for field in dataclasses.fields(kind))
        return lambda item: [to_value(getattr(item, name)) for name in names]
    raise TypeError(f"{kind.__name__} has no wire form")


@lru_cache(maxsize=4096)
def _reader(kind: Any, where: str, limits: tuple[Any, ...]) -> _Reader:
    """What reads the values of one field; made once, as `where` and the limits follow from the message's type."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        base, *found = typing.get_args(kind)
        return _reader(base, where, tuple(found))
    if origin is types.UnionType or origin is typing.Union:
        (inner,) = (arg for arg in typing.get_args(kind) if arg is not types.NoneType)
        read = _reader(inner, where, limits)
        return lambda value: None if value is None else read(value)
    if origin is tuple:
        return _tuple_reader(kind, where, limits)
    if dataclasses.is_dataclass(kind) and kind not in (Digest, PeerId):
        return _dataclass_reader(kind, where)
    return _plain_reader(kind, where, limits)


def _tuple_reader(kind: Any, where: str, limits: tuple[Any, ...]) -> _Reader:
    item, *rest = typing.get_args(kind)
    if rest != [Ellipsis]:
        parts = tuple(_reader(part, where, ()) for part in (item, *rest))
        return lambda value: _read_parts(parts, value, where)
    read, most = _reader(item, where, ()), _max_len(limits)

    def read_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise MalformedBytes(f"{where}: a list is due, not {type(value).__name__}")
        _check_length(len(value), where, most)
        return tuple([read(one) for one in value])

    return read_all


def _read_parts(parts: tuple[_Reader, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise MalformedBytes(f"{where}: a list is due, not {type(value).__name__}")
    if len(value) != len(parts):
        raise MalformedBytes(f"{where}: {len(value)} items where {len(parts)} are due")
    return tuple(read(one) for read, one in zip(parts, value, strict=True))


def _dataclass_reader(kind: Any, where: str) -> _Reader:
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    readers = tuple(_reader(hints[name], f"{where}.{name}", ()) for name in names)

    def read(value: Any) -> Any:
        if not isinstance(value, list) or len(value) != len(readers):
            raise MalformedBytes(f"{where}: {kind.__name__} has {len(readers)} fields")
        fields = [read_one(one) for read_one, one in zip(readers, value, strict=True)]
        try:
            return kind(*fields)
        except ValueError as error:
            raise MalformedBytes(f"{where}: {error}") from None

    return read


def _plain_reader(kind: Any, where: str, limits: tuple[Any, ...]) -> _Reader:
    if kind is PeerId:
        return lambda value: _read_name(_peer, KEY_BYTES, value, where)
    if kind is Digest:
        return lambda value: _read_name(Digest, DIGEST_BYTES, value, where)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        members = {one.value: one for one in kind}
        return lambda value: _read_member(members, value, where)
    if kind not in (str, bytes, int, float, bool):
        raise TypeError(f"{where}: {kind} cannot be a field")
    most = _max_len(limits)
    ranges = tuple(limit for limit in limits if isinstance(limit, Range))

    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise MalformedBytes(f"{where}: {kind.__name__} is due, not {type(value).__name__}")
        if kind is str or kind is bytes:
            _check_length(len(value if kind is bytes or value.isascii() else value.encode()), where, most)
        elif kind is not bool:
            _check_number(value, where, ranges)
        return value

    return read


def _read_name(make: Callable[[bytes], Any], size: int, value: Any, where: str) -> Any:
    if not isinstance(value, bytes) or len(value) != size:
        raise MalformedBytes(f"{where}: {size} bytes are due")
    return make(value)


@lru_cache(maxsize=8192)
def _peer(raw: bytes) -> PeerId:
    """One object for each id, however often it is read: what is the same object need not be compared."""
    return PeerId(raw)


def _read_member(members: dict[str, Any], value: Any, where: str) -> Any:
    if not isinstance(value, str) or value not in members:
        raise MalformedBytes(f"{where}: {_short(value)} is not one of {list(members)}")
    return members[value]


def _short(value: Any) -> str:
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__


def _max_len(limits: tuple[Any, ...]) -> int:
    return next((one for one in limits if isinstance(one, MaxLen)), _DEFAULT_MAX_LEN).limit


def _check_length(length: int, where: str, most: int) -> None:
    if length > most:
        raise MalformedBytes(f"{where}: length {length} exceeds {most}")


def _check_number(value: float, where: str, ranges: tuple[Range, ...]) -> None:
    if not math.isfinite(value):
        raise MalformedBytes(f"{where}: {value} is not finite")
    for limit in ranges:
        if not limit.low <= value <= limit.high:
            raise MalformedBytes(f"{where}: {value} is outside [{limit.low}, {limit.high}]")
