"""The mean against plain double precision; the same bits whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.allreduce.mean import contribution_scale, inverse_weight, rounded, scaled, weighted_mean

UNIT = 2.0**-24  # the most that one rounding to fp32 is off, relatively


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 60))
def test_mean_is_that_of_double_precision(seed: int, count: int, size: int) -> None:
    """n terms: each weight, product and addition rounds once, so do the sum of weights and its inverse and the last product.

    |error| <= (2n + 6) u * sum|d_j| w_j / sum w_j to first order; one more u stands for all higher orders.
    """
    chance = Random(seed)
    tokens = [chance.randint(1, 2 ** chance.randint(1, 40)) for _ in range(count)]
    vectors = torch.tensor([[chance.uniform(-1, 1) * 10 ** chance.randint(-6, 6) for _ in range(size)] for _ in tokens])
    mean = weighted_mean(vectors, tokens)
    weights = np.asarray(tokens, np.float64)
    wide = vectors.numpy().astype(np.float64)
    expected = (wide * weights[:, None]).sum(0) / weights.sum()
    bound = (2 * count + 7) * UNIT * (np.abs(wide) * weights[:, None]).sum(0) / weights.sum()
    assert mean.dtype == torch.float32 and (np.abs(mean.numpy() - expected) <= bound + 1e-45).all()
    exact = weighted_mean(vectors, tokens, torch.float64).numpy()
    assert np.allclose(exact, expected, rtol=0, atol=bound.max() * 2.0**-28)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32))
def test_order_matters_no_more_than_rounding(seed: int) -> None:
    """Everyone sums in the order of the list; another order is another sum of the same numbers."""
    chance = Random(seed)
    tokens = [chance.randint(1, 10**6) for _ in range(7)]
    vectors = torch.tensor([[chance.uniform(-1, 1) for _ in range(30)] for _ in tokens])
    order = chance.sample(range(7), 7)
    shuffled = weighted_mean(vectors[order], [tokens[one] for one in order])
    assert torch.allclose(shuffled, weighted_mean(vectors, tokens), rtol=0, atol=2 * (2 * 7 + 7) * UNIT)


def test_order_does_matter_in_bits() -> None:
    """The reason that lists are sorted: were this not so, sorting would be idle."""
    vectors = [torch.tensor([one]) for one in (1.0, 2.0**-24, 2.0**-24)]
    assert not torch.equal(weighted_mean(vectors, [1, 1, 1]), weighted_mean(vectors[::-1], [1, 1, 1]))


def test_one_contribution_of_one_token_is_itself() -> None:
    vector = torch.tensor([1.0, -3.5e-40, 1e30])
    assert torch.equal(weighted_mean([vector], [1]), vector)


def test_bits_do_not_depend_on_threads(threads: None) -> None:
    size = 300_001  # above torch's grain for threads, and not a multiple of any vector width
    vectors = [((torch.arange(size) * (31 + j)) % 9973 - 4986).float() / (7 + j) for j in range(5)]
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(weighted_mean(vectors, [3, 1000, 12345, 7, 99]))
    assert torch.equal(found[0].view(torch.int32), found[1].view(torch.int32))


def test_every_operation_is_rounded_by_itself() -> None:
    """Against numpy, an operation a line: a fused multiply-add, or a division, would differ in many elements."""
    vectors = [((np.arange(4099) * (31 + j)) % 9973 - 4986).astype(np.float32) / np.float32(7 + j) for j in range(3)]
    tokens = [16_777_217, 3, 1000]  # the first is not an fp32
    total = np.zeros(4099, np.float32)
    for index, (vector, weight) in enumerate(zip(vectors, tokens, strict=True)):
        term = vector * np.float32(weight)
        total = term if index == 0 else total + term
    expected = total * (np.float32(1) / (np.float32(16_777_216) + np.float32(3) + np.float32(1000)))
    mean = weighted_mean([torch.from_numpy(one) for one in vectors], tokens)
    assert mean.numpy().tobytes() == expected.tobytes()


def test_scalars_are_rounded_once() -> None:
    assert rounded(0.1, torch.float32) == float(np.float32(0.1)) != 0.1 == rounded(0.1, torch.float64)
    assert inverse_weight([3], torch.float32) == float(np.float32(1) / np.float32(3))
    assert inverse_weight([1, 2], torch.float64) == 1 / 3


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**40))
def test_a_contribution_of_many_rounds_counts_as_two(steps: int, round_steps: int) -> None:
    """c is the largest multiple of 1/256 with c * steps <= two rounds' worth; never 0, never more than 1."""
    scale = contribution_scale(steps, round_steps)
    if steps <= 2 * round_steps:
        assert scale == 1.0
    else:
        units = int(scale * 256)
        assert scale == units / 256 < 1 and units >= 1
        assert units == 1 or units * steps <= 2 * round_steps * 256
        assert (units + 1) * steps > 2 * round_steps * 256


def test_scales_by_hand() -> None:
    assert [contribution_scale(steps, 3) for steps in (0, 3, 6, 7, 12, 116, 10**6)] == [
        1.0, 1.0, 1.0, 219 / 256, 0.5, 13 / 256, 1 / 256,
    ]  # fmt: skip


def test_scaling_is_one_rounded_product_and_nothing_at_all_for_one() -> None:
    vector = torch.from_numpy(np.random.Generator(np.random.Philox(key=5)).standard_normal(4099).astype(np.float32))
    assert scaled(vector, 1.0) is vector
    assert scaled(vector, 13 / 256).numpy().tobytes() == (vector.numpy() * np.float32(13 / 256)).tobytes()


def test_nothing_and_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="no contributions"):
        weighted_mean([], [])
    with pytest.raises(ValueError, match="zip"):
        weighted_mean([torch.ones(1)], [1, 2])
