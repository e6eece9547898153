"""Contributions that hold the work of many rounds: everyone takes the same part of them.

In a group larger than its lists members contribute in turns, each with all that it did since its last turn.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swarm.allreduce.shared import OpenedContribution
from swarm.config import CodecConfig, OuterConfig, RunConfig
from tests.equivalence.group import Group
from tests.equivalence.stand_ins import tiny_config, tiny_round
from tests.sim.reference import Numbers, taken_of

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
    """1e-12: a state follows from the one before by some ten operations in fp64; what is taken is fp32 on both sides."""
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
            math, blob = group[0].replica.math, group[0].store.read(entry.root)
            opened = OpenedContribution(math, entry, blob)
            decoded_N = torch.cat([opened.unit(unit.index) for unit in math.layout.units])
            taken_N = taken_of(decoded_N.numpy(), entry.steps, config)
            due = numbers[version].after(config.outer, taken_N)
            assert due.close_to(numbers[version + 1], 1e-12), f"version {version + 1}, {entry.steps} steps"
        for member in group.members:
            assert member.imbalance() < 1e-6  # contributions travel as fp32
