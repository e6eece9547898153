"""The outer optimizers against torch.optim in fp64, with the pseudo-gradient as the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from swarm.allreduce.outer import OuterState, initial_outer_state, next_scalars, outer_step
from swarm.config import OuterConfig

CONFIGS = {
    "sgd": OuterConfig(optimizer="sgd", learning_rate=0.7),
    "sgd, decay": OuterConfig(optimizer="sgd", learning_rate=0.7, weight_decay=0.1),
    "nesterov": OuterConfig(optimizer="nesterov", learning_rate=0.7, momentum=0.9),
    "nesterov, decay": OuterConfig(optimizer="nesterov", learning_rate=0.7, momentum=0.9, weight_decay=0.05),
    "adamw": OuterConfig(optimizer="adamw", learning_rate=1e-2),
    "adamw, decay": OuterConfig(optimizer="adamw", learning_rate=1e-2, betas=(0.8, 0.999), weight_decay=0.1),
}
SIZE, STEPS = 257, 20


def _gradients(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SIZE, generator=generator, dtype=torch.float64).to(dtype) for _ in range(STEPS)]


def _anchor(dtype: torch.dtype) -> Tensor:
    return torch.linspace(-2, 3, SIZE, dtype=torch.float64).to(dtype)


def _run(config: OuterConfig, dtype: torch.dtype, cut: tuple[slice, ...] = (slice(None),)) -> tuple[Tensor, OuterState]:
    """The anchor and state after all steps, the vector stepped a slice at a time."""
    anchor = _anchor(dtype)
    state = initial_outer_state(config, anchor)
    for mean in _gradients(dtype):
        scalars = next_scalars(config, state.scalars)
        parts = [
            outer_step(config, anchor[one], tuple(buffer[one] for buffer in state.buffers), scalars, mean[one])
            for one in cut
        ]
        anchor = torch.cat([part for part, _ in parts])
        buffers = tuple(torch.cat(several) for several in zip(*(found for _, found in parts), strict=True))
        state = OuterState(buffers, scalars)
    return anchor, state


def _reference(config: OuterConfig) -> Tensor:
    """torch.optim's way. Its SGD knows only the coupled decay (through the momentum); ours is decoupled, as AdamW's is:
    the parameters shrink by lr * decay first, then the step."""
    parameter = torch.nn.Parameter(_anchor(torch.float64))
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            [parameter],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )
    else:
        nesterov = config.optimizer == "nesterov"
        momentum = config.momentum if nesterov else 0.0
        optimizer = torch.optim.SGD([parameter], lr=config.learning_rate, momentum=momentum, nesterov=nesterov)
    for gradient in _gradients(torch.float64):
        parameter.grad = gradient
        if config.optimizer != "adamw" and config.weight_decay:
            with torch.no_grad():
                parameter.mul_(1 - config.learning_rate * config.weight_decay)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_optim_in_fp64(name: str) -> None:
    anchor, _ = _run(CONFIGS[name], torch.float64)
    expected = _reference(CONFIGS[name])
    assert float((anchor - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


def test_plain_sgd_with_decay_is_torchs_coupled_one_too() -> None:
    """Without momentum the two decays are the same, and torch has that one built in."""
    config = CONFIGS["sgd, decay"]
    parameter = torch.nn.Parameter(_anchor(torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=config.learning_rate, weight_decay=config.weight_decay)
    for gradient in _gradients(torch.float64):
        parameter.grad = gradient
        optimizer.step()
    assert torch.allclose(_run(config, torch.float64)[0], parameter.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_unit_at_a_time_gives_the_bits_of_the_whole(name: str, dtype: torch.dtype) -> None:
    cuts = (slice(0, 1), slice(1, 18), slice(18, 200), slice(200, SIZE))
    whole, whole_state = _run(CONFIGS[name], dtype)
    parts, parts_state = _run(CONFIGS[name], dtype, cuts)
    assert torch.equal(whole, parts) and whole_state.scalars == parts_state.scalars
    assert all(torch.equal(a, b) for a, b in zip(whole_state.buffers, parts_state.buffers, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_changed_in_place(name: str) -> None:
    config, anchor, mean = CONFIGS[name], _anchor(torch.float32), _gradients(torch.float32)[0]
    state = initial_outer_state(config, anchor)
    new, buffers = outer_step(config, anchor, state.buffers, next_scalars(config, state.scalars), mean)
    assert torch.equal(anchor, _anchor(torch.float32)) and torch.equal(mean, _gradients(torch.float32)[0])
    assert all(not bool(one.any()) for one in state.buffers) and len(buffers) == len(state.buffers)
    assert new.dtype == torch.float32 and new.data_ptr() not in {anchor.data_ptr(), mean.data_ptr()}


def test_beta_powers_are_products_not_powers() -> None:
    config = OuterConfig(optimizer="adamw", betas=(0.9, 0.999))
    scalars = initial_outer_state(config, torch.zeros(1)).scalars
    expected = 1.0
    for _ in range(1000):
        scalars = next_scalars(config, scalars)
        expected *= 0.999
    assert scalars[1] == expected != 0.999**1000
