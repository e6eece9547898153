"""A bit flips in one memory: who is wrong comes to the others' state, and nobody else gives anything up."""

from __future__ import annotations

import pytest

from swarm.digest import digest_of
from swarm.events import RoundCommitted, StateDiffered
from tests.sim.books import RECOVERED, WRONG_STATE
from tests.sim.life import Life
from tests.sim.test_rounds import ROUND_S, commits
from tests.sim.world import World, round_config

WRONG = digest_of("test", b"a flipped bit")


def flipping(world: World, wrong: list[Life], seconds: float) -> dict[str, int]:
    """Lets so much time pass in which these say, at every head, that their state is another one; returns how often each
    peer went for a whole state."""
    went: dict[str, int] = {}
    real = world.traffic.catch_up

    def catch_up(life, wish):  # type: ignore[no-untyped-def]
        went[life.peer.name] = went.get(life.peer.name, 0) + wish.whole
        return real(life, wish)

    world.traffic.catch_up = catch_up  # type: ignore[method-assign]
    end_s = world.now_s + seconds
    while world.now_s < end_s:
        for life in wrong:
            life.machine.state_digest = WRONG
        world.run_for(0.5)
    world.traffic.catch_up = real  # type: ignore[method-assign]
    return went


@pytest.mark.parametrize("peers", [3, 4])
def test_a_leader_that_is_wrong_keeps_nobody_from_training(peers: int) -> None:
    """Its members were sent for whole states at every heartbeat: 309 times in 200 s, 12 contributions instead of 48."""
    world = World(peers, config=round_config(min_peers=peers)).run_until(2, 3 * ROUND_S)
    leader = next(life for life in world.lives() if life.machine.is_leader)
    before, version = len(world.of_kind(RoundCommitted)), world.version
    went = flipping(world, [leader], 200.0)
    assert went[leader.peer.name] >= 1 and max(went.values()) <= 6, went
    assert len(world.of_kind(RoundCommitted)) - before >= (peers - 1) * (200.0 / ROUND_S - 2)
    assert world.of_kind(StateDiffered), "it is said"
    assert set(world.books.columns) <= {WRONG_STATE, RECOVERED}
    world.settle(2, 4 * ROUND_S)
    assert world.version > version


def test_a_member_that_is_wrong_goes_ever_more_rarely() -> None:
    world = World(4, config=round_config(min_peers=4)).run_until(2, 3 * ROUND_S)
    member = next(life for life in world.lives() if not life.machine.is_leader)
    went = flipping(world, [member], 200.0)
    assert {name for name, times in went.items() if times} == {member.peer.name} and went[member.peer.name] <= 6
    world.settle(2, 8 * ROUND_S)
    assert all(member.peer.id in event.listed for event in list(commits(world).values())[-2:])


def test_of_two_the_member_goes_to_its_leader() -> None:
    world = World(2).run_until(2, 3 * ROUND_S)
    other = next(life for life in world.lives() if not life.machine.is_leader)
    other.machine.state_digest = WRONG
    assert flipping(world, [], 40.0) == {other.peer.name: 1}
