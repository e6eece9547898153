"""Faults with real numbers: left out, undone, lied to, killed and restarted, out of order, training underneath.

In each, equal heads have equal state digests (the group checks it at every head), and no work is lost or counted twice:
`imbalance` is the distance from that, in fp64 a few roundings of 1e-16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from peer import handoff as work
from peer.handoff import Report
from peer.saved import SavedState
from swarm.chain import CommitList, head_after
from swarm.config import CodecConfig, InnerConfig, OuterConfig, RunConfig
from swarm.messages import Commit, Contribution, Holders, sign_issue
from swarm.round.facts import CutDone
from tests.equivalence.group import Group
from tests.equivalence.member import RUN, Member, as_entry
from tests.equivalence.stand_ins import relative_difference, tiny_config, tiny_round

EXACT = 1e-12  # some hundred roundings of 1e-16


def run_config(**changes: object) -> RunConfig:
    return tiny_config(
        inner=InnerConfig(optimizer="adamw", learning_rate=3e-3, batch_windows=1),
        outer=OuterConfig(optimizer="nesterov", learning_rate=0.7, momentum=0.9),
        codec=CodecConfig(name="int8", block_size=256),  # coarse: there is always a residual
        round=tiny_round(**{"local_steps": 2, "lease_steps": 30, "min_peers": 3, **changes}),
    )


def listed(group: Group, version: int) -> dict[int, tuple[int, ...]]:
    """Which numbers of which members the commit of a version lists."""
    commit = group.chain_to(group[0].head)[version - 1].commit
    numbers = {place.keypair.peer_id: place.number for place in group.places}
    found: dict[int, tuple[int, ...]] = {}
    for entry in commit.entries:
        found[numbers[entry.author]] = (*found.get(numbers[entry.author], ()), entry.seq)
    return found


def assert_conserved(group: Group) -> None:
    assert {member.place.number: one for member in group.members if (one := member.imbalance()) > EXACT} == {}


# -------------------------------------------------------------------- turns


def test_members_of_a_group_larger_than_a_list_contribute_in_turns(tmp_path: Path) -> None:
    """Three members, two on a list: each goes on training between its turns, and all of it is listed in the end."""
    with Group(tmp_path, run_config(max_listed=2), 3, dtype=torch.float64) as group:
        group.settle(6)
        told = [listed(group, version) for version in range(1, 7)]
        assert all(len(one) == 2 for one in told)
        assert {number for one in told for number in one} == {0, 1, 2}
        for one, other in pairwise(told):
            assert set(one) | set(other) == {0, 1, 2}, "who was not listed has its turn next"
        steps = [entry.steps for entry in group.entries_of(group[0].head)]
        assert max(steps) > 2, "a member does not cut by itself, but trains on until it is asked"
        assert_conserved(group)


# -------------------------------------------------------------------- left out


def test_left_out_keeps_its_blob_and_is_listed_next(tmp_path: Path) -> None:
    with Group(tmp_path, run_config(exchange_deadline_s=60.0), 3, dtype=torch.float64) as group:
        group.settle(1)
        late = group[2]
        group.withheld = lambda fetcher, contribution: contribution.author == late.id and fetcher.version == 1
        group.settle(2)
        assert listed(group, 2) == {0: (2,), 1: (2,)}
        assert late.replica.pending == (2,)
        contribution, _ = late.replica.contributions[2]
        blob = late.store.read(contribution.root)
        assert_conserved(group)
        group.settle(3)
        assert listed(group, 3) == {0: (3,), 1: (3,), 2: (2,)}
        entry = next(one for one in group.entries_of(group[0].head)[5:] if one.author == late.id)
        assert (entry.root, group[0].store.read(entry.root)) == (contribution.root, blob), "it was encoded again"
        group.settle(4)
        assert listed(group, 4) == {0: (4,), 1: (4,), 2: (3,)}
        assert_conserved(group)


# -------------------------------------------------------------------- undone

BATCHES = (2, 5, 3)  # windows of a step: any list with member 1 outweighs the same with member 2 in its place

FORKS = {
    "left out, then listed": ((0, 1), (0, 1, 2)),
    "listed on both": ((0, 2), (0, 1, 2)),
    "listed, then left out": ((0, 2), (0, 1)),
}  # members that commit X lists, and commit Y on the same parent


def a_commit(group: Group, numbers: tuple[int, ...], like: Commit) -> Commit:
    """The commit on the same parent that lists the pending contributions of those members."""
    pending = [group[number].replica.contributions[max(group[number].replica.contributions)] for number in numbers]
    authors = tuple(contribution.author for contribution, _ in pending)
    return replace(
        like,
        commit=CommitList(
            entries=tuple(as_entry(contribution) for contribution, _ in pending),
            admitted=tuple(member.id for member in group.members if member.id not in authors),
        ),
        announcements=tuple(sealed for _, sealed in pending),
        holders=tuple(Holders(tuple(sorted({author, group[0].id}))) for author in authors),
    )


def keep_off_y(group: Group, on_y: tuple[int, ...]) -> None:
    """What Y leaves out does not reach the others before member 2 is where they are."""
    outside = {group[number].id for number in range(3) if number not in on_y}

    def withheld(fetcher: Member, contribution: Contribution) -> bool:
        apart = fetcher.version == 1 or group[2].head != fetcher.head
        return contribution.author in outside and fetcher.place.number != 2 and apart

    group.withheld = withheld


def reach_y(folder: Path, fork: str, via_x: bool) -> Member:
    """Member 2 just after it reached Y, with or without having been at X."""
    on_x, on_y = FORKS[fork]
    config = run_config(exchange_deadline_s=60.0)
    with Group(folder, config, 3, batches=BATCHES, dtype=torch.float64) as group:
        group.settle(1)
        keep_off_y(group, on_y)

        def commits_to_apply(member: Member, commit: Commit) -> list[Commit]:
            is_fork = member.place.number == 2 and member.version == 1
            return [a_commit(group, on_x, commit), commit] if is_fork and via_x else [commit]

        group.commits_to_apply = commits_to_apply
        group.run_until(lambda: len(group.chain_to(group[2].head)) == 2 and group[2].head == group[1].head)
        assert tuple(listed(group, 2)) == on_y
        moves = [report for report in group[2].reports if isinstance(report, work.Moved)]
        assert len(moves) == (3 if via_x else 2)
        assert moves[-1].undone == (via_x and 2 in on_x and 2 not in on_y)
        assert_conserved(group)
        return group[2]


@pytest.mark.parametrize("fork", FORKS)
def test_undo_leaves_nothing_behind(tmp_path: Path, fork: str) -> None:
    there, direct = reach_y(tmp_path / "x", fork, True), reach_y(tmp_path / "y", fork, False)
    assert there.digest == direct.digest
    assert there.replica.pending == direct.replica.pending
    assert relative_difference(there.theta_N, direct.theta_N) <= EXACT
    assert relative_difference(there.residual_N, direct.residual_N) <= EXACT
    assert direct.residual_N.norm() > 0


@pytest.mark.parametrize("fork", FORKS)
def test_a_leader_that_tells_one_member_another_story(tmp_path: Path, fork: str) -> None:
    """The one who was lied to trains on, hears of the head where the others are, undoes, and nothing of its work is lost."""
    on_x, on_y = FORKS[fork]
    with Group(tmp_path, run_config(exchange_deadline_s=60.0), 3, batches=BATCHES, dtype=torch.float64) as group:
        group.settle(1)
        parent = group[0].head
        keep_off_y(group, on_y)

        def rewrite(sender: Member, to: Member, message: object, raw: bytes) -> bytes:
            if not isinstance(message, Commit) or to.place.number != 2 or not message.parent == parent == to.head:
                return raw
            other = a_commit(group, on_x, message)
            issued = sign_issue(sender.place.keypair, RUN, other.view, head_after(parent, other.commit))
            return sender.seal(replace(other, issued=issued))

        group.rewrite = rewrite
        group.settle(2)
        assert tuple(listed(group, 2)) == on_y
        moves = [report for report in group[2].reports if isinstance(report, work.Moved)]
        assert len(moves) >= 3 and any(report.caught_up for report in moves), "it was never elsewhere"
        assert sum(report.undone for report in moves) == (2 in on_x and 2 not in on_y)
        assert_conserved(group)
        group.settle(5)
        seqs = [entry.seq for entry in group.entries_of(group[0].head) if entry.author == group[2].id]
        assert seqs == list(range(1, len(seqs) + 1)), "a contribution is missing or out of order"
        assert_conserved(group)


# -------------------------------------------------------------------- killed

Death = Callable[[Member, SavedState | Report], bool]


def _has_pending(one: object) -> bool:
    return isinstance(one, SavedState) and any(cut.standing == 0 for cut in one.cuts)


def _steps(member: Member) -> int:
    return member.replica.work.steps


DEATHS: dict[str, Death] = {
    "cut encoded, not saved": lambda me, one: _has_pending(one) and me.version == 2,
    "cut saved, not announced": lambda me, one: isinstance(one, CutDone) and me.version == 2,
    "cut announced": lambda me, one: isinstance(one, work.Progress) and me.version == 2 and bool(me.replica.pending),
    "head applied, not saved": lambda me, one: isinstance(one, SavedState) and me.version == 3,
    "head saved, not announced": lambda me, one: isinstance(one, work.Moved) and me.version == 3,
    "head announced": lambda me, one: isinstance(one, work.Progress) and me.version == 3,
    "one step into a round": lambda me, one: (
        isinstance(one, work.Progress) and me.version == 3 and me.replica.work.steps == 1
    ),
}


@pytest.mark.parametrize("number", [0, 1], ids=["leader", "member"])
@pytest.mark.parametrize("death", DEATHS)
def test_restarted_from_disk_at_any_point(tmp_path: Path, death: str, number: int) -> None:
    with Group(tmp_path, run_config(), 3, dtype=torch.float64) as group:
        group[number].dies_at = DEATHS[death]
        group.run_until(lambda: group.deaths != [])
        group.settle(5)
        assert group.deaths == [number]
        assert len({member.digest for member in group.members}) == 1
        entries = group.entries_of(group[0].head)
        for member in group.members:
            seqs = [entry.seq for entry in entries if entry.author == member.id]
            assert seqs == sorted(set(seqs)), "a number is listed twice"
            assert len(seqs) >= 4
        assert_conserved(group)


# -------------------------------------------------------------------- order, overlap


def test_order_of_arrival_changes_nothing(tmp_path: Path) -> None:
    found = []
    for arrival in (None, 1, 2):
        with Group(tmp_path / str(arrival), run_config(), 3, arrival_seed=arrival) as group:
            group.settle(3)
            found.append([member.digest for member in group.members] + group.digests_to(group[0].head)[:3])
    assert found[0] == found[1] == found[2]


def test_training_underneath_stays_consistent(tmp_path: Path) -> None:
    config = run_config(overlap=True)
    with Group(tmp_path, config, 3, dtype=torch.float64, arrival_seed=5) as group:
        group.run_to(5)
        shortest = min((group.chain_to(member.head) for member in group.members), key=len)
        assert len(shortest) >= 5
        assert any(entry.steps > config.round.local_steps for entry in group.entries_of(group[0].head))
        assert all(member.theta_N.ne(member.anchor_N).any() for member in group.members)
        assert_conserved(group)
