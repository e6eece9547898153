"""The root of each head that a replica holds: as it came with its commit or its state, and again after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.blob_store import BlobStore
from peer.replica import Replica
from peer.saved import Generations
from swarm.allreduce.shared import RunMath
from swarm.messages import StateRecord
from swarm.round.root import root_at
from tests.unit.message_examples import RUN
from tests.unit.peer_life import Life, math_of_run


@pytest.fixture(scope="module")
def run_math() -> RunMath:
    return math_of_run()


def lived(folder: Path, run_math: RunMath, rounds: int) -> Life:
    life = Life(folder, run_math)
    life.begin()
    for seq in range(1, rounds + 1):
        life.train()
        life.move(life.cut(), life.receive(seq))
    life.home.release()
    return life


def bring(source: Life, to: Life) -> StateRecord:
    """The present state of another peer, its blobs fetched."""
    record = source.replica.present.record
    for unit in record.units:
        to.store.put(source.store.read(unit.root, check=True))
    return record


def test_a_head_behind_a_commit_has_the_root_that_came_with_it(tmp_path: Path, run_math: RunMath) -> None:
    life = lived(tmp_path / "home", run_math, 4)
    assert [root.version for root in life.replica.roots] == [3, 2, 1], "all voted for the head before each"
    assert [root.head for root in life.replica.roots[:2]] == list(life.replica.heads[1:])


def test_roots_come_back_from_disk(tmp_path: Path, run_math: RunMath) -> None:
    life = lived(tmp_path / "home", run_math, 4)
    replica = life.replica
    again = Replica(run_math, replica.author, RUN, BlobStore(life.home.blobs), Generations(life.home.state))
    assert again.generations.load(again.restore, print) is not None
    assert again.roots == replica.roots and again.heads == replica.heads


@pytest.mark.parametrize("keep_progress", [True, False])
def test_a_state_that_was_taken_has_the_root_that_it_was_taken_with(
    tmp_path: Path, run_math: RunMath, keep_progress: bool
) -> None:
    """One that was proved begins at a root; behind one that was not, those of our old root are still asked."""
    life, other = lived(tmp_path / "home", run_math, 3), lived(tmp_path / "other", run_math, 2)
    taken, kept = bring(other, life), life.replica.roots[0]
    for root in (kept, root_at(taken.chain)):
        life.replica.adopt(taken, root, life.theta_N, keep_progress=keep_progress)
        assert life.replica.roots == (root,) and life.replica.chains == (taken.chain,)


def test_who_begins_from_a_state_has_its_root_there(tmp_path: Path, run_math: RunMath) -> None:
    life, other = Life(tmp_path / "home", run_math), lived(tmp_path / "other", run_math, 2)
    life.replica.begin_from(bring(other, life))
    assert life.replica.roots == (root_at(other.replica.present.state.chain),)
    life.home.release()
