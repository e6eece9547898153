"""A few cells of the kill matrix and of the NAT lab (`make chaos` tries them all), and the arithmetic that judges rounds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from peer.replica import KEPT_COMMITS
from tests.system.chaos.arena import SNAPSHOT_VERSION
from tests.system.chaos.cells import FAULTS, MATRIX, all_cells, short_cells
from tests.system.chaos.matrix import Matrix, Result
from tests.system.chaos.nat_cells import nat_cells, short_nat_cells
from tests.system.chaos.nat_lab import HOMES, PUBLIC, Lab, why_no_lab
from tests.system.chaos.nat_matrix import NatResult, run_nat_cells
from tests.system.chaos.nat_story import Share, Wait, disagreements, share, waits
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
LISTENER = "import socket; s = socket.create_server(('0.0.0.0', 4001)); print('up', flush=True); s.accept()"
CALLER = "import socket, sys; socket.create_connection((sys.argv[1], 4001), timeout=1.0)"


@pytest.mark.system
@pytest.mark.timeout(900)  # about a minute; three where everything else is busy
def test_cells_that_stand_for_the_others(tmp_path: Path, launcher: Launcher) -> None:
    results: list[Result] = []
    Matrix(tmp_path / "matrix", launcher, results.append).run(short_cells(), lanes=2, with_links=False)
    assert {result.cell.name: result.why for result in results} == {cell.name: "" for cell in short_cells()}


def lab_or_a_line(capsys: pytest.CaptureFixture[str], what: str) -> Lab | None:
    """A NAT lab, or None and a line that says what is left out and why, as `make chaos` says it."""
    if why := why_no_lab():
        with capsys.disabled():
            print(f"\nleft out  {what}: {why}")
        return None
    return Lab()


@pytest.mark.system
@pytest.mark.timeout(600)  # about a minute
def test_cells_that_stand_for_the_others_of_the_nat_lab(
    tmp_path: Path, launcher: Launcher, capsys: pytest.CaptureFixture[str]
) -> None:
    if lab := lab_or_a_line(capsys, f"the NAT lab, {len(short_nat_cells())} cells"):
        lab.close()
        results: list[NatResult] = []
        run_nat_cells(short_nat_cells(), tmp_path / "lab", launcher, results.append)
        assert {one.cell.name: one.outcome.faults for one in results} == {cell.name: [] for cell in short_nat_cells()}


@pytest.mark.system
def test_homes_are_called_by_nobody_and_call_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    lab = lab_or_a_line(capsys, "who calls whom in the NAT lab")
    if lab is None:
        return

    def calls(host: str, address: str) -> bool:
        command = [*lab.command(host), sys.executable, "-I", "-c", CALLER, address]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0

    with lab:
        listeners = [
            subprocess.Popen(
                [*lab.command(host), sys.executable, "-I", "-c", LISTENER], stdout=subprocess.PIPE, text=True
            )
            for host in "ABC"
        ]
        try:
            for listener in listeners:
                assert listener.stdout is not None and listener.stdout.readline() == "up\n"
            assert lab.strangers() == [one.pid for one in listeners]
            assert calls("D", lab.address("A"))
            assert calls("A", lab.address("B"))
            for address in lab.addresses_of_home("C"):
                assert not calls("A", address)
                assert not calls("D", address)
        finally:
            for listener in listeners:
                listener.kill()
                listener.communicate()
        assert lab.strangers() == []


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


def committed(at_unix_s: float, version: int, listed: str = "", bits: str = "") -> Json:
    return {
        "event": "RoundCommitted",
        "at_unix_s": at_unix_s,
        "version": version,
        "listed": list(listed),
        "head": f"head {version}",
        "state_digest": f"{version} {bits}",
    }


def test_every_cell_of_the_nat_lab_is_there_once_and_makes_sense() -> None:
    names = [cell.name for cell in nat_cells()]
    assert len(names) == len(set(names)) >= 12
    assert {cell.name for cell in short_nat_cells()} < set(names)
    for cell in nat_cells():
        hosts = set(cell.order)
        assert len(hosts) == len(cell.order) <= 5 - cell.with_relay, cell
        assert hosts <= set(PUBLIC + HOMES) - {"M"}, cell
        assert bool(cell.leaves) == bool(cell.how) and {*cell.leaves, *cell.joins, *cell.slow} <= hosts, cell
        assert cell.with_relay or set(cell.members) & set(PUBLIC), cell  # somebody can be dialled at the beginning
        assert cell.with_relay or cell.each_alone or set(cell.stay) & set(PUBLIC), cell


def test_waits_are_counted_from_commit_to_commit_and_the_last_one_may_go_on() -> None:
    events = [committed(5.0, 1), {"event": "CutMade", "at_unix_s": 11.0}, committed(12.0, 2), committed(15.0, 3)]
    assert waits(events, 10.0, 40.0, commits=2) == [Wait(2.0), Wait(3.0)]
    assert waits(events, 10.0, 40.0, commits=3) == [Wait(2.0), Wait(3.0), Wait(25.0, is_over=False)]
    assert waits(events, 20.0, 40.0, commits=3) == [Wait(20.0, is_over=False)]


def test_shares_count_rounds_as_anybody_tells_of_them() -> None:
    first = [committed(5.0, 1, "AC"), committed(11.0, 2, "A"), committed(13.0, 3, "AC")]
    second = [committed(13.1, 3, "AC"), committed(15.0, 4, "AC"), committed(17.0, 5, "A")]
    assert share([first, second], "C", 10.0, rounds=10) == Share(2, 4)
    assert share([first, second], "C", 10.0, rounds=2) == Share(1, 2)


def test_other_bits_at_an_equal_head_are_named() -> None:
    stories = {"A": [committed(1.0, 1), committed(2.0, 2)], "C": [committed(1.0, 1), committed(2.0, 2, bits="flipped")]}
    assert disagreements(stories) == ["A and C have other bits at version 2"]
    assert disagreements({"C": [{"event": "StateDiffered", "version": 3}]}) == [
        "C found its state to differ at version 3"
    ]
    assert not disagreements({"A": stories["A"], "B": stories["A"][1:]})
