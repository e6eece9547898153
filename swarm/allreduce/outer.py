"""The outer optimizers: from an anchor, its state and a mean pseudo-gradient to the next anchor and state.

Only tensor*tensor, tensor+-tensor, tensor*scalar, tensor/tensor and sqrt, each one kernel; scalars rounded to the
tensor's type first; beta powers are state (a product each step), never a power: all peers must get equal bits.

Nesterov: Sutskever et al. 2013 in the form torch.optim.SGD uses. AdamW: Loshchilov & Hutter 2019, algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from swarm.allreduce.mean import rounded
from swarm.config import OuterConfig

NUM_BUFFERS: Final = {"sgd": 0, "nesterov": 1, "adamw": 2}  # vectors of state per parameter vector
NUM_SCALARS: Final = {"sgd": 0, "nesterov": 0, "adamw": 2}  # adamw: the powers of both betas


@dataclass(frozen=True, slots=True)
class OuterState:
    """Momentum vectors, each as long as the anchor, and fp64 scalars; equal bits on all peers at equal heads."""

    buffers: tuple[Tensor, ...]
    scalars: tuple[float, ...]


def initial_outer_state(config: OuterConfig, anchor: Tensor) -> OuterState:
    """The state at version 0: zeros, and ones for the beta powers."""
    buffers = tuple(torch.zeros_like(anchor) for _ in range(NUM_BUFFERS[config.optimizer]))
    return OuterState(buffers, (1.0,) * NUM_SCALARS[config.optimizer])


def next_scalars(config: OuterConfig, scalars: tuple[float, ...]) -> tuple[float, ...]:
    """The scalars of the next version."""
    if config.optimizer == "adamw":
        return scalars[0] * config.betas[0], scalars[1] * config.betas[1]
    return scalars


def outer_step(
    config: OuterConfig,
    anchor_U: Tensor,
    buffers_U: tuple[Tensor, ...],
    scalars: tuple[float, ...],  # those of the next version
    mean_U: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(U,) next anchor and its buffers, new memory. Elementwise: a unit at a time gives the bits of the whole."""
    dtype = anchor_U.dtype
    step = rounded(config.learning_rate, dtype)
    if config.weight_decay:
        anchor_U = anchor_U * rounded(1.0 - config.learning_rate * config.weight_decay, dtype)
    if config.optimizer == "sgd":
        return anchor_U - mean_U * step, ()
    if config.optimizer == "nesterov":
        momentum = rounded(config.momentum, dtype)
        velocity_U = buffers_U[0] * momentum + mean_U
        return anchor_U - (mean_U + velocity_U * momentum) * step, (velocity_U,)
    beta1, beta2 = config.betas
    first_U = buffers_U[0] * rounded(beta1, dtype) + mean_U * rounded(1.0 - beta1, dtype)
    second_U = buffers_U[1] * rounded(beta2, dtype) + (mean_U * mean_U) * rounded(1.0 - beta2, dtype)
    power1, power2 = scalars
    corrected_U = first_U * rounded(1.0 / (1.0 - power1), dtype)
    root_U = torch.sqrt(second_U * rounded(1.0 / (1.0 - power2), dtype))
    epsilon_U = torch.full_like(root_U, rounded(config.epsilon, dtype))
    return anchor_U - (corrected_U / (root_U + epsilon_U)) * step, (first_U, second_U)
