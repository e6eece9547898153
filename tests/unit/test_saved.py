"""Generations: whatever is cut short or damaged, a whole one is found, or it is said clearly that there is none."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peer import disk
from peer.blob_store import BlobStore
from peer.saved import Generations, SavedState
from swarm import wire
from swarm.errors import BadSignature, LocalError, StateError
from swarm.lease import LeaseQueue
from tests.unit.message_examples import example_of


def saved(number: int, store: BlobStore | None = None) -> SavedState:
    """A generation; with a store its theta and residual are blobs there."""
    state: SavedState = example_of(SavedState)
    cuts = tuple(replace(cut, standing=place) for place, cut in enumerate(state.cuts))
    state = replace(state, generation=number, cuts=cuts, leases=wire.encode(LeaseQueue().to_value()))
    if store is not None:
        state = replace(state, theta=store.put(b"theta %d" % number), residual=store.put(b"residual %d" % number))
    return state


def load(generations: Generations, store: BlobStore | None = None) -> tuple[int | None, list[str]]:
    """The number of the generation that is found whole, and the lines that were said."""
    lines: list[str] = []

    def restore(state: SavedState) -> int:
        if store is not None:
            store.read(state.theta, check=True)
            store.read(state.residual, check=True)
        return state.generation

    return generations.load(restore, lines.append), lines


def path_of(tmp_path: Path, number: int) -> Path:
    return tmp_path / f"{number:012d}.state"


def test_a_generation_comes_back_as_it_was(tmp_path: Path) -> None:
    Generations(tmp_path).write(saved(1))
    assert Generations(tmp_path).load(lambda state: state, print) == saved(1)


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    generations = Generations(tmp_path / "new")
    assert not generations.exist() and load(generations) == (None, [])


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    for number in (1, 2, 3, 4):
        generations.write(saved(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == [path_of(tmp_path, n).name for n in (3, 4)]
    assert [state.generation for state in generations.kept()] == [4, 3]
    assert load(generations) == (4, [])


def _cut_to(length: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def _flip(place: int) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[place] ^= 0x20
        path.write_bytes(raw)

    return harm


DAMAGES = {
    "empty": _cut_to(0),
    "magic": _cut_to(9),
    "header": _cut_to(30),
    "half": _cut_to(300),
    "last byte": _cut_to(-1),
    "flipped magic": _flip(0),
    "flipped check": _flip(20),
    "flipped body": _flip(100),
    "flipped end": _flip(-1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_generation_gives_way_to_the_one_before(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    generations = Generations(tmp_path)
    for number in (1, 2):
        generations.write(saved(number))
    damage(path_of(tmp_path, 2))
    found, lines = load(generations)
    assert found == 1
    assert len(lines) == 1 and path_of(tmp_path, 2).name in lines[0] and path_of(tmp_path, 1).name in lines[0]
    assert [state.generation for state in generations.kept()] == [1]
    generations.write(saved(2))  # the damaged one is replaced by the next save
    assert load(generations) == (2, [])


def test_a_damaged_or_missing_blob_gives_way_too(tmp_path: Path) -> None:
    store, generations = BlobStore(tmp_path / "blobs"), Generations(tmp_path / "state")
    states = [saved(number, store) for number in (1, 2)]
    for state in states:
        generations.write(state)
    (tmp_path / "blobs" / states[1].theta.hex()).write_bytes(b"theta X")
    found, lines = load(generations, store)
    assert found == 1 and len(lines) == 1
    (tmp_path / "blobs" / states[0].residual.hex()).unlink()
    with pytest.raises(StateError, match="no state file is whole"):
        load(generations, store)


def test_both_damaged_is_one_clear_error(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    for number in (1, 2):
        generations.write(saved(number))
        _cut_to(50)(path_of(tmp_path, number))
    with pytest.raises(StateError) as raised:
        load(generations)
    assert all(path_of(tmp_path, number).name in str(raised.value) for number in (1, 2))


def test_an_announcement_with_a_wrong_signature_counts_as_damage(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    generations.write(saved(1))

    def restore(state: SavedState) -> int:
        raise BadSignature("not signed by us")

    with pytest.raises(StateError, match="not signed by us"):
        generations.load(restore, print)


def test_a_power_cut_at_any_step_of_a_write_leaves_a_loadable_generation(tmp_path: Path) -> None:
    """Each state the disk can be in between two steps: the draft of any length, its rename, the removal of the oldest."""
    whole = Generations(tmp_path / "whole")
    whole.write(saved(3))
    content = path_of(tmp_path / "whole", 3).read_bytes()
    draft = f"{3:012d}.part"
    cuts = [0, 1, 8, 9, 40, 41, 42, *range(60, len(content), 301), len(content)]
    for step, length in enumerate([*cuts, None]):
        folder = tmp_path / str(step)
        before = Generations(folder)
        before.write(saved(1))
        before.write(saved(2))
        if length is not None:
            (folder / draft).write_bytes(content[:length])
        else:  # renamed, but the oldest not yet removed
            path_of(folder, 3).write_bytes(content)
        again = Generations(folder)
        assert load(again) == ((2, []) if length is not None else (3, [])), length
        assert not (folder / draft).exists()
        again.write(saved(3))
        assert load(again) == (3, [])
        assert len(list(folder.iterdir())) == 2


def test_a_power_cut_at_any_step_of_saving_blobs_and_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stops at each sync in turn, and what was not synced by then is cut short: the worst a disk may do."""

    class PowerCut(BaseException):
        pass

    real = os.fsync
    steps_left, last = 0, ""

    def fsync(descriptor: int) -> None:
        nonlocal steps_left, last
        last = os.readlink(f"/proc/self/fd/{descriptor}")
        if steps_left == 0:
            raise PowerCut
        steps_left -= 1
        real(descriptor)

    monkeypatch.setattr(disk.os, "fsync", fsync)
    reached_end = False
    for step in range(40):
        home = tmp_path / str(step)
        steps_left = 1000
        store, generations = BlobStore(home / "blobs"), Generations(home / "state")
        generations.write(saved(1, store))
        steps_left = step
        try:
            generations.write(saved(2, store))
            reached_end = True
        except PowerCut:
            unsynced = Path(last)
            if unsynced.is_file():
                unsynced.write_bytes(unsynced.read_bytes()[:3])
        steps_left = 1000
        found, lines = load(Generations(home / "state"), BlobStore(home / "blobs"))
        assert found in (1, 2) and lines == []
        if reached_end:
            assert found == 2
            break
    assert reached_end and step > 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_or_failing_disk_leaves_the_previous_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    generations = Generations(tmp_path)
    generations.write(saved(1))

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(disk.os, "fsync", fail)
        with pytest.raises(StateError, match="disk is full" if code == errno.ENOSPC else "Input/output error"):
            generations.write(saved(2))
    assert load(generations) == (1, [])
    assert [path.name for path in tmp_path.iterdir()] == [path_of(tmp_path, 1).name]


def test_what_could_not_be_read_again_is_never_written(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    generations.write(saved(1))
    too_long = replace(saved(2), leases=bytes((1 << 20) + 1))
    with pytest.raises(LocalError, match="could not be read again"):
        generations.write(too_long)
    assert load(generations) == (1, [])


def test_an_unanswering_disk_is_not_an_empty_one(tmp_path: Path) -> None:
    """`kept` decides what is collected: it may not take a generation that cannot be read now for none."""
    generations = Generations(tmp_path)
    generations.write(saved(1))
    path_of(tmp_path, 2).mkdir()  # reading it is an OSError
    with pytest.raises(StateError):
        generations.kept()


def test_blobs_names_everything_that_is_needed() -> None:
    state = saved(1)
    named = state.blobs()
    assert {state.theta, state.residual, state.optimizer} <= named
    assert all({cut.blob, cut.delta, cut.before} <= named for cut in state.cuts)
    assert all(unit.root in named for record in state.states for unit in record.units)
    assert all(entry.root in named for commit in state.log for entry in commit.commit.entries)
