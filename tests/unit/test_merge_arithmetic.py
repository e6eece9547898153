"""The arithmetic of a merge against fp64 and numpy, its bits on any machine, and blobs that are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from swarm.allreduce.codec import RawCodec, make_codec, pack_contribution
from swarm.allreduce.layout import build_layout
from swarm.allreduce.merge import MERGE_BLOCK, after_merge, check_merge_blob, encode_merge
from swarm.allreduce.shared import MAX_MAGNITUDE, RunMath, SharedState, genesis_state, snapshot
from swarm.chain import CommitList, apply
from swarm.config import CodecConfig, OuterConfig
from swarm.digest import ZERO_DIGEST, blob_digest
from swarm.errors import MalformedBytes
from swarm.messages import record_digest
from tests.unit.branches import LEASE, OURS, PEERS, THEIRS, Branch
from tests.unit.message_examples import RUN, damaged
from tests.unit.test_messages import check_golden

LAYOUT = build_layout([[("a", (13, 41))], [("b", (300,)), ("c", (2, 3))], [("d", (1,))]])


def math_of(codec: str = "int8", optimizer: str = "nesterov", dtype: torch.dtype = torch.float32) -> RunMath:
    outer = OuterConfig.model_validate({"optimizer": optimizer})
    made = make_codec(CodecConfig.model_validate({"name": codec, "block_size": 64}))
    return RunMath(LAYOUT, made, outer, error_decay=1.0, lease_windows=LEASE, dtype=dtype)


def vector(multiplier: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed numbers by integer arithmetic, so that golden digests hold on any machine."""
    whole = (torch.arange(1, LAYOUT.numel + 1) * multiplier) % 20_011 - 10_005
    return whole.to(dtype) * 2.0**-14


def shared(math: RunMath, branch: Branch, multiplier: int) -> SharedState:
    start = genesis_state(math, RUN, vector(1))
    buffers = tuple(vector(3 + index, math.dtype) for index in range(len(start.outer.buffers)))
    outer = replace(start.outer, buffers=buffers, scalars=tuple(0.5 for _ in start.outer.scalars))
    return SharedState(branch.state, vector(multiplier, math.dtype), outer)


def merge_blobs(math: RunMath, ours: SharedState, left: SharedState) -> tuple[CommitList, bytes]:
    blob = encode_merge(math, left, ours)
    merge = replace(OURS.merge_of(THEIRS), base=ours.chain.head, root=blob_digest(blob), num_bytes=len(blob))
    return CommitList((), PEERS[:3], merge=merge), blob


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adamw"])
@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_a_merge_is_the_mean_of_the_anchors(codec: str, optimizer: str, dtype: torch.dtype) -> None:
    """Against a plain mean in fp64. Sent at 8 bits: off by at most half a step of its block, times the share."""
    math = math_of(codec, optimizer, dtype)
    ours, left = shared(math, OURS, 7919), shared(math, THEIRS, 101)
    commit, blob = merge_blobs(math, ours, left)
    check_merge_blob(math, blob)
    new = after_merge(math, ours, commit, {blob_digest(blob): blob}.__getitem__)
    share = (5 * 2 * 20) / (5 * 2 * 20 + 5 * 3 * 20)
    expected_N = ours.anchor_N.double() * (1 - share) + left.anchor_N.double() * share
    difference_N = left.anchor_N.double() - ours.anchor_N.double()
    for unit in LAYOUT.units:
        place = LAYOUT.slice_of(unit.index)
        for begin in range(place.start, place.stop, MERGE_BLOCK):
            block = slice(begin, min(begin + MERGE_BLOCK, place.stop))
            half_step = float(difference_N[block].abs().max()) / 127 / 2
            roundings = 4 * 2.0**-24 * float(ours.anchor_N.abs().max())
            error = float((new.anchor_N[block].double() - expected_N[block]).abs().max())
            assert error <= share * half_step * 1.0001 + roundings
    assert new.anchor_N.dtype == dtype and new.outer == ours.outer, "the outer optimizer was asked"
    assert new.chain == apply(ours.chain, commit, LEASE)


