"""Hearing of somebody is not being heard by it: what counts at a leader, and what a pause does to silences."""

from __future__ import annotations

from dataclasses import replace

from swarm.identity import PeerId
from swarm.messages import Activity, Answer, PeerStatus
from swarm.round.answers import Answers
from swarm.round.presence import Presence
from tests.unit.message_examples import example_of

ME, OTHER, THIRD, FOURTH = (PeerId(bytes([number]) * 32) for number in range(1, 5))
SILENCE_S, HEARTBEAT_S = 6.0, 1.0


def status(peer: PeerId, beat: int, *dialled: PeerId, answer: Answer | None = None) -> PeerStatus:
    plain = replace(example_of(PeerStatus), peer=peer, beat=beat, incarnation=1, activity=Activity.TRAINING)
    return replace(plain, dialled=dialled, answer=answer)


def test_an_answer_names_a_number_that_we_have_said_lately() -> None:
    answers = Answers(ME, 8.0)
    answers.say(7, 10.0)
    for wrong in (None, Answer(THIRD, 7), Answer(ME, 6)):
        answers.hear(OTHER, wrong)
        assert not answers.has(OTHER, 10.0)
    answers.hear(OTHER, Answer(ME, 7))
    assert answers.has(OTHER, 18.0) and not answers.has(OTHER, 18.1) and not answers.has(THIRD, 10.0)


def test_what_was_said_before_we_led_or_before_a_pause_does_not_count() -> None:
    answers = Answers(ME, 8.0)
    answers.say(7, 10.0)
    answers.hear(OTHER, Answer(ME, 7))
    answers.begin()
    answers.hear(OTHER, Answer(ME, 7))
    assert not answers.has(OTHER, 10.0)
    answers.say(8, 11.0)
    answers.hear(OTHER, Answer(ME, 8))
    assert answers.has(OTHER, 11.0)


def test_a_leader_misses_whom_it_only_hears_of() -> None:
    """Two peers behind NAT each led a view that the other could not hear; what others told kept a majority alive for both."""
    presence = Presence(ME, SILENCE_S, HEARTBEAT_S)
    presence.start(0.0)
    for beat in range(1, 30):
        presence.hear(status(OTHER, beat), b"", float(beat), age_s=0.5)
    assert presence.is_live(OTHER, 29.0) and not presence.is_here(OTHER, 29.0)
    presence.answers.say(3, 29.0)
    presence.hear(status(OTHER, 30, answer=Answer(ME, 3)), b"", 30.0, age_s=0.5)
    assert presence.is_here(OTHER, 30.0)


def test_who_speaks_to_us_again_after_a_silence_has_time_to_answer_once() -> None:
    presence = Presence(ME, SILENCE_S, HEARTBEAT_S)
    presence.start(0.0)
    for beat in range(20):
        presence.hear(status(OTHER, 1 + beat), b"", 10.0 + beat)
        assert presence.is_here(OTHER, 10.0 + beat) == (beat <= SILENCE_S)


def test_a_pause_is_nobodys_silence() -> None:
    presence = Presence(ME, SILENCE_S, HEARTBEAT_S)
    presence.start(0.0)
    presence.answers.say(1, 1.0)
    presence.hear(status(OTHER, 1, answer=Answer(ME, 1)), b"", 1.0)
    presence.resume(100.0, 101.0)
    assert presence.is_live(OTHER, 101.0) and presence.is_here(OTHER, 101.0), "it may still answer"
    assert not presence.answers.has(OTHER, 101.0), "what it said before the pause is no answer"
    assert not presence.is_here(OTHER, 101.0 + SILENCE_S + 0.1)


def test_who_missed_its_heartbeats_is_asked_last_for_the_way_to_a_better_head() -> None:
    """A frozen holder, asked first, cost its whole timeout."""
    presence = Presence(ME, SILENCE_S, HEARTBEAT_S)
    for peer, at_s in ((OTHER, 0.0), (THIRD, 3.0), (FOURTH, 4.0)):
        presence.hear(status(peer, 1), b"", at_s)
    assert presence.to_ask((OTHER, FOURTH), 3.0) == (OTHER, FOURTH, THIRD)
    assert presence.to_ask((OTHER, FOURTH), 5.0) == (FOURTH, THIRD, OTHER)
    assert presence.to_ask((ME,), 100.0) == (ME,), "told of by name, though never heard"


def test_a_third_that_both_have_dialled_passes_messages_on() -> None:
    presence = Presence(ME, SILENCE_S, HEARTBEAT_S)
    assert presence.forwarders(OTHER) == ()
    presence.attest((FOURTH, THIRD))
    presence.hear(status(OTHER, 1, THIRD), b"", 0.0)
    assert presence.carriers(OTHER) == (THIRD,)
    assert presence.forwarders(OTHER) == (THIRD, FOURTH)
    presence.hear(status(THIRD, 1), b"", 0.0)
    presence.leave(THIRD, incarnation=1)
    assert presence.forwarders(OTHER) == (FOURTH,)


def test_nobody_attests_itself_and_an_attestation_ends_with_who_gave_it() -> None:
    presence = Presence(ME, SILENCE_S, HEARTBEAT_S)
    presence.hear(status(OTHER, 1, OTHER, THIRD), b"", 0.0)
    assert presence.roll.attested == {THIRD}
    presence.hear(status(FOURTH, 1, THIRD), b"", 1.0)
    presence.hear(status(OTHER, 2), b"", 2.0)
    assert presence.roll.attested == {THIRD}
    presence.roll.forget_silent(10_000.0)
    assert not presence.roll.attested
