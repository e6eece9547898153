"""The rules of one hop: who may have what passed on, how much, and that nothing is taken twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.identity import PeerId
from swarm.messages import MAX_FORWARDED_BYTES
from swarm.net.forward import (
    MAX_FORWARDED_BYTES_PER_S,
    MAX_FORWARDS_PER_S,
    NUMBER_WINDOW,
    ForwardLimits,
    ForwardNumbers,
)

ONE, OTHER = (PeerId(bytes([number]) * 32) for number in (1, 2))


def test_an_author_has_its_messages_and_bytes_a_second_and_takes_nobody_elses() -> None:
    limits = ForwardLimits()
    assert [limits.refusal(ONE, 100, 5.0) for _ in range(MAX_FORWARDS_PER_S)] == [""] * MAX_FORWARDS_PER_S
    assert limits.refusal(ONE, 100, 5.0).startswith("busy") and not limits.refusal(OTHER, 100, 5.0)
    assert not limits.refusal(ONE, 100, 5.0 + 1.01 / MAX_FORWARDS_PER_S)
    assert limits.refusal(ONE, MAX_FORWARDED_BYTES + 1, 99.0).startswith(str(MAX_FORWARDED_BYTES + 1))


@given(st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(1, MAX_FORWARDED_BYTES)), max_size=200))
def test_in_any_time_no_more_passes_than_the_rate_and_one_second_of_it(asks: list[tuple[float, int]]) -> None:
    limits, now_s, passed, num_bytes = ForwardLimits(), 0.0, 0, 0
    for wait_s, size in asks:
        now_s += wait_s
        if not limits.refusal(ONE, size, now_s):
            passed, num_bytes = passed + 1, num_bytes + size
    assert passed <= MAX_FORWARDS_PER_S * (1 + now_s) + 1e-6
    assert num_bytes <= MAX_FORWARDED_BYTES_PER_S * (1 + now_s) + 1e-6


def test_an_answer_counts_like_a_message() -> None:
    limits = ForwardLimits()
    assert not limits.refusal(ONE, 1, 0.0)
    limits.spend(ONE, MAX_FORWARDED_BYTES_PER_S, 0.0)
    assert limits.refusal(ONE, 1000, 0.0).startswith("busy")


@given(st.lists(st.integers(1, 3 * NUMBER_WINDOW)))
def test_each_number_counts_once_and_old_ones_never(numbers: list[int]) -> None:
    seen, taken = ForwardNumbers(), set[int]()
    for place, number in enumerate(numbers):
        highest = max(numbers[: place + 1])
        is_new = seen.is_new(ONE, number)
        assert is_new == (number not in taken and number > highest - NUMBER_WINDOW)
        taken |= {number} if is_new else set()
    assert all(seen.is_new(OTHER, number) for number in numbers[:1])
