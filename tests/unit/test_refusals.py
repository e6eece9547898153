"""What is refused is told with its count, a line a minute for each sender."""

from __future__ import annotations

import pytest

from peer.refusals import TELL_EVERY_S, Refusals
from swarm.digest import digest_of
from swarm.events import DaemonRestarted, Event, PeerMisbehaved
from swarm.identity import PeerId

ONE, OTHER = (PeerId(bytes([number]) * 32) for number in (1, 2))


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr("peer.refusals.awake_or_asleep_s", lambda: self.now_s)


def test_the_first_is_told_at_once_and_the_others_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = Clock(monkeypatch), list[Event]()
    refusals = Refusals(told.append)
    refusals.happened(PeerMisbehaved(ONE, "a"))
    for _ in range(1000):
        refusals.happened(PeerMisbehaved(ONE, "b"))
    refusals.happened(PeerMisbehaved(OTHER, "c"))
    refusals.look()
    assert told == [PeerMisbehaved(ONE, "a"), PeerMisbehaved(OTHER, "c")]
    clock.now_s += TELL_EVERY_S
    refusals.look()
    assert told[2:] == [PeerMisbehaved(ONE, "b", 1000)]
    clock.now_s += TELL_EVERY_S
    refusals.look()
    refusals.happened(PeerMisbehaved(ONE, "d"))
    assert told[3:] == [PeerMisbehaved(ONE, "d")], "after a quiet minute it is news again"


def test_other_events_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    told: list[Event] = []
    event = DaemonRestarted(ONE, "it had died")
    refusals = Refusals(told.append)
    refusals.happened(event)
    refusals.happened(event)
    assert told == [event, event]


def test_senders_are_bounded_and_no_count_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    monkeypatch.setattr("peer.refusals._MAX_REMEMBERED", 4)
    told: list[Event] = []
    refusals = Refusals(told.append)
    refusals.happened(PeerMisbehaved(ONE, "a"))
    refusals.happened(PeerMisbehaved(ONE, "b"))
    for number in range(100):
        refusals.happened(PeerMisbehaved(PeerId(digest_of("sender", bytes([number])).raw), "c"))
    assert len(refusals._senders) == 4
    assert sum(event.times for event in told if isinstance(event, PeerMisbehaved)) == 102
