"""One peer's private side of the chain: its parameters, residual and unlisted work, and the four operations on them.

    theta  local parameters           g = theta - A: all progress that is not yet in the chain
    e      residual of the codec      P, R: contributions not listed yet / listed, but that may still be undone

INNER happens in the model itself; `theta` is handed in and out. CUT encodes once; HEAD (h -> h') is the only way shared
state reaches a peer and serves commit, left out, undo, catching up and adoption alike; WITHDRAW gives a contribution up.

d is what a contribution holds: its blob decoded. Of one that holds the work of more than two rounds the chain takes a part
(`contribution_scale`); the rest is a declared loss. Kept in the residual it would come with the next cut, whose steps do not
show it, and do its harm a round later.

At every instant, in exact arithmetic (a property test holds us to it):
    -(sum of inner updates) = sum of listed d + e + (A - theta) + (1 - beta) * sum of listed e0
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from swarm.allreduce.codec import pack_contribution, read_contribution
from swarm.allreduce.mean import rounded
from swarm.allreduce.shared import RunMath, SharedState
from swarm.chain import ChainState
from swarm.errors import LocalError
from swarm.identity import PeerId

UNDO_DEPTH: Final = 2  # commits that may be undone: records and anchors are kept so long


@dataclass(frozen=True, slots=True)
class CutRecord:
    """What a cut took out of theta and did to the residual; kept until it can no longer be listed or undone."""

    delta_N: Tensor  # anchor minus theta at the cut
    before_N: Tensor  # residual before: e0
    after_N: Tensor  # residual once it is listed: e1
    tokens: int
    steps: int
    listed_at: int = 0  # the latest version that may have listed it, or of giving it up; 0: pending


@dataclass(frozen=True, slots=True)
class Ledger:
    """A peer's private state at one head. Immutable: each operation returns the next one."""

    author: PeerId
    residual_N: Tensor
    pending: dict[int, CutRecord] = field(default_factory=dict)  # P, by sequence number
    listed: dict[int, CutRecord] = field(default_factory=dict)  # R
    withdrawn: dict[int, CutRecord] = field(default_factory=dict)  # given up, but a race may still list them

    @property
    def may_cut(self) -> bool:
        """At most one contribution is in flight."""
        return not self.pending


def joined(author: PeerId, state: SharedState) -> Ledger:
    """The ledger of a peer without a past."""
    return Ledger(author, torch.zeros_like(state.anchor_N))


def cut(
    math: RunMath,
    ledger: Ledger,
    state: SharedState,
    theta_N: Tensor,
    seq: int,
    work: tuple[int, int],  # tokens and inner steps since the last cut
) -> tuple[Ledger, bytes]:
    """CUT: the ledger with one more pending contribution, and its blob, which is never encoded again.

    Theta and the residual stay as they are: a contribution that nobody ever lists is lost to nobody.
    """
    if not ledger.may_cut:
        raise LocalError("a cut while a contribution is pending")
    delta_N = state.anchor_N - theta_N
    target_N = _target(math, ledger.residual_N, delta_N)
    payloads = [math.codec.encode(target_N[math.layout.slice_of(unit.index)]) for unit in math.layout.units]
    blob = pack_contribution(math.codec, 0, payloads)
    record = CutRecord(delta_N, ledger.residual_N, residual_after(math, ledger.residual_N, delta_N, blob), *work)
    return replace(ledger, pending={**ledger.pending, seq: record}), blob


def residual_after(
    math: RunMath,
    before_N: Tensor,  # the residual at the cut
    delta_N: Tensor,  # anchor minus theta at the cut
    blob: bytes,  # what the cut encoded
) -> Tensor:
    """(N,): what the blob left of the cut's progress and residual; the same bits each time. Raises MalformedBytes."""
    after_N = _target(math, before_N, delta_N)
    for unit, payload in zip(
        math.layout.units, read_contribution(blob, math.codec, 0, len(math.layout.units)), strict=True
    ):
        place = math.layout.slice_of(unit.index)
        raw = memoryview(blob)[payload.offset : payload.offset + payload.num_bytes]
        after_N[place] = after_N[place] - math.codec.decode(raw, unit.numel).to(math.dtype)
    return after_N


