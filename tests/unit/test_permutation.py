"""The permutation by its laws: a bijection for every n, alike in both forms, never another one on another machine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.permutation import MAX_N, permute, permute_many

seeds = st.integers(0, 2**127 - 1)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_every_small_n_is_permuted(seed: int) -> None:
    for n in range(1, 130):
        assert sorted(permute(index, n, seed) for index in range(n)) == list(range(n))


@given(n=st.integers(1, 5000), seed=seeds)
def test_both_forms_agree_and_are_bijective(n: int, seed: int) -> None:
    many = permute_many(np.arange(n), n, seed)
    assert many.dtype == np.int64
    assert np.array_equal(np.sort(many), np.arange(n))
    assert [permute(index, n, seed) for index in (0, n // 2, n - 1)] == many[[0, n // 2, n - 1]].tolist()


@given(n=st.integers(1, MAX_N), seed=seeds, places=st.lists(st.floats(0, 1, exclude_max=True), max_size=20))
def test_both_forms_agree_for_large_n(n: int, seed: int, places: list[float]) -> None:
    indices = [min(n - 1, int(place * n)) for place in places]
    found = permute_many(np.array(indices, dtype=np.int64), n, seed).tolist()
    assert found == [permute(index, n, seed) for index in indices]
    assert all(0 <= value < n for value in found)
    assert len(set(found)) == len(set(indices))


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (10**6, [340921, 536824, 250321, 19210]),
        (2**40, [172247468868, 755271744614, 432932571915, 114075531856]),
        (2**62 - 1, [3642939978826721747, 1333344444246201847, 2262241767887554967, 3213372795561786004]),
        (2**62, [2260638275242073155, 235514290582382500, 557225898056589776, 834831070438697245]),
    ],
)
def test_golden_values(n: int, expected: list[int]) -> None:
    indices = [0, 1, n // 2, n - 1]
    assert [permute(index, n, 7) for index in indices] == expected
    assert permute_many(np.array(indices), n, 7).tolist() == expected


def test_seeds_give_different_orders_and_every_place_is_reached() -> None:
    n, num_seeds = 50, 2000
    first = np.array([permute(0, n, seed) for seed in range(num_seeds)])
    counts = np.bincount(first, minlength=n)
    # 2000 draws over 50 places: mean 40, standard deviation 6.3; five of these to either side
    assert counts.min() > 8 and counts.max() < 72
    assert not np.array_equal(permute_many(np.arange(n), n, 0), permute_many(np.arange(n), n, 1))


@pytest.mark.parametrize(
    ("index", "n", "seed"), [(0, 0, 0), (3, 3, 0), (-1, 3, 0), (0, MAX_N + 1, 0), (0, 3, -1), (0, 3, 2**127)]
)
def test_what_lies_outside_is_refused(index: int, n: int, seed: int) -> None:
    with pytest.raises(ValueError):
        permute(index, n, seed)
    with pytest.raises(ValueError):
        permute_many(np.array([index]), n, seed)
