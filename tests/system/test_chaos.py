"""A few cells of the kill matrix (`make chaos` tries them all), and the arithmetic that judges its rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.replica import KEPT_COMMITS
from tests.system.chaos.arena import SNAPSHOT_VERSION
from tests.system.chaos.cells import FAULTS, MATRIX, all_cells, short_cells
from tests.system.chaos.matrix import Matrix, Result
from tests.system.chaos.rounds import (
    EXCHANGE_DEADLINE_S,
    LEADER_TIMEOUT_S,
    SLACK_S,
    TRAIN_DEADLINE_S,
    Json,
    Round,
    rounds_since,
)
from tests.system.launcher import Launcher

ROUND_S = TRAIN_DEADLINE_S + EXCHANGE_DEADLINE_S


@pytest.mark.system
@pytest.mark.timeout(900)  # about a minute; three where everything else is busy
def test_cells_that_stand_for_the_others(tmp_path: Path, launcher: Launcher) -> None:
    results: list[Result] = []
    Matrix(tmp_path / "matrix", launcher, results.append).run(short_cells(), lanes=2, with_links=False)
    assert {result.cell.name: result.why for result in results} == {cell.name: "" for cell in short_cells()}


def test_newcomers_find_no_log_that_reaches_back_to_the_beginning() -> None:
    assert SNAPSHOT_VERSION > KEPT_COMMITS


def test_every_cell_is_there_once() -> None:
    names = [cell.name for cell in all_cells()]
    assert len(names) == len(set(names)) == sum(len(faults) for row in MATRIX.values() for faults in row.values())
    assert {cell.fault for cell in all_cells()} == set(FAULTS)


def test_rounds_are_measured_from_head_to_head() -> None:
    def event(kind: str, at_unix_s: float, version: int = 0) -> Json:
        return {"event": kind, "at_unix_s": at_unix_s, "version": version}

    events = [
        event("PeerStarted", 0.0),
        event("RoundCommitted", 5.0, 1),
        event("CutMade", 8.0, 1),
        event("RoundCommitted", 15.0, 2),  # the fault was at 10
        event("ViewChanged", 20.0),
        event("RoundCommitted", 28.0, 3),
        event("CaughtUp", 40.0, 6),  # no round of its own
        event("RoundCommitted", 41.0, 7),
    ]
    assert rounds_since(events, 10.0) == [Round(2, 10.0, 0), Round(3, 13.0, 1), Round(7, 1.0, 0)]


@pytest.mark.parametrize("views", [0, 1, 2])
def test_a_round_is_late_beyond_its_deadline_and_the_slack(views: int) -> None:
    deadline_s = ROUND_S + views * (LEADER_TIMEOUT_S + EXCHANGE_DEADLINE_S)
    assert not Round(1, deadline_s + SLACK_S, views).is_late
    assert Round(1, deadline_s + SLACK_S + 0.01, views).is_late
