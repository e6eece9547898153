"""What every message may weigh at its worst: each field as long as its type allows."""

from __future__ import annotations

from typing import Any, Final

import pytest

from swarm import wire
from swarm.chain import MAX_BARRED, MAX_ENTRIES, MAX_ROSTER, Entry
from swarm.envelope import seal
from swarm.events import KINDS
from swarm.messages import MAX_SEALED_BYTES, PURPOSES, Commit, Contribution, PeerStatus
from swarm.round.choose import MAX_EVIDENCE_BYTES
from swarm.round.leader import MIN_HOLDERS_NAMED
from swarm.schema import from_value, line
from swarm.status import MAX_PENDING_BYTES
from swarm.votes import VOTE_BYTES
from tests.unit.message_examples import AUTHOR, RUN, largest

COUNTED_WHERE_THEY_ARE_MADE: Final = {
    "commit",  # below
    "log",  # its pages are cut by bytes: `peer/serve.py`
}


def sealed_at_most(kind: type[Any]) -> int:
    return len(seal(AUTHOR, RUN, "x" * 32, largest(kind)))


def test_a_status_fits_what_carries_it_however_long_its_words_are() -> None:
    """One of more bytes ended its own peer: letters were counted, and some have four bytes."""
    assert from_value(PeerStatus, largest(PeerStatus))
    assert sealed_at_most(PeerStatus) <= MAX_SEALED_BYTES
    assert sealed_at_most(Contribution) <= MAX_PENDING_BYTES


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_event_fits_the_message_that_carries_it(name: str) -> None:
    assert len(wire.encode([1.0, name, largest(KINDS[name])])) <= MAX_SEALED_BYTES


@pytest.mark.parametrize("name", sorted(PURPOSES))
def test_a_message_fits_a_frame(name: str) -> None:
    assert name in COUNTED_WHERE_THEY_ARE_MADE or sealed_at_most(PURPOSES[name]) <= wire.MAX_FRAME_BYTES


def test_the_largest_commit_that_a_leader_makes_fits_a_frame() -> None:
    view, parent, _, announcements, _, reason, *_ = largest(Commit)
    entries = [largest(Entry)] * MAX_ENTRIES
    admitted, barred = [AUTHOR.peer_id.raw] * (MAX_ROSTER - MAX_ENTRIES), [parent] * MAX_BARRED
    holders = [[[AUTHOR.peer_id.raw] * MIN_HOLDERS_NAMED]] * MAX_ENTRIES
    chosen = [entries, admitted, barred, True, bytes(MAX_ROSTER)]
    evidence = [bytes(MAX_SEALED_BYTES)] * (MAX_EVIDENCE_BYTES // MAX_SEALED_BYTES)
    votes = [parent, bytes(MAX_ROSTER // 8), [bytes(VOTE_BYTES)] * (MAX_ROSTER // 2 + 1)]  # of a majority, if all vote
    commit = [view, parent, chosen, announcements, holders, reason, evidence, votes, bytes(VOTE_BYTES)]
    assert from_value(Commit, commit)
    assert len(seal(AUTHOR, RUN, "commit", commit)) <= wire.MAX_FRAME_BYTES


def test_a_line_is_cut_between_letters() -> None:
    assert line("\N{RAINBOW}" * 200) == "\N{RAINBOW}" * 100
    assert line("a" + "\N{RAINBOW}" * 200) == "a" + "\N{RAINBOW}" * 99
    assert line(OSError(2, "no such file", "caf\udce9")).isascii()
