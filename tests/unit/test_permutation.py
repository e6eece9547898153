"""The permutation by its laws: a bijection for every n, never another one on another machine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.permutation import MAX_N, permute

seeds = st.integers(0, 2**127 - 1)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_every_small_n_is_permuted(seed: int) -> None:
    for n in range(1, 130):
        assert sorted(permute(index, n, seed) for index in range(n)) == list(range(n))


@given(n=st.integers(1, 2000), seed=seeds)
def test_it_is_bijective(n: int, seed: int) -> None:
    assert sorted(permute(index, n, seed) for index in range(n)) == list(range(n))


@given(n=st.integers(1, MAX_N), seed=seeds, places=st.lists(st.floats(0, 1, exclude_max=True), max_size=20))
def test_large_n_stays_inside_and_apart(n: int, seed: int, places: list[float]) -> None:
    indices = [min(n - 1, int(place * n)) for place in places]
    found = [permute(index, n, seed) for index in indices]
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


def test_seeds_give_different_orders_and_every_place_is_reached() -> None:
    n, num_seeds = 50, 2000
    first = np.array([permute(0, n, seed) for seed in range(num_seeds)])
    counts = np.bincount(first, minlength=n)
    # 2000 draws over 50 places: mean 40, standard deviation 6.3; five of these to either side
    assert counts.min() > 8 and counts.max() < 72
    assert [permute(place, n, 0) for place in range(n)] != [permute(place, n, 1) for place in range(n)]


@pytest.mark.parametrize(
    ("index", "n", "seed"), [(0, 0, 0), (3, 3, 0), (-1, 3, 0), (0, MAX_N + 1, 0), (0, 3, -1), (0, 3, 2**127)]
)
def test_what_lies_outside_is_refused(index: int, n: int, seed: int) -> None:
    with pytest.raises(ValueError):
        permute(index, n, seed)
