"""Frozen dataclasses to wire values and back, checked field by field.

A field's annotation is its schema: `int`, `float`, `bool`, `str`, `bytes`, `Digest`, `PeerId`, a nested message, a
`StrEnum`, `T | None`, or `tuple[T, ...]`; `Annotated` adds limits. A dataclass travels as the list of its fields.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
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
    """The most letters, bytes or items a field may have."""

    limit: int


U32 = Annotated[int, Range(0, 2**32 - 1)]
U63 = Annotated[int, Range(0, 2**63 - 1)]
Name = Annotated[str, MaxLen(64)]  # what people call a peer
Line = Annotated[str, MaxLen(400)]  # a reason or an address: one line on a screen
_DEFAULT_MAX_LEN: Final = MaxLen(4096)  # for fields that state no limit


def to_value(item: object) -> Any:
    """The wire value of a message or of one of its fields."""
    if item is None or isinstance(item, bool | int | float | bytes):
        return item
    if isinstance(item, str):
        return str(item)
    if isinstance(item, Digest | PeerId):
        return item.raw
    if isinstance(item, tuple):
        return [to_value(part) for part in item]
    if dataclasses.is_dataclass(item):
        return [to_value(getattr(item, field.name)) for field in dataclasses.fields(item)]
    raise TypeError(f"{type(item).__name__} has no wire form")


def from_value(kind: type[Message], value: Any) -> Message:
    """The message of type `kind` that a decoded wire value stands for; raises MalformedBytes naming the field."""
    message: Message = _read(kind, value, kind.__name__, ())
    return message


@lru_cache(maxsize=256)
def _hints(kind: type) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(kind))


def _read(kind: Any, value: Any, where: str, limits: tuple[Any, ...]) -> Any:
    origin = typing.get_origin(kind)
    if origin is Annotated:
        base, *found = typing.get_args(kind)
        return _read(base, value, where, tuple(found))
    if origin is types.UnionType or origin is typing.Union:
        if value is None:
            return None
        (inner,) = (arg for arg in typing.get_args(kind) if arg is not types.NoneType)
        return _read(inner, value, where, limits)
    if origin is tuple:
        return _read_tuple(kind, value, where, limits)
    if dataclasses.is_dataclass(kind) and kind not in (Digest, PeerId):
        return _read_dataclass(kind, value, where)
    return _read_plain(kind, value, where, limits)


def _read_tuple(kind: Any, value: Any, where: str, limits: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise MalformedBytes(f"{where}: a list is due, not {type(value).__name__}")
    item, *rest = typing.get_args(kind)
    if rest != [Ellipsis]:
        parts = (item, *rest)
        if len(value) != len(parts):
            raise MalformedBytes(f"{where}: {len(value)} items where {len(parts)} are due")
        return tuple(_read(part, one, where, ()) for part, one in zip(parts, value, strict=True))
    _check_length(len(value), where, limits)
    return tuple(_read(item, one, where, ()) for one in value)


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    hints = _hints(kind)
    if not isinstance(value, list) or len(value) != len(hints):
        raise MalformedBytes(f"{where}: {kind.__name__} has {len(hints)} fields")
    fields = {name: _read(hint, one, f"{where}.{name}", ()) for (name, hint), one in zip(hints, value, strict=True)}
    try:
        return kind(**fields)
    except ValueError as error:
        raise MalformedBytes(f"{where}: {error}") from None


def _read_plain(kind: Any, value: Any, where: str, limits: tuple[Any, ...]) -> Any:
    if kind is Digest or kind is PeerId:
        size = DIGEST_BYTES if kind is Digest else KEY_BYTES
        if not isinstance(value, bytes) or len(value) != size:
            raise MalformedBytes(f"{where}: {size} bytes are due")
        return kind(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        names = [one.value for one in kind]
        if value not in names:
            raise MalformedBytes(f"{where}: {_short(value)} is not one of {names}")
        return kind(value)
    if type(value) is not kind:
        raise MalformedBytes(f"{where}: {kind.__name__} is due, not {type(value).__name__}")
    if kind in (str, bytes):
        _check_length(len(value), where, limits)
    elif kind in (int, float):
        _check_number(value, where, limits)
    elif kind is not bool:
        raise TypeError(f"{where}: {kind} cannot be a field")
    return value


def _short(value: Any) -> str:
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__


def _check_length(length: int, where: str, limits: tuple[Any, ...]) -> None:
    limit = next((one for one in limits if isinstance(one, MaxLen)), _DEFAULT_MAX_LEN)
    if length > limit.limit:
        raise MalformedBytes(f"{where}: length {length} exceeds {limit.limit}")


def _check_number(value: float, where: str, limits: tuple[Any, ...]) -> None:
    if not math.isfinite(value):
        raise MalformedBytes(f"{where}: {value} is not finite")
    for limit in limits:
        if isinstance(limit, Range) and not limit.low <= value <= limit.high:
            raise MalformedBytes(f"{where}: {value} is outside [{limit.low}, {limit.high}]")
