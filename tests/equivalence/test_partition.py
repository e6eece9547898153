"""A swarm that was split for longer than the isolation time, and heals: real models, both branches in one state again.

In each, equal heads have equal state digests (the group checks it at every head), every token that either side listed is
counted once, and each peer's numbers are all there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import Tensor

from peer import handoff as work
from peer import trainer
from peer.replica import KEPT_COMMITS
from swarm.chain import Merge
from swarm.config import CodecConfig, InnerConfig, OuterConfig, RunConfig
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Commit
from tests.equivalence import group as groups
from tests.equivalence.group import Group
from tests.equivalence.member import Member
from tests.equivalence.stand_ins import tiny_config, tiny_round

SWEEP_S = (
    0.5  # a heartbeat: a round of ten steps takes fifteen of them, as one of two minutes with the default settings
)
STEPS, LEASE_STEPS = 10, 40
INT8_STEP = 1 / 254  # half a step of the largest element of a block


@pytest.fixture(autouse=True)
def _coarse_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Half a second a sweep, and a trainer that looks at the group's clock: what it does is then the same at any speed."""
    monkeypatch.setattr(groups, "SWEEP_S", SWEEP_S)
    yield


def run_config(**changes: object) -> RunConfig:
    times = {"heartbeat_s": SWEEP_S, "leader_timeout_s": 5.0, "exchange_deadline_s": 10.0}
    return tiny_config(
        inner=InnerConfig(optimizer="adamw", learning_rate=3e-3, batch_windows=1),
        outer=OuterConfig(optimizer="nesterov", learning_rate=0.7, momentum=0.9),
        codec=CodecConfig(name="int8", block_size=256),
        round=tiny_round(**{**times, "local_steps": STEPS, "lease_steps": LEASE_STEPS, "min_peers": 5, **changes}),
    )


