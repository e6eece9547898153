"""Far behind, with real numbers: two versions undone at once, a snapshot adopted, and 8-bit optimizer state taken up again.

Nothing may be lost or counted twice: `imbalance` is the distance from that, in fp64 some roundings of 1e-16.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from peer import handoff as work
from peer import trainer
from peer.replica import KEPT_COMMITS
from swarm.config import InnerConfig, ModelConfig
from swarm.digest import digest_of
from tests.equivalence import group as groups
from tests.equivalence.group import Group
from tests.equivalence.stand_ins import tiny_config
from tests.equivalence.test_round_faults import assert_conserved, run_config

QUICK = {"heartbeat_s": 0.5, "leader_timeout_s": 5.0, "exchange_deadline_s": 10.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Half a second a sweep, and a trainer that looks at the group's clock; a test names the group."""
    found = SimpleNamespace(group=None)
    monkeypatch.setattr(groups, "SWEEP_S", 0.5)
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: found.group.now_s if found.group else 0.0))
    return found


def moves_of(group: Group, number: int) -> list[work.Moved]:
    return [report for report in group[number].reports if isinstance(report, work.Moved)]


def assert_each_number_once(group: Group) -> None:
    entries = group.entries_of(group[0].head)
    for member in group.members:
        seqs = [entry.seq for entry in entries if entry.author == member.id]
        assert sorted(seqs) == list(range(1, len(seqs) + 1)), "a contribution is missing or there twice"


def test_two_versions_are_undone_at_once(tmp_path: Path, clock: SimpleNamespace) -> None:
    """Cut off, one commits twice by itself; the others have the heavier fork by then. Both its contributions are listed
    there, the same bytes, and what it trained meanwhile is still on top."""
    config = run_config(**QUICK)
    with Group(tmp_path, config, 3, batches=(10, 10, 1), dtype=torch.float64) as group:
        clock.group = group
        group.settle(1)
        forked, lone = group[0].version, group[2]
        for member in group.members:
            member.trainer.last_version = forked + 2
        group.split((0, 1), (2,))
        group.withheld = lambda fetcher, contribution: lone.version < forked + 2
        group.run_until(lambda: all(member.version == forked + 2 for member in group.members))
        undone = [entry for entry in group.entries_of(lone.head)[-2:] if entry.author == lone.id]
        tokens = [member.replica.present.state.chain.tokens for member in group.members]
        assert len(undone) == 2 and tokens[0] > tokens[2], "the fork is not of depth two, or the lone one won"
        assert_conserved(group)
        group.heal()
        group.run_until(lambda: lone.head == group[0].head)
        last = moves_of(group, 2)[-1]
        assert (last.undone, last.caught_up, last.still_pending) == (2, True, tuple(one.seq for one in undone))
        assert_conserved(group)
        for member in group.members:
            member.trainer.last_version = None
        group.settle(forked + 5)
        listed = [entry for entry in group.entries_of(group[0].head) if entry.author == lone.id]
        assert {(one.seq, one.root) for one in undone} <= {(one.seq, one.root) for one in listed}, "encoded again"
        assert_each_number_once(group)
        assert_conserved(group)


def test_who_missed_more_than_the_logs_hold_adopts_a_snapshot_with_its_own_progress(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    with Group(tmp_path, run_config(**QUICK), 3, dtype=torch.float64) as group:
        clock.group = group
        group.settle(2)
        group[2].dies_at = lambda me, one: isinstance(one, work.Progress) and bool(me.replica.pending)
        group.run_until(lambda: group.deaths == [2])
        waiting = group[2].replica.pending
        group.kill(2)
        missed = group[0].version + KEPT_COMMITS + 2
        group.run_until(lambda: all(member.version >= missed for member in group.members))
        back = group.start(2)
        assert back.replica.pending == waiting != ()
        group.run_until(lambda: bool(moves_of(group, 2)))
        first = moves_of(group, 2)[0]
        assert first.caught_up and first.log == () and first.dropped_tokens == 0, "it came by a log"
        assert back.replica.pending == () and back.replica.work.steps > 0, "too old to be listed: part of the next cut"
        assert_conserved(group)
        group.settle(group[0].version + 3)
        seqs = [entry.seq for entry in group.entries_of(group[0].head) if entry.author == back.id]
        assert not set(waiting) & set(seqs) and max(seqs) > max(waiting)
        assert_conserved(group)


def test_whose_state_is_wrong_adopts_a_snapshot_and_gives_its_progress_up(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    with Group(tmp_path, run_config(**QUICK, local_steps=8), 3, dtype=torch.float64) as group:
        clock.group = group
        group.settle(2)
        wrong = next(member for member in group.members if not member.participant.is_leader)
        number = wrong.place.number
        group.run_until(lambda: wrong.replica.work.steps >= 3 and not wrong.replica.pending)
        present = wrong.replica.present
        harmed = replace(present, state=replace(present.state, anchor_N=present.state.anchor_N + 0.5))
        wrong.replica._versions[-1] = harmed
        wrong.participant.state_digest = digest_of("test", b"bits that nobody else has")
        before = len(moves_of(group, number))
        given_up, adopt = [], wrong.replica.adopt

        def counted(*args: Any, **options: Any) -> Any:
            given_up.append(wrong.replica.unlisted_tokens)
            return adopt(*args, **options)

        wrong.replica.adopt = counted  # type: ignore[method-assign]
        group.run_until(lambda: len(moves_of(group, number)) > before)
        last = moves_of(group, number)[before]
        assert last.record == present.record, "it moved by something else"
        assert last.caught_up and [last.dropped_tokens] == given_up != [0] and wrong.replica.work.steps == 0
        assert torch.equal(wrong.theta_N, wrong.anchor_N) and not bool(wrong.residual_N.any())
        group.settle(group[0].version + 2)
        assert len({member.digest for member in group.members}) == 1


def anchor_after(folder: Path, deaths: bool, rounds: int = 3) -> Tensor:
    """The anchor of a run whose inner optimizers have 8-bit state, with or without deaths on the way."""
    config = tiny_config(
        inner=InnerConfig(optimizer="adamw8bit", learning_rate=3e-3, batch_windows=1),
        model=ModelConfig(
            vocab_size=64, hidden_size=64, num_layers=1, num_heads=2, intermediate_size=128, max_positions=32
        ),
        round=run_config(min_peers=2, lease_steps=8).round,
    )
    with Group(folder, config, 2) as group:
        kinds = {one.dtype for one in group[0].inner.optimizer.state_tensors().values()}
        assert torch.uint8 in kinds, "no matrix is large enough for 8-bit state"
        if deaths:
            for number, steps in ((0, 1), (1, 2)):
                group[number].dies_at = lambda me, one, steps=steps: (
                    isinstance(one, work.Progress) and me.version == 1 and me.replica.work.steps == steps - 1
                )
        group.settle(rounds)
        assert bool(group.deaths) == deaths
        assert max(member.imbalance() for member in group.members) < 1e-4  # fp32: roundings of 6e-8, 8-bit or not
        return group[0].anchor_N


def test_eight_bit_optimizer_state_is_taken_up_where_it_was(tmp_path: Path) -> None:
    """Steps that a death took are taken again with the very state they had: the bits of the run do not change."""
    undisturbed, disturbed = (anchor_after(tmp_path / str(deaths), deaths) for deaths in (False, True))
    assert torch.equal(undisturbed, disturbed)
