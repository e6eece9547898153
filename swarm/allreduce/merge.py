"""Averaging a branch that was left into the chain: the one step that goes past the outer optimizer.

The work of a branch went through its own outer steps already. As a contribution it would go through ours again, with the
momentum's factor, on top of our progress; so the two anchors are averaged instead, by the tokens that each had alone:

    A' = A + s * d      d = decode(encode(A_left - A_base))      s = T_left / (T_left + T_ours)      M' = M

This is what parameter averaging in local SGD does (Stich 2019, algorithm 1), once, with unequal weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from swarm import chain as chains
from swarm.allreduce.codec import Blob, Int8Codec, pack_contribution, read_contribution
from swarm.allreduce.mean import rounded
from swarm.allreduce.shared import MAX_MAGNITUDE, RunMath, SharedState
from swarm.chain import CommitList
from swarm.digest import Digest, blob_digest
from swarm.errors import MalformedBytes

MERGE_BLOCK: Final = 256  # elements that share a scale: the difference of two anchors is sent once, dense, at 8 bits

_CODEC: Final = Int8Codec(MERGE_BLOCK)


def encode_merge(math: RunMath, left: SharedState, base: SharedState) -> bytes:
    """The blob of a branch: its anchor minus the one at `base`. Equal on every peer of the branch.

    Raises MalformedBytes for anchors so far apart that nobody would take the blob.
    """
    difference_N = left.anchor_N - base.anchor_N
    if not bool((difference_N.abs() <= MAX_MAGNITUDE).all()):
        raise MalformedBytes(f"the anchors of two branches differ by more than {MAX_MAGNITUDE:.3g}")
    payloads = [_CODEC.encode(difference_N[math.layout.slice_of(unit.index)]) for unit in math.layout.units]
    return pack_contribution(_CODEC, 0, payloads)


def check_merge_blob(math: RunMath, blob: bytes | memoryview) -> None:
    """Returns if the blob decodes to vectors of the run's shapes; raises MalformedBytes."""
    for unit, place in enumerate(read_contribution(blob, _CODEC, 0, len(math.layout.units))):
        payload = memoryview(blob)[place.offset : place.offset + place.num_bytes]
        if blob_digest(payload) != place.digest:
            raise MalformedBytes(f"unit {unit}: the payload is not the one that the header names")
        if bool((_decode(payload, math, unit).abs() > MAX_MAGNITUDE).any()):
            raise MalformedBytes(f"unit {unit}: a value beyond {MAX_MAGNITUDE:.3g}")


def after_merge(
    math: RunMath,
    state: SharedState,
    commit: CommitList,
    open_blob: Callable[[Digest], Blob],
) -> SharedState:
    """The next version, by a commit that merges. Raises InvalidList or MalformedBytes."""
    merge = commit.merge
    assert merge is not None
    next_chain = chains.apply(state.chain, commit, math.lease_windows)
    left, ours = chains.merge_weight(state.chain, merge)
    share = rounded(left / (left + ours), math.dtype)
    blob = open_blob(merge.root)
    anchor_N = torch.empty_like(state.anchor_N)
    for unit, place in enumerate(read_contribution(blob, _CODEC, 0, len(math.layout.units))):
        payload = blob[place.offset : place.offset + place.num_bytes]
        where = math.layout.slice_of(unit)
        anchor_N[where] = state.anchor_N[where] + _decode(payload, math, unit) * share
    return SharedState(next_chain, anchor_N, state.outer)


def _decode(payload: bytes | memoryview, math: RunMath, unit: int) -> Tensor:
    return _CODEC.decode(payload, math.layout.units[unit].numel).to(math.dtype)
