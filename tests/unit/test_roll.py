"""Who is new here: only those whose own fresh words came, once in a life."""

from __future__ import annotations

from dataclasses import replace

from swarm.identity import PeerId
from swarm.messages import PeerStatus
from swarm.round.presence import Presence
from tests.unit.message_examples import example_of

ME, OTHER = PeerId(bytes([1]) * 32), PeerId(bytes([2]) * 32)
SILENCE_S = 8.0


def status(beat: int, incarnation: int = 1) -> PeerStatus:
    return replace(example_of(PeerStatus), peer=OTHER, beat=beat, incarnation=incarnation, dialled=())


def test_old_words_of_somebody_do_not_make_it_new_here() -> None:
    """A newcomer once told that a peer was here which had been killed two minutes before: the noticeboard still had it."""
    presence = Presence(ME, SILENCE_S)
    assert not presence.hear(status(1), b"", 200.0, age_s=120.0)
    assert not presence.is_live(OTHER, 200.0)
    assert presence.hear(status(2), b"", 201.0), "it was started again"
    assert not presence.hear(status(2), b"", 201.0) and not presence.hear(status(3), b"", 202.0)


def test_late_words_of_somebody_who_is_here_do_not_make_it_new_again() -> None:
    presence = Presence(ME, SILENCE_S)
    assert presence.hear(status(1), b"", 0.0)
    assert not presence.hear(status(2), b"", 60.0, age_s=SILENCE_S + 1)
    assert not presence.hear(status(3), b"", 61.0)


def test_who_comes_back_after_a_goodbye_is_new() -> None:
    presence = Presence(ME, SILENCE_S)
    assert presence.hear(status(1), b"", 0.0)
    assert presence.leave(OTHER, incarnation=1)
    assert not presence.hear(status(2), b"", 1.0), "words of the life that ended, late"
    assert presence.hear(status(3, incarnation=2), b"", 2.0)