def test_each_operation_rounds_by_itself() -> None:
    """numpy in fp32, operation by operation: the bits, not only the value."""
    math = math_of()
    ours, left = shared(math, OURS, 7919), shared(math, THEIRS, 101)
    commit, blob = merge_blobs(math, ours, left)
    new = after_merge(math, ours, commit, lambda root: blob)
    difference = left.anchor_N.numpy() - ours.anchor_N.numpy()
    share = np.float32(200 / 500)
    for unit in LAYOUT.units:
        place = LAYOUT.slice_of(unit.index)
        for begin in range(place.start, place.stop, MERGE_BLOCK):
            part = difference[begin : min(begin + MERGE_BLOCK, place.stop)]
            scale = np.float32(np.abs(part).max() * (np.float32(1) / np.float32(127)))
            steps = np.clip(np.round(part / scale), -127, 127).astype(np.float32)
            expected = ours.anchor_N.numpy()[begin : begin + len(part)] + (steps * scale) * share
            assert np.array_equal(new.anchor_N.numpy()[begin : begin + len(part)], expected)


def test_everybody_at_one_head_encodes_the_same_bytes() -> None:
    math = math_of()
    blobs = {encode_merge(math, shared(math, THEIRS, 101), shared(math, OURS, 7919)) for _ in range(3)}
    assert len(blobs) == 1
    assert encode_merge(math, shared(math, THEIRS, 101), shared(math, OURS, 11)) not in blobs


def test_golden_merge() -> None:
    """The bits of a merge, and of the state behind it, on any machine."""
    lines = []
    for optimizer in ("sgd", "nesterov", "adamw"):
        math = math_of(optimizer=optimizer)
        ours = shared(math, OURS, 7919)
        commit, blob = merge_blobs(math, ours, shared(math, THEIRS, 101))
        new = after_merge(math, ours, commit, lambda root, blob=blob: blob)
        record = snapshot(math, new)[0]
        lines.append(f"{optimizer} {blob_digest(blob).hex()} {new.chain.head.hex()} {record_digest(record).hex()}")
    check_golden("merge.txt", "\n".join(lines) + "\n")


def test_equal_anchors_merge_into_themselves() -> None:
    math = math_of()
    ours, left = shared(math, OURS, 7919), shared(math, THEIRS, 7919)
    commit, blob = merge_blobs(math, ours, left)
    assert torch.equal(after_merge(math, ours, commit, lambda root: blob).anchor_N, ours.anchor_N)


@pytest.mark.parametrize("size", [2 * MAX_MAGNITUDE, 3e38, float("inf")])
def test_anchors_too_far_apart_are_refused_not_raised_as_our_own_bug(size: float) -> None:
    math = math_of()
    left = replace(shared(math, THEIRS, 101), anchor_N=torch.full((LAYOUT.numel,), -size))
    far = replace(shared(math, OURS, 7919), anchor_N=torch.full((LAYOUT.numel,), size))
    with pytest.raises(MalformedBytes, match="differ by more than"):
        encode_merge(math, left, far)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_harmed_blobs_are_refused(data: st.DataObject) -> None:
    math = math_of()
    _, blob = merge_blobs(math, shared(math, OURS, 7919), shared(math, THEIRS, 101))
    raw = data.draw(damaged(blob))
    assume(raw != blob)
    with pytest.raises(MalformedBytes):
        check_merge_blob(math, raw)


def test_blobs_of_other_kinds_are_refused() -> None:
    math, raw = math_of(), RawCodec()
    units = [vector(5)[LAYOUT.slice_of(unit.index)] for unit in LAYOUT.units]
    with pytest.raises(MalformedBytes):  # a contribution of a run whose codec is another
        check_merge_blob(math, pack_contribution(raw, 0, [raw.encode(one) for one in units]))
    _, blob = merge_blobs(math, shared(math, OURS, 7919), shared(math, THEIRS, 101))
    place = blob.index(blob_digest(blob[-5:]).raw)  # of the last unit: one scale, one element
    with pytest.raises(MalformedBytes, match="header names"):
        check_merge_blob(math, blob[:place] + ZERO_DIGEST.raw + blob[place + 32 :])
    huge = np.float32(2 * MAX_MAGNITUDE).tobytes() + blob[-1:]
    with pytest.raises(MalformedBytes, match="beyond"):
        check_merge_blob(math, blob[:place] + blob_digest(huge).raw + blob[place + 32 : -5] + huge)
