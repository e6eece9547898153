"""A replica on disk: what was saved comes back bit for bit, a cut at any moment costs one save at most, and nothing leaks."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peer import disk
from peer.blob_store import BlobStore
from peer.model import layout_of, meta_model
from peer.replica import Replica
from peer.saved import Generations
from swarm.allreduce.codec import make_codec
from swarm.allreduce.shared import RunMath, genesis_state
from swarm.config import DataConfig, ModelConfig, RunConfig
from swarm.digest import digest_of
from swarm.errors import StateError
from swarm.messages import Contribution, seal_message
from swarm.round.root import root_at
from tests.unit.message_examples import AUTHOR, RUN

CONFIG = RunConfig(
    model=ModelConfig(vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_positions=16),
    data=DataConfig(sequence_length=8),
)


@pytest.fixture(scope="module")
def run_math() -> RunMath:
    return RunMath.of(CONFIG, layout_of(meta_model(CONFIG.model)), make_codec(CONFIG.codec))


def replica_in(folder: Path, run_math: RunMath) -> Replica:
    return Replica(run_math, AUTHOR.peer_id, RUN, BlobStore(folder / "blobs"), Generations(folder / "state"))


def theta(run_math: RunMath, number: int) -> torch.Tensor:
    return torch.linspace(-1, 1, run_math.layout.numel) * (1 + number / 7)


def begun(folder: Path, run_math: RunMath) -> Replica:
    replica = replica_in(folder, run_math)
    replica.begin(genesis_state(run_math, RUN, theta(run_math, 0)))
    replica.save(theta(run_math, 0), b"optimizer 0")
    return replica


def cut(replica: Replica, theta_N: torch.Tensor) -> None:
    """A cut as the trainer makes it, up to its save."""
    replica.work.tokens, replica.work.steps = 100, 2
    seq, root, num_bytes, work = replica.cut(theta_N)
    chain = replica.present.state.chain
    contribution = Contribution(
        author=AUTHOR.peer_id,
        incarnation=1,
        seq=seq,
        root=root,
        num_bytes=num_bytes,
        first_unit=0,
        end_unit=len(replica.math.layout.units),
        tokens=work.tokens,
        steps=work.steps,
        since_version=0,
        version=chain.version,
        head=chain.head,
    )
    replica.announced(contribution, seal_message(AUTHOR, RUN, contribution))


def restored(folder: Path, run_math: RunMath) -> tuple[Replica, torch.Tensor, list[str]]:
    replica, lines = replica_in(folder, run_math), []
    theta_N = replica.generations.load(replica.restore, lines.append)
    assert theta_N is not None
    return replica, theta_N, lines


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path, run_math: RunMath) -> None:
    replica = begun(tmp_path, run_math)
    cut(replica, theta(run_math, 1))
    replica.save(theta(run_math, 2), b"optimizer 2")
    again, theta_N, lines = restored(tmp_path, run_math)
    assert lines == [] and torch.equal(theta_N, theta(run_math, 2))
    assert again.present.digest == replica.present.digest and again.heads == replica.heads
    assert again.roots == replica.roots == (root_at(replica.chains[0]),)
    assert torch.equal(again.present.state.anchor_N, replica.present.state.anchor_N)
    assert (again.pending, again.contributions) == (replica.pending, replica.contributions) and again.pending == (1,)
    assert torch.equal(again._ledger.residual_N, replica._ledger.residual_N)
    for one, other in zip(again._ledger.pending.values(), replica._ledger.pending.values(), strict=True):
        assert torch.equal(one.delta_N, other.delta_N) and torch.equal(one.before_N, other.before_N)
        assert torch.equal(one.after_N, other.after_N)  # which is not on disk: it follows from the blob
    assert again.next_seq == replica.next_seq
    contribution, _ = again.contributions[1]
    assert again.store.has(contribution.root)  # others may still ask for it


def test_a_save_removes_what_no_kept_generation_names(tmp_path: Path, run_math: RunMath) -> None:
    replica = begun(tmp_path, run_math)
    for number in range(1, 6):
        replica.save(theta(run_math, number), b"optimizer %d" % number)
        there = {path.name for path in (tmp_path / "blobs").iterdir()}
        named = {root.hex() for state in replica.generations.kept() for root in state.blobs()}
        assert there == named
    assert len(replica.generations.kept()) == 2


def test_a_power_cut_at_any_sync_of_a_save_costs_that_save_at_most(
    tmp_path: Path, run_math: RunMath, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(BaseException):
        pass

    real, left, last = os.fsync, 0, ""

    def fsync(descriptor: int) -> None:
        nonlocal left, last
        last = os.readlink(f"/proc/self/fd/{descriptor}")
        if left == 0:
            raise PowerCut
        left -= 1
        real(descriptor)

    step, is_done = 0, False
    while not is_done:
        home = tmp_path / str(step)
        replica = begun(home, run_math)
        with monkeypatch.context() as patched:
            left = step
            patched.setattr(disk.os, "fsync", fsync)
            try:
                cut(replica, theta(run_math, 1))
                replica.save(theta(run_math, 1), b"optimizer 1")
                is_done = True
            except PowerCut:
                if Path(last).is_file():
                    Path(last).write_bytes(Path(last).read_bytes()[:5])
        again, theta_N, lines = restored(home, run_math)
        assert lines == []
        is_new = bool(again.pending)
        assert torch.equal(theta_N, theta(run_math, 1 if is_new else 0))
        assert is_new or not is_done
        again.save(theta_N, None)  # and it goes on
        step += 1
    assert step > 6


def test_a_full_disk_leaves_the_last_save(tmp_path: Path, run_math: RunMath, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = begun(tmp_path, run_math)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(disk.os, "fsync", full)
        with pytest.raises(StateError, match="disk is full"):
            replica.save(theta(run_math, 1), None)
    _, theta_N, lines = restored(tmp_path, run_math)
    assert lines == [] and torch.equal(theta_N, theta(run_math, 0))
    replica.save(theta(run_math, 1), None)  # there is room again
    assert torch.equal(restored(tmp_path, run_math)[1], theta(run_math, 1))


def test_a_damaged_anchor_falls_back_and_is_written_anew(tmp_path: Path, run_math: RunMath) -> None:
    replica = begun(tmp_path, run_math)
    replica.save(theta(run_math, 1), None)
    newest = replica.generations.kept()[0]
    (tmp_path / "blobs" / newest.theta.hex()).write_bytes(bytes(4 * run_math.layout.numel))
    again, theta_N, lines = restored(tmp_path, run_math)
    assert len(lines) == 1 and torch.equal(theta_N, theta(run_math, 0))
    again.save(theta(run_math, 1), None)  # the same blob as the damaged one
    _, theta_N, lines = restored(tmp_path, run_math)
    assert lines == [] and torch.equal(theta_N, theta(run_math, 1))


def test_another_runs_state_is_refused(tmp_path: Path, run_math: RunMath) -> None:
    begun(tmp_path, run_math)
    other = Replica(
        run_math,
        AUTHOR.peer_id,
        digest_of("test", b"another run"),
        BlobStore(tmp_path / "blobs"),
        Generations(tmp_path / "state"),
    )
    with pytest.raises(StateError, match="belongs to run"):
        other.generations.load(other.restore, print)


def test_a_snapshot_whose_blob_the_disk_changed_is_not_taken_for_whole(tmp_path: Path, run_math: RunMath) -> None:
    replica = begun(tmp_path, run_math)
    record = replica.present.record
    path = tmp_path / "blobs" / record.units[0].root.hex()
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(StateError, match="not the ones that were written"):
        replica.adopt(replace(record), replica.present.root, theta(run_math, 0), keep_progress=True)
    assert torch.equal(replica.present.state.anchor_N, theta(run_math, 0))
