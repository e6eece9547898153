"""One plain inner step a round, averaged by tokens, is data parallelism: three peers that share nothing but contributions
train exactly what one process trains on the union of their batches.

The oracle is plain torch: autograd over the concatenated windows, the mean over all tokens, `torch.optim`. It takes from
the product only which windows each peer used, and that is checked on its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from swarm.config import CodecConfig, InnerConfig, OuterConfig, RunConfig
from swarm.lease import window_of_slot
from tests.equivalence.group import Group
from tests.equivalence.plain import flat, plain_model
from tests.equivalence.stand_ins import relative_difference, tiny_config, tiny_round, tiny_windows

ROUNDS = 20
BATCHES = (2, 3, 5)  # windows of each peer: unequal weights
LEASE_WINDOWS = 30  # a multiple of each, and more than anyone uses: no contribution is capped

OUTER = {
    "sgd": OuterConfig(optimizer="sgd", learning_rate=0.5),
    "adamw": OuterConfig(optimizer="adamw", learning_rate=1e-3, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.1),
}

# fp64 peers send fp32: each element of a gradient is off by at most 2^-24 = 6e-8 of itself, and error feedback makes up for
# that in the next round. SGD therefore stays within 6e-8 of the way it went (0.06 of the parameters' norm), and AdamW within
# a few times that, since a step changes by no more than a few times the relative error of its gradient.
FP64_BOUND = 1e-6

# In fp32 the two sides add the same terms of a gradient up in another order: each is off by some 2^-24 of the largest terms.
# SGD takes that over as it is. AdamW divides by the root of the second moment, so an element whose gradient is itself
# rounding noise may step the other way, up to 2 * lr * rounds = 0.04 apart. Those are the key biases, whose gradient is 0
# but for rounding: 64 of 21,000 elements, in most of which epsilon still outweighs the noise. Were it all of them, the
# distance would be 0.04 * sqrt(64) = 0.3 of a norm of 17: the bound allows one in ten thousand of that norm.
FP32_BOUND = {"sgd": 1e-6, "adamw": 1e-4}


def run_config(outer: str) -> RunConfig:
    # lr 1 and no clipping: anchor minus theta is the gradient itself
    inner = InnerConfig(
        optimizer="sgd", learning_rate=1.0, final_learning_rate=1.0, clip_norm=0.0, weight_decay=0.0, batch_windows=1
    )
    return tiny_config(
        inner=inner,
        outer=OUTER[outer],
        codec=CodecConfig(name="raw"),
        round=tiny_round(local_steps=1, lease_steps=LEASE_WINDOWS, min_peers=len(BATCHES)),
    )


def train_on_union(config: RunConfig, used: list[list[int]], dtype: torch.dtype) -> list[Tensor]:
    """Parameters after each round of one process; `used`: slots of each round, all peers' together."""
    model = plain_model(config, dtype)
    outer = config.outer
    optimizer: torch.optim.Optimizer
    if outer.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=outer.learning_rate)
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=outer.learning_rate,
            betas=outer.betas,
            eps=outer.epsilon,
            weight_decay=outer.weight_decay,
        )
    train, _ = tiny_windows(config.data, config.model.vocab_size)
    after = []
    for slots in used:
        rows = [window_of_slot(slot, config.data.num_windows, config.data.seed) for slot in slots]
        tokens_BL1 = torch.from_numpy(train[rows])
        logits_BLV = model(input_ids=tokens_BL1[:, :-1]).logits
        loss = functional.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL1[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after.append(flat(model, dtype))
    return after


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("outer", ["sgd", "adamw"])
def test_peers_equal_one_process_on_the_union(
    tmp_path: Path, outer: str, dtype: torch.dtype, record_property: Any
) -> None:
    config = run_config(outer)
    anchors: list[Tensor] = []
    with Group(tmp_path, config, len(BATCHES), batches=BATCHES, dtype=dtype) as group:
        for version in range(1, ROUNDS + 1):
            group.settle(version)
            assert {member.version for member in group.members} == {version}
            assert len({member.digest for member in group.members}) == 1
            anchors.append(group[0].anchor_N)
        used = [
            [slot for member in group.members for at, slots in member.text.taken if at == version for slot in slots]
            for version in range(ROUNDS)
        ]
        weights = {tuple(entry.tokens for entry in commit.commit.entries) for commit in group.chain_to(group[0].head)}
    assert weights == {tuple(16 * batch for batch in BATCHES)}
    rows = [window_of_slot(slot, config.data.num_windows, config.data.seed) for slots in used for slot in slots]
    assert len(rows) == len(set(rows)) == ROUNDS * sum(BATCHES), "a window was used twice, or one is missing"
    expected = train_on_union(config, used, dtype)
    differences = [relative_difference(one, other) for one, other in zip(anchors, expected, strict=True)]
    moved = relative_difference(anchors[-1], flat(plain_model(config, dtype)))
    record_property("relative_difference", max(differences))
    print(f"\n{outer} {dtype}: at most {max(differences):.2e} apart, moved {moved:.2e} from version 0")
    assert moved > 1e-3, "nothing was trained"
    assert max(differences) <= (FP64_BOUND if dtype == torch.float64 else FP32_BOUND[outer])
