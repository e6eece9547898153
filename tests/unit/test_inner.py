"""Inner optimizers against independent references: torch's and bitsandbytes' own, and formulas written out here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTJConfig, GPTNeoXConfig, LlamaConfig

from peer.inner import INPUT_EMBEDDINGS, InnerOptimizer, make_inner_optimizer
from swarm.config import InnerConfig
from swarm.errors import ConfigError, LocalError, StateError

CPU = torch.device("cpu")
KINDS = ["adamw8bit", "lion8bit", "adamw", "sgd"]


class Toy(nn.Module):
    """The shapes that matter: input embedding, matrix of 8-bit size, small matrix, bias, norm, output head."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed_in = nn.Embedding(64, 128)
        self.dense = nn.Linear(128, 100)
        self.small = nn.Linear(100, 40)
        self.norm = nn.LayerNorm(40)
        self.embed_out = nn.Linear(40, 128, bias=False)
        self.to(dtype)


def set_gradients(parameters: Iterable[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def make(model: nn.Module, kind: str, *, instead: str | None = None, **changes: float) -> InnerOptimizer:
    config = InnerConfig.model_validate({"optimizer": kind, **changes})
    return make_inner_optimizer(config, model.named_parameters(), device=CPU, kind=instead)


def state(optimizer: InnerOptimizer, key: str) -> Tensor:
    return optimizer.state_tensors()[key]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sgd_is_exactly_theta_minus_lr_times_gradient(dtype: torch.dtype) -> None:
    model = Toy(dtype=dtype)
    optimizer = make(model, "sgd", weight_decay=0.5)  # plain: the decay is not used
    for step in range(3):
        set_gradients(model.parameters(), step)
        expected = [p.detach() - p.grad * (0.1 + step) for p in model.parameters() if p.grad is not None]
        optimizer.step(0.1 + step)
        assert all(torch.equal(p, e) for p, e in zip(model.parameters(), expected, strict=True))
    assert optimizer.state_bytes() == 0 and optimizer.state_tensors() == {}


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
def test_adamw_equals_torch_where_state_is_full(kind: str) -> None:
    """All of AdamW, and the embedding and small tensors of AdamW8bit, move as torch's own AdamW moves them, bit for bit."""
    model, reference = Toy(), Toy()
    optimizer = make(model, kind, weight_decay=0.3)
    groups = [
        {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": 0.3},
        {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(4):
        set_gradients(model.parameters(), step)
        set_gradients(reference.parameters(), step)
        optimizer.step(1e-2)
        theirs.step()
    eight_bit = {"dense.weight", "embed_out.weight"} if kind == "adamw8bit" else set()
    for (name, ours), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if name in eight_bit:
            # Adam's step is at most about lr; 4 steps with coarse moments stay within that much of each other.
            assert not torch.equal(ours, other) and (ours - other).abs().max() < 4 * 1e-2
        else:
            assert torch.equal(ours, other), name


def test_fp32_lion_equals_bitsandbytes_lion() -> None:
    import bitsandbytes

    model, reference = Toy(), Toy()
    optimizer = make(model, "lion8bit", instead="lion", weight_decay=0.3)
    assert optimizer.kind == "lion"
    groups = [
        {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": 0.3},
        {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    theirs = bitsandbytes.optim.Lion(groups, lr=1e-3, betas=(0.9, 0.95), optim_bits=32)
    for step in range(4):
        set_gradients(model.parameters(), step)
        set_gradients(reference.parameters(), step)
        optimizer.step(1e-3)
        theirs.step()
    for ours, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-6)  # a sign that differed would show as 2e-3


@pytest.mark.parametrize(("kind", "moments"), [("adamw8bit", 2), ("lion8bit", 1)])
def test_embedding_and_small_tensors_keep_fp32_state(kind: str, moments: int) -> None:
    model = Toy()
    optimizer = make(model, kind)
    set_gradients(model.parameters(), 0)
    optimizer.step(1e-3)
    eight_bit, full = set(), set()
    for name, tensor in optimizer.state_tensors().items():
        owner, _, key = name.partition("/")
        if tensor.dtype == torch.uint8:
            eight_bit.add(owner)
        elif not key.startswith(("absmax", "step")):
            assert tensor.dtype == torch.float32 and tensor.shape == model.get_parameter(owner).shape
            full.add(owner)
    assert eight_bit == {"dense.weight", "embed_out.weight"}
    assert full == {name for name, _ in model.named_parameters()} - eight_bit
    num_8bit = sum(model.get_parameter(name).numel() for name in eight_bit)
    num_full = sum(p.numel() for p in model.parameters()) - num_8bit
    # One byte an element and one fp32 scale per 256 elements (the last block may be short); four bytes for the rest;
    # a step count each and the two code books of 1 KiB on top.
    least = moments * (num_8bit + num_8bit // 256 * 4 + 4 * num_full)
    assert least <= optimizer.state_bytes() <= least + moments * (1024 + 2 * 4) + 4 * len(full)


@pytest.mark.parametrize(("kind", "expected"), [("adamw8bit", 2.03), ("lion8bit", 1.02), ("adamw", 8.0)])
def test_bytes_per_parameter_of_a_large_matrix(kind: str, expected: float) -> None:
    model = nn.Linear(1024, 1024, bias=False)
    assert make(model, kind).state_bytes() / 1024**2 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_state_survives_a_file_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = Toy()
    optimizer = make(model, kind)
    for step in range(3):
        set_gradients(model.parameters(), step)
        optimizer.step(1e-3)
    save_file(optimizer.state_tensors(), tmp_path / "state.safetensors")
    twin = Toy(seed=1)
    twin.load_state_dict(model.state_dict())
    restored = make(twin, kind)
    restored.load_state_tensors(load_file(tmp_path / "state.safetensors"))
    for step in range(3, 6):
        for each, its in ((model, optimizer), (twin, restored)):
            set_gradients(each.parameters(), step)
            its.step(1e-3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    ours, theirs = optimizer.state_tensors(), restored.state_tensors()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)


def test_foreign_state_is_refused_and_changes_nothing() -> None:
    model = Toy()
    optimizer = make(model, "adamw8bit")
    set_gradients(model.parameters(), 0)
    optimizer.step(1e-3)
    before = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    short = {**before}
    del short["dense.weight/state1"]
    for foreign in (
        make(Toy(), "lion8bit").state_tensors(),
        short,
        {**before, "dense.weight/state1": torch.zeros(100, 128)},  # fp32, not uint8
        {**before, "dense.weight/absmax1": torch.zeros(7)},
    ):
        with pytest.raises(StateError, match="saved optimizer state"):
            optimizer.load_state_tensors(foreign)
    assert all(torch.equal(before[name], tensor) for name, tensor in optimizer.state_tensors().items())


@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_biases_are_not_decayed(kind: str) -> None:
    model = Toy()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(model, kind, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    for name, parameter in model.named_parameters():
        factor = 1.0 if parameter.ndim == 1 or kind == "sgd" else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-6, atol=0)


def test_input_embeddings_of_all_families_are_recognized() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    configs = [
        GPTNeoXConfig(vocab_size=256, **sizes),
        GPTJConfig(vocab_size=256, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=64),
        LlamaConfig(vocab_size=256, **sizes),
    ]
    for config in configs:
        config.tie_word_embeddings = False
        model = AutoModelForCausalLM.from_config(config)
        found = [p for name, p in model.named_parameters() if name.endswith(INPUT_EMBEDDINGS)]
        assert len(found) == 1 and found[0] is model.get_input_embeddings().weight


def test_frozen_and_gradless_parameters_stay() -> None:
    model = Toy()
    model.dense.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(model, "adamw8bit")
    set_gradients([model.norm.weight], 0)
    optimizer.step(0.1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"norm.weight"}
    assert not any(name.startswith("dense.weight/") for name in optimizer.state_tensors())


def test_fp64_works_with_full_state_and_is_refused_with_8bit_state() -> None:
    model = Toy(dtype=torch.float64)
    optimizer = make(model, "adamw")
    set_gradients(model.parameters(), 0)
    optimizer.step(1e-3)
    assert state(optimizer, "dense.weight/exp_avg").dtype == torch.float64
    with pytest.raises(ConfigError, match="fp32"):
        make(model, "lion8bit")


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="betas"):
        make_inner_optimizer(InnerConfig(betas=(0.9, 1.0)), Toy().named_parameters(), device=CPU)
    with pytest.raises(LocalError, match="embed_in"):
        make_inner_optimizer(InnerConfig(), Toy().named_parameters(), device=torch.device("meta"))
