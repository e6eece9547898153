"""Who says what and when in the exchanges that define the round. A change of the protocol shows up as a readable diff.

`BARNRAISE_REGENERATE_GOLDEN=1` writes the files anew: commit only a diff that you can explain line by line.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sim.faults import Join, Phase, StrikeLeader
from tests.sim.world import World

GOLDEN = Path(__file__).parent.parent / "golden"


def steady_round() -> World:
    """Three members, from one head to the next."""
    world = World(3, discovers_for_s=10.0).run_until(1, 60.0)
    world.transcript = []
    return world.run_until(2, 60.0)


def leader_crash() -> World:
    """The leader of three dies after its hint: silence, a new view, and a commit of the two who are left."""
    world = World(3, faults=(StrikeLeader(1, Phase.HINTED),), discovers_for_s=10.0).run_until(1, 60.0)
    world.transcript = []
    world.run_until(2, 60.0)
    assert world.fired()
    return world


def joiner() -> World:
    """A peer joins two: it finds them on the noticeboard, catches up, is admitted by a commit, and listed by the next."""
    world = World(2, faults=(Join(30.0),), discovers_for_s=10.0).run_for(29.9)
    world.transcript = []
    newcomer = world.peers[2].id
    while not world.life(0).machine.chain.highest_seq(newcomer):
        world.run_for(0.5)
        assert world.now_s < 120, world.describe()
    return world


@pytest.mark.parametrize("exchange", [steady_round, leader_crash, joiner], ids=lambda exchange: exchange.__name__)
def test_transcript(exchange: object) -> None:
    assert callable(exchange)
    said = "\n".join([*exchange().transcript, ""])
    golden = GOLDEN / f"transcript_{exchange.__name__}.txt"
    if os.environ.get("BARNRAISE_REGENERATE_GOLDEN"):
        golden.write_text(said)
    assert said == golden.read_text()
