"""Blobs on disk: named by their bytes, whole or absent, checked, and removed only when nobody needs them."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peer import disk
from peer.blob_store import BlobStore
from peer.partials import MAX_PARTIAL_AGE_S
from swarm.digest import CHUNK_BYTES, Digest, blob_digest, chunks_of, leaves_of, root_of_leaves
from swarm.errors import StateError

BLOB = bytes(range(256)) * 5000  # two chunks
ROOT = blob_digest(BLOB)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def file_of(tmp_path: Path, root: object = ROOT) -> Path:
    return tmp_path / "blobs" / root.hex()  # type: ignore[attr-defined]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=300), max_size=4))
def test_a_blob_is_named_by_its_bytes_and_comes_back(store: BlobStore, parts: list[bytes]) -> None:
    whole = b"".join(parts)
    root = store.put(parts, durable=False)
    assert root == blob_digest(whole)
    assert store.read(root, check=True) == whole
    info = store.info(root)
    assert info is not None and info.num_bytes == len(whole) and info.leaves == leaves_of(whole)


def test_chunks_are_those_of_the_blob_and_no_more(store: BlobStore) -> None:
    store.put(BLOB)
    assert [store.chunk(ROOT, index) for index in (0, 1)] == [bytes(one) for one in chunks_of(BLOB)]
    assert store.chunk(ROOT, 2) is None
    assert store.chunk(blob_digest(b"other"), 0) is None


def test_blobs_survive_a_restart(tmp_path: Path) -> None:
    BlobStore(tmp_path / "blobs").put(BLOB)
    again = BlobStore(tmp_path / "blobs")
    assert again.has(ROOT) and again.read(ROOT, check=True) == BLOB
    info = again.info(ROOT)
    assert info is not None and root_of_leaves(info.num_bytes, info.leaves) == ROOT


def test_an_absent_blob_says_where_it_was_looked_for(store: BlobStore, tmp_path: Path) -> None:
    assert store.info(ROOT) is None and not store.has(ROOT)
    with pytest.raises(StateError, match="blobs"):
        store.read(ROOT)


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES, len(BLOB) - 1])
def test_a_truncated_blob_is_written_anew(tmp_path: Path, length: int) -> None:
    """What a power cut may leave of a file that was never synced."""
    file_of(tmp_path).parent.mkdir()
    file_of(tmp_path).write_bytes(BLOB[:length])
    store = BlobStore(tmp_path / "blobs")
    assert store.info(ROOT) is None
    assert store.put(BLOB) == ROOT
    assert store.read(ROOT, check=True) == BLOB


def test_a_changed_blob_is_found_removed_and_can_be_put_again(store: BlobStore, tmp_path: Path) -> None:
    store.put(BLOB)
    changed = bytearray(BLOB)
    changed[77] ^= 1
    file_of(tmp_path).write_bytes(changed)
    with pytest.raises(StateError, match="not the ones that were written"):
        store.read(ROOT, check=True)
    assert not store.has(ROOT)
    store.put(BLOB)
    assert store.read(ROOT, check=True) == BLOB


def test_a_blob_of_the_right_length_and_wrong_bytes_is_written_anew(store: BlobStore, tmp_path: Path) -> None:
    file_of(tmp_path).write_bytes(bytes(len(BLOB)))
    assert store.put(BLOB) == ROOT
    assert store.read(ROOT, check=True) == BLOB


def test_what_nobody_pins_is_set_aside(store: BlobStore, tmp_path: Path) -> None:
    pinned, other = store.put(b"pinned"), store.put(b"other")
    store.pin("a", [pinned])
    store.set_aside(tmp_path / "aside")
    assert store.has(pinned) and not store.has(other) and store.info(other) is None
    assert [path.name for path in (tmp_path / "aside").iterdir()] == [other.hex()]


def test_collect_removes_exactly_what_nobody_pins(store: BlobStore, tmp_path: Path) -> None:
    roots = [store.put(bytes([number])) for number in range(6)]
    store.pin("a", roots[:2])
    store.pin("b", roots[1:3])
    assert store.collect() == 3
    assert [store.has(root) for root in roots] == [True, True, True, False, False, False]
    store.pin("a", ())  # a pin replaces the owner's earlier one, and no other's
    assert store.collect() == 1
    assert [store.has(root) for root in roots[:3]] == [False, True, True]
    assert sorted(path.name for path in (tmp_path / "blobs").iterdir()) == sorted(root.hex() for root in roots[1:3])


def test_collect_leaves_downloads_and_foreign_files_alone(store: BlobStore, tmp_path: Path) -> None:
    store.pin("round", [ROOT])
    store.partial_path(ROOT).write_bytes(b"half")
    foreign = [tmp_path / "blobs" / "notes.txt", tmp_path / "blobs" / ("z" * 64)]
    for path in foreign:
        path.write_text("mine")
    store.collect()
    assert store.partial_path(ROOT).exists() and all(path.exists() for path in foreign)
    store.partial_path(ROOT).write_bytes(BLOB)
    info = BlobStore(tmp_path / "elsewhere")
    info.put(BLOB)
    known = info.info(ROOT)
    assert known is not None
    store.adopt_partial(ROOT, known)
    assert store.read(ROOT, check=True) == BLOB and not store.partial_path(ROOT).exists()


def test_what_a_killed_process_left_is_cleared_at_the_start(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    store.put(BLOB)
    for name in (f"{ROOT.hex()}.part", f"{ROOT.hex()}.123.part", "ab.gone"):
        (tmp_path / "blobs" / name).write_bytes(b"left")
    BlobStore(tmp_path / "blobs")
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [ROOT.hex()]


def test_files_elsewhere_are_served_while_they_are_there_and_never_removed(store: BlobStore, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BLOB)
    store.serve_file(ROOT, path)
    assert store.chunk(ROOT, 1) == BLOB[CHUNK_BYTES:]
    assert store.collect() == 0 and path.exists()
    path.write_bytes(b"something else")
    assert BlobStore(tmp_path / "other").info(ROOT) is None
    path.unlink()
    assert store.info(ROOT) is None and store.chunk(ROOT, 0) is None


def test_a_served_file_that_changed_is_not_that_blob_and_stays(store: BlobStore, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"something else")
    store.serve_file(ROOT, path)
    assert store.info(ROOT) is None
    assert path.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_nothing(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(StateError, match="disk is full"):
        store.put(BLOB)
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError):
        BlobStore(tmp_path / "file" / "blobs")


def test_a_durable_put_syncs_the_bytes_and_then_the_folder(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename outlives a power cut only when its folder was synced behind it."""
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(disk.os, "fsync", note)
    store.put(BLOB)
    assert synced[0].endswith(".part") and synced[1:] == ["blobs"]


