"""The law of views: who may lead a peer, from where it stands."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.chain import leader_of
from swarm.identity import PeerId
from swarm.round.turn import MAX_VIEW, Views

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
