"""The inner step on a CUDA device: bf16, activation checkpointing, 8-bit state, and memory that really runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from peer.device import choose_device, describe_device, device_load
from peer.inner import make_inner_optimizer
from peer.model import build_model, initial_parameters, layout_of
from peer.step import InnerTrainer, Precision, choose_micro_batch
from swarm.allreduce.layout import unflatten_into
from swarm.config import InnerConfig, ModelConfig

pytestmark = pytest.mark.gpu

VOCAB, LENGTH = 256, 128


def make_trainer(precision: Precision, kind: str = "adamw8bit", hidden_size: int = 128) -> InnerTrainer:
    device, _ = choose_device("cuda")
    config = ModelConfig(vocab_size=VOCAB, hidden_size=hidden_size, num_layers=2, intermediate_size=512)
    model: nn.Module = build_model(config, device=device)
    layout = layout_of(model)
    unflatten_into(layout, initial_parameters(config, 0, layout), dict(model.named_parameters()))
    inner = InnerConfig.model_validate({"optimizer": kind})
    optimizer = make_inner_optimizer(inner, model.named_parameters(), device=device)
    return InnerTrainer(model, optimizer, device, clip_norm=1.0, micro_batch=4, precision=precision)


def windows(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (num, LENGTH + 1))


@pytest.mark.parametrize("kind", ["adamw8bit", "lion8bit", "adamw"])
def test_loss_falls_in_bf16_and_parameters_stay_fp32(kind: str) -> None:
    precision, reason = Precision.for_device(torch.device("cuda"), checkpointing=True)
    assert precision.bf16 and "bf16" in reason
    trainer = make_trainer(precision, kind)
    batch = windows(8)
    before = trainer.evaluate(batch)
    assert all(trainer.step(batch, 1e-3).applied for _ in range(30))
    assert trainer.evaluate(batch) < before - 0.5
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    state = trainer.optimizer.state_tensors()
    assert {tensor.device.type for tensor in state.values() if tensor.ndim > 0} == {"cuda"}
    assert {tensor.dtype for name, tensor in state.items() if "embed_in" in name and tensor.ndim > 0} == {torch.float32}


def test_checkpointing_changes_memory_and_not_the_gradient() -> None:
    plain, saving = make_trainer(Precision(), "sgd"), make_trainer(Precision(checkpointing=True), "sgd")
    peaks = []
    results = []
    for trainer in (plain, saving):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results.append(trainer.step(windows(4), 0.1))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert results[1].grad_norm == pytest.approx(results[0].grad_norm, rel=1e-4)
    assert peaks[1] < peaks[0]


def test_state_moves_from_a_gpu_through_a_cpu_bit_for_bit() -> None:
    first, second = make_trainer(Precision()), make_trainer(Precision())
    for _ in range(2):
        first.step(windows(4), 1e-3)
    second.model.load_state_dict(first.model.state_dict())
    saved = {name: tensor.cpu() for name, tensor in first.optimizer.state_tensors().items()}
    second.optimizer.load_state_tensors(saved)
    restored = second.optimizer.state_tensors()
    assert all(torch.equal(tensor, restored[name].cpu()) for name, tensor in saved.items())


def test_micro_batch_is_found_where_memory_really_runs_out() -> None:
    trainer = make_trainer(Precision(), "sgd", hidden_size=512)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 512 * 2**20) / total)
    try:
        chosen, reason = choose_micro_batch(trainer, LENGTH, VOCAB, 4096)
        assert 1 <= chosen < 4096 and "did not fit" in reason
        trainer.micro_batch = 4 * chosen
        result = trainer.step(windows(4 * chosen), 0.1)
        assert result.applied and result.num_tokens == 4 * chosen * LENGTH and trainer.micro_batch <= 2 * chosen
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_gpu_is_described() -> None:
    device, reason = choose_device("auto")
    assert device.type == "cuda" and "GiB" in describe_device(device) and reason
    load = device_load(device)
    assert load is not None and load.total_bytes > 2**30 and 0 <= load.used_bytes <= load.total_bytes
