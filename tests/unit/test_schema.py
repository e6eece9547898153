"""Dataclasses to wire values and back: every limit of an annotation holds, and the message names the field."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.digest import Digest
from swarm.errors import MalformedBytes
from swarm.identity import PeerId
from swarm.schema import U32, U63, Line, MaxLen, Range, from_value, to_value
from tests.unit.message_examples import messages_of, wire_values


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Point:
    x: U32
    y: Annotated[float, Range(-1.0, 1.0)]


@dataclass(frozen=True, slots=True)
class Shape:
    name: Line
    colour: Colour
    owner: PeerId
    digest: Digest
    corners: Annotated[tuple[Point, ...], MaxLen(4)]
    pair: tuple[int, str]
    data: Annotated[bytes, MaxLen(5)] | None
    filled: bool
    size: U63

    def __post_init__(self) -> None:
        if self.name == "forbidden":
            raise ValueError("no shape is called that")


GOOD: list[Any] = ["a", "red", b"o" * 32, b"d" * 32, [[1, 0.5]], [1, "x"], None, True, 7]
PLACES = {"name": 0, "colour": 1, "owner": 2, "digest": 3, "corners": 4, "pair": 5, "data": 6, "filled": 7, "size": 8}


def test_a_good_value_is_read() -> None:
    shape = from_value(Shape, GOOD)
    assert shape.corners == (Point(1, 0.5),) and shape.colour is Colour.RED and shape.pair == (1, "x")
    assert to_value(shape) == GOOD


@settings(deadline=None)
@given(messages_of(Shape, fixed={"pair": (3, "y"), "name": "n"}))
def test_round_trip(shape: Shape) -> None:
    assert from_value(Shape, to_value(shape)) == shape


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "x" * 401),
        ("name", b"a"),
        ("name", "forbidden"),
        ("colour", "green"),
        ("colour", []),
        ("colour", 3),
        ("colour", "g" * 100_000),
        ("owner", b"o" * 31),
        ("owner", "o" * 32),
        ("digest", b"d" * 33),
        ("corners", [[1, 0.5]] * 5),
        ("corners", [[1, 1.5]]),
        ("corners", [[-1, 0.5]]),
        ("corners", [[2**32, 0.5]]),
        ("corners", [[1, float("nan")]]),
        ("corners", [[1, float("inf")]]),
        ("corners", [[1, 1]]),  # an int where a float is due
        ("corners", [[True, 0.5]]),
        ("corners", [[1.0, 0.5]]),
        ("corners", [[1, 0.5, 2]]),
        ("corners", [7]),
        ("corners", None),
        ("corners", b"ab"),
        ("pair", [1]),
        ("pair", ["x", 1]),
        ("data", b"123456"),
        ("data", "12345"),
        ("filled", 1),
        ("filled", None),
        ("size", -1),
        ("size", 2**63),
    ],
)
def test_a_bad_field_is_named(field: str, value: Any) -> None:
    bad = [*GOOD]
    bad[PLACES[field]] = value
    with pytest.raises(MalformedBytes, match=field if value != "forbidden" else "no shape") as caught:
        from_value(Shape, bad)
    assert len(str(caught.value)) < 200, "a hostile value must not fill the log"


@pytest.mark.parametrize("value", [None, [], GOOD[:-1], [*GOOD, 1], 3, b"", "x"], ids=repr)
def test_a_dataclass_has_its_fields(value: Any) -> None:
    with pytest.raises(MalformedBytes):
        from_value(Shape, value)


@settings(deadline=None, max_examples=200)
@given(st.lists(wire_values, min_size=9, max_size=9) | wire_values)
def test_any_value_is_refused_or_a_message(value: Any) -> None:
    try:
        shape = from_value(Shape, value)
    except MalformedBytes:
        return
    assert to_value(shape) == value


def test_what_has_no_wire_form_is_our_own_fault() -> None:
    with pytest.raises(TypeError):
        to_value({"a": 1})