def _target(math: RunMath, residual_N: Tensor, delta_N: Tensor) -> Tensor:
    """What a cut would send if nothing were rounded; a new tensor."""
    return residual_N * rounded(math.error_decay, math.dtype) + delta_N


@dataclass(frozen=True, slots=True)
class Moved:
    """What HEAD did."""

    ledger: Ledger
    theta_N: Tensor
    listed: tuple[int, ...]  # own numbers that the new head lists and the old one did not
    undone: tuple[int, ...]
    unknown: tuple[int, ...]  # own numbers listed of which there is no record: their residual is given up


def move_head(
    ledger: Ledger, old: SharedState, new: SharedState, theta_N: Tensor, base: ChainState | None = None
) -> Moved:
    """HEAD old -> new: theta' = A' + g', with own contributions listed or undone in between.

    `base` is where the two chains part; None: `new` follows `old`, or no undo will reach behind it.
    """
    was, will = _own_numbers(old.chain, new.chain, ledger)
    progress_N, residual_N = theta_N - old.anchor_N, ledger.residual_N
    pending, listed, withdrawn = dict(ledger.pending), dict(ledger.listed), dict(ledger.withdrawn)
    undone = tuple(sorted(was - will, reverse=True))
    for seq in undone:
        if seq in listed:
            record = listed.pop(seq)
            progress_N = progress_N - record.delta_N
            residual_N = residual_N + (record.before_N - record.after_N)
            pending[seq] = replace(record, listed_at=0)
    if base is not None:  # what both sides list, the new one may have listed later
        for seq, one in listed.items():
            if one.listed_at > base.version:
                listed[seq] = replace(one, listed_at=new.chain.version)
    newly, unknown = [], []
    for seq in sorted(will - was):
        record_or_none = pending.pop(seq, None) or withdrawn.pop(seq, None)
        if record_or_none is None:
            unknown.append(seq)
            continue
        progress_N = progress_N + record_or_none.delta_N
        residual_N = residual_N + (record_or_none.after_N - record_or_none.before_N)
        listed[seq] = replace(record_or_none, listed_at=new.chain.version)
        newly.append(seq)
    if unknown:  # work of a former life: never counted twice, its residual is a declared loss
        residual_N = torch.zeros_like(residual_N)
    # A withdrawn one was too old to be listed at `old` already; another branch may have done so before it was.
    withdrawn = {seq: replace(one, listed_at=one.listed_at or old.chain.version) for seq, one in withdrawn.items()}
    oldest = new.chain.version - UNDO_DEPTH
    moved = Ledger(ledger.author, residual_N, pending, _since(oldest, listed), _since(oldest, withdrawn))
    return Moved(moved, new.anchor_N + progress_N, tuple(newly), undone, tuple(unknown))


def withdraw(ledger: Ledger, seq: int) -> Ledger:
    """WITHDRAW: the author gives a contribution up; its delta is still in theta, its residual in e: nothing is lost.

    It must be so old that no commit on this head may list it. Its record is kept for as long as another branch may be
    reached that listed it in time; that is an ordinary HEAD.
    """
    pending = {one: record for one, record in ledger.pending.items() if one != seq}
    return replace(ledger, pending=pending, withdrawn={**ledger.withdrawn, seq: ledger.pending[seq]})


def _since(oldest: int, records: dict[int, CutRecord]) -> dict[int, CutRecord]:
    """Those above that version: an undo may still reach them."""
    return {seq: one for seq, one in records.items() if one.listed_at > oldest}


def _own_numbers(old: ChainState, new: ChainState, ledger: Ledger) -> tuple[set[int], set[int]]:
    """Own numbers that `old` and `new` list, as far back as they can differ in anything that we keep a record of."""
    lowest = min([*ledger.pending, *ledger.listed, *ledger.withdrawn, old.highest_seq(ledger.author) + 1], default=1)
    highest = max(old.highest_seq(ledger.author), new.highest_seq(ledger.author))
    span = range(lowest, highest + 1)
    was = {seq for seq in span if old.has_listed(ledger.author, seq)}
    will = {seq for seq in span if new.has_listed(ledger.author, seq)}
    return was, will