class Swarm(Group):
    """Five members, with what a test asks of their states afterwards."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, config: RunConfig, **changes: object) -> None:
        self.anchors: dict[Digest, Tensor] = {}
        clock = SimpleNamespace(monotonic=lambda: self.now_s)
        monkeypatch.setattr(trainer, "time", clock)
        super().__init__(folder, config, 5, **changes)  # type: ignore[arg-type]

    def note(self, member: Member, moved: work.Moved) -> None:
        super().note(member, moved)
        self.anchors[moved.record.chain.head] = member.anchor_N

    def versions(self, *numbers: int) -> list[int]:
        return [self[number].version for number in numbers]

    def run_apart(self, sides: tuple[tuple[int, ...], ...], rounds: int) -> None:
        """Splits, until each side has done so many rounds alone."""
        self.split(*sides)
        before = {side: max(self.versions(*side)) for side in sides}
        self.run_until(lambda: all(min(self.versions(*side)) >= before[side] + rounds for side in sides))
        for side in sides:
            self.run_until(lambda side=side: len({self[number].head for number in side}) == 1)
        assert len({self[number].head for side in sides for number in side}) == len(sides)

    def merges(self, head: Digest) -> list[Merge]:
        merges = (commit.commit.merge for commit in self.chain_to(head))
        return [merge for merge in merges if merge is not None]

    def listed(self, head: Digest) -> dict[tuple[PeerId, int], int]:
        """Author, number -> tokens of everything that a chain lists, in the branches merged into it too."""
        found = {(entry.author, entry.seq): entry.tokens for entry in self.entries_of(head)}
        for merge in self.merges(head):
            found = self.listed(merge.left) | found
        return found


def assert_one_state(swarm: Swarm, also: tuple[Digest, ...] = ()) -> None:
    """All at one head; what it and these heads list is listed there, each number once, and its tokens are counted once."""
    chain = swarm[0].replica.present.state.chain
    assert {member.head for member in swarm.members} == {chain.head}
    assert len({member.digest for member in swarm.members}) == 1
    expected = swarm.listed(chain.head)
    for head in also:
        expected |= swarm.listed(head)
    assert chain.tokens == sum(expected.values())
    for member in swarm.members:
        numbers = sorted(seq for author, seq in expected if author == member.id)
        highest = chain.highest_seq(member.id)
        assert [seq for seq in range(1, highest + 1) if chain.has_listed(member.id, seq)] == numbers
        own = next(one for one in chain.listed if one.author == member.id)
        assert own.tokens == sum(tokens for (author, _), tokens in expected.items() if author == member.id)


def assert_mean_of_anchors(swarm: Swarm, head: Digest) -> None:
    """Each merge on the way to this head is the plain mean of the anchors, by tokens, but for the 8 bits it is sent with."""
    for commit in swarm.chain_to(head):
        merge = commit.commit.merge
        if merge is None:
            continue
        parent = next(m for m in swarm.chain_to(head) if m.parent == commit.parent).parent
        ours_N, left_N, base_N = (swarm.anchors[one].double() for one in (parent, merge.left, merge.base))
        left = sum(swarm.listed(merge.left).values()) - sum(
            tokens for key, tokens in swarm.listed(merge.left).items() if key in swarm.listed(parent)
        )
        ours = sum(tokens for key, tokens in swarm.listed(parent).items() if key not in swarm.listed(merge.left))
        share = left / (left + ours)
        merged_head = groups.chains.head_after(commit.parent, commit.commit)
        expected_N = ours_N + share * (left_N - base_N)
        error = float((swarm.anchors[merged_head].double() - expected_N).abs().max())
        assert error <= share * INT8_STEP * float((left_N - base_N).abs().max()) * 1.01


SPLITS = {
    "3|2, the three win": ((0, 1, 2), (3, 4), (1, 1, 1, 1, 1), (0, 1, 2)),
    "3|2, the two win": ((0, 2, 4), (1, 3), (1, 4, 1, 4, 1), (1, 3)),
}


@pytest.mark.parametrize("case", SPLITS)
def test_split_for_five_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    *sides, batches, winners = SPLITS[case]
    with Swarm(tmp_path, monkeypatch, run_config(), batches=batches) as swarm:
        swarm.settle(2)
        swarm.run_apart(tuple(sides), 5)
        heads = {swarm[side[0]].head for side in sides}
        chains = [swarm[side[0]].replica.present.state.chain for side in sides]
        assert max(chains, key=lambda chain: chain.key).head == swarm[winners[0]].head
        before = swarm[winners[0]].version
        swarm.heal()
        swarm.run_until(lambda: bool(swarm.merges(swarm[winners[0]].head)))
        swarm.run_until(lambda: len({member.head for member in swarm.members}) == 1)
        rounds = swarm[0].version - before
        print(f"\n{case}: versions {[chain.version for chain in chains]} -> {swarm[0].version}, one state in {rounds}")
        assert rounds <= 2
        assert_one_state(swarm, tuple(heads))
        assert_mean_of_anchors(swarm, swarm[0].head)
        swarm.settle(swarm[0].version + 3)
        assert_one_state(swarm, tuple(heads))
        assert len(swarm.merges(swarm[0].head)) == 1
        assert {entry.author for entry in swarm.chain_to(swarm[0].head)[-1].commit.entries} == {
            member.id for member in swarm.members
        }


LONE = {"comes back to four who did more": (1, 1, 1, 1, 1), "did more than the four": (1, 1, 1, 1, 20)}


@pytest.mark.parametrize("case", LONE)
def test_one_that_trained_alone_for_longer_than_logs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    with Swarm(tmp_path, monkeypatch, run_config(local_steps=2, train_deadline_s=20.0), batches=LONE[case]) as swarm:
        swarm.settle(2)
        forked = swarm[0].version
        swarm.split((0, 1, 2, 3), (4,))
        swarm.run_until(lambda: min(swarm.versions(0, 4)) > forked + KEPT_COMMITS + 2)
        heads = (swarm[0].head, swarm[4].head)
        is_lone = swarm[4].replica.present.state.chain.tokens > swarm[0].replica.present.state.chain.tokens
        assert is_lone == (case == "did more than the four")
        swarm.heal()
        swarm.run_until(lambda: len({member.head for member in swarm.members}) == 1)
        assert_one_state(swarm, heads)
        assert len(swarm.merges(swarm[0].head)) >= 1
        assert_mean_of_anchors(swarm, swarm[0].head)
        swarm.settle(swarm[0].version + 3)
        assert_one_state(swarm, heads)
        for member in swarm.members:  # what waited on the longer chain is no stone in its author's way
            assert all(
                abs(member.replica.contributions[seq][0].version - member.version) <= 2
                for seq in member.replica.pending
            )


def test_three_branches_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three and two who were each alone: the second branch is averaged into what the first merge made."""
    with Swarm(tmp_path, monkeypatch, run_config(local_steps=5)) as swarm:
        swarm.settle(1)
        swarm.run_apart(((0, 1, 2), (3,), (4,)), 3)
        heads = (swarm[0].head, swarm[3].head, swarm[4].head)
        swarm.heal()
        swarm.run_until(lambda: len({member.head for member in swarm.members}) == 1)
        assert_one_state(swarm, heads)
        assert_mean_of_anchors(swarm, swarm[0].head)
        first, second = swarm.merges(swarm[0].head)
        assert swarm.merges(second.base) == [first], "encoded for a head before the first merge"


