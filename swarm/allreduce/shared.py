"""The shared state of one version: anchor, outer state and chain; and the one way from a version to the next.

Its bytes are one blob a unit, so that a peer that holds a range of units saves, serves and checks only those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from swarm import chain
from swarm.allreduce.codec import Blob, Codec, bytes_of, read_contribution, vector_from
from swarm.allreduce.layout import ModelLayout
from swarm.allreduce.mean import contribution_scale, scaled, weighted_mean
from swarm.allreduce.outer import NUM_BUFFERS, NUM_SCALARS, OuterState, initial_outer_state, next_scalars, outer_step
from swarm.chain import ChainState, CommitList, Entry
from swarm.config import OuterConfig, RunConfig
from swarm.digest import Digest, blob_digest
from swarm.errors import MalformedBytes
from swarm.messages import StateRecord, UnitState

MAX_MAGNITUDE: Final = 2.0**40  # of a contribution's values; times 2^63 tokens, or squared, it is far from fp32's 2^128


@dataclass(frozen=True, slots=True)
class SharedState:
    """What every peer holds alike at one head. Tensors are never changed in place."""

    chain: ChainState
    anchor_N: Tensor
    outer: OuterState


@dataclass(frozen=True, slots=True)
class RunMath:
    """The fixed parts of a run's arithmetic: its layout, codec and optimizer."""

    layout: ModelLayout
    codec: Codec
    outer: OuterConfig
    error_decay: float
    lease_windows: int
    dtype: torch.dtype = torch.float32
    round_steps: int = 2**40  # inner steps that are one member's share of a round

    @classmethod
    def of(cls, config: RunConfig, layout: ModelLayout, codec: Codec, dtype: torch.dtype = torch.float32) -> RunMath:
        decay, windows = config.codec.error_decay, config.lease_windows
        return cls(layout, codec, config.outer, decay, windows, dtype, config.round_steps)


def genesis_state(math: RunMath, run: Digest, parameters_N: Tensor) -> SharedState:
    """Version 0."""
    digest = blob_digest(bytes_of(parameters_N.to(torch.float32)))
    anchor_N = parameters_N.to(math.dtype)
    return SharedState(chain.genesis(run, digest), anchor_N, initial_outer_state(math.outer, anchor_N))


class OpenedContribution:
    """A listed contribution whose units are decoded one by one; its directory is read once. Raises MalformedBytes."""

    def __init__(self, math: RunMath, entry: Entry, blob: Blob) -> None:
        self.entry = entry
        self._math = math
        self._blob = blob
        self._places = read_contribution(blob, math.codec, entry.first_unit, entry.end_unit - entry.first_unit)

    def unit(self, unit: int) -> Tensor:
        """(U,) fp32: what it says of one unit."""
        place = self._places[unit - self.entry.first_unit]
        payload = self._blob[place.offset : place.offset + place.num_bytes]
        return self._math.codec.decode(payload, self._math.layout.units[unit].numel)

    def taken(self, unit: int) -> Tensor:
        """(U,) fp32: what the chain takes of one unit."""
        return scaled(self.unit(unit), contribution_scale(self.entry.steps, self._math.round_steps))


def check_contribution(math: RunMath, entry: Entry, blob: bytes | memoryview) -> None:
    """Returns if the blob is whole and decodes to vectors of the run's shapes that any mean can hold.

    Raises MalformedBytes.
    """
    if entry.end_unit > len(math.layout.units):
        raise MalformedBytes(f"units [{entry.first_unit}, {entry.end_unit}) of {len(math.layout.units)}")
    places = read_contribution(blob, math.codec, entry.first_unit, entry.end_unit - entry.first_unit)
    for unit, place in enumerate(places, start=entry.first_unit):
        payload = memoryview(blob)[place.offset : place.offset + place.num_bytes]
        if blob_digest(payload) != place.digest:
            raise MalformedBytes(f"unit {unit}: the payload is not the one that the header names")
        decoded_U = math.codec.decode(payload, math.layout.units[unit].numel)
        if bool((decoded_U.abs() > MAX_MAGNITUDE).any()):
            raise MalformedBytes(f"unit {unit}: a value beyond {MAX_MAGNITUDE:.3g}")


