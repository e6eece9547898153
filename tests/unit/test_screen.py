"""The screen: nothing that a peer says can move the cursor, and each event is one line of valid JSON."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.screen import Screen, describe, error_line, plain
from swarm.errors import StateError
from swarm.events import KINDS, Evaluated, PeerJoined, PeerLeft, RoundCommitted
from tests.unit.message_examples import AUTHOR, example_of

HOSTILE = "bob\x1b[2J\x1b]0;title\x07\r\n\u202eevil\u2066 [red]x[/red] \x9b31m\x00"


@given(st.text())
def test_plain_text_has_nothing_but_printable_letters(text: str) -> None:
    assert plain(text).isprintable() and plain(plain(text)) == plain(text)


@given(st.text(alphabet=st.characters(categories=["L", "N", "P"])))
def test_plain_text_keeps_what_people_write(text: str) -> None:
    assert plain(text) == text


def test_hostile_names_and_reasons_stay_on_their_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    screen = Screen(quiet=False, json_events=tmp_path / "events.jsonl")
    screen.record(1.0, PeerJoined(AUTHOR.peer_id, HOSTILE))
    screen.record(2.0, PeerLeft(AUTHOR.peer_id, HOSTILE))
    screen.say(HOSTILE)
    screen.fact("peer", HOSTILE)
    screen.live(HOSTILE)  # a pipe has no live line
    screen.close()
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 4 and "[red]x[/red]" in shown  # no markup either
    assert all(line.isprintable() for line in shown.split("\n"))
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["PeerJoined", "PeerLeft"]
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_event_is_one_json_line_with_its_fields(kind: Any, tmp_path: Path) -> None:
    event = example_of(kind)
    screen = Screen(quiet=True, json_events=tmp_path / "new" / "events.jsonl")
    screen.record(12.5, event)
    screen.close()
    (line,) = (tmp_path / "new" / "events.jsonl").read_text().splitlines()
    read = json.loads(line)
    assert (read["event"], read["at_unix_s"]) == (kind.__name__, 12.5)
    assert read.keys() == {"event", "at_unix_s", *event.__dataclass_fields__}
    assert describe(event).isprintable()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_json_has_no_nan(loss: float, tmp_path: Path) -> None:
    screen = Screen(quiet=True, json_events=tmp_path / "events.jsonl")
    screen.record(1.0, Evaluated(3, loss))
    screen.record(1.0, replace(example_of(RoundCommitted), duration_s=loss))
    screen.close()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[0], parse_constant=refuse)["loss"] is None
    assert json.loads(lines[1], parse_constant=refuse)["duration_s"] is None


def test_a_full_disk_ends_the_event_file_and_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(quiet=False, json_events=Path("/dev/full"))
    for version in range(3):
        screen.record(1.0, Evaluated(version, 1.0))
    screen.close()
    out = capsys.readouterr().out
    assert out.count("--json-events") == 1 and out.count("held-out loss") == 3


def test_events_after_the_end_and_from_two_threads_harm_nothing(tmp_path: Path) -> None:
    screen = Screen(quiet=True, json_events=tmp_path / "events.jsonl")
    writers = [
        threading.Thread(target=lambda: [screen.record(1.0, Evaluated(version, 1.0)) for version in range(200)])
        for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    screen.close()
    screen.record(1.0, Evaluated(1, 1.0))
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(lines) == 400 and all(json.loads(line)["event"] == "Evaluated" for line in lines)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="--json-events"):
        Screen(quiet=True, json_events=tmp_path)


def test_an_error_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    error_line(StateError(HOSTILE))
    error_line(ValueError())
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("barnraise: bob") and first.isprintable()
    assert second == "barnraise: ValueError"
