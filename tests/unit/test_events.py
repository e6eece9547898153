"""Events: round trips as bytes, plain JSON, and hostile bytes (a monitor reads what peers send)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import wire
from swarm.errors import MalformedBytes
from swarm.events import KINDS, event_bytes, event_json, read_event
from tests.unit.message_examples import damaged, example_of, messages_of, wire_values

quick = settings(deadline=None, max_examples=15)
by_kind = pytest.mark.parametrize("name", KINDS)
times = st.floats(0, 1e11)


@by_kind
@quick
@given(at=times, data=st.data())
def test_round_trip(name: str, at: float, data: st.DataObject) -> None:
    event = data.draw(messages_of(KINDS[name]))
    assert read_event(event_bytes(at, event)) == (at, event)


@by_kind
def test_json_is_plain_and_whole(name: str) -> None:
    event = example_of(KINDS[name])
    fields = event_json(12.34567, event)
    assert json.loads(json.dumps(fields)) == fields
    assert fields["event"] == name and fields["at_unix_s"] == 12.346
    assert set(fields) == {"event", "at_unix_s", *event.__dataclass_fields__}


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_harmed_bytes_are_refused_or_another_event(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(KINDS)))
    _refused_or_canonical(data.draw(damaged(event_bytes(1.5, example_of(KINDS[name])))))


@settings(deadline=None, max_examples=100)
@given(wire_values | st.lists(wire_values, min_size=3, max_size=3))
def test_any_value_is_refused(value: Any) -> None:
    _refused_or_canonical(wire.encode(value))


@pytest.mark.parametrize(
    "value",
    [
        [1.0, [], []],  # a kind that cannot be looked up
        [1.0, ["PeerLeft"], []],
        [1.0, "NoSuchEvent", []],
        [1.0, b"PeerLeft", []],
        [float("nan"), "RoundSkipped", [1, ""]],
        [float("inf"), "RoundSkipped", [1, ""]],
        [1, "RoundSkipped", [1, ""]],
        [1.0, "RoundSkipped", [1]],
        [1.0, "RoundSkipped"],
    ],
    ids=repr,
)
def test_bad_events(value: Any) -> None:
    with pytest.raises(MalformedBytes):
        read_event(wire.encode(value))


def _refused_or_canonical(raw: bytes) -> None:
    try:
        at, event = read_event(raw)
    except MalformedBytes:
        return
    assert event_bytes(at, event) == raw
