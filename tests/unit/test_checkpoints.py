"""The checkpoints a peer keeps: the schedule, what is pruned, and that nothing half written is offered."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from peer.blob_store import BlobStore
from peer.checkpoints import Checkpoints, is_checkpoint_version
from peer.disk import room_left
from peer.model import layout_of, meta_model
from peer.replica import Version
from peer.tokenizer_file import byte_tokenizer_file
from swarm.allreduce.codec import make_codec
from swarm.allreduce.shared import RunMath, genesis_state, snapshot
from swarm.config import CheckpointConfig, DataConfig, ModelConfig, RunConfig
from swarm.digest import blob_digest
from swarm.errors import StateError
from swarm.round.root import root_at
from tests.unit.message_examples import RUN

MODEL = ModelConfig(vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_positions=16)
CONFIG = RunConfig(
    model=MODEL,
    data=DataConfig(sequence_length=8, eval_windows=2),
    checkpoint=CheckpointConfig(every=3, keep=2),
)


@pytest.fixture(scope="module")
def genesis() -> tuple[RunMath, Version]:
    import torch

    layout = layout_of(meta_model(MODEL))
    math_of_run = RunMath.of(CONFIG, layout, make_codec(CONFIG.codec))
    state = genesis_state(math_of_run, RUN, torch.linspace(-1, 1, layout.numel))
    return math_of_run, Version(state, snapshot(math_of_run, state)[0], root_at(state.chain))


def at(version: Version, number: int) -> Version:
    chain = replace(version.state.chain, version=number)
    return Version(replace(version.state, chain=chain), replace(version.record, chain=chain), version.root)


def made(folder: Path, run_math: RunMath) -> Checkpoints:
    return Checkpoints(folder, RUN, CONFIG, run_math.layout, byte_tokenizer_file())


def versions_in(folder: Path) -> list[int]:
    return sorted(int(path.name[1:]) for path in folder.glob("v*"))


def test_the_schedule_is_dense_at_first_then_every_so_many() -> None:
    due = [version for version in range(3001) if is_checkpoint_version(version, 1000)]
    assert due == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000]
    assert not is_checkpoint_version(1024, 1000)


def test_a_kept_checkpoint_is_served_and_found_again(tmp_path: Path, genesis: tuple[RunMath, Version]) -> None:
    run_math, version = genesis
    checkpoints = made(tmp_path, run_math)
    assert checkpoints.is_due(0) and not checkpoints.is_due(5)
    kept = checkpoints.keep(version, 2.5)
    assert not checkpoints.is_due(0)
    record = kept.record
    assert (record.version, record.state_digest) == (0, version.digest) and record.evaluation is not None
    assert (record.evaluation.loss, record.evaluation.windows) == (2.5, (0, 1))
    store = BlobStore(tmp_path / "blobs")
    assert made(tmp_path, run_math).load(store) == (kept,)
    for file in record.files:
        assert blob_digest(store.read(file.root, check=True)) == file.root


def test_no_room_costs_the_checkpoint_and_leaves_nothing(
    tmp_path: Path, genesis: tuple[RunMath, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk ended the peer, for a checkpoint that it keeps for others."""
    run_math, version = genesis
    checkpoints = made(tmp_path, run_math)
    checkpoints.room = lambda: 4 * run_math.layout.numel - 1
    with pytest.raises(StateError, match=r"it takes 0 MB, and 0 MB are left for this peer"):
        checkpoints.keep(version, 1.0)
    assert versions_in(tmp_path) == []
    checkpoints.room = lambda: 4 * run_math.layout.numel

    def fills_up(folder: Path, *args: object) -> None:
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x")
        raise StateError("the disk is full")

    monkeypatch.setattr("peer.checkpoints.write_checkpoint", fills_up)
    with pytest.raises(StateError, match="full"):
        checkpoints.keep(version, 1.0)
    assert versions_in(tmp_path) == []


def test_who_joins_a_run_keeps_no_version_0(tmp_path: Path, genesis: tuple[RunMath, Version]) -> None:
    checkpoints = made(tmp_path, genesis[0])
    checkpoints.keeps_first = False
    assert not checkpoints.is_due(0) and checkpoints.is_due(1)


def test_room_is_what_the_disk_has_and_what_the_limit_leaves(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "blob").write_bytes(bytes(3_000_000))
    assert room_left(tmp_path, 0) > 10_000_000
    assert 990_000 <= room_left(tmp_path, 0.004) <= 1_000_000


def test_pruning_keeps_version_0_and_the_newest(tmp_path: Path, genesis: tuple[RunMath, Version]) -> None:
    run_math, version = genesis
    checkpoints = made(tmp_path, run_math)
    (tmp_path / "v-mine").mkdir()  # not ours
    (tmp_path / "v000000001").mkdir()  # half written, of a version that never comes again
    for number in (0, 2, 3):
        checkpoints.keep(at(version, number), 1.0)
    assert (tmp_path / "v-mine").exists()
    (tmp_path / "v-mine").rmdir()
    assert versions_in(tmp_path) == [0, 2, 3]
    checkpoints.keep(at(version, 4), 1.0)
    assert versions_in(tmp_path) == [0, 3, 4]
    checkpoints.keep(at(version, 6), 1.0)
    assert versions_in(tmp_path) == [0, 4, 6]


def test_who_came_late_keeps_only_the_newest(tmp_path: Path, genesis: tuple[RunMath, Version]) -> None:
    run_math, version = genesis
    for number in (3, 4, 6, 8):
        made(tmp_path, run_math).keep(at(version, number), 1.0)
    assert versions_in(tmp_path) == [6, 8]


@pytest.mark.parametrize("damage", ["no record", "empty record", "half a record", "changed record"])
def test_a_half_written_one_is_not_served_and_is_made_again(
    tmp_path: Path, genesis: tuple[RunMath, Version], damage: str
) -> None:
    run_math, version = genesis
    made(tmp_path, run_math).keep(version, 1.0)
    record = tmp_path / "v000000000" / "record.bin"
    whole = record.read_bytes()
    harmed = {"empty record": b"", "half a record": whole[: len(whole) // 2], "changed record": b"\xc1" + whole[1:]}
    if damage == "no record":
        record.unlink()
    else:
        record.write_bytes(harmed[damage])
    again = made(tmp_path, run_math)
    assert again.load(BlobStore(tmp_path / "blobs")) == ()
    assert again.is_due(0)
    again.keep(version, 1.0)
    assert record.read_bytes() == whole


def test_one_whose_files_are_half_removed_is_not_offered(tmp_path: Path, genesis: tuple[RunMath, Version]) -> None:
    run_math, version = genesis
    kept = made(tmp_path, run_math).keep(version, 1.0)
    Path(kept.files[-1][1]).unlink()
    again = made(tmp_path, run_math)
    assert again.load(BlobStore(tmp_path / "blobs")) == () and again.is_due(0)
    assert again.keep(version, 1.0).record == kept.record


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e7])
def test_a_model_that_diverged_is_kept_without_an_evaluation(
    tmp_path: Path, genesis: tuple[RunMath, Version], loss: float
) -> None:
    run_math, version = genesis
    kept = made(tmp_path, run_math).keep(version, loss)
    assert kept.record.evaluation is None
    assert made(tmp_path, run_math).load(BlobStore(tmp_path / "blobs")) == (kept,)
