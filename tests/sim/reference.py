"""The reference for the shared arithmetic: the outer optimizers by their textbook formulas, in plain numpy fp64; and what
the chain takes of a contribution, in numpy's fp32, as every peer must round it alike."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import floor
from typing import Any

import numpy as np

from swarm.allreduce.shared import SharedState
from swarm.config import OuterConfig, RunConfig

Vector = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Numbers:
    """Anchor and outer state of one head."""

    anchor_N: Vector
    buffers: tuple[Vector, ...]
    scalars: tuple[float, ...]

    @classmethod
    def of(cls, state: SharedState) -> Numbers:
        anchor_N, *buffers = (one.numpy().astype(np.float64) for one in (state.anchor_N, *state.outer.buffers))
        return cls(anchor_N, tuple(buffers), state.outer.scalars)

    def after(self, config: OuterConfig, mean_N: Vector) -> Numbers:
        """One outer step: SGD, Nesterov's momentum as torch.optim.SGD has it, or AdamW (Loshchilov & Hutter, algorithm 2)."""
        rate = config.learning_rate
        anchor_N = self.anchor_N * (1.0 - rate * config.weight_decay)
        if config.optimizer == "sgd":
            return Numbers(anchor_N - rate * mean_N, (), ())
        if config.optimizer == "nesterov":
            velocity_N = config.momentum * self.buffers[0] + mean_N
            return Numbers(anchor_N - rate * (mean_N + config.momentum * velocity_N), (velocity_N,), ())
        beta1, beta2 = config.betas
        powers = self.scalars[0] * beta1, self.scalars[1] * beta2
        first_N = beta1 * self.buffers[0] + (1.0 - beta1) * mean_N
        second_N = beta2 * self.buffers[1] + (1.0 - beta2) * mean_N**2
        root_N = np.sqrt(second_N / (1.0 - powers[1])) + config.epsilon
        return Numbers(anchor_N - rate * first_N / (1.0 - powers[0]) / root_N, (first_N, second_N), powers)

    def close_to(self, other: Numbers, tolerance: float) -> bool:
        """Whether all numbers agree, relative to the largest of their vector."""
        ours = (self.anchor_N, *self.buffers, np.asarray(self.scalars))
        theirs = (other.anchor_N, *other.buffers, np.asarray(other.scalars))
        return len(ours) == len(theirs) and all(map(partial(_close, tolerance), ours, theirs))


def round_steps(config: RunConfig) -> int:
    """Inner steps that a member's lease of one round is for."""
    return config.round.lease_steps or config.round.local_steps or 256


def taken_of(decoded_N: Vector, steps: int, config: RunConfig) -> Vector:
    """What the chain takes of a decoded blob: all of it, or two rounds' worth of steps in 256ths where it holds more."""
    share = min(Fraction(1), Fraction(2 * round_steps(config), max(steps, 1)))
    scale = max(1, floor(256 * share)) / 256
    return (decoded_N.astype(np.float32) * np.float32(scale)).astype(np.float64)


def _close(tolerance: float, one: Vector, two: Vector) -> bool:
    largest = 1.0 + float(np.abs(one).max(initial=0.0))
    return one.shape == two.shape and float(np.abs(one - two).max(initial=0.0)) <= tolerance * largest
