"""The inner step by its laws: parts equal the whole, guards leave everything as it was, nothing is counted twice."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from peer.inner import make_inner_optimizer
from peer.model import build_model, initial_parameters, layout_of
from peer.step import (
    MAX_NON_FINITE_STEPS,
    InnerTrainer,
    Precision,
    TrainingDiverged,
    choose_micro_batch,
    micro_batch_by_trial,
)
from swarm.allreduce.layout import unflatten_into
from swarm.config import InnerConfig, ModelConfig
from swarm.errors import ConfigError, LocalError

CPU = torch.device("cpu")
VOCAB, LENGTH = 64, 12


def make_model(dtype: torch.dtype = torch.float64, family: str = "gpt_neox") -> nn.Module:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}
    config = ModelConfig.model_validate({"family": family, "max_positions": 32, **sizes})
    model = build_model(config, dtype=dtype)
    layout = layout_of(model)
    unflatten_into(layout, initial_parameters(config, 0, layout), dict(model.named_parameters()))
    return model


def make_trainer(model: nn.Module, kind: str = "sgd", **settings: Any) -> InnerTrainer:
    config = InnerConfig.model_validate({"optimizer": kind})
    optimizer = make_inner_optimizer(config, model.named_parameters(), device=CPU)
    return InnerTrainer(model, optimizer, CPU, **settings)


def windows(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (num, LENGTH + 1))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


class Scarce(nn.Module):
    """A model on a device that runs out of memory above `capacity` windows."""

    def __init__(self, inner: nn.Module, capacity: int) -> None:
        super().__init__()
        self.inner, self.capacity = inner, capacity
        self.sizes: list[int] = []

    def forward(self, ids: Tensor, **settings: Any) -> Any:
        self.sizes.append(len(ids))
        if len(ids) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory (made up)")
        return self.inner(ids, **settings)


class Spoiled(nn.Module):
    """A model whose loss or gradient is not finite while `spoil` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB))
        self.spoil: str | None = None

    def forward(self, ids: Tensor, use_cache: bool = False) -> Any:
        logits = self.table[ids]
        if self.spoil == "loss":
            logits = logits * math.nan
        if self.spoil == "gradient":
            logits = logits + (self.table * 0).abs().sqrt().sum()  # 0, with an infinite slope times 0
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
@pytest.mark.parametrize("micro_batch", [1, 3, 4, 100])
def test_micro_batches_make_the_same_step_as_the_whole_batch(micro_batch: int, clip_norm: float) -> None:
    whole, parts = make_model(), make_model()
    batch = windows(8)
    one = make_trainer(whole, micro_batch=8, clip_norm=clip_norm).step(batch, 0.5)
    many = make_trainer(parts, micro_batch=micro_batch, clip_norm=clip_norm).step(batch, 0.5)
    assert one.applied and many.applied and one.num_tokens == many.num_tokens == 8 * LENGTH
    assert many.loss == pytest.approx(one.loss, rel=1e-12)
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-12)
    assert (weights(whole) - weights(parts)).abs().max() < 1e-12


