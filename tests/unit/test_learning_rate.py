"""The learning rate by its laws: corners, monotony, and never zero at the start of a warm-up."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from peer.learning_rate import learning_rate, swarm_tokens_now
from swarm.config import InnerConfig

CONFIG = InnerConfig(learning_rate=1e-3, final_learning_rate=1e-4, warmup_tokens=1000, decay_tokens=11_000)


def test_corners() -> None:
    assert learning_rate(CONFIG, 0) == 0
    assert learning_rate(CONFIG, 500) == 5e-4
    assert learning_rate(CONFIG, 1000) == 1e-3
    assert math.isclose(learning_rate(CONFIG, 6000), (1e-3 + 1e-4) / 2)
    assert learning_rate(CONFIG, 11_000) == learning_rate(CONFIG, 10**12) == 1e-4


def test_without_warmup_it_starts_at_the_peak() -> None:
    config = CONFIG.model_copy(update={"warmup_tokens": 0})
    assert learning_rate(config, 0) == 1e-3


def test_warmup_longer_than_the_decay_ends_in_the_constant() -> None:
    config = CONFIG.model_copy(update={"warmup_tokens": 20_000})
    assert learning_rate(config, 15_000) == 1e-3 * 0.75
    assert learning_rate(config, 20_000) == 1e-4


@given(st.integers(0, 30_000), st.integers(0, 30_000))
def test_rises_to_the_peak_and_falls_behind_it(a: int, b: int) -> None:
    a, b = sorted((a, b))
    if b <= CONFIG.warmup_tokens:
        assert learning_rate(CONFIG, a) <= learning_rate(CONFIG, b) <= CONFIG.learning_rate
    elif a >= CONFIG.warmup_tokens:
        assert CONFIG.learning_rate >= learning_rate(CONFIG, a) >= learning_rate(CONFIG, b)
        assert learning_rate(CONFIG, b) >= CONFIG.final_learning_rate


@given(batch_tokens=st.integers(1, 2**20), entries=st.integers(0, 1000), warmup=st.integers(1, 2**40))
def test_first_step_of_a_warmup_is_never_zero(batch_tokens: int, entries: int, warmup: int) -> None:
    config = CONFIG.model_copy(update={"warmup_tokens": warmup, "decay_tokens": 2**40})
    assert learning_rate(config, swarm_tokens_now(0, batch_tokens, entries)) > 0


def test_own_tokens_count_for_every_member() -> None:
    assert swarm_tokens_now(10_000, 300, 8) == 12_400
    assert swarm_tokens_now(10_000, 300, 0) == 10_300  # before the first commit
