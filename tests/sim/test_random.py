"""Random schedules, a few of the many that `make sim` plays; each test plays a slice of them.

`BARNRAISE_SIM_SEEDS=500 BARNRAISE_SIM_FIRST_SEED=1000` plays others. A seed that breaks prints the command that replays it.
"""

from __future__ import annotations

import os

import pytest

from tests.sim.scenario import make, play

NUM_SEEDS = int(os.environ.get("BARNRAISE_SIM_SEEDS", "200"))
FIRST_SEED = int(os.environ.get("BARNRAISE_SIM_FIRST_SEED", "0"))
SLICE = 20


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + NUM_SEEDS, SLICE))
def test_no_law_breaks(first: int) -> None:
    for seed in range(first, min(first + SLICE, FIRST_SEED + NUM_SEEDS)):
        scenario = make(seed)
        result = play(scenario)
        assert not result.law, (
            f"python -m tests.sim.run --seed {seed} --shrink\n{result.text}\n{scenario.rules}\n"
            + "\n".join(map(str, scenario.faults))
        )
        assert result.rounds >= scenario.rounds


def test_the_same_seed_is_the_same_schedule() -> None:
    first, second = (play(make(3), transcript=True) for _ in range(2))
    assert first.transcript == second.transcript and first.events == second.events
