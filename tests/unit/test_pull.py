"""Pulling a checkpoint from peers in memory: liars, the dying and the interrupted leave the right bytes or a clear line."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from coordinator.pull import MAX_FILES_AT_ONCE, Pulled, check_files, pull
from swarm.digest import CHUNK_BYTES, ZERO_DIGEST, blob_digest
from swarm.errors import ConfigError, MalformedBytes, StateError, Unreachable
from swarm.holders import MAX_IN_FLIGHT
from swarm.messages import BlobInfo, CheckpointFile, CheckpointRecord, Chunk, Evaluation, GetBlob, GetChunk
from tests.unit.fake_swarm import RUN, FakePeer, FakeSwarm, a_digest

WEIGHTS = random.Random(3).randbytes(
    2 * MAX_IN_FLIGHT * CHUNK_BYTES + 17
)  # more than two holders are asked for at once
FILES = {"config.json": b'{"a": 1}', "model-00001-of-00001.safetensors": WEIGHTS, "tokenizer.json": b"{}"}


def a_record(version: int = 8, loss: float | None = 2.5, files: dict[str, bytes] = FILES) -> CheckpointRecord:
    return CheckpointRecord(
        run=RUN,
        version=version,
        tokens=version * 1000,
        cursor=0,
        head=a_digest(f"head {version}"),
        state_digest=a_digest(f"state {version}"),
        contributors=(),
        files=tuple(CheckpointFile(name, len(data), blob_digest(data)) for name, data in files.items()),
        evaluation=None if loss is None else Evaluation(loss, (1, 2, 3)),
    )


def holders(size: int) -> FakeSwarm:
    swarm = FakeSwarm(size)
    for number, peer in enumerate(swarm.peers):
        peer.record = a_record(loss=2.5 + number / 100)
        peer.blobs = {blob_digest(data): data for data in FILES.values()}
    return swarm


def pulled(swarm: FakeSwarm, out_dir: Path, version: int | None = None) -> Pulled:
    async def main() -> Pulled:
        transport = swarm.transport()
        for peer in swarm.peers:
            await transport.connect(peer.address, timeout_s=1.0)
        return await pull(
            transport, transport.keypair, RUN, [peer.peer_id for peer in swarm.peers], out_dir, version=version
        )

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def assert_whole(out_dir: Path) -> None:
    assert {path.name for path in out_dir.iterdir()} == {*FILES, "barnraise-record.json"}
    assert all((out_dir / name).read_bytes() == data for name, data in FILES.items())


Fault = Callable[[Any], Awaitable[bytes | None]]


def wrong_chunks(peer: FakePeer) -> Fault:
    async def answer(message: Any) -> bytes | None:
        return peer.seal(Chunk(b"\0" * CHUNK_BYTES)) if isinstance(message, GetChunk) else None

    return answer


def wrong_digests(peer: FakePeer) -> Fault:
    async def answer(message: Any) -> bytes | None:
        return peer.seal(BlobInfo(3, (ZERO_DIGEST,))) if isinstance(message, GetBlob) else None

    return answer


def dies_after(peer: FakePeer, chunks: int) -> Fault:
    async def answer(message: Any) -> bytes | None:
        if isinstance(message, GetChunk) and peer.asked["GetChunk"] > chunks:
            peer.up = False
            raise Unreachable("gone")
        return None

    return answer


def freezes(peer: FakePeer) -> Fault:
    async def answer(message: Any) -> bytes | None:
        if isinstance(message, GetChunk | GetBlob):
            await trio.sleep_forever()
        return None

    return answer


def takes_a_moment() -> Fault:
    async def answer(message: Any) -> bytes | None:
        if isinstance(message, GetChunk):
            await trio.sleep(0.05)
        return None

    return answer


def test_all_holders_share_the_work_and_the_record_says_what_it_is(tmp_path: Path) -> None:
    swarm = holders(3)
    for peer in swarm.peers:  # else the first two may have given all before the third has said what it holds
        peer.fault = takes_a_moment()
    result = pulled(swarm, tmp_path / "out")
    assert_whole(tmp_path / "out")
    assert result.fetched_bytes == result.num_bytes == sum(map(len, FILES.values()))
    assert sum(peer.asked["GetChunk"] for peer in swarm.peers) == 2 * MAX_IN_FLIGHT + 3, "no chunk is asked for twice"
    assert all(peer.asked["GetChunk"] for peer in swarm.peers), [dict(peer.asked) for peer in swarm.peers]
    record = json.loads((tmp_path / "out" / "barnraise-record.json").read_text())
    assert record["version"] == 8 and record["run"] == RUN.hex()
    assert record["evaluation"] == {"heldout_loss": 2.5, "windows": [1, 2, 3]}
    assert record["heldout_loss_spread"] == [2.5, 2.52]
    assert record["holders"] == [peer.peer_id.base58 for peer in swarm.peers]
    sealed = bytes.fromhex(record["sealed_records_hex"][swarm.peers[1].peer_id.base58])
    assert sealed == swarm.peers[1].seal(swarm.peers[1].record)
    assert result.loss_spread == (2.5, 2.52)


@pytest.mark.parametrize("fault", [wrong_chunks, wrong_digests, lambda peer: dies_after(peer, 1), freezes])
def test_one_honest_holder_is_enough(fault: Callable[[FakePeer], Fault], tmp_path: Path) -> None:
    swarm = holders(3)
    for peer in swarm.peers[:2]:
        peer.fault = fault(peer)
    result = pulled(swarm, tmp_path / "out")
    assert_whole(tmp_path / "out")
    liars = {peer.peer_id for peer in swarm.peers[:2]} if fault in (wrong_chunks, wrong_digests) else set()
    asked = {peer.peer_id for peer in swarm.peers if peer.asked.total()}
    # Who was not asked was not found out; nor was who was so slow that another one's answer came first.
    assert set(result.wrong_chunks) <= liars & asked and bool(result.wrong_chunks) == bool(liars)


def test_a_liar_costs_one_chunk_of_all_files(tmp_path: Path) -> None:
    """Each file found out for itself."""
    swarm = holders(2)
    swarm.peers[0].fault = wrong_chunks(swarm.peers[0])
    result = pulled(swarm, tmp_path / "out")
    assert_whole(tmp_path / "out")
    assert 1 <= result.wrong_chunks[swarm.peers[0].peer_id] <= MAX_FILES_AT_ONCE


def test_a_broken_pull_is_taken_up_again(tmp_path: Path) -> None:
    swarm = holders(1)
    (peer,) = swarm.peers
    peer.fault = dies_after(peer, 4)
    with pytest.raises(Unreachable, match="pull again to go on"):
        pulled(swarm, tmp_path / "out")
    assert not (tmp_path / "out" / "barnraise-record.json").exists()
    peer.fault, peer.up = None, True
    result = pulled(swarm, tmp_path / "out")
    assert_whole(tmp_path / "out")
    assert 0 < result.fetched_bytes < result.num_bytes


def test_a_leftover_with_wrong_bytes_is_not_believed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    damaged = bytearray(WEIGHTS)
    damaged[CHUNK_BYTES + 3] ^= 1
    (out / "model-00001-of-00001.safetensors.part").write_bytes(damaged + b"too long")
    result = pulled(holders(1), out)
    assert_whole(out)
    assert result.fetched_bytes == CHUNK_BYTES + len(FILES["config.json"]) + len(FILES["tokenizer.json"])


def test_pulling_again_fetches_nothing(tmp_path: Path) -> None:
    pulled(holders(1), tmp_path / "out")
    assert pulled(holders(1), tmp_path / "out").fetched_bytes == 0
    assert_whole(tmp_path / "out")


def test_the_newest_version_that_two_share_is_taken(tmp_path: Path) -> None:
    swarm = holders(4)
    swarm.peers[0].record = a_record(version=10**9)  # alone with it
    assert pulled(swarm, tmp_path / "out").record.version == 8


def test_a_forged_record_of_the_same_version_loses_to_the_majority(tmp_path: Path) -> None:
    swarm = holders(3)
    swarm.peers[0].record = replace(a_record(), files=a_record(files={"config.json": b"evil"}).files)
    assert len(pulled(swarm, tmp_path / "out").holders) == 2
    assert_whole(tmp_path / "out")


def test_a_version_that_nobody_keeps_is_refused_with_reasons(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"no peer of 2 offers a checkpoint of version 5; checkpoint 5 is not kept"):
        pulled(holders(2), tmp_path / "out", version=5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    ["../x.json", "/etc/x.json", "a/b.json", "a\\b.json", ".json", ".x.json", "-x.json", "x.py", "x.bin", "x", "",
     "a\0.json", "ｘ.json", "Barnraise-Record.json", "x.json\n", "CON:.json"],
)  # fmt: skip
def test_file_names_that_could_leave_the_directory_are_refused(name: str) -> None:
    with pytest.raises(MalformedBytes):
        check_files(replace(a_record(), files=(CheckpointFile(name, 1, ZERO_DIGEST),)))


@pytest.mark.parametrize("files", [(), ("a.json", "A.json")])
def test_no_files_or_one_twice_are_refused(files: tuple[str, ...]) -> None:
    with pytest.raises(MalformedBytes):
        check_files(replace(a_record(), files=tuple(CheckpointFile(name, 1, ZERO_DIGEST) for name in files)))


def test_a_directory_with_other_things_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        pulled(holders(1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    pulled(holders(1), tmp_path / "out")
    swarm = holders(1)
    swarm.peers[0].record = a_record(version=16)
    with pytest.raises(ConfigError, match="another checkpoint"):
        pulled(swarm, tmp_path / "out")
    assert_whole(tmp_path / "out")


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    swarm = holders(1)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json.part").symlink_to("/dev/full")
    with pytest.raises(StateError, match="make room"):
        pulled(swarm, out)
