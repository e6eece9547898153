"""Messages and events for tests: a strategy for any dataclass of the wire, read off its annotations; a fixed example."""

from __future__ import annotations

import dataclasses
import types
import typing
from enum import StrEnum
from typing import Annotated, Any, get_args, get_origin

from hypothesis import strategies as st

from swarm.chain import ChainState
from swarm.digest import Digest, digest_of
from swarm.identity import Keypair, PeerId
from swarm.schema import MaxLen, Range

_MOST_ITEMS = 3  # enough to see order and emptiness
_MOST_LETTERS = 20
RUN = digest_of("test", b"run")


def keypair(number: int) -> Keypair:
    """The same key for the same number, everywhere."""
    return Keypair.from_seed(bytes([number]) * 32)


AUTHOR = keypair(1)
keypairs = st.integers(1, 8).map(keypair)
peer_ids = keypairs.map(lambda one: one.peer_id)
digests = st.binary(min_size=32, max_size=32).map(Digest)
wire_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)


def largest(kind: Any, limits: tuple[Any, ...] = ()) -> Any:
    """The wire value of the most bytes that a reader of this type accepts."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, *found = get_args(kind)
        return largest(base, tuple(found))
    if origin is types.UnionType or origin is typing.Union:
        (inner,) = (arg for arg in get_args(kind) if arg is not types.NoneType)
        return largest(inner, limits)
    most = next((limit.limit for limit in limits if isinstance(limit, MaxLen)), 4096)
    if origin is tuple:
        item, *rest = get_args(kind)
        return [largest(item)] * most if rest == [Ellipsis] else [largest(one) for one in (item, *rest)]
    if kind in (Digest, PeerId):
        return AUTHOR.peer_id.raw
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return [largest(hints[field.name]) for field in dataclasses.fields(kind)]
    if issubclass(kind, StrEnum):
        return max((one.value for one in kind), key=len)
    high = next((limit.high for limit in limits if isinstance(limit, Range)), 2**63 - 1)
    return {str: "\N{RAINBOW}" * (most // 4), bytes: bytes(most), bool: True, float: float(high)}.get(kind, int(high))


def messages_of(kind: type[Any], fixed: dict[str, Any] | None = None) -> st.SearchStrategy[Any]:
    """Valid messages of a kind; `fixed` names fields with one value only."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {one.name: _values_of(hints[one.name]) for one in dataclasses.fields(kind)}
    fields |= {name: st.just(value) for name, value in (fixed or {}).items()}
    return st.builds(kind, **fields)


def _values_of(kind: Any, limits: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    origin = get_origin(kind)
    if origin is Annotated:
        base, *found = get_args(kind)
        return _values_of(base, tuple(found))
    if origin is types.UnionType or origin is typing.Union:
        (inner,) = (arg for arg in get_args(kind) if arg is not types.NoneType)
        return st.none() | _values_of(inner, limits)
    if origin is tuple:
        item, *_ = get_args(kind)
        return st.lists(_values_of(item), max_size=_MOST_ITEMS).map(tuple)
    if kind is ChainState:  # what it says of its members is as long as its roster
        members = st.lists(peer_ids, max_size=_MOST_ITEMS, unique=True).map(lambda roster: tuple(sorted(roster)))
        return members.flatmap(
            lambda roster: messages_of(
                kind,
                {
                    "roster": roster,
                    "entered": (7,) * len(roster),
                    "dialable": bytes(range(len(roster))),
                    "voting": b"\3" * len(roster),
                },
            )
        )
    if dataclasses.is_dataclass(kind) and kind not in (Digest, PeerId):
        return messages_of(typing.cast(type[Any], kind))
    return _plain_values_of(kind, limits)


def _plain_values_of(kind: Any, limits: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    longest = min([_MOST_LETTERS, *(one.limit for one in limits if isinstance(one, MaxLen))])
    low, high = next(((one.low, one.high) for one in limits if isinstance(one, Range)), (-1e6, 1e6))
    if issubclass(kind, StrEnum):
        return st.sampled_from(list(kind))
    return {
        int: st.integers(int(low), int(high)),
        float: st.floats(low, high),
        bool: st.booleans(),
        str: st.text(max_size=longest),
        bytes: st.binary(max_size=longest),
        Digest: digests,
        PeerId: peer_ids,
    }[kind]


def example_of(kind: type[Any]) -> Any:
    """One message of a kind, every field filled in, the same in every run."""
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [one.name for one in dataclasses.fields(kind)]
    return kind(**{name: _example_of(hints[name], f"{kind.__name__}.{name}") for name in names})


def _example_of(kind: Any, where: str, limits: tuple[Any, ...] = ()) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        base, *found = get_args(kind)
        return _example_of(base, where, tuple(found))
    if origin is types.UnionType or origin is typing.Union:
        (inner,) = (arg for arg in get_args(kind) if arg is not types.NoneType)
        return _example_of(inner, where, limits)
    if origin is tuple:
        item, *_ = get_args(kind)
        return tuple(_example_of(item, f"{where}.{index}", ()) for index in range(2))
    if dataclasses.is_dataclass(kind) and kind not in (Digest, PeerId):
        return example_of(typing.cast(type[Any], kind))
    number = digest_of("test", where.encode()).raw
    if kind is PeerId:  # a status or contribution must be the author's own
        return AUTHOR.peer_id if where.count(".") == 1 else keypair(2 + number[0] % 6).peer_id
    if issubclass(kind, StrEnum):
        return list(kind)[number[0] % len(kind)]
    if where.endswith(("ChainState.dialable", "ChainState.voting")):
        return number[:2]  # a byte for each of the roster
    high = next((limit.high for limit in limits if isinstance(limit, Range)), 2**63 - 1)
    plain = {
        int: min(number[0] * 300, int(high)),
        float: number[0] / 8,
        bool: True,
        str: where[-40:],
        bytes: number[:9],
    }
    return Digest(number) if kind is Digest else plain[kind]


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Those bytes cut short, made longer, or with some of them changed; now and then unharmed."""
    match draw(st.sampled_from(["cut", "longer", "flip", "splice", "length"])):
        case "cut":
            return whole[: draw(st.integers(0, len(whole)))]
        case "longer":
            return whole + draw(st.binary(min_size=1, max_size=9))
        case "flip":
            harmed = bytearray(whole)
            for place in draw(st.lists(st.integers(0, max(0, len(whole) - 1)), max_size=4)):
                harmed[place] ^= 1 << draw(st.integers(0, 7))
            return bytes(harmed)
        case "splice":
            begin, end = sorted((draw(st.integers(0, len(whole))), draw(st.integers(0, len(whole)))))
            return whole[:begin] + draw(st.binary(max_size=12)) + whole[end:]
        case _:  # a header that announces far more than there is
            place = draw(st.integers(0, len(whole)))
            header = draw(st.sampled_from([b"\xdd", b"\xdb", b"\xc6", b"\xdf", b"\xc9"]))
            return whole[:place] + header + b"\xff\xff\xff\xfe" + whole[place:]
