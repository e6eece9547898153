"""A power cut behind every single change that a peer makes on its disk: what is found then is whole, and is what was told.

A real sequence of a peer's life is recorded once: its home is made, rounds are cut, saved, announced, listed, left out,
undone and merged over, checkpoints kept and pruned. Then every disk that a power cut may leave is loaded afresh.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from peer import blob_store, disk, home, saved
from peer.address_book import AddressBook
from peer.blob_store import BlobStore
from peer.checkpoints import Checkpoints
from peer.home import Home, open_home
from peer.model import layout_of, meta_model
from peer.replica import Replica
from peer.saved import Generations, SavedState
from swarm.allreduce.codec import make_codec
from swarm.allreduce.ledger import Ledger, cut, joined
from swarm.allreduce.shared import RunMath, genesis_state
from swarm.chain import CommitList, Entry
from swarm.config import CheckpointConfig, DataConfig, ModelConfig, RunConfig
from swarm.digest import Digest, blob_digest, leaves_of
from swarm.errors import BarnraiseError
from swarm.identity import Keypair, PeerId
from swarm.messages import BlobInfo, Commit, Contribution, Holders, PeerStatus, seal_message
from tests.unit.message_examples import RUN, example_of, keypair
from tests.unit.power_cut import Mark, Mount, Recorder, Step, images_after

CONFIG = RunConfig(
    model=ModelConfig(vocab_size=8, hidden_size=4, num_layers=2, num_heads=1, intermediate_size=4, max_positions=4),
    data=DataConfig(sequence_length=4, eval_windows=1),
    checkpoint=CheckpointConfig(every=3, keep=2),
)
OTHER = keypair(2)


@dataclass(frozen=True, slots=True)
class Saved:
    """`save` has returned."""

    generation: int
    next_seq: int


@dataclass(frozen=True, slots=True)
class Announced:
    """A contribution may have left the machine."""

    contribution: Contribution
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Settled:
    """That contribution need not be remembered any more: nothing that is reachable by an undo lists or lacks it."""

    seq: int


@dataclass(frozen=True, slots=True)
class Known:
    """The identity has been used."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A checkpoint was offered to others."""

    version: int


