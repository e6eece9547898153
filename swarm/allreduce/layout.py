"""Where each parameter lies in the flat vectors that peers exchange: tensors <-> one flat vector, cut into units.

    N = elements of the whole model's flat vector, U = elements of one unit

A model is cut into fixed units, usually one transformer block each, the embedding in the first and the final norm and head
in the last. Averaging groups, digests and files are per unit. The flat vector is the units in order, each unit its tensors
in the layout's order without gaps. Buffers are no part of it. Which tensor belongs to which unit is the model's affair
(`peer/model.py`); nothing here knows a model family.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from swarm.errors import LocalError


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """The place of one tensor: elements [offset, offset + numel) of its *unit's* flat vector, row-major."""

    name: str
    shape: tuple[int, ...]
    offset: int
    numel: int


@dataclass(frozen=True, slots=True)
class UnitLayout:
    """The tensors of one unit, in order, without gaps: numel is the sum of theirs."""

    index: int
    tensors: tuple[TensorSlot, ...]
    numel: int


@dataclass(frozen=True)
class ModelLayout:
    """The units of a model, in order; numel (N) is the sum of theirs."""

    units: tuple[UnitLayout, ...]
    numel: int

    @cached_property
    def _slices(self) -> tuple[slice, ...]:
        ends = list(accumulate(unit.numel for unit in self.units))
        return tuple(slice(end - unit.numel, end) for unit, end in zip(self.units, ends, strict=True))

    def slice_of(self, unit: int) -> slice:
        """The elements of a unit in the model's flat vector."""
        return self._slices[unit]

    def placed(self) -> Iterator[tuple[TensorSlot, slice]]:
        """Each tensor's slot and its elements in the model's flat vector, in order."""
        for unit, place in zip(self.units, self._slices, strict=True):
            for slot in unit.tensors:
                yield slot, slice(place.start + slot.offset, place.start + slot.offset + slot.numel)


def build_layout(units: Sequence[Sequence[tuple[str, tuple[int, ...]]]]) -> ModelLayout:
    """The layout of a model whose units hold these (name, shape) pairs, in this order."""
    names = [name for unit in units for name, _ in unit]
    if len(set(names)) != len(names):
        raise LocalError(f"{len(names)} tensors have only {len(set(names))} names")
    built = tuple(_build_unit(index, tensors) for index, tensors in enumerate(units))
    return ModelLayout(built, sum(unit.numel for unit in built))


def _build_unit(index: int, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> UnitLayout:
    slots, offset = [], 0
    for name, shape in tensors:
        slots.append(TensorSlot(name, tuple(shape), offset, math.prod(shape)))
        offset += slots[-1].numel
    return UnitLayout(index, tuple(slots), offset)


@torch.no_grad()
def flatten(
    layout: ModelLayout,
    named_tensors: Mapping[str, Tensor],  # any device and float dtype; exactly the layout's names and shapes
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A copy of the tensors as one flat vector: (N,), `dtype`, CPU, contiguous. Raises LocalError if they do not fit."""
    _check_names(layout, named_tensors)
    flat_N = torch.empty(layout.numel, dtype=dtype)
    for slot, place in layout.placed():
        flat_N[place].view(slot.shape).copy_(_fitting(slot, named_tensors[slot.name]))
    return flat_N


@torch.no_grad()
def unflatten_into(
    layout: ModelLayout,
    flat_N: Tensor,  # (N,), any float dtype, CPU
    named_tensors: Mapping[str, Tensor],  # overwritten in place, each keeps its dtype and device
) -> None:
    """Copies a flat vector into the tensors. Raises LocalError if they do not fit, before anything is written."""
    _check_names(layout, named_tensors)
    if flat_N.shape != (layout.numel,):
        raise LocalError(f"a flat vector of shape {tuple(flat_N.shape)} where ({layout.numel},) is due")
    targets = [_fitting(slot, named_tensors[slot.name]) for slot, _ in layout.placed()]
    for target, (slot, place) in zip(targets, layout.placed(), strict=True):
        target.copy_(flat_N[place].view(slot.shape))


def _check_names(layout: ModelLayout, named_tensors: Mapping[str, Tensor]) -> None:
    due = {slot.name for unit in layout.units for slot in unit.tensors}
    if due != named_tensors.keys():
        # A tensor that the layout does not know would silently stay unshared: as wrong as one that is missing.
        missing, extra = sorted(due - named_tensors.keys()), sorted(named_tensors.keys() - due)
        raise LocalError(f"tensors missing: {missing[:3]}; not in the layout: {extra[:3]}")


def _fitting(slot: TensorSlot, tensor: Tensor) -> Tensor:
    if tuple(tensor.shape) != slot.shape:
        raise LocalError(f"{slot.name} has shape {tuple(tensor.shape)} where {slot.shape} is due")
    return tensor
