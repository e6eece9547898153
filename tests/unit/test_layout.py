"""Tensors to a flat vector and back, bit for bit, in units."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.allreduce.layout import build_layout, flatten, unflatten_into
from swarm.errors import LocalError

shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
units = st.lists(st.lists(shapes, min_size=1, max_size=3), min_size=1, max_size=3)


def _named(cut: list[list[tuple[int, ...]]]) -> list[list[tuple[str, tuple[int, ...]]]]:
    return [[(f"{u}.{t}", shape) for t, shape in enumerate(unit)] for u, unit in enumerate(cut)]


@settings(deadline=None)
@given(units, st.sampled_from([torch.float32, torch.float64]), st.integers(0, 2**32))
def test_flat_is_the_tensors_one_after_the_other(cut: list, dtype: torch.dtype, seed: int) -> None:
    layout = build_layout(_named(cut))
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, dtype=dtype, generator=generator) for unit in _named(cut) for name, shape in unit
    }
    flat_N = flatten(layout, tensors, dtype)
    expected = torch.cat([tensors[name].reshape(-1) for unit in _named(cut) for name, _ in unit])
    assert torch.equal(flat_N, expected) and flat_N.dtype == dtype and flat_N.is_contiguous()

    back = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    unflatten_into(layout, flat_N, back)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


@given(units)
def test_units_are_slices_without_gaps(cut: list) -> None:
    layout = build_layout(_named(cut))
    position = 0
    for unit in layout.units:
        assert layout.slice_of(unit.index) == slice(position, position + unit.numel)
        for slot in unit.tensors:
            assert slot.offset == position - layout.slice_of(unit.index).start
            position += slot.numel
    assert position == layout.numel


def test_tensors_may_be_of_another_dtype_and_not_contiguous() -> None:
    layout = build_layout([[("a", (2, 3))]])
    turned = torch.arange(6, dtype=torch.bfloat16).view(3, 2).t()
    assert flatten(layout, {"a": turned}).tolist() == [0, 2, 4, 1, 3, 5]
    unflatten_into(layout, torch.ones(6, dtype=torch.float64), {"a": turned})
    assert turned.sum() == 6 and turned.dtype == torch.bfloat16


def test_what_does_not_fit_is_a_bug_and_changes_nothing() -> None:
    layout = build_layout([[("a", (2,)), ("b", (2,))]])
    a, b = torch.zeros(2), torch.zeros(2)
    for tensors in ({"a": a}, {"a": a, "b": b, "c": b}, {"a": a, "b": torch.zeros(1, 2)}):
        with pytest.raises(LocalError):
            flatten(layout, tensors)
        with pytest.raises(LocalError):
            unflatten_into(layout, torch.ones(4), tensors)
    with pytest.raises(LocalError):
        unflatten_into(layout, torch.ones(5), {"a": a, "b": b})
    with pytest.raises(LocalError):
        build_layout([[("a", (2,))], [("a", (2,))]])
    assert not a.any() and not b.any()
