"""What a peer begins with when its disk changed what was on it: the most that is whole, and what is lost is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from peer.beginning import Begun, begin
from peer.blob_store import BlobStore
from peer.home import Home, open_home
from peer.replica import Replica
from peer.saved import Generations, SavedState, last_generation
from peer.screen import Screen
from swarm.allreduce.ledger import move_head
from swarm.allreduce.shared import RunMath, after_commit
from swarm.chain import CommitList
from swarm.errors import NetworkError, StateError, Unreachable
from swarm.messages import StateRecord
from tests.unit.message_examples import RUN
from tests.unit.peer_life import CONFIG, OTHER, Life, entry_of, math_of_run

_SCREEN = Screen(quiet=True, json_events=None)


@pytest.fixture(scope="module")
def run_math() -> RunMath:
    return math_of_run()


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, run_math: RunMath) -> Life:
    """A home in mid-round: one contribution waits, another was listed, and both generations are of the same version."""
    life = Life(tmp_path_factory.mktemp("lived") / "home", run_math)
    life.begin()
    life.train()
    life.move(life.cut(), life.receive(1))
    life.train()
    life.move(life.cut())
    life.train()
    life.move(life.receive(2))
    life.train()
    life.cut()
    life.train()
    life.save()
    life.home.release()
    return life


@dataclass
class Swarm:
    """Peers who hold a version, or nobody."""

    source: Life | None
    asked: int = 0
    store: BlobStore = field(init=False)

    def fetch(self) -> StateRecord:
        self.asked += 1
        if self.source is None:
            raise Unreachable("nobody was reached")
        record = self.source.replica.present.record
        self.store.pin("fetched", [unit.root for unit in record.units])
        for unit in record.units:
            self.store.put(self.source.store.read(unit.root, check=True))
        return record


@dataclass
class Start:
    """One start of a peer on a copy of a home."""

    home: Home
    replica: Replica
    begun: Begun


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.beginning._ASK_AGAIN_S", 0.0)


def started(folder: Path, run_math: RunMath, swarm: Swarm) -> Start:
    home = open_home(folder)
    try:
        store = swarm.store = BlobStore(home.blobs)
        replica = Replica(run_math, home.keypair().peer_id, RUN, store, Generations(home.state))
        return Start(home, replica, begin(replica, home, CONFIG, swarm.fetch, _SCREEN))
    finally:
        home.release()


def copy_of(life: Life, folder: Path) -> Path:
    return Path(shutil.copytree(life.home.path, folder / "home"))


def newest(home: Path) -> SavedState:
    return Generations(home / "state").kept()[0]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "gone": lambda path: path.unlink(),
}


def test_any_one_damage_is_survived_and_no_number_is_used_twice(tmp_path: Path, lived: Life, run_math: RunMath) -> None:
    """Each file of the state in turn; the swarm stands where we stand."""
    version = lived.replica.present
    announced = lived.replica.contributions
    files = [path for folder in ("state", "blobs") for path in sorted((lived.home.path / folder).iterdir())]
    outcomes = set()
    for number, path in enumerate(files):
        for name, damage in DAMAGES.items():
            folder = copy_of(lived, tmp_path / f"{number} {name}")
            damage(folder / path.relative_to(lived.home.path))
            swarm = Swarm(lived)
            start = started(folder, run_math, swarm)
            replica = start.replica
            assert replica.present.digest == version.digest
            assert replica.next_seq > max(announced)
            assert all(replica.contributions[seq] == announced[seq] for seq in replica.contributions)
            assert bool(swarm.asked) == bool(start.home.set_aside)
            if start.begun.losses:
                assert torch.equal(start.begun.theta_N, version.state.anchor_N)
                assert not replica.pending and not bool(replica._ledger.residual_N.any())
            else:
                assert replica.pending == lived.replica.pending
            outcomes.add((bool(swarm.asked), bool(start.begun.losses)))
            again = started(folder, run_math, Swarm(None))  # whatever it was, it is on disk now
            assert again.replica.present.digest == version.digest and again.replica.next_seq >= replica.next_seq
            shutil.rmtree(folder)
    assert outcomes == {(False, False), (False, True), (True, True)}


def damage_blobs(home: Path, *roots: object) -> None:
    for root in roots:
        DAMAGES["flipped"](home / "blobs" / root.hex())  # type: ignore[attr-defined]


def test_a_damaged_residual_costs_the_private_part_alone(tmp_path: Path, lived: Life, run_math: RunMath) -> None:
    home = copy_of(lived, tmp_path)
    saved = newest(home)
    damage_blobs(home, saved.residual)
    start = started(home, run_math, Swarm(None))
    replica, (lost,) = start.replica, start.begun.losses
    assert replica.present.digest == lived.replica.present.digest and replica.heads == lived.replica.heads
    assert replica.roots == lived.replica.roots
    assert torch.equal(start.begun.theta_N, replica.present.state.anchor_N)
    assert not bool(replica._ledger.residual_N.any()) and replica.pending == () and replica.contributions == {}
    assert lost.tokens == saved.unlisted_tokens == 300 and str(home) not in lost.reason  # others read it
    assert replica.next_seq == saved.next_seq and replica.leases.to_value() == lived.replica.leases.to_value()
    assert start.begun.optimizer == b"moments 5" * 5
    replica.save(start.begun.theta_N, None)
    assert started(home, run_math, Swarm(None)).begun.losses == ()


def test_who_gives_its_progress_up_gives_up_what_is_pending_too(tmp_path: Path, lived: Life, run_math: RunMath) -> None:
    """Only the work since the last cut was declared."""
    home = copy_of(lived, tmp_path)
    replica = started(home, run_math, Swarm(None)).replica
    assert replica.pending and replica.unlisted_tokens == newest(home).unlisted_tokens == 300 > replica.work.tokens
    present = replica.present
    replica.adopt(present.record, present.root, present.state.anchor_N, keep_progress=False)
    assert replica.pending == () and replica.unlisted_tokens == 0


def test_a_lost_contribution_that_is_listed_after_all_counts_once(
    tmp_path: Path, lived: Life, run_math: RunMath
) -> None:
    home = copy_of(lived, tmp_path)
    (seq,) = lived.replica.pending
    contribution, _ = lived.replica.contributions[seq]
    damage_blobs(home, newest(home).residual)
    start = started(home, run_math, Swarm(None))
    old = start.replica.present.state
    new = after_commit(run_math, old, CommitList((entry_of(contribution),), (OTHER.peer_id,)), lived.store.read)
    moved = move_head(start.replica._ledger, old, new, start.begun.theta_N)
    assert moved.unknown == (seq,) and torch.equal(moved.theta_N, new.anchor_N)


def test_a_damaged_older_version_costs_the_way_back_alone(tmp_path: Path, lived: Life, run_math: RunMath) -> None:
    home = copy_of(lived, tmp_path)
    oldest, _, present = newest(home).states
    damage_blobs(home, *({unit.root for unit in oldest.units} - {unit.root for unit in present.units}))
    start = started(home, run_math, Swarm(None))
    assert start.begun.losses == () and start.replica.heads == lived.replica.heads[:2]
    assert start.replica.roots == lived.replica.roots[:2]
    assert start.replica.pending == lived.replica.pending
    assert torch.equal(start.begun.theta_N, lived.theta_N)


def damaged_throughout(life: Life, folder: Path) -> Path:
    home = copy_of(life, folder)
    damage_blobs(home, newest(home).states[-1].units[0].root)
    return home


def test_a_damaged_shared_state_is_moved_aside_and_the_peer_joins_again(
    tmp_path: Path, lived: Life, run_math: RunMath
) -> None:
    home = damaged_throughout(lived, tmp_path)
    tokens, last = newest(home).unlisted_tokens, last_generation(home / "state")
    there = {path.name for path in (home / "blobs").iterdir()}
    start = started(home, run_math, Swarm(lived))
    replica, (lost,) = start.replica, start.begun.losses
    assert [path.name for path in start.home.set_aside] == ["damaged-1"]
    assert replica.next_seq > last >= max(lived.replica.contributions)
    assert lost.tokens == tokens and replica.pending == () and replica.log == ()
    kept = {path.name for path in (home / "damaged-1" / "blobs").iterdir()}
    needed = {root.hex() for root in newest(home).blobs()}
    assert {path.name for path in (home / "blobs").iterdir()} == needed
    damaged = lived.replica.present.record.units[0].root.hex()
    assert kept == there - needed - {damaged}  # all that was whole and is needed no more
    assert replica.author in replica.present.state.chain.roster
    assert replica.leases.remaining > 0  # it trains on at once
    # A second accident gets a folder of its own, and numbers go on from the higher of both.
    replica.save(start.begun.theta_N, None)
    damage_blobs(home, newest(home).states[-1].units[0].root)
    again = started(home, run_math, Swarm(lived))
    assert [path.name for path in again.home.set_aside] == ["damaged-1", "damaged-2"]
    assert again.replica.next_seq > replica.next_seq


def test_while_nobody_gives_a_state_nothing_is_moved(tmp_path: Path, lived: Life, run_math: RunMath) -> None:
    home = damaged_throughout(lived, tmp_path)
    swarm = Swarm(None)
    with pytest.raises(StateError, match=r"no state file is whole.*start it again while others run"):
        started(home, run_math, swarm)
    assert swarm.asked > 1 and Home(home).set_aside == [] and Generations(home / "state").exist()
    assert started(home, run_math, Swarm(lived)).replica.present.digest == lived.replica.present.digest


def test_a_joining_again_that_was_cut_short_never_begins_at_version_0(
    tmp_path: Path, lived: Life, run_math: RunMath, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = damaged_throughout(lived, tmp_path)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(BlobStore, "set_aside", die)
        with pytest.raises(Killed):
            started(home, run_math, Swarm(lived))
    assert not (home / "state").exists() or not Generations(home / "state").exist()
    with pytest.raises(StateError, match="damaged-1 holds a damaged state"):
        started(home, run_math, Swarm(None))
    start = started(home, run_math, Swarm(lived))
    assert start.replica.present.digest == lived.replica.present.digest
    assert start.replica.next_seq > max(lived.replica.contributions)
    assert [path.name for path in start.home.set_aside] == ["damaged-1"]
    assert list((home / "damaged-1" / "blobs").iterdir())


def test_an_unanswering_swarm_is_asked_again(tmp_path: Path, lived: Life, run_math: RunMath) -> None:
    home = damaged_throughout(lived, tmp_path)

    class Late(Swarm):
        def fetch(self) -> StateRecord:
            if self.asked < 2:
                self.asked += 1
                raise NetworkError("not yet")
            return super().fetch()

    swarm = Late(lived)
    started(home, run_math, swarm)
    assert swarm.asked == 3


def test_a_listed_blob_that_the_disk_changed_is_not_applied(tmp_path: Path, run_math: RunMath) -> None:
    life = Life(tmp_path / "home", run_math)
    life.begin()
    life.train()
    theirs = life.receive(1)
    damage_blobs(life.home.path, theirs.root)
    before = life.replica.present.digest
    with pytest.raises(StateError, match="not the ones that were written"):
        life.move(theirs)
    assert life.replica.present.digest == before and not life.store.has(theirs.root)  # to be fetched anew
    life.move(life.receive(1))
    assert life.replica.present.state.chain.version == 1
    life.home.release()


def test_what_the_damage_left_under_a_name_is_not_taken_for_the_fetched_one(
    tmp_path: Path, lived: Life, run_math: RunMath
) -> None:
    """The swarm stands where the peer's damaged state did: the same blobs are wanted again."""
    home = damaged_throughout(lived, tmp_path)
    units = lived.replica.present.record.units
    for unit in units:
        (home / "blobs" / unit.root.hex()).write_bytes(b"damaged")

    class OnlyWhatIsMissing(Swarm):
        def fetch(self) -> StateRecord:
            self.asked += 1
            self.store.pin("fetched", [unit.root for unit in units])
            for unit in units:
                if not self.store.has(unit.root):
                    self.store.put(lived.store.read(unit.root, check=True))
            return lived.replica.present.record

    assert started(home, run_math, OnlyWhatIsMissing(lived)).replica.present.digest == lived.replica.present.digest
