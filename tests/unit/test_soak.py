"""The soak's own judgement: it sees a gap, a divergence, a version that went back and a leak, and calls nothing else one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.system.soak_leaks import LASTS_S, LONG_S, WARM_UP_S, Leaks, Series
from tests.system.soak_story import EventFile, Fault, Gap, Story, near

Json = dict[str, Any]


def commit(at_s: float, version: int, head: str = "", state: str = "") -> Json:
    return {
        "event": "RoundCommitted",
        "at_unix_s": at_s,
        "version": version,
        "head": head or f"head {version}",
        "state_digest": state or f"state of {head or version}",
        "listed": ["A", "B"],
        "minority": False,
    }


def started(at_s: float, version: int, peer: str = "A") -> Json:
    return {"event": "PeerStarted", "at_unix_s": at_s, "version": version, "peer": peer}


def test_gaps_are_between_commits_that_are_new_to_all() -> None:
    story = Story()
    story.take("b", [commit(103.5, 3)])  # told late, of what another told before
    story.take("a", [commit(100.0, 1), commit(102.0, 2), commit(103.0, 3), commit(110.0, 4)])
    story.take("b", [commit(104.0, 2, head="a fork's")])
    assert [(gap.seconds, gap.version) for gap in story.gaps()] == [(2.0, 2), (1.0, 3), (7.0, 4)]
    assert story.gaps(115.0)[-1] == Gap(110.0, 115.0, 4)
    assert story.median_round_s() == 2.0 and story.forks == 1 and not story.divergences


def test_two_states_of_one_head_are_a_divergence_across_peers_and_lives() -> None:
    story = Story()
    story.take("a", [commit(1.0, 1, "H", "S")])
    story.take("b", [commit(1.0, 1, "H", "S"), commit(2.0, 1, "other head", "T")])
    assert not story.divergences
    story.take("c", [started(3.0, 0), commit(4.0, 1, "H", "T")])
    assert len(story.divergences) == 1
    story.statuses(5.0, [{"name": "d", "version": 1, "head": "H", "state_digest": "U"}])
    assert len(story.divergences) == 2


@pytest.mark.parametrize(
    "events, is_fault",
    [
        ([commit(1, 1), commit(2, 2), started(3, 2), commit(4, 3)], False),
        ([commit(1, 1), commit(2, 2), started(3, 1)], True),
        ([commit(1, 1), commit(2, 2), commit(3, 2, "again")], True),
        ([commit(1, 1), commit(2, 2), {"event": "Undone", "at_unix_s": 3, "version": 2}, commit(4, 2, "other")], False),
        ([commit(1, 5), {"event": "CaughtUp", "at_unix_s": 2, "version": 4, "how": "log"}], True),
    ],
)
def test_versions_go_back_by_an_undo_alone(events: list[Json], is_fault: bool) -> None:
    story = Story()
    story.take("a", events)
    assert bool(story.went_back) is is_fault


def test_an_event_file_is_read_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    file = EventFile(path)
    assert file.news() == []
    path.write_text(json.dumps({"event": "A"}) + '\n{"event"')
    assert file.news() == [{"event": "A"}]
    with path.open("a") as more:
        more.write(': "B"}\nbroken\n{"event": "C"}\n')
    assert [one["event"] for one in file.news()] == ["B", "C"] and file.num_broken == 1 and file.news() == []


def test_a_fault_is_near_a_gap_that_it_overlaps_or_just_precedes() -> None:
    gap = Gap(100.0, 110.0, 7)
    faults = [Fault(80.0, "freeze", ("a",), 97.0), Fault(90.0, "kill", ("b",)), Fault(111.0, "kill", ("c",))]
    assert near(gap, faults) == "freeze a for 17 s at -20 s"
    assert near(gap, faults[1:]) == "no fault near"


@given(st.floats(-50, 50), st.integers(0, 2**32))
def test_the_slope_is_that_of_most_samples(slope_per_h: float, seed: int) -> None:
    series = Series()
    for number in range(60):
        at_s = 20.0 * number
        wild = 1000.0 if (number * 7 + seed) % 5 == 0 else 0.0  # one in five is anywhere
        series.add(("a", 1), at_s, 100.0 + slope_per_h * at_s / 3600.0 + wild)
    found = series.slope_per_h()
    assert found is not None and math.isclose(found, slope_per_h, abs_tol=1e-3 + 0.02 * abs(slope_per_h))


def test_lives_that_do_not_last_have_no_slope() -> None:
    series = Series()
    for number in range(50):
        series.add(("a", number), 10.0 * number, 100.0 * number)  # each life has one sample
    assert series.slope_per_h() is None and series.start_and_end() is None


@pytest.mark.parametrize("grown, seconds, held", [(40.0, LONG_S, False), (1.0, LONG_S, True), (1.0, LASTS_S, True)])
def test_a_leak_breaks_its_law(grown: float, seconds: float, held: bool) -> None:
    leaks = Leaks()
    span_s = WARM_UP_S + 1.2 * seconds
    for number in range(101):
        leaks.series["peer memory"].add(("a", 1), span_s * number / 100, 300.0 + grown * number / 100)
    verdict = next(one for one in leaks.verdicts() if one.law.startswith("peer memory"))
    assert verdict.held is held
    assert next(one for one in leaks.verdicts() if one.law.startswith("home")).held is None
