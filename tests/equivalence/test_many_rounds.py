"""Contributions that hold the work of many rounds: everyone scales them down alike, and nothing of them is lost.

In a group larger than its lists members contribute in turns, each with all that it did since its last turn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from swarm.config import CodecConfig, OuterConfig, RunConfig
from tests.equivalence.group import Group
from tests.equivalence.stand_ins import tiny_config, tiny_round
from tests.sim.reference import Numbers

MEMBERS = 5
ROUNDS = 12
LEASE_STEPS = 2


def run_config(outer: str) -> RunConfig:
    a_round = tiny_round(
        lease_steps=LEASE_STEPS, train_deadline_s=2.0, max_listed=1, min_peers=MEMBERS, heartbeat_s=0.5
    )
    codec = CodecConfig(block_size=64)
    return tiny_config(round=a_round, codec=codec, outer=OuterConfig.model_validate({"optimizer": outer}))


@pytest.mark.parametrize("outer", ["sgd", "nesterov"])
def test_each_state_is_what_the_reference_makes_of_scaled_contributions(tmp_path: Path, outer: str) -> None:
    """1e-12: a state follows from the one before by some ten operations in fp64; d is rounded to fp32 on both sides."""
    config = run_config(outer)
    with Group(tmp_path, config, MEMBERS, dtype=torch.float64) as group:
        numbers = [Numbers.of(group[0].replica.present.state)]
        for version in range(1, ROUNDS + 1):
            group.settle(version)
            numbers.append(Numbers.of(group[0].replica.present.state))
        steps = [entry.steps for entry in group.entries_of(group[0].head)]
        assert len(steps) == ROUNDS and max(steps) > 2 * LEASE_STEPS, steps
        for version, commit in enumerate(group.chain_to(group[0].head)):
            (entry,) = commit.commit.entries
            due = numbers[version].after(config.outer, np.asarray(group.brought_N(entry)))
            assert due.close_to(numbers[version + 1], 1e-12), f"version {version + 1}, {entry.steps} steps"
        for member in group.members:
            assert member.imbalance() < 1e-6  # contributions travel as fp32
