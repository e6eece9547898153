"""Which optimizer a peer has, and what becomes of its moments when that changes.

The run names one; a peer may hold the same moments in fp32 in place of 8 bits, which is another kind. A kind once begun with
is kept from start to start: the saved state tells it. Who changes it on purpose takes the moments along.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import psutil
import torch
from torch import Tensor

from peer.inner import InnerOptimizer
from swarm.config import InnerConfig
from swarm.errors import StateError

_EXTRA_BYTES: Final = {"adamw8bit": 6, "lion8bit": 3}  # of a parameter: moments in fp32 less those in 8 bits
_SPARE_SHARE: Final = 0.125  # of the memory that is free, which fp32 moments may take without being asked for
# In 8 bits a moment is a tensor of codes and one of scales; in fp32 it is one tensor.
_MOMENTS: Final = {"adamw": ("exp_avg", "exp_avg_sq"), "lion": ("momentum",)}
_CODES: Final = ("state1", "state2")
_SCALES: Final = ("absmax1", "absmax2")
_BLOCK: Final = 256  # values that share a scale, in bitsandbytes


def free_memory() -> int:
    """Bytes of host memory that are free now."""
    return int(psutil.virtual_memory().available)


def choose_optimizer(
    config: InnerConfig,
    device: torch.device,
    numel: int,
    *,
    wish: bool | None,
    saved: str | None,
    free: Callable[[], int] = free_memory,
) -> tuple[str, str]:
    """The kind of optimizer for this peer, and why, for people.

    `wish`: True for fp32 moments (`--prefer-torch`), False for the run's own 8 bits, None for no wish: then what the saved
    state has stands, and without one a CPU with memory to spare takes fp32 moments: its 8-bit kernels are 25 times slower.
    """
    kind: str = config.optimizer
    if not kind.endswith("8bit"):
        return kind, f"{kind}, as the run says"
    plain = kind.removesuffix("8bit")
    if wish is not None:
        return (plain, f"{plain} with fp32 moments, as asked for") if wish else (kind, f"{kind}, as the run says")
    if saved in (plain, kind):
        how = "as the run says" if saved == kind else "fp32 moments in place of 8 bits"
        return saved, f"{saved}, {how}; as in the saved state"
    if device.type != "cpu":
        return kind, f"{kind}, as the run says; 8 bits are fast on this device"
    if numel * _EXTRA_BYTES[kind] > _SPARE_SHARE * free():
        return kind, f"{kind}, as the run says; fp32 moments would be faster on a CPU, and memory is short"
    return plain, f"{plain} with fp32 moments in place of {kind}: a CPU with memory to spare; --prefer-8bit for 8 bits"


def saved_kind(config: InnerConfig, tensors: Mapping[str, Tensor]) -> str:
    """The kind whose `state_tensors` these are."""
    plain = config.optimizer.removesuffix("8bit")
    return f"{plain}8bit" if any(name.rsplit("/", 1)[-1] == _CODES[0] for name in tensors) else plain


def fit_moments(tensors: Mapping[str, Tensor], optimizer: InnerOptimizer) -> tuple[dict[str, Tensor] | None, str]:
    """A saved state in the form of this optimizer, and what was done to it, for people: "" for nothing.

    None when it has another one's moments: those are dropped.
    """
    expected = optimizer.state_tensors()
    if expected.keys() == tensors.keys():
        return dict(tensors), ""
    try:
        fitted = {name: _fit(name, like, tensors, optimizer) for name, like in expected.items()}
    except (KeyError, StateError):
        return None, f"the saved optimizer state is another one's than {optimizer.kind}: its moments begin at zero"
    how = "rounded to 8 bits" if optimizer.kind.endswith("8bit") else "taken over from 8 bits"
    return fitted, f"the saved moments were {how} for {optimizer.kind}"


def _fit(name: str, like: Tensor, tensors: Mapping[str, Tensor], optimizer: InnerOptimizer) -> Tensor:
    """One tensor of the new form; raises KeyError or StateError when it does not follow from the old one."""
    parameter, key = name.rsplit("/", 1)
    moments = _MOMENTS[optimizer.kind.removesuffix("8bit")]
    if name in tensors or key == "step":
        found = tensors.get(name, like)  # lion counts steps in 8 bits only, and does not use the number
    elif key in moments:
        place = moments.index(key)
        codes, scales = tensors[f"{parameter}/{_CODES[place]}"], tensors[f"{parameter}/{_SCALES[place]}"]
        found = _functional().dequantize_blockwise(codes, absmax=scales, code=_book(place), blocksize=_BLOCK)
    else:
        place = (_CODES if key in _CODES else _SCALES).index(key)
        moment = tensors[f"{parameter}/{moments[place]}"].float()
        codes, state = _functional().quantize_blockwise(moment, code=_book(place), blocksize=_BLOCK)
        found = codes if key in _CODES else state.absmax
    if found.shape != like.shape:
        raise StateError(f"{name} is {tuple(found.shape)}, not {tuple(like.shape)}")
    return found.to(like.dtype)


def _book(place: int) -> Tensor:
    """bitsandbytes' code book of the first moment, which has a sign, or of the second, which has none."""
    book: Tensor = _functional().create_dynamic_map(signed=place == 0)
    return book


def _functional() -> Any:
    return importlib.import_module("bitsandbytes.functional")  # untyped, and takes seconds
