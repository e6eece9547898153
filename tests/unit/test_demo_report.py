"""The demo's claims: each holds exactly when what it says happened."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peer.demo_report import Outcome, PeerRecord, Played, Pulled, claims_of, show
from swarm.config import DataConfig


def committed(version: int, head: str, digest: str, *listed: str) -> dict[str, Any]:
    return {
        "event": "RoundCommitted",
        "version": version,
        "head": head,
        "state_digest": digest,
        "leader": "A",
        "listed": list(listed),
        "tokens_in_all": 100 * version,
    }


def written(folder: Path, name: str, *events: dict[str, Any], tail: str = "") -> PeerRecord:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + tail)
    return PeerRecord.read(name, path)


@pytest.fixture
def records(tmp_path: Path) -> list[PeerRecord]:
    one = written(
        tmp_path,
        "peer-1",
        {"event": "PeerStarted", "peer": "A"},
        {"event": "Evaluated", "version": 0, "loss": 5.5},
        {"event": "CutMade", "num_bytes": 1000, "tokens": 64},
        *(committed(version, f"h{version}", f"d{version}", "A", "B") for version in (1, 2, 3)),
        {"event": "CheckpointKept", "version": 2},
    )
    two = written(
        tmp_path, "peer-2", {"event": "PeerStarted", "peer": "B"}, committed(1, "h1", "d1", "A"), tail='{"event": "Rou'
    )
    four = written(
        tmp_path,
        "peer-4",
        {"event": "PeerStarted", "peer": "D"},
        {"event": "CaughtUp", "version": 2},
        committed(3, "h3", "d3", "A", "D"),
    )
    return [one, two, four]


PLAYED = Played(
    victim="peer-2",
    killed_at=1,
    codes={"peer-1": 0, "peer-4": 0},
    trained_s=30.0,
    checkpoint=Path("checkpoint"),
    data=DataConfig(),
    cache=Path("cache"),
    traffic={"peer-1": (2_000_000, 3_000_000)},
)
PULLED = Pulled(3, 4.0, 4.0005)


def broken(records: list[PeerRecord], played: Played = PLAYED, pulled: Pulled = PULLED) -> list[str]:
    return [claim.what for claim in claims_of(records, played, pulled) if not claim.holds]


def test_records_are_read_from_what_was_written(records: list[PeerRecord]) -> None:
    one, two, four = records
    assert (one.peer, one.version, one.leader, one.checkpoint) == ("A", 3, "A", 2)
    assert (one.sent_bytes, one.tokens, one.losses) == (1000, 64, {0: 5.5})
    assert two.version == 1 and four.lists_newcomer
    assert PeerRecord.read("peer-9", Path("nowhere")) == PeerRecord("peer-9")


def test_half_a_line_is_left_for_the_next_time_or_passed_over(tmp_path: Path) -> None:
    first = written(tmp_path, "peer-1", committed(1, "h", "d"), tail='{"event": "Eval')
    assert first.version == 1
    again = tmp_path / "peer-1.jsonl"
    again.write_text(
        again.read_text() + json.dumps(committed(2, "h2", "d2")) + "\n" + json.dumps(committed(3, "h3", "d3")) + "\n"
    )
    assert PeerRecord.read("peer-1", again).version == 3


def test_all_claims_hold_when_all_went_well(records: list[PeerRecord]) -> None:
    assert broken(records) == []


def test_each_claim_fails_by_what_contradicts_it(records: list[PeerRecord], tmp_path: Path) -> None:
    assert broken(records, pulled=replace(PULLED, loss=5.45, reported=5.45)) == ["held-out loss fell"]
    assert broken(records, pulled=replace(PULLED, reported=4.01)) == ["the pulled checkpoint loads"]
    assert broken(records, replace(PLAYED, killed_at=2)) == ["outlived the kill"]
    assert broken(records, replace(PLAYED, codes={"peer-1": 0, "peer-4": -9})) == ["everyone left in peace"]
    assert broken(records[:2]) == ["a newcomer contributes"]
    other_bits = written(tmp_path, "peer-3", committed(2, "h2", "another"))
    assert broken([*records, other_bits]) == ["equal digests at every version"]
    forked = written(tmp_path, "peer-3", committed(2, "another", "d2"))
    assert broken([*records, forked]) == ["equal digests at every version"]


def test_nothing_recorded_is_a_failure_and_not_an_error() -> None:
    failed = broken([], replace(PLAYED, trained_s=0.0))
    assert "rounds" in failed and "held-out loss fell" in failed


@pytest.mark.parametrize("holds", [True, False])
def test_the_summary_is_readable_in_a_plain_pipe(records: list[PeerRecord], holds: bool) -> None:
    pulled = PULLED if holds else replace(PULLED, reported=9.0)
    claims = claims_of(records, PLAYED, pulled)
    out = io.StringIO()
    outcome = Outcome(claims, tuple(records), PLAYED, "def \x1b[2J[red]x\n")
    show(Console(file=out, width=100), outcome)
    text = out.getvalue()
    assert outcome.holds == holds and ("All of it holds." in text) == holds and "\x1b" not in text
    assert all(claim.what in text for claim in claims) and "peer-2 (killed)" in text