def test_step_equals_autograd_written_out() -> None:
    model, reference = make_model(), make_model()
    batch = windows(4)
    result = make_trainer(model, micro_batch=2, clip_norm=0.25).step(batch, 0.3)
    tokens = torch.from_numpy(batch)
    log_p = reference(tokens[:, :-1]).logits.log_softmax(-1)
    loss = -log_p.gather(-1, tokens[:, 1:, None]).mean()
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert norm > 0.25, "the clip must bite"
    assert result.loss == pytest.approx(loss.item(), rel=1e-12) and result.grad_norm == pytest.approx(norm, rel=1e-12)
    expected = torch.cat(
        [
            (p.detach() - 0.3 * g * (0.25 / (norm + 1e-6))).flatten()
            for p, g in zip(reference.parameters(), gradients, strict=True)
        ]
    )
    assert (weights(model) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("family", ["gpt_neox", "gptj", "llama"])
def test_loss_falls_in_fp32_with_an_8bit_optimizer(family: str) -> None:
    model = make_model(torch.float32, family)
    trainer = make_trainer(model, "adamw8bit", micro_batch=4, clip_norm=1.0)
    batch = windows(8)
    before = trainer.evaluate(batch)
    results = [trainer.step(batch, 1e-2) for _ in range(10)]
    assert results[0].loss == pytest.approx(before, rel=1e-5)
    assert trainer.evaluate(batch) < before - 0.5 and trainer.num_applied == 10


def test_evaluate_is_the_token_mean_and_changes_nothing() -> None:
    model = make_model()
    batch = windows(5)
    trainer = make_trainer(model, micro_batch=2)
    model.train()
    before = weights(model)
    losses = [make_trainer(model).evaluate(batch[i : i + 1]) for i in range(5)]
    assert trainer.evaluate(batch) == pytest.approx(sum(losses) / 5, rel=1e-12)
    assert model.training and torch.equal(before, weights(model)) and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_step_that_is_not_finite_moves_nothing(spoil: str) -> None:
    model = Spoiled()
    trainer = make_trainer(model, "adamw", micro_batch=2, clip_norm=1.0)
    trainer.step(windows(4), 0.1)
    before = weights(model)
    state = {name: tensor.clone() for name, tensor in trainer.optimizer.state_tensors().items()}
    model.spoil = spoil
    result = trainer.step(windows(4), 0.1)
    assert not result.applied and result.num_tokens == 0
    assert not (math.isfinite(result.loss) and math.isfinite(result.grad_norm))
    assert torch.equal(before, weights(model)) and model.table.grad is None
    assert all(torch.equal(state[name], tensor) for name, tensor in trainer.optimizer.state_tensors().items())
    assert (trainer.num_applied, trainer.num_skipped) == (1, 1)


def test_diverged_after_eight_in_a_row_and_only_in_a_row() -> None:
    model = Spoiled()
    trainer = make_trainer(model)
    for spoil in ["loss"] * (MAX_NON_FINITE_STEPS - 1) + [None] + ["loss"] * (MAX_NON_FINITE_STEPS - 1):
        model.spoil = spoil
        trainer.step(windows(1), 0.1)
    with pytest.raises(TrainingDiverged, match=r"8 inner steps in a row.*learning rate"):
        trainer.step(windows(1), 0.1)
    assert trainer.num_skipped == 2 * MAX_NON_FINITE_STEPS - 1


def test_out_of_memory_halves_the_micro_batch_and_begins_again() -> None:
    plain, scarce = make_model(), Scarce(make_model(), capacity=3)
    batch = windows(8)
    expected = make_trainer(plain, micro_batch=2).step(batch, 0.5)
    trainer = make_trainer(scarce, micro_batch=16)
    result = trainer.step(batch, 0.5)
    assert scarce.sizes == [8, 4, 2, 2, 2, 2] and trainer.micro_batch == 2  # once per size
    assert result.applied and result.loss == expected.loss and result.num_tokens == expected.num_tokens
    assert torch.equal(weights(plain), weights(scarce))


def test_out_of_memory_in_the_middle_counts_nothing_twice() -> None:
    class Late(Scarce):
        def forward(self, ids: Tensor, **settings: Any) -> Any:
            self.capacity = 1 if len(self.sizes) >= 2 else 8  # memory runs out at the third micro-batch
            return super().forward(ids, **settings)

    plain, late = make_model(), Late(make_model(), capacity=8)
    batch = windows(8)
    make_trainer(plain, micro_batch=1).step(batch, 0.5)
    trainer = make_trainer(late, micro_batch=2)
    trainer.step(batch, 0.5)
    assert late.sizes == [2, 2, 2, *[1] * 8] and torch.equal(weights(plain), weights(late))


def test_one_window_that_does_not_fit_is_said_plainly() -> None:
    scarce = Scarce(make_model(), capacity=0)
    trainer = make_trainer(scarce, micro_batch=2)
    before = weights(scarce)
    with pytest.raises(ConfigError, match="one window alone"):
        trainer.step(windows(4), 0.5)
    with pytest.raises(ConfigError, match="one window alone"):
        micro_batch_by_trial(trainer, LENGTH, VOCAB, 4)
    assert torch.equal(before, weights(scarce))


def test_evaluate_backs_off_too() -> None:
    scarce = Scarce(make_model(), capacity=1)
    trainer = make_trainer(scarce, micro_batch=4)
    assert trainer.evaluate(windows(4)) == pytest.approx(make_trainer(scarce.inner).evaluate(windows(4)), rel=1e-12)
    assert trainer.micro_batch == 1


def test_other_errors_rise() -> None:
    class Broken(Scarce):
        def forward(self, ids: Tensor, **settings: Any) -> Any:
            raise RuntimeError("a bug")

    trainer = make_trainer(Broken(make_model(), 1), micro_batch=4)
    with pytest.raises(RuntimeError, match="a bug"):
        trainer.step(windows(4), 0.5)
    with pytest.raises(LocalError, match="shape"):
        trainer.step(windows(4)[:, :1], 0.5)
    assert trainer.micro_batch == 4


@pytest.mark.parametrize(
    ("capacity", "limit", "expected"), [(3, 16, 2), (100, 12, 12), (12, 12, 12), (11, 12, 8), (1, 1, 1)]
)
def test_micro_batch_by_trial(capacity: int, limit: int, expected: int) -> None:
    scarce = Scarce(make_model(), capacity)
    before = weights(scarce)
    chosen, reason = micro_batch_by_trial(make_trainer(scarce), LENGTH, VOCAB, limit)
    assert chosen == expected and reason.startswith(f"{expected} window")
    assert torch.equal(before, weights(scarce)) and all(p.grad is None for p in scarce.parameters())


def test_micro_batch_by_estimate_follows_the_free_memory() -> None:
    trainer = make_trainer(make_model(torch.float32))
    kib = 1024
    chosen = [choose_micro_batch(trainer, LENGTH, VOCAB, 64, free_bytes=n * kib)[0] for n in (0, 1500, 2500, 2**20)]
    assert chosen[0] == 1 and 1 < chosen[1] < chosen[2] < 64 and chosen[3] == 64
    assert "64 of 64" in choose_micro_batch(trainer, LENGTH, VOCAB, 64, free_bytes=2**34)[1]
    # A window costs at least its logits, their softmax and gradient, and each block's hidden states: 4 bytes each.
    per_window = (2500 - 1500) * kib * 0.5 / (chosen[2] - chosen[1])
    assert per_window > 4 * LENGTH * (3 * VOCAB + 2 * 10 * 32)


def test_precision_is_full_on_a_cpu() -> None:
    precision, reason = Precision.for_device(CPU, checkpointing=True)
    assert precision == Precision() and "fp32" in reason
    with pytest.raises(LocalError, match="CUDA"):
        make_trainer(make_model(), precision=Precision(bf16=True))
