"""Serving at a pace: never more than the rate allows, everybody in turn, nobody for ever."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.digest import CHUNK_BYTES
from swarm.identity import PeerId
from swarm.pace import (
    BURST_BYTES,
    LEAST_UPLOAD,
    MAX_HELD_S,
    MAX_IN_LINE,
    MAX_IN_LINE_PER_REMOTE,
    MAX_WAIT_S,
    NEWCOMER_FACTOR,
    ROUNDS_COUNTED,
    UPLOAD_WINDOW_S,
    RoundTraffic,
    ServeQueue,
    TokenBucket,
    Upload,
)

REMOTES = [PeerId(bytes([number]) * 32) for number in range(1, 60)]


class Shop:
    """Remotes that ask for one chunk after the other, and come again after a while when they were turned away."""

    def __init__(self, rate: float, greed: dict[PeerId, int], seed: int = 0, num_bytes: int = CHUNK_BYTES) -> None:
        self.queue = ServeQueue(rate, 0.0)
        self.rate, self.num_bytes = rate, num_bytes
        self.random = random.Random(seed)
        self.granted: list[tuple[float, PeerId]] = []
        self.waits: list[float] = []
        self._asked: dict[int, tuple[PeerId, float]] = {}
        self._due = [(self.random.random(), remote) for remote, count in greed.items() for _ in range(count)]

    def run(self, until_s: float) -> None:
        now_s = 0.0
        while now_s < until_s:
            for at_s, remote in [one for one in self._due if one[0] <= now_s]:
                self._due.remove((at_s, remote))
                self._asked[self.queue.ask(remote, self.num_bytes, now_s)] = (remote, now_s)
            assert self.queue.num_waiting <= MAX_IN_LINE
            settled = self.queue.settle(now_s)
            for ticket in settled.granted:
                remote, asked_s = self._asked.pop(ticket)
                self.granted.append((now_s, remote))
                self.waits.append(now_s - asked_s)
                self._due.append((now_s + 0.05, remote))
            for ticket in settled.turned_away:
                remote, _ = self._asked.pop(ticket)
                self._due.append((now_s + self.random.uniform(0.5, 4.0), remote))
            in_line = Counter(remote for remote, _ in self._asked.values())
            assert max(in_line.values(), default=0) <= MAX_IN_LINE_PER_REMOTE
            times = [at_s for at_s, _ in self._due]
            next_s = self.queue.next_s(now_s)
            now_s = max(now_s + 1e-6, min([*times, *([] if next_s is None else [next_s])]))

    def most(self, span_s: float) -> int:
        """The most bytes that were granted in any span of that length."""
        times = [at_s for at_s, _ in self.granted]
        spans = (sum(1 for at_s in times[place:] if at_s <= first + span_s) for place, first in enumerate(times))
        return max(spans, default=0) * self.num_bytes


@pytest.mark.parametrize("rate", [0.1e6, 0.3e6, 3e6, 40e6])
@pytest.mark.parametrize("span_s", [0.0, 0.5, 3.0, 20.0])
def test_in_no_span_more_than_the_rate_allows_and_not_much_less(rate: float, span_s: float) -> None:
    shop = Shop(rate, dict.fromkeys(REMOTES[:5], 4))
    shop.run(60.0)
    assert shop.most(span_s) <= rate * span_s + BURST_BYTES + 1
    assert len(shop.granted) * CHUNK_BYTES >= 0.9 * rate * 58.0
    assert max(shop.waits) <= MAX_HELD_S


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 8), min_size=1, max_size=40),
    rate=st.sampled_from([0.2e6, 1e6, 10e6]),
    seed=st.integers(0, 2**32),
)
def test_nobody_starves(counts: list[int], rate: float, seed: int) -> None:
    """Who asks for one at a time gets about as much as who asks for eight, and everybody gets something in time."""
    shop = Shop(rate, dict(zip(REMOTES, counts, strict=False)), seed)
    round_s = len(counts) * CHUNK_BYTES / rate  # in which each could have had one
    shop.run(10 * round_s + 30.0)
    served = Counter(remote for _, remote in shop.granted)
    assert set(served) == set(REMOTES[: len(counts)])
    assert shop.most(1.0) <= rate + BURST_BYTES + 1


def test_the_greedy_do_not_get_more_than_the_modest() -> None:
    shop = Shop(10e6, {REMOTES[0]: 1, REMOTES[1]: 4, REMOTES[2]: 8})
    shop.run(60.0)
    served = Counter(remote for _, remote in shop.granted)
    assert max(served.values()) <= 1.3 * min(served.values())


def test_a_newcomer_does_not_wait_for_those_who_have_had_much() -> None:
    queue = ServeQueue(1e6, 0.0)
    for number in range(MAX_IN_LINE):
        queue.ask(REMOTES[number // 4], CHUNK_BYTES // 4, 0.0)
    queue.settle(0.0)
    ticket = queue.ask(REMOTES[50], CHUNK_BYTES // 4, 0.0)
    now_s, before = 0.0, 0
    while ticket not in (settled := queue.settle(now_s)).granted:
        assert ticket not in settled.turned_away
        before += len(settled.granted)
        now_s = queue.next_s(now_s) or math.inf
    assert before <= 4


def test_who_leaves_makes_room() -> None:
    queue = ServeQueue(0.3e6, 0.0)
    tickets = [queue.ask(REMOTES[0], CHUNK_BYTES, 0.0) for _ in range(2)]
    assert queue.settle(0.0).granted == (tickets[0],)
    queue.leave(tickets[1])
    assert queue.num_waiting == 0 and queue.next_s(0.0) is None


def test_too_long_a_wait_is_refused_at_once() -> None:
    queue = ServeQueue(0.2e6, 0.0)
    for remote in REMOTES[:5]:
        queue.ask(remote, CHUNK_BYTES, 0.0)
    settled = queue.settle(0.0)
    # One at once, one after 5.2 s; the third would have had to wait for more than 8.
    assert len(settled.granted) == 1 and len(settled.turned_away) == 3
    assert queue.next_s(0.0) == pytest.approx(CHUNK_BYTES / 0.2e6, rel=0.1) and MAX_WAIT_S > 5.3


def test_an_infinite_rate_lets_everything_through() -> None:
    queue = ServeQueue(math.inf, 0.0)
    tickets = tuple(queue.ask(REMOTES[0], CHUNK_BYTES, 0.0) for _ in range(4))
    assert queue.settle(0.0).granted == tickets


def test_a_bucket_that_changes_its_rate_keeps_what_is_in_it() -> None:
    bucket = TokenBucket(10.0, 100.0, 0.0)
    assert bucket.take(100, 0.0) and not bucket.take(1, 0.0)
    bucket.set_rate(1.0, 5.0)
    assert not bucket.take(51, 5.0) and bucket.take(50, 5.0)
    assert bucket.ready_s(10, 5.0) == 15.0


def test_the_upload_is_what_was_told_or_the_best_that_was_seen() -> None:
    assert Upload(5e6).bytes_per_s == 5e6
    upload = Upload()
    sent = 0
    for second in range(100):
        upload.note(sent, float(second))
        sent += 8_000_000 if 20 <= second < 40 else 1000
    assert upload.bytes_per_s == pytest.approx(8e6, rel=0.01)
    burst = Upload()
    for second in range(100):
        burst.note(20_000_000 * (second >= 50), float(second))  # two seconds' worth is not the line's rate
    assert burst.bytes_per_s == pytest.approx(20e6 / UPLOAD_WINDOW_S, rel=0.15)
    idle = Upload()
    for second in range(100):
        idle.note(0, float(second))
    assert idle.bytes_per_s == LEAST_UPLOAD


def test_the_rounds_bytes_are_counted_from_the_end_of_the_first() -> None:
    rounds = RoundTraffic()
    assert rounds.bytes_per_s(0.0) == 0.0
    for number in range(20):
        rounds.note(1e6 + number, 4.0 * number)
    assert rounds.bytes_per_s(76.0) == pytest.approx((ROUNDS_COUNTED * 1e6 + sum(range(12, 20))) / 32.0)
    assert rounds.bytes_per_s(176.0) < 0.25 * rounds.bytes_per_s(76.0), "no round has ended for long"


@given(st.floats(1e3, 1e8), st.floats(1e6, 1e9))
@settings(deadline=None)
def test_a_newcomer_comes_closer_whatever_the_rounds_make(made: float, missed: float) -> None:
    """Served at a share of an upload of which little was seen, it fell behind for ever: 335 kB/s where rounds made 490."""
    served = Upload().serving(NEWCOMER_FACTOR * made)
    assert missed / (served - made) <= missed / (made * (NEWCOMER_FACTOR - 1)) * (1 + 1e-9)


def test_what_a_newcomer_needs_is_no_more_than_half_of_an_upload_that_was_told() -> None:
    assert Upload(1e6).serving(0.0) == 0.25e6
    assert Upload(1e6).serving(0.4e6) == 0.4e6
    assert Upload(1e6).serving(9e6) == 0.5e6
    assert Upload(math.inf).serving(9e6) == math.inf
