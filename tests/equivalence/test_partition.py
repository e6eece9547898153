"""A swarm that was split for longer than the isolation time, and heals: real models, all in one state again.

In each, equal heads have equal state digests (the group checks it at every head). The branch of fewer voters is left; where
they parted further back than an undo reaches, what it alone lists is given up, and every token of it is declared.
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
from swarm.config import CodecConfig, InnerConfig, OuterConfig, RunConfig
from swarm.digest import Digest
from swarm.identity import PeerId
from tests.equivalence import group as groups
from tests.equivalence.group import Group
from tests.equivalence.member import Member
from tests.equivalence.stand_ins import tiny_config, tiny_round

SWEEP_S = (
    0.5  # a heartbeat: a round of ten steps takes fifteen of them, as one of two minutes with the default settings
)
STEPS, LEASE_STEPS = 10, 40


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

    def listed(self, head: Digest) -> dict[tuple[PeerId, int], int]:
        """Author, number -> tokens of everything that a chain lists."""
        return {(entry.author, entry.seq): entry.tokens for entry in self.entries_of(head)}


def assert_one_state(swarm: Swarm, winner: Digest, left: tuple[Digest, ...]) -> None:
    """All at one head, behind `winner`; each number is listed there once; what those alone listed who left their branches is
    declared, each in its own peers' words."""
    chain = swarm[0].replica.present.state.chain
    assert {member.head for member in swarm.members} == {chain.head}
    assert len({member.digest for member in swarm.members}) == 1
    expected = swarm.listed(chain.head)
    assert len(expected) == len(swarm.entries_of(chain.head)) and chain.tokens == sum(expected.values())
    assert winner in [commit.parent for commit in swarm.chain_to(chain.head)]
    for head in left:
        alone = swarm.listed(head).keys() - swarm.listed(winner).keys()
        tokens = sum(swarm.listed(head)[one] for one in alone)
        peers = [member for member in swarm.members if member.id in {author for author, _ in alone}]
        assert peers and all(member.left_tokens >= tokens for member in peers)


SPLITS = {
    "the three did more": ((0, 1, 2), (3, 4), (1, 1, 1, 1, 1)),
    "the two did more": ((0, 2, 4), (1, 3), (1, 4, 1, 4, 1)),
}


@pytest.mark.parametrize("case", SPLITS)
def test_split_for_five_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """The two go over to the three, whoever did more: it is voters that count."""
    *sides, batches = SPLITS[case]
    winners = sides[0]
    with Swarm(tmp_path, monkeypatch, run_config(), batches=batches) as swarm:
        swarm.settle(2)
        swarm.run_apart(tuple(sides), 5)
        heads = {swarm[side[0]].head for side in sides}
        chains = [swarm[side[0]].replica.present.state.chain for side in sides]
        winner = swarm[winners[0]].head
        assert (max(chains, key=lambda chain: chain.key).head == winner) == (case == "the three did more")
        before = swarm[winners[0]].version
        swarm.heal()
        swarm.run_until(lambda: len({member.head for member in swarm.members}) == 1 != swarm[0].version - before)
        rounds = swarm[0].version - before
        print(f"\n{case}: versions {[chain.version for chain in chains]} -> {swarm[0].version}, one state in {rounds}")
        assert rounds <= 2
        swarm.settle(swarm[0].version + 3)
        assert_one_state(swarm, winner, tuple(heads - {winner}))
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
        winner, left = heads
        swarm.heal()
        swarm.run_until(lambda: len({member.head for member in swarm.members}) == 1)
        swarm.settle(swarm[0].version + 3)
        assert_one_state(swarm, winner, (left,))
        for member in swarm.members:  # what waited on a chain that was left is no stone in its author's way
            assert all(
                abs(member.replica.contributions[seq][0].version - member.version) <= 2
                for seq in member.replica.pending
            )


def test_three_branches_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three, and two who were each alone: all go to the best of the three branches."""
    with Swarm(tmp_path, monkeypatch, run_config(local_steps=5)) as swarm:
        swarm.settle(1)
        swarm.run_apart(((0, 1, 2), (3,), (4,)), 3)
        heads = (swarm[0].head, swarm[3].head, swarm[4].head)
        swarm.heal()
        swarm.run_until(lambda: len({member.head for member in swarm.members}) == 1)
        swarm.settle(swarm[0].version + 3)
        assert_one_state(swarm, heads[0], heads[1:])