class Life:
    """One peer, recorded, with another one whose contributions it gets."""

    def __init__(self, folder: Path, run_math: RunMath, recorder: Recorder) -> None:
        self.math = run_math
        self.mark = recorder.mark
        self.home = open_home(folder)
        self.key = self.home.keypair()
        self.mark(Known(self.key.peer_id))
        self.home.keep_listen(("/ip4/127.0.0.1/tcp/4001",))
        self.book = AddressBook(self.home.book)
        self.store = BlobStore(self.home.blobs)
        self.replica = Replica(run_math, self.key.peer_id, RUN, self.store, Generations(self.home.state))
        self.checkpoints = checkpoints_in(self.home, run_math)
        self.other: Ledger
        self.theta_N = torch.linspace(-1, 1, run_math.layout.numel)
        self._steps = 0
        self._settled: set[int] = set()

    def begin(self) -> None:
        state = genesis_state(self.math, RUN, self.theta_N)
        self.replica.begin(state)
        self.other = joined(OTHER.peer_id, state)
        self.save()

    def train(self) -> None:
        self._steps += 1
        self.theta_N = self.theta_N + torch.sin(torch.arange(self.math.layout.numel) * float(self._steps)) / 8
        self.replica.work.tokens += 100
        self.replica.work.steps += 2

    def save(self) -> None:
        optimizer = b"moments %d" % self._steps * 5 if self._steps else None
        self.replica.save(self.theta_N, optimizer)
        newest = self.replica.generations.kept()[0]
        self.mark(Saved(newest.generation, newest.next_seq))

    def cut(self) -> Entry:
        chain = self.replica.present.state.chain
        seq, root, num_bytes, work = self.replica.cut(self.theta_N)
        one = contribution_of(self.key, seq, root, num_bytes, self.replica)
        one = replace(one, tokens=work.tokens, steps=work.steps, since_version=min(work.since_version, chain.version))
        sealed = seal_message(self.key, RUN, one)
        self.replica.announced(one, sealed)
        self.save()
        self.mark(Announced(one, sealed))
        return entry_of(one)

    def receive(self, seq: int) -> Entry:
        """A contribution of the other peer, by way of a download."""
        state = self.replica.present.state
        theta_N = state.anchor_N - torch.cos(torch.arange(self.math.layout.numel) * float(seq)) / 16
        _, blob = cut(self.math, self.other, state, theta_N, seq, (100, 2))
        root = blob_digest(blob)
        self.store.pin("network", [root])
        self.store.partial_path(root).write_bytes(blob)
        self.store.adopt_partial(root, BlobInfo(len(blob), leaves_of(blob)))
        return entry_of(contribution_of(OTHER, seq, root, len(blob), self.replica))

    def move(self, *entries: Entry, base: Digest | None = None, log: tuple[Commit, ...] = ()) -> Commit:
        """HEAD to a commit of these entries, saved; its checkpoint if one is due."""
        parent = base or self.replica.present.state.chain.head
        listed = tuple(sorted(entries, key=lambda one: (one.author, one.seq)))
        present = {one.author for one in listed}
        admitted = tuple(sorted({self.key.peer_id, OTHER.peer_id} - present))
        commit = Commit(0, parent, CommitList(listed, admitted), (b"",) * len(listed), (Holders(()),) * len(listed), "")
        moved = self.replica.apply(base or parent, (*log, commit), self.theta_N)
        self.theta_N = moved.theta_N
        for seq in range(1, self.replica.next_seq):
            if seq not in self.replica.contributions and seq not in self._settled:
                self._settled.add(seq)
                self.mark(Settled(seq))
        self.save()
        version = self.replica.present.state.chain.version
        if self.checkpoints.is_due(version):
            self.checkpoints.keep(self.replica.present, 2.0)
            self.mark(KeptVersion(version))
        return commit

    def hear(self, port: int) -> None:
        status: PeerStatus = replace(example_of(PeerStatus), peer=OTHER.peer_id)
        self.book.note([replace(status, addresses=(f"/ip4/10.0.0.1/tcp/{port}/p2p/{OTHER.peer_id.base58}",))])


def contribution_of(author: Keypair, seq: int, root: Digest, num_bytes: int, replica: Replica) -> Contribution:
    chain = replica.present.state.chain
    return Contribution(
        author=author.peer_id,
        incarnation=1,
        seq=seq,
        root=root,
        num_bytes=num_bytes,
        first_unit=0,
        end_unit=len(replica.math.layout.units),
        tokens=100,
        steps=2,
        since_version=chain.version,
        version=chain.version,
        head=chain.head,
    )


def entry_of(one: Contribution) -> Entry:
    return Entry(one.author, one.seq, one.incarnation, one.root, one.first_unit, one.end_unit, one.tokens, one.steps)


def checkpoints_in(home: Home, run_math: RunMath) -> Checkpoints:
    return Checkpoints(home.checkpoints, RUN, CONFIG, run_math.layout, None)


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
    return RunMath.of(CONFIG, layout_of(meta_model(CONFIG.model)), make_codec(CONFIG.codec))


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
        live_shortly(Life(tmp_path / "recorded" / "home", run_math, recorder))
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
        live(Life(tmp_path / "recorded" / "home", run_math, recorder))
    steps = recorder.steps
    number = check_all(steps, tmp_path / "found", run_math, monkeypatch)
    kinds = {type(step.what) for step in steps if isinstance(step, Mark)}
    assert kinds == {Saved, Announced, Settled, Known, KeptVersion} and number > 1000
    print(f"{len(steps)} steps, {number} disks")