# -------------------------------------------------------------------- killed while it merges

SIDES = ((0, 1, 2), (3, 4))


def apart(swarm: Swarm) -> tuple[Digest, ...]:
    """Three and two, each side three rounds on, one more than an undo reaches back; their heads."""
    swarm.settle(1)
    swarm.run_apart(SIDES, 3)
    heads = (swarm[0].head, swarm[3].head)
    swarm.heal()
    return heads


def the_leader(swarm: Swarm) -> Member:
    return next(member for member in swarm.members if member.place.number in SIDES[0] and member.participant.is_leader)


def has_offers(member: Member) -> bool:
    return bool(member.participant._leadership.merges._offers)


def settle_merged(swarm: Swarm, heads: tuple[Digest, ...]) -> None:
    swarm.run_until(
        lambda: len({member.head for member in swarm.members}) == 1 and bool(swarm.merges(swarm.members[0].head))
    )
    swarm.settle(max(member.version for member in swarm.members) + 2)
    for number in range(5):
        if number not in swarm._members:
            swarm.start(number)
    swarm.settle(max(member.version for member in swarm.members) + 2)
    assert_one_state(swarm, heads)


def test_the_leader_dies_with_a_branch_on_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Swarm(tmp_path, monkeypatch, run_config(local_steps=5)) as swarm:
        heads = apart(swarm)
        swarm.run_until(lambda: has_offers(the_leader(swarm)))
        leader = the_leader(swarm)
        assert not swarm.merges(leader.head)
        swarm.kill(leader.place.number)
        settle_merged(swarm, heads)


@pytest.mark.parametrize("is_heard", [True, False], ids=["the others have its commit", "nobody has its commit"])
def test_the_leader_dies_behind_its_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_heard: bool) -> None:
    with Swarm(tmp_path, monkeypatch, run_config(local_steps=5)) as swarm:
        heads = apart(swarm)
        leader = cut_off_at_merge(swarm, ()) if not is_heard else the_leader(swarm)
        swarm.run_until(lambda: bool(swarm.merges(leader.head)))
        swarm.kill(leader.place.number)
        swarm.heal()
        settle_merged(swarm, heads)


def cut_off_at_merge(swarm: Swarm, also: tuple[int, ...]) -> Member:
    """Runs until the leader of the better side issues a merge: nobody hears of it but these."""
    found: list[Member] = []

    def commits_to_apply(member: Member, commit: Commit) -> list[Commit]:
        if commit.commit.merge is not None and not found:
            found.append(member)
            alone = {member.place.number, *also}
            swarm.split(tuple(alone), tuple(set(range(5)) - alone))
        return [commit]

    swarm.commits_to_apply = commits_to_apply
    swarm.run_until(lambda: found != [])
    return found[0]


@pytest.mark.parametrize("numbers", [(4,), (3, 4)], ids=["one", "both"])
def test_who_waits_to_be_merged_dies_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, ...]
) -> None:
    with Swarm(tmp_path, monkeypatch, run_config(local_steps=5)) as swarm:
        heads = apart(swarm)
        swarm.run_until(lambda: all(swarm[number].participant._passage.is_merging for number in numbers))
        for number in numbers:
            swarm.kill(number)
            swarm.start(number)
        settle_merged(swarm, heads)


@pytest.mark.parametrize("with_loser", [False, True], ids=["the leader alone", "with one of the branch"])
def test_a_merge_is_undone_as_any_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_loser: bool) -> None:
    """The leader alone has it; the others go on from the parent, outweigh it, and merge the branch themselves."""
    with Swarm(tmp_path, monkeypatch, run_config(local_steps=5), batches=(4, 4, 4, 1, 1)) as swarm:
        heads = apart(swarm)
        also = (4,) if with_loser else ()
        leader = cut_off_at_merge(swarm, also)
        there = (leader.place.number, *also)
        swarm.run_until(lambda: all(swarm.merges(swarm[number].head) for number in there))
        merged, tokens = leader.head, leader.replica.present.state.chain.tokens
        parent = swarm.chain_to(merged)[-1].parent
        others = [member for member in swarm.members if member.place.number not in (*there, 3, 4)]
        swarm.run_until(lambda: all(one.replica.present.state.chain.tokens > tokens for one in others))
        for one in others:
            parents = [commit.parent for commit in swarm.chain_to(one.head)]
            assert parent in parents and merged not in parents, "not a fork of depth one"
        swarm.heal()
        swarm.run_until(lambda: leader.head != merged)
        settle_merged(swarm, heads)
        assert merged not in [one.parent for one in swarm.chain_to(swarm[0].head)]