def after_commit(
    math: RunMath,
    state: SharedState,
    commit: CommitList,
    open_blob: Callable[[Digest], Blob],
) -> SharedState:
    """The next version: decode, mean and outer step, a unit at a time. Raises InvalidList or MalformedBytes.

    A unit that no entry covers keeps its anchor and buffers.
    """
    next_chain = chain.apply(state.chain, commit, math.lease_windows)
    scalars = next_scalars(math.outer, state.outer.scalars)
    anchor_N = torch.empty_like(state.anchor_N)
    buffers = tuple(torch.empty_like(one) for one in state.outer.buffers)
    opened = [OpenedContribution(math, entry, open_blob(entry.root)) for entry in commit.entries]
    for unit in math.layout.units:
        place = math.layout.slice_of(unit.index)
        listed = [one for one in opened if one.entry.first_unit <= unit.index < one.entry.end_unit]
        old_buffers_U = tuple(one[place] for one in state.outer.buffers)
        if listed:
            taken = (one.taken(unit.index) for one in listed)
            mean_U = weighted_mean(taken, [one.entry.tokens for one in listed], math.dtype)
            new_U, new_buffers_U = outer_step(math.outer, state.anchor_N[place], old_buffers_U, scalars, mean_U)
        else:
            new_U, new_buffers_U = state.anchor_N[place], old_buffers_U
        anchor_N[place] = new_U
        for whole, part in zip(buffers, new_buffers_U, strict=True):
            whole[place] = part
    return SharedState(next_chain, anchor_N, OuterState(buffers, scalars))


def unit_bytes(math: RunMath, state: SharedState, unit: int) -> bytes:
    """One unit's anchor, then each buffer, then the scalars as fp64."""
    place = math.layout.slice_of(unit)
    vectors = [state.anchor_N[place], *(one[place] for one in state.outer.buffers)]
    return b"".join([*map(bytes_of, vectors), np.asarray(state.outer.scalars, dtype="<f8").tobytes()])


def snapshot(math: RunMath, state: SharedState) -> tuple[StateRecord, tuple[bytes, ...]]:
    """The record of a state and its units' blobs."""
    blobs = tuple(unit_bytes(math, state, unit.index) for unit in math.layout.units)
    units = tuple(UnitState(blob_digest(blob), len(blob)) for blob in blobs)
    return StateRecord(state.chain, units), blobs


def from_snapshot(math: RunMath, record: StateRecord, blobs: Sequence[bytes | memoryview]) -> SharedState:
    """The state that `snapshot` wrote; the blobs have been checked against the record. Raises MalformedBytes."""
    if len(record.units) != len(math.layout.units) or len(blobs) != len(record.units):
        raise MalformedBytes(f"a state of {len(record.units)} units where the model has {len(math.layout.units)}")
    num_vectors, num_scalars = 1 + NUM_BUFFERS[math.outer.optimizer], NUM_SCALARS[math.outer.optimizer]
    vectors = tuple(torch.empty(math.layout.numel, dtype=math.dtype) for _ in range(num_vectors))
    scalars: set[tuple[float, ...]] = set()
    width = vectors[0].element_size()
    for unit, blob in zip(math.layout.units, blobs, strict=True):
        if len(blob) != width * unit.numel * num_vectors + 8 * num_scalars:
            raise MalformedBytes(f"unit {unit.index}: {len(blob)} bytes do not fit the model and its outer optimizer")
        view = memoryview(blob)
        for index, vector in enumerate(vectors):
            begin = index * width * unit.numel
            vector[math.layout.slice_of(unit.index)] = vector_from(view[begin : begin + width * unit.numel], math.dtype)
        scalars.add(tuple(np.frombuffer(view[len(blob) - 8 * num_scalars :], dtype="<f8").tolist()))
    if not all(bool(torch.isfinite(vector).all()) for vector in vectors):
        raise MalformedBytes("a state holds values that are not finite")
    if len(scalars) != 1 or not all(0.0 <= power <= 1.0 for powers in scalars for power in powers):
        raise MalformedBytes("the beta powers of a state differ between units or are outside [0, 1]")
    return SharedState(record.chain, vectors[0], OuterState(vectors[1:], scalars.pop()))
