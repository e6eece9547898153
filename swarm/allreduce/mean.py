"""The mean of a commit's contributions, weighted by tokens, in the order of the list.

Every operation is a separately rounded kernel over a tensor and a scalar (no fused multiply-add, no reductions over
elements), so that everyone who lists the same gets the same bits, whatever the machine and the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
