"""Local steps with an outer Nesterov step (DiLoCo): three peers against a reference written here in plain loops.

The reference knows torch, transformers and the text. Slots, learning rate, clipping, inner AdamW, the mean and the outer
step are written out again, each from its definition; nothing of the product's training is called.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from swarm.config import CodecConfig, InnerConfig, OuterConfig, RunConfig
from swarm.lease import window_of_slot
from tests.equivalence.group import Group
from tests.equivalence.plain import flat, plain_model
from tests.equivalence.stand_ins import relative_difference, tiny_config, tiny_round, tiny_windows

ROUNDS, PEERS, STEPS, BATCH = 20, 3, 5, 2
PEAK, FINAL, WARMUP, DECAY = 3e-3, 3e-4, 2_000, 8_000  # learning rate by tokens; the run is 9600 tokens long
CLIP = 0.5  # of gradients with norms around 1: nearly every step is clipped

# fp64 peers that send fp32: each contribution is off by 2^-24 = 6e-8 of itself at most, error feedback sends that on with
# the next one, and the outer step (0.7, momentum 0.9) can add up to 7 times a round's error. The way is less than the
# parameters' norm. What the inner AdamW makes of slightly different parameters adds a factor of a few.
BOUND = 1e-6


def run_config() -> RunConfig:
    return tiny_config(
        inner=InnerConfig(
            optimizer="adamw",
            learning_rate=PEAK,
            final_learning_rate=FINAL,
            warmup_tokens=WARMUP,
            decay_tokens=DECAY,
            betas=(0.9, 0.95),
            epsilon=1e-8,
            weight_decay=0.1,
            clip_norm=CLIP,
            batch_windows=BATCH,
        ),
        outer=OuterConfig(optimizer="nesterov", learning_rate=0.7, momentum=0.9),
        codec=CodecConfig(name="raw"),
        round=tiny_round(local_steps=STEPS, min_peers=PEERS),
    )


def rate_at(tokens: int) -> float:
    """A line up to PEAK, half a cosine down to FINAL, then constant."""
    if tokens < WARMUP:
        return PEAK * tokens / WARMUP
    if tokens >= DECAY:
        return FINAL
    return FINAL + (PEAK - FINAL) * (1 + math.cos(math.pi * (tokens - WARMUP) / (DECAY - WARMUP))) / 2


class Replica:
    """One replica of the reference: a model and its own AdamW, whose moments outlive the rounds."""

    def __init__(self, model: Any) -> None:
        self.model = copy.deepcopy(model)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)

    def step(self, tokens_BL1: Tensor, rate: float) -> None:
        logits_BLV = self.model(input_ids=tokens_BL1[:, :-1]).logits
        loss = functional.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL1[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP, foreach=False)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    @torch.no_grad()
    def start_from(self, anchor: list[Tensor]) -> None:
        for parameter, value in zip(self.model.parameters(), anchor, strict=True):
            parameter.copy_(value)


def reference(config: RunConfig) -> list[Tensor]:
    """The anchor after each round, in fp64, as flat vectors."""
    train, _ = tiny_windows(config.data, config.model.vocab_size)
    length = config.data.sequence_length
    shell = plain_model(config, torch.float64)
    replicas = [Replica(shell) for _ in range(PEERS)]
    anchor = [p.detach().clone() for p in shell.parameters()]
    momentum = [torch.zeros_like(p) for p in anchor]
    anchors = []
    for number in range(ROUNDS):
        committed = number * PEERS * STEPS * BATCH * length
        last_entries = PEERS if number else 1
        for place, replica in enumerate(replicas):
            replica.start_from(anchor)
            first = (number * PEERS + place) * STEPS * BATCH  # everyone's slots, round by round, in order of peer ids
            for step in range(STEPS):
                slots = range(first + step * BATCH, first + (step + 1) * BATCH)
                rows = [window_of_slot(slot, config.data.num_windows, config.data.seed) for slot in slots]
                own = (step + 1) * BATCH * length
                replica.step(torch.from_numpy(train[rows]), rate_at(committed + own * last_entries))
        parameters = [list(replica.model.parameters()) for replica in replicas]
        for index, old in enumerate(anchor):
            gradient = old - sum(one[index].detach() for one in parameters) / PEERS
            momentum[index] = 0.9 * momentum[index] + gradient
            anchor[index] = old - 0.7 * (gradient + 0.9 * momentum[index])
        Replica.start_from(replicas[0], anchor)
        anchors.append(flat(replicas[0].model))
    return anchors


def test_peers_equal_the_reference(tmp_path: Path, record_property: Any) -> None:
    config = run_config()
    anchors: list[Tensor] = []
    with Group(tmp_path, config, PEERS, dtype=torch.float64) as group:
        for version in range(1, ROUNDS + 1):
            group.settle(version)
            assert {member.version for member in group.members} == {version}
            anchors.append(group[0].anchor_N)
        assert {(entry.tokens, entry.steps) for entry in group.entries_of(group[0].head)} == {
            (STEPS * BATCH * config.data.sequence_length, STEPS)
        }
        imbalances = [member.imbalance() for member in group.members]
        losses = [report.loss for member in group.members for report in member.reports if hasattr(report, "loss")]
    differences = [relative_difference(one, other) for one, other in zip(anchors, reference(config), strict=True)]
    moved = relative_difference(anchors[-1], flat(plain_model(config, torch.float64)))
    record_property("relative_difference", max(differences))
    print(
        f"\nat most {max(differences):.2e} apart, moved {moved:.2e}, imbalance {max(imbalances):.1e}, losses {losses[-3:]}"
    )
    assert moved > 0.01, "nothing was trained"
    assert max(differences) <= BOUND
    assert max(imbalances) < 1e-12  # fp64: some 40 roundings of 1e-16 for each HEAD and CUT
