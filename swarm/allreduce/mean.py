"""The mean of a commit's contributions, weighted by tokens, in the order of the list.

Every operation is a separately rounded kernel over a tensor and a scalar (no fused multiply-add, no reductions over
elements), so that everyone who lists the same gets the same bits, whatever the machine and the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor


def rounded(value: float, dtype: torch.dtype) -> float:
    """The scalar as `dtype` holds it: in fp32 runs every scalar is rounded to fp32 once, before it meets a tensor."""
    return float(np.float32(value)) if dtype == torch.float32 else float(value)


def inverse_weight(tokens: Sequence[int], dtype: torch.dtype) -> float:
    """One over the summed weights, rounded as a host with IEEE arithmetic of `dtype` does it."""
    if dtype == torch.float32:
        total = np.float32(0)
        for one in tokens:
            total = np.float32(total + np.float32(one))
        return float(np.float32(1) / total)
    return 1.0 / float(sum(tokens))


MAX_ROUNDS: Final = 2  # rounds' worth of inner steps that one contribution may move the anchor by
_SCALE_UNITS: Final = 256  # a factor is a multiple of one over this: exact in every type


def contribution_scale(steps: int, round_steps: int) -> float:
    """The factor c that a contribution of so many inner steps is applied with: 1 up to MAX_ROUNDS rounds' worth, then less in
    proportion, rounded down to a multiple of 1/256, at least that.

    Outer momentum carries a step some 7 times as far: work of many rounds at once, done from one old anchor, would throw the
    model back.
    """
    most = MAX_ROUNDS * round_steps
    return 1.0 if steps <= most else max(1, most * _SCALE_UNITS // steps) / _SCALE_UNITS


def scaled(decoded_U: Tensor, scale: float) -> Tensor:
    """c * d; for c = 1 the very same tensor."""
    return decoded_U if scale == 1.0 else decoded_U * scale


def weighted_mean(
    decoded: Iterable[Tensor],  # (U,) each, in the order of the list
    tokens: Sequence[int],  # weights, in the same order
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(U,) of `dtype`: sum of d_j * w_j, times one over the sum of w_j. Raises ValueError for an empty list."""
    total_U: Tensor | None = None
    for vector_U, weight in zip(decoded, tokens, strict=True):
        term_U = vector_U.to(dtype) * rounded(weight, dtype)
        total_U = term_U if total_U is None else total_U + term_U
    if total_U is None:
        raise ValueError("a mean of no contributions")
    return total_U * inverse_weight(tokens, dtype)
