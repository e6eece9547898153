"""A power cut behind every single change that a peer makes on its disk: what is found then is whole, and is what was told.

A real sequence of a peer's life is recorded once: its home is made, rounds are cut, saved, announced, listed, left out,
undone and withdrawn, checkpoints kept and pruned. Then every disk that a power cut may leave is loaded afresh.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from peer import blob_store, disk, home, saved
from peer.address_book import AddressBook
from peer.blob_store import BlobStore
from peer.home import Home, open_home
from peer.replica import Replica
from peer.saved import Generations, SavedState
from swarm.allreduce.shared import RunMath
from swarm.digest import blob_digest
from swarm.errors import BarnraiseError
from tests.unit.message_examples import RUN
from tests.unit.peer_life import Announced, KeptVersion, Known, Life, Saved, Settled, checkpoints_in, math_of_run
from tests.unit.power_cut import Mark, Mount, Recorder, Step, images_after


def live(life: Life) -> None:
    """Rounds of every kind."""
    life.begin()
    life.hear(4002)
    life.train()
    life.move(life.cut(), life.receive(1))  # both are listed
    life.train()
    left_out = life.cut()
    life.train()  # underneath
    life.hear(4003)
    life.move(life.receive(2))
    life.move(left_out, life.receive(3))
    before = life.replica.present.state.chain.head
    life.train()
    mine = life.cut()
    life.move(mine)  # and that is undone: a better branch lists another one
    life.move(life.receive(5), base=before)
    life.move(mine)
    life.train()
    life.save()  # as when it stops in mid-round
    life.cut()
    for seq in (6, 7, 8):  # it is left out until it is withdrawn
        life.move(life.receive(seq))
    life.train()
    life.move(life.cut(), life.receive(9))


SAVES_EVERY = 10  # of so many disks one is saved to again
_Kind = TypeVar("_Kind")


@pytest.fixture(scope="module")
def run_math() -> RunMath:
    return math_of_run()


def live_shortly(life: Life) -> None:
    """Enough for a mistake to show."""
    life.begin()
    for seq in (1, 2, 3):
        life.train()
        life.move(life.cut(), life.receive(seq))


# ---------------------------------------------------------------- laws


@dataclass(frozen=True, slots=True)
class Told:
    """What had been done and told when the power went."""

    marks: list[object]

    def all(self, kind: type[_Kind]) -> list[_Kind]:
        return [one for one in self.marks if isinstance(one, kind)]

    def check(self, path: Path, run_math: RunMath, *, saves: bool) -> None:
        """Loads what is at `path` as a fresh process does; fails if any of it is not what it should be."""
        home = open_home(path)
        try:
            key = home.keypair()
            assert all(known.peer == key.peer_id for known in self.all(Known)), "another identity"
            assert home.manifest() is None
            assert home.listen() in ((), ("/ip4/127.0.0.1/tcp/4001",))
            assert len(AddressBook(home.book).addresses()) <= 2
            store = BlobStore(home.blobs)
            replica = Replica(run_math, key.peer_id, RUN, store, Generations(home.state))
            theta_N = self._check_state(replica)
            self._check_checkpoints(home, run_math, store)
            assert not drafts_in(path)
            if saves and theta_N is not None:
                self._check_next_save(replica, theta_N, path)
        finally:
            home.release()

    def _check_state(self, replica: Replica) -> Tensor | None:
        found: list[SavedState] = []
        lines: list[str] = []

        def restore(saved: SavedState) -> Tensor:
            found.append(saved)
            return replica.restore(saved)

        theta_N = replica.generations.load(restore, lines.append)
        assert lines == [], "a power cut alone damages nothing that has a name"
        saves = self.all(Saved)
        newest = saves[-1].generation if saves else 0
        if theta_N is None:
            assert not saves, "what was saved is gone"
            return None
        assert found[0].generation in (newest, newest + 1)
        for root in found[0].blobs():
            replica.store.read(root, check=True)
        settled = {one.seq for one in self.all(Settled)}
        for told in self.all(Announced):
            seq = told.contribution.seq
            assert replica.next_seq > seq, "a number could be used twice"
            there = replica.contributions.get(seq)
            assert there in (None, (told.contribution, told.sealed))
            if there is not None:
                assert replica.store.has(told.contribution.root)
            else:  # only the save that was under way may have forgotten it
                assert seq in settled or found[0].generation > newest, "an announced contribution is gone"
        return theta_N

    def _check_checkpoints(self, home: Home, run_math: RunMath, store: BlobStore) -> None:
        kept = checkpoints_in(home, run_math).load(store)
        for one in kept:
            for root, path in one.files:
                assert blob_digest(Path(path).read_bytes()) == root
        told = [one.version for one in self.all(KeptVersion)]
        if told:
            assert told[-1] in {one.record.version for one in kept}, "a checkpoint that was offered is gone"

    def _check_next_save(self, replica: Replica, theta_N: Tensor, path: Path) -> None:
        """It goes on, and what nothing needs is gone then."""
        replica.save(theta_N, None)
        kept = replica.generations.kept()
        named = {root.hex() for one in kept for root in one.blobs()}
        named |= {one.root.hex() for one, _ in replica.contributions.values()}
        assert {one.name for one in (path / "blobs").iterdir() if len(one.name) == 64} == named
        assert len(list((path / "state").iterdir())) == len(kept) <= 2
        again = Replica(replica.math, replica.author, RUN, replica.store, Generations(path / "state"))
        after_N = again.generations.load(again.restore, pytest.fail)
        assert after_N is not None and torch.equal(after_N, theta_N)


def drafts_in(path: Path) -> list[str]:
    """Half-written files in the folders that are cleared at each start; a download may be gone on with."""
    patterns = ("*.part", "state/*.part", "blobs/*.*.part", "blobs/*.gone")
    return [one.name for pattern in patterns for one in path.glob(pattern)]


def check_all(steps: list[Step], folder: Path, run_math: RunMath, monkeypatch: pytest.MonkeyPatch) -> int:
    """Checks each disk that a power cut may leave of these steps; returns how many."""
    mount, number = Mount(folder), 0
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # what is done to these disks need not last
    for number, (done, marks, image) in enumerate(images_after(steps), start=1):
        try:
            Told(marks).check(mount.show(image) / "home", run_math, saves=number % SAVES_EVERY == 0)
        except (AssertionError, BarnraiseError) as error:
            story = "\n".join(str(step)[:200] for step in steps[max(0, done - 12) : done])
            raise AssertionError(f"a power cut behind step {done}: {error!r}\n{story}") from error
    return number


def unsynced_bytes(patched: pytest.MonkeyPatch) -> None:
    real = os.fsync
    patched.setattr(disk.os, "fsync", lambda one: real(one) if os.path.isdir(f"/proc/self/fd/{one}") else None)


def unsynced_names(patched: pytest.MonkeyPatch) -> None:
    real = os.fsync
    patched.setattr(disk.os, "fsync", lambda one: None if os.path.isdir(f"/proc/self/fd/{one}") else real(one))


def unsynced_folders(patched: pytest.MonkeyPatch) -> None:
    for module in (home, blob_store, saved):
        patched.setattr(module, "make_folder", lambda path: path.mkdir(parents=True, exist_ok=True))


def no_draft(patched: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: bytes, partial: Path, *, durable: bool = True) -> None:
        path.write_bytes(content)
        disk.sync(path)
        disk.sync(path.parent)

    patched.setattr(saved, "write_whole", write)


def announced_too_early(patched: pytest.MonkeyPatch) -> None:
    real = Life.save

    def save(life: Life) -> None:
        for one in life.replica.contributions.values():
            life.mark(Announced(*one))
        real(life)

    patched.setattr(Life, "save", save)


@pytest.mark.parametrize(
    "mistake",
    [unsynced_bytes, unsynced_names, unsynced_folders, no_draft, announced_too_early],
    ids=lambda one: one.__name__,
)
def test_the_laws_find_a_mistake(
    mistake: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, run_math: RunMath, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path / "recorded")
    (tmp_path / "recorded").mkdir()
    with recorder.recording(), monkeypatch.context() as patched:
        mistake(patched)
        live_shortly(Life(tmp_path / "recorded" / "home", run_math, recorder.mark))
    (tmp_path / "found").mkdir()
    with pytest.raises(AssertionError, match="a power cut behind step"):
        check_all(recorder.steps, tmp_path / "found", run_math, monkeypatch)


def test_whatever_a_power_cut_leaves_is_loaded_and_is_what_was_told(
    tmp_path: Path, run_math: RunMath, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recorded").mkdir()
    (tmp_path / "found").mkdir()
    recorder = Recorder(tmp_path / "recorded")
    with recorder.recording():
        live(Life(tmp_path / "recorded" / "home", run_math, recorder.mark))
    steps = recorder.steps
    number = check_all(steps, tmp_path / "found", run_math, monkeypatch)
    kinds = {type(step.what) for step in steps if isinstance(step, Mark)}
    assert kinds == {Saved, Announced, Settled, Known, KeptVersion} and number > 1000
    print(f"{len(steps)} steps, {number} disks")
