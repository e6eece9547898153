"""The history: deduplicated, bounded, of one run, and there after any end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from coordinator import archive as module
from coordinator.archive import Archive
from swarm.digest import digest_of
from swarm.errors import MalformedBytes, StateError
from swarm.events import CheckpointKept, PeerJoined, RoundSkipped, event_bytes
from swarm.identity import PeerId
from tests.unit.fake_swarm import RUN

ADA, BEA = PeerId(b"a" * 32), PeerId(b"b" * 32)


def skipped(number: int) -> bytes:
    return event_bytes(float(number), RoundSkipped(number, "too few"))


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    history = Archive(tmp_path / "h", RUN)
    told = [(1, event_bytes(5.0, PeerJoined(BEA, "bea"))), (2, event_bytes(6.0, CheckpointKept(4, 99)))]
    assert [one.number for one in history.add_events(ADA, told)] == [1, 2]
    history.close()
    again = Archive(tmp_path / "h", RUN)
    assert [(one.source, one.at_unix_s, one.event) for one in again.events(10)] == [
        (ADA, 5.0, PeerJoined(BEA, "bea")),
        (ADA, 6.0, CheckpointKept(4, 99)),
    ]
    assert [one.event for one in again.events(10, kind="CheckpointKept")] == [CheckpointKept(4, 99)]


def test_an_event_told_again_is_not_new_even_under_another_number(tmp_path: Path) -> None:
    history = Archive(tmp_path / "h", RUN)
    assert len(history.add_events(ADA, [(1, skipped(1)), (2, skipped(2))])) == 2
    assert history.add_events(ADA, [(1, skipped(2)), (7, skipped(1))]) == []
    assert len(history.add_events(BEA, [(1, skipped(1))])) == 1, "another peer's word is another row"
    assert len(list(history.events(10))) == 3


def test_one_bad_event_spoils_its_page_and_nothing_else(tmp_path: Path) -> None:
    history = Archive(tmp_path / "h", RUN)
    with pytest.raises(MalformedBytes):
        history.add_events(ADA, [(1, skipped(1)), (2, b"\xc1")])
    assert list(history.events(10)) == []


def test_growth_is_bounded_for_each_peer_and_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS_PER_PEER", 20)
    monkeypatch.setattr(module, "MAX_EVENTS", 50)
    monkeypatch.setattr(module, "_PRUNE_EVERY", 10)
    history = Archive(tmp_path / "h", RUN)
    history.add_events(BEA, [(1, skipped(1))])
    for start in range(0, 200, 10):
        history.add_events(ADA, [(number, skipped(number)) for number in range(start, start + 10)])
    kept = list(history.events(1000))
    assert [one.number for one in kept if one.source == ADA] == list(range(180, 200))
    for source in range(10):
        history.add_events(PeerId(bytes([source]) * 32), [(number, skipped(number)) for number in range(10)])
    assert len(list(history.events(1000))) <= 60


def test_the_newest_status_and_the_addresses_that_worked_last_win(tmp_path: Path) -> None:
    history = Archive(tmp_path / "h", RUN)
    history.put_status(ADA, 5, b"five", 100.0)
    history.put_status(ADA, 4, b"four", 200.0)
    history.put_status(BEA, 1, b"one", 50.0)
    assert history.statuses() == [(100.0, b"five"), (50.0, b"one")]
    history.note_addresses(ADA, ["old"], 1.0)
    history.note_addresses(BEA, ["new"], 2.0)
    history.note_addresses(ADA, ["works"], 0.5, reached=True)
    assert history.address_book() == ["works", "new", "old"]
    history.note_addresses(ADA, ["works"], 9.0)
    assert history.address_book()[0] == "works"


def test_the_address_book_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BOOK", 3)
    history = Archive(tmp_path / "h", RUN)
    history.note_addresses(ADA, ["good"], 1.0, reached=True)
    for number in range(10):
        history.note_addresses(BEA, [f"a{number}"], 10.0 + number)
    assert history.address_book() == ["good", "a9", "a8"]


def test_a_history_of_another_run_or_form_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h"
    history = Archive(path, RUN)
    with pytest.raises(StateError, match="another run"):
        Archive(path, digest_of("other"))
    history._db.execute("UPDATE meta SET value = 99 WHERE key = 'schema'")
    history.close()
    with pytest.raises(StateError, match="update barnraise"):
        Archive(path, RUN)
    (tmp_path / "noise").write_bytes(b"no database" * 1000)
    with pytest.raises(StateError, match="remove the file"):
        Archive(tmp_path / "noise", RUN)
    with pytest.raises(StateError):
        Archive(tmp_path, RUN)  # a directory


WRITER = """
import sys
from contextlib import closing
from pathlib import Path
from coordinator.archive import Archive
from tests.unit.test_archive import ADA, RUN, skipped
history = Archive(Path(sys.argv[1]), RUN)
for number in range(10**6):
    history.add_events(ADA, [(number, skipped(number))])
    print(number, flush=True)
"""


def test_a_kill_in_the_middle_loses_nothing_that_was_written(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "h")], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 200:
            break
    process.send_signal(signal.SIGKILL)
    last = max([200, *(int(line) for line in process.stdout.read().split())])
    process.wait()
    process.stdout.close()
    numbers = [one.number for one in Archive(tmp_path / "h", RUN).events(10**6)]
    assert numbers[: last + 1] == list(range(last + 1))


def test_what_was_reached_is_told_apart_from_what_was_heard_of(tmp_path: Path) -> None:
    with closing(Archive(tmp_path / "history.sqlite", RUN)) as archive:
        archive.note_addresses(ADA, ["/told"], 1.0)
        archive.note_addresses(BEA, ["/first"], 2.0, reached=True)
        archive.note_addresses(BEA, ["/second"], 3.0, reached=True)
        assert archive.reached(2.0) == {BEA: ["/second", "/first"]}
        assert archive.reached(2.5) == {BEA: ["/second"]}
