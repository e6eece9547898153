"""The law of views: who may lead a peer, from where it stands, and who is told that it leads no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.chain import ChainState, leader_of
from swarm.digest import ZERO_DIGEST, Digest
from swarm.identity import PeerId
from swarm.messages import Answer, PeerStatus
from swarm.round import listeners
from swarm.round.facts import HeadReached
from swarm.round.outbox import Outbox
from swarm.round.presence import Presence
from swarm.round.root import root_at
from swarm.round.turn import MAX_VIEW, Patience, Turn, Views
from tests.unit.branches import FORK, PEERS
from tests.unit.message_examples import example_of

ROSTER = tuple(PeerId(bytes([number]) * 32) for number in range(5))
VIEWS = st.integers(0, 40)


def led_in(view: int) -> Views:
    views = Views(view)
    views.led(0.0)
    return views


def left_alone_in(view: int) -> Views:
    views = led_in(0)
    views.enter(view, 1.0)
    return views


@given(VIEWS, VIEWS, st.sampled_from(ROSTER))
def test_only_the_rightful_leader_of_a_view_is_accepted(own: int, view: int, sender: PeerId) -> None:
    for views in (Views(own), led_in(own), left_alone_in(own)):
        assert not views.accepts(sender, view, ROSTER) or leader_of(view, ROSTER) == sender


@given(VIEWS, VIEWS)
def test_who_is_led_keeps_its_leader(own: int, view: int) -> None:
    leader = leader_of(view, ROSTER)
    assert leader is not None
    assert led_in(own).accepts(leader, view, ROSTER) == (view == own)


@given(VIEWS, VIEWS)
def test_who_is_left_alone_follows_at_most_one_turn_ahead_or_goes_back(own: int, view: int) -> None:
    leader = leader_of(view, ROSTER)
    assert leader is not None
    assert left_alone_in(own).accepts(leader, view, ROSTER) == (view <= own + len(ROSTER))


@given(st.integers(0, 2**63 - 1))
def test_a_newcomer_follows_any_view_that_can_be_counted_on_from(view: int) -> None:
    leader = leader_of(view, ROSTER)
    assert leader is not None
    assert Views().accepts(leader, view, ROSTER) == (view <= MAX_VIEW)
    views = Views()
    views.led(0.0)
    views.lose(1.0)  # after catching up it is a newcomer again
    assert views.accepts(leader, view, ROSTER) == (view <= MAX_VIEW)


@given(st.lists(VIEWS, max_size=7))
def test_a_newcomer_looks_where_most_of_the_others_are(others: list[int]) -> None:
    found = Views(1000).common_view(others)
    assert (found is None) == (not others)
    if found is not None:
        assert sum(view <= found for view in others) * 2 >= len(others) <= 2 * sum(view >= found for view in others)
    assert led_in(1000).common_view(others) is None


# -------------------------------------------------------------------- leaders that turn away

HEAD = FORK.state  # its roster: all of these peers
FIRST, SECOND, ME = PEERS[:3]


def turn_of(me: PeerId, view: int = 0, chain: ChainState = HEAD) -> Turn:
    turn = Turn(HeadReached(chain, ZERO_DIGEST, root_at(chain)), Presence(me, 8.0), view, Patience(8.0, 60.0, 30.0))
    turn.begin(0.0)
    return turn


def status_of(peer: PeerId, view: int, beat: int = 1, head: Digest = HEAD.head) -> PeerStatus:
    return replace(example_of(PeerStatus), peer=peer, beat=beat, view=view, head=head)


def hear(turn: Turn, status: PeerStatus) -> None:
    turn.presence.hear(status, b"", 0.0)
    turn.hear(status, Outbox(turn.presence.me))


def test_who_is_led_by_one_that_follows_another_listens_to_that_one() -> None:
    """Three of four that are left, all needed for a majority, once deposed each other for ever: each new leader took the one
    before it from its follower, who went on listening to that one alone until it took the lead itself."""
    turn, out = turn_of(ME), Outbox(ME)
    assert turn.accept(FIRST, 0, out) and not turn.accept(SECOND, 1, out)
    hear(turn, status_of(FIRST, view=1))
    assert turn.view == 0 and turn.accept(SECOND, 1, out) and turn.view == 1


@pytest.mark.parametrize(
    "said",
    [
        status_of(FIRST, view=0),
        status_of(SECOND, view=1),
        status_of(FIRST, view=1, head=ZERO_DIGEST),
    ],
    ids=["the leader in its view", "somebody else in another", "the leader at another head"],
)
def test_nothing_else_deposes_a_leader(said: PeerStatus) -> None:
    turn, out = turn_of(ME), Outbox(ME)
    turn.accept(FIRST, 0, out)
    hear(turn, said)
    assert not turn.accept(SECOND, 1, out)


def test_what_a_leader_said_earlier_does_not_depose_it() -> None:
    turn, out = turn_of(ME), Outbox(ME)
    hear(turn, status_of(FIRST, view=0, beat=5))
    turn.accept(FIRST, 0, out)
    hear(turn, status_of(FIRST, view=1, beat=4))  # long on its way
    assert not turn.accept(SECOND, 1, out)


def test_a_leader_that_turns_to_another_view_tells_its_members() -> None:
    turn, out = turn_of(FIRST), Outbox(FIRST)
    hear(turn, status_of(ME, view=0))
    assert turn.accept(SECOND, 1, out)
    assert set(PEERS[1:]) <= set(listeners.of_heartbeat(turn, 1, 2.0, view_before=0))
    assert listeners.of_heartbeat(turn, 2, 2.0, view_before=1) == (SECOND,)
    member = turn_of(ME)
    member.accept(FIRST, 0, out)
    hear(member, status_of(FIRST, view=1))
    assert member.accept(SECOND, 1, out)
    assert listeners.of_heartbeat(member, 1, 2.0, view_before=0) == (SECOND,), "it led nobody"


def test_holders_are_those_dialled_who_are_no_members_while_nobody_can_dial_us() -> None:
    stranger = PeerId(b"s" * 32)
    turn = turn_of(ME)
    assert listeners.holders_for(turn, (FIRST, stranger)) == (stranger,)
    assert stranger in listeners.of_contribution(turn, (FIRST, stranger))
    turn.presence.hear(replace(status_of(SECOND, view=0), dialled=(ME,)), b"", 0.0)
    assert listeners.holders_for(turn, (FIRST, stranger)) == ()


# -------------------------------------------------------------------- members without a vote

SILENT = replace(HEAD, voting=b"\3\3\3\0\0")  # the last two have not contributed for long, or not yet
VOTERS, IDLE = PEERS[:3], PEERS[3:]


def answer(turn: Turn, *peers: PeerId) -> None:
    """All of these say that they heard us lead."""
    for peer in peers:
        hear(turn, replace(status_of(peer, turn.view), answer=Answer(turn.presence.me, 7)))


@given(VIEWS)
def test_members_without_a_vote_lead_in_no_view(view: int) -> None:
    turn = turn_of(ME, view, SILENT)
    assert turn.leader == VOTERS[view % 3] and turn.voters == frozenset(VOTERS) and turn.members == PEERS
    assert not any(turn_of(ME, view, SILENT).accept(peer, other, Outbox(ME)) for peer in IDLE for other in range(12))
    assert not turn_of(IDLE[0], view, SILENT).is_ours


def test_a_leader_is_followed_by_a_majority_of_the_voters_whoever_else_answers() -> None:
    turn = turn_of(FIRST, chain=SILENT)
    turn.presence.answers.say(7, 0.0)
    answer(turn, *IDLE)
    assert not turn.is_followed(), "three of five members, and one of three voters"
    answer(turn, SECOND)
    assert turn.is_followed()


def test_the_roster_is_given_up_when_its_voters_are_gone_whoever_else_is_there() -> None:
    """A member that has no vote yet waits for the voters for as long as each takes to be asked, and then begins anew."""
    turn = turn_of(IDLE[0], chain=SILENT)
    for second in range(0, 56, 5):
        turn.pass_time(float(second))
        turn.presence.hear(status_of(IDLE[1], 0, beat=second + 1), b"", float(second))
        turn.note_silences()
        is_over = second > 8 + 30 + 3 * 8  # heard of when the first fact came; the isolation time; a turn each
        assert turn.roster == (() if is_over else PEERS)
    turn.pass_time(70.0)
    turn.note_silences()
    assert turn.roster == () and turn.voters == frozenset() and turn.may_author(PeerId(b"s" * 32))
    turn.open(IDLE)
    assert turn.members == IDLE and turn.voters == frozenset(IDLE)
    turn.presence.hear(status_of(SECOND, 0), b"", 70.0)
    turn.pass_time(71.0)
    turn.note_silences()
    assert turn.roster == PEERS and turn.voters == frozenset(VOTERS), "one of them is back in time"


def test_work_of_strangers_counts_where_nobody_else_is_left() -> None:
    stranger = PeerId(b"s" * 32)
    assert not turn_of(ME).may_author(stranger) and all(map(turn_of(ME).may_author, PEERS))
