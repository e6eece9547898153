"""What a commit does to the shared state, unit by unit, and which contributions are taken in at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swarm.allreduce.codec import Int8Codec, RawCodec, pack_contribution
from swarm.allreduce.layout import build_layout
from swarm.allreduce.shared import (
    MAX_MAGNITUDE,
    RunMath,
    SharedState,
    after_commit,
    check_contribution,
    from_snapshot,
    genesis_state,
    snapshot,
)
from swarm.chain import CommitList, Entry, InvalidList
from swarm.config import OuterConfig
from swarm.digest import ZERO_DIGEST, Digest, blob_digest
from swarm.errors import MalformedBytes
from swarm.identity import PeerId
from tests.unit.message_examples import RUN, damaged

LAYOUT = build_layout([[("a", (3,))], [("b", (5,))], [("c", (2,))]])
MATH = RunMath(LAYOUT, RawCodec(), OuterConfig(optimizer="nesterov"), error_decay=1.0, lease_windows=1)
PEERS = tuple(PeerId(bytes([number]) * 32) for number in (1, 2))
quick = settings(deadline=None, max_examples=100)


def _start() -> SharedState:
    return genesis_state(MATH, RUN, torch.arange(10, dtype=torch.float32) / 7)


def _contribution(author: PeerId, first: int, vectors: list[Tensor], tokens: int = 10) -> tuple[Entry, bytes]:
    blob = pack_contribution(MATH.codec, first, [MATH.codec.encode(one) for one in vectors])
    return Entry(author, 1, 1, blob_digest(blob), first, first + len(vectors), tokens, 1), blob


def test_a_commit_opens_each_blob_once_and_reads_each_payload_once() -> None:
    """It read every blob whole for each unit, and parsed its header as often."""
    log: list[tuple[int, int]] = []

    class Counted(bytes):
        def __getitem__(self, part: Any) -> Any:
            log.append((part.start or 0, part.stop))
            return super().__getitem__(part)

    state, opened = _start(), []
    made = [_contribution(PEERS[0], 0, [torch.ones(3), torch.ones(5)]), _contribution(PEERS[1], 1, [torch.ones(5)])]
    blobs, entries = {entry.root: Counted(blob) for entry, blob in made}, tuple(entry for entry, _ in made)

    def open_blob(root: Digest) -> bytes:
        opened.append(root)
        return blobs[root]

    after_commit(MATH, state, CommitList(entries=entries, admitted=()), open_blob)
    assert sorted(opened, key=lambda root: root.raw) == sorted(blobs, key=lambda root: root.raw)
    assert len(log) == sum(2 + entry.end_unit - entry.first_unit for entry in entries)


def test_a_unit_is_the_mean_of_those_who_cover_it_and_keeps_its_bits_otherwise() -> None:
    low, low_blob = _contribution(PEERS[0], 0, [torch.ones(3), torch.ones(5)], tokens=30)
    high, high_blob = _contribution(PEERS[1], 1, [torch.full((5,), 5.0)], tokens=10)
    blobs = {low.root: low_blob, high.root: high_blob}
    state = _start()
    new = after_commit(MATH, state, CommitList(entries=(low, high), admitted=()), blobs.__getitem__)
    mean = torch.tensor([1.0] * 3 + [2.0] * 5)
    assert torch.equal(new.outer.buffers[0][:8], mean)
    assert torch.allclose(new.anchor_N[:8], state.anchor_N[:8] - 0.7 * 1.9 * mean)
    assert torch.equal(new.anchor_N[8:], state.anchor_N[8:]) and not bool(new.outer.buffers[0][8:].any())
    assert new.chain.version == 1 and new.chain.tokens == 40


def test_a_contribution_of_many_rounds_is_scaled_and_its_weight_stays() -> None:
    """Against numpy, an operation a line: c = 2 * 5 / 23 in 256ths is 111 / 256, the mean as of any two vectors."""
    vectors = [torch.arange(3.0) / 7, torch.arange(3.0) / 11 - 1]
    (many, many_blob), (few, few_blob) = (
        _contribution(peer, 0, [vector], tokens) for peer, vector, tokens in zip(PEERS, vectors, (30, 10), strict=True)
    )
    many = replace(many, steps=23)
    blobs = {many.root: many_blob, few.root: few_blob}
    math = replace(MATH, round_steps=5)
    new = after_commit(math, _start(), CommitList(entries=(many, few), admitted=()), blobs.__getitem__)
    scaled = vectors[0].numpy() * np.float32(111 / 256)
    total = scaled * np.float32(30) + vectors[1].numpy() * np.float32(10)
    mean = total * (np.float32(1) / np.float32(40))
    assert new.outer.buffers[0][:3].numpy().tobytes() == mean.tobytes()
    assert new.chain.tokens == 40


def test_a_list_that_breaks_the_chain_changes_nothing() -> None:
    entry, blob = _contribution(PEERS[0], 0, [torch.ones(3)])
    commit = CommitList(entries=(entry,), admitted=())
    state = after_commit(MATH, _start(), commit, lambda root: blob)
    with pytest.raises(InvalidList):
        after_commit(MATH, state, commit, lambda root: blob)


def test_good_contributions_are_taken_in() -> None:
    check_contribution(MATH, *_contribution(PEERS[0], 1, [torch.full((5,), MAX_MAGNITUDE), torch.zeros(2)]))


@pytest.mark.parametrize(
    ("first", "vectors", "reason"),
    [
        (0, [torch.ones(4)], "bytes where"),
        (1, [torch.ones(5), torch.ones(2), torch.ones(2)], "units"),
        (0, [torch.tensor([0.0, 2 * MAX_MAGNITUDE, 0.0])], "beyond"),
        (0, [torch.tensor([0.0, -1e38, 0.0])], "beyond"),
    ],
)
def test_bad_contributions_name_their_fault(first: int, vectors: list[Tensor], reason: str) -> None:
    with pytest.raises(MalformedBytes, match=reason):
        check_contribution(MATH, *_contribution(PEERS[0], first, vectors))


def test_the_heaviest_contributions_do_not_overflow() -> None:
    """What `check_contribution` lets through cannot make the state of everybody infinite."""
    math = RunMath(LAYOUT, RawCodec(), OuterConfig(optimizer="adamw"), error_decay=1.0, lease_windows=1)
    worst = [torch.full((unit.numel,), MAX_MAGNITUDE) for unit in LAYOUT.units]
    (one, blob), (two, _) = (_contribution(peer, 0, worst, tokens=2**62 - 1) for peer in PEERS)
    new = after_commit(math, _start_of(math), CommitList(entries=(one, two), admitted=()), lambda root: blob)
    assert all(bool(torch.isfinite(vector).all()) for vector in (new.anchor_N, *new.outer.buffers))


def _start_of(math: RunMath) -> SharedState:
    return genesis_state(math, RUN, torch.arange(10, dtype=torch.float32) / 7)


def test_a_header_must_name_its_payloads() -> None:
    entry, blob = _contribution(PEERS[0], 0, [torch.ones(3)])
    place = blob.index(blob_digest(MATH.codec.encode(torch.ones(3))).raw)
    with pytest.raises(MalformedBytes, match="header names"):
        check_contribution(MATH, entry, blob[:place] + ZERO_DIGEST.raw + blob[place + 32 :])


@quick
@given(st.data(), st.sampled_from([RawCodec(), Int8Codec(2)]))
def test_harmed_contributions_are_refused(data: st.DataObject, codec: RawCodec | Int8Codec) -> None:
    math = RunMath(LAYOUT, codec, MATH.outer, error_decay=1.0, lease_windows=1)
    blob = pack_contribution(codec, 0, [codec.encode(torch.ones(unit.numel)) for unit in LAYOUT.units])
    raw = data.draw(damaged(blob))
    entry = Entry(PEERS[0], 1, 1, blob_digest(raw), 0, 3, 10, 1)
    try:
        check_contribution(math, entry, raw)
    except MalformedBytes:
        return
    assert raw == blob, "every byte is covered by a digest or a rule"


@quick
@given(st.data())
def test_harmed_states_are_refused_or_finite(data: st.DataObject) -> None:
    record, blobs = snapshot(MATH, _start())
    place = data.draw(st.integers(0, 2))
    harmed = [*blobs]
    harmed[place] = data.draw(damaged(blobs[place]) | st.binary(max_size=60))
    try:
        state = from_snapshot(MATH, record, harmed)
    except MalformedBytes:
        return
    assert all(bool(torch.isfinite(vector).all()) for vector in (state.anchor_N, *state.outer.buffers))
    assert list(snapshot(MATH, state)[1]) == harmed
