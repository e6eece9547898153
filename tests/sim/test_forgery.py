"""Forged logs and states, and members that mine alone: nothing that is only claimed moves a peer that knows others.

What each of these did before: three commits by 64 ids that never were members ranked above ours; a forged state was the new
one (tokens 900 -> 2.3e18, its maker alone on the roster); a member that said that it was cut off had "a majority" in all
of its commits.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from swarm.events import RoundCommitted
from tests.sim.faults import BitFlip, Crash, Forger, Join, Leave, Lie, Partition
from tests.sim.test_rounds import ROUND_S, TAKE_OVER_S, commits, names
from tests.sim.world import World, round_config

FROM_S, TO_S = 40.0, 120.0


def assert_nothing_forged(world: World, forger: int, to_s: float) -> None:
    """Until then no honest peer stands at a forged head, nor has one behind it."""
    heads = world.fate.forgeries[forger].heads
    while world.now_s < to_s:
        for life in world.lives():
            chain = life.machine.chain
            assert heads.isdisjoint((chain.head, *chain.recent)), f"{life.peer.name} stands at a forged head"
        world.run_for(1.0)


def forged(peers: int, forger: Forger, *others: object, seed: int = 0, **rules: object) -> World:
    config = round_config(min_peers=peers, **rules)
    return World(peers, seed, (forger, *others), config)  # type: ignore[arg-type]


@pytest.mark.parametrize("lie", Lie)
@pytest.mark.parametrize("peers", [3, 4, 6])
@pytest.mark.parametrize("seed", range(3))
def test_a_forger_moves_nobody_and_stops_nobody(lie: Lie, peers: int, seed: int) -> None:
    forger = peers - 1 if seed else 0  # the last one, or who leads first
    world = forged(peers, Forger(forger, FROM_S, TO_S, lie), seed=seed)
    world.run_for(FROM_S + 0.1)
    before = world.version
    assert_nothing_forged(world, forger, TO_S)
    honest = [life for life in world.lives() if life.peer.number != forger]
    at_s = [when for when, who, _ in world.of_kind(RoundCommitted) if when > FROM_S]
    gaps = [late - early for early, late in pairwise(at_s)]
    assert max(gaps) <= ROUND_S + TAKE_OVER_S, max(gaps)
    assert max(life.machine.chain.version for life in honest) >= before + 2
    world.settle(4, 10 * ROUND_S)
    assert set(names(world, list(commits(world).values())[-1])) == {peer.name for peer in world.peers}


@pytest.mark.parametrize("ids", [1, 64])
def test_however_many_ids_it_invents(ids: int) -> None:
    world = forged(3, Forger(2, FROM_S, TO_S, Lie.LOG, ids)).run_for(FROM_S + 0.1)
    assert_nothing_forged(world, 2, TO_S)
    world.settle(2, 8 * ROUND_S)


@pytest.mark.parametrize("lie", Lie)
def test_a_newcomer_goes_where_most_of_those_it_asks_are_and_who_invited_it(lie: Lie) -> None:
    world = forged(4, Forger(3, FROM_S, TO_S, lie, ids=1), Join(60.0, 2, 5.0, introducer=0)).run_for(FROM_S + 0.1)
    assert_nothing_forged(world, 3, TO_S - 5.0)
    joined = [life for life in world.lives() if life.peer.number >= 4]
    assert joined and all(life.machine.chain.version >= world.life(0).machine.chain.version - 1 for life in joined)
    world.settle(2, 8 * ROUND_S)


def test_a_newcomer_whose_introducer_lies_waits_for_an_honest_word() -> None:
    world = forged(4, Forger(3, FROM_S, TO_S, Lie.SNAPSHOT, ids=1), Join(60.0, 1, 0.0, introducer=3)).run_for(
        FROM_S + 0.1
    )
    assert_nothing_forged(world, 3, TO_S - 5.0)
    world.settle(2, 10 * ROUND_S)


def test_the_one_who_is_left_of_a_roster_is_joined_by_who_comes_back() -> None:
    """All but one are gone at once; it goes on alone after the isolation time, and the first one back proves its branch."""
    gone = tuple(Crash(number, 50.0, 200.0) for number in (1, 2, 3))
    world = World(4, 0, gone, round_config(min_peers=4)).run_for(195.0)
    alone = world.life(0).machine
    assert alone.chain.voters == (alone.me.peer,) and alone.turn.root.version < alone.chain.version - 1
    world.settle(3, 10 * ROUND_S)
    assert world.life(0).machine.turn.root.version >= world.life(0).machine.chain.version - 2


def test_half_of_a_roster_leaves_at_once() -> None:
    gone = tuple(Crash(number, 50.0, None) for number in (1, 3))
    world = World(4, 0, gone, round_config(min_peers=4))
    world.settle(3, 40.0 + 12 * ROUND_S)
    assert len(names(world, list(commits(world).values())[-1])) == 2


def test_who_was_away_until_none_of_its_voters_is_left_goes_where_the_others_are() -> None:
    changes = (Crash(0, 60.0, 260.0), Join(70.0, 3, 3.0), Leave(1, 150.0), Leave(2, 180.0))
    world = World(3, 0, changes, round_config(min_peers=3))
    world.settle(5, 60.0 + 12 * ROUND_S)
    assert len(names(world, list(commits(world).values())[-1])) == 4


def test_a_flipped_bit_costs_its_peer_one_state() -> None:
    world = World(4, 0, (BitFlip(0, 45.0), BitFlip(2, 90.0)), round_config(min_peers=4))
    world.settle(3, 8 * ROUND_S)


@pytest.mark.parametrize("seed", range(4))
def test_a_member_that_is_cut_off_comes_back_to_the_majority(seed: int) -> None:
    """However fast it went on alone: more tokens are no proof."""
    world = World(4, seed, (Partition((3,), 45.0, 200.0),), round_config(min_peers=4))
    world.run_for(200.0)
    majority = world.life(0).machine.chain
    world.settle(3, 10 * ROUND_S)
    assert world.laws._is_on_the_way(majority.head, world.life(3).machine.chain)