def other_root(number: int) -> Digest:
    return blob_digest(bytes([number]))


def leave(store: BlobStore, root: Digest, num_bytes: int, age_s: float = 0.0) -> Path:
    """A download that was broken off."""
    file = store.partials.open(root)
    file.write(bytes(num_bytes))
    file.close()
    store.partials.end(root, keep=True)
    at_s = time.time() - age_s
    os.utime(store.partial_path(root), (at_s, at_s))
    return store.partial_path(root)


def test_broken_downloads_outlive_a_restart_until_they_are_old(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    young, old = leave(store, other_root(1), 10), leave(store, other_root(2), 10, MAX_PARTIAL_AGE_S + 60)
    of_tomorrow = leave(store, other_root(3), 10, -86400.0)
    store = BlobStore(tmp_path / "blobs")
    assert young.exists() and not old.exists() and not of_tomorrow.exists()
    store.put(b"\1")
    store.collect()  # it has become whole in another way
    assert not young.exists()


def test_broken_downloads_are_bounded_in_bytes_and_those_under_way_are_left_alone(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peer.partials.MAX_PARTIAL_BYTES", 100 << 10)
    paths = [leave(store, other_root(number), 40 << 10, age_s=100.0 - number) for number in range(4)]
    store.pin("round", map(other_root, range(4)))
    under_way = store.partials.open(other_root(0))
    store.collect()
    assert [path.exists() for path in paths] == [True, False, True, True]
    under_way.close()
    store.partials.end(other_root(0), keep=False)
    assert not paths[0].exists()


def test_a_broken_download_goes_with_its_purpose(store: BlobStore) -> None:
    wanted, unwanted = leave(store, other_root(1), 10), leave(store, other_root(2), 10)
    store.pin("round", [other_root(1)])
    store.collect()
    assert wanted.exists() and not unwanted.exists()
    store.pin("round", ())
    store.collect()
    assert not wanted.exists()


def test_what_was_downloaded_for_a_purpose_outlives_a_restart(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    roots = [store.put(bytes([number])) for number in range(4)]
    store.pin("catching up", roots[:2], lasting=True)
    store.pin("first words", roots[2:3], lasting=True)
    store.pin("first words", (), lasting=True)
    store.pin("generations", roots[3:])
    again = BlobStore(tmp_path / "blobs")
    assert again.pinned("catching up") == frozenset(roots[:2])
    assert again.collect() == 2
    assert [again.has(root) for root in roots] == [True, True, False, False]
    again.pin("catching up", ())
    assert BlobStore(tmp_path / "blobs").pinned("catching up") == frozenset()


def test_pins_of_the_process_before_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path / "blobs")
    root = store.put(b"a")
    store.pin("catching up", [root], lasting=True)
    now_s = 100.0
    again = BlobStore(tmp_path / "blobs", clock=lambda: now_s)
    assert again.collect() == 0
    now_s += MAX_PARTIAL_AGE_S + 1.0
    assert again.collect() == 1
    real = time.time
    for wrong in (-1e6, 1e6):  # clocks that were set
        monkeypatch.setattr("peer.blob_store.time.time", lambda wrong=wrong: real() + wrong)
        assert BlobStore(tmp_path / "blobs").pinned("catching up") == frozenset()


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x91\x91\x93\xa1a\x01\x91\xc4\x01a", bytes(100)])
def test_a_damaged_file_of_pins_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "downloads.pins").write_bytes(content)
    assert BlobStore(tmp_path / "blobs").pinned("a") == frozenset()


def test_a_pin_with_an_end_ends(tmp_path: Path) -> None:
    now_s = 0.0
    store = BlobStore(tmp_path / "blobs", clock=lambda: now_s)
    store.pin("a joiner", [store.put(b"a")], until_s=10.0)
    assert store.collect() == 0
    now_s = 10.0
    assert store.collect() == 1


def test_a_disk_that_cannot_be_read_has_no_info_and_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = BlobStore(tmp_path).put(b"blob" * 100)

    def fails(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("peer.blob_store.os.pread", fails)
    afresh = BlobStore(tmp_path)
    assert afresh.info(root) is None, "whoever asks for it is told that it is not here"
    with pytest.raises(StateError, match="Input/output error"):
        afresh.open_checked(root)
