"""What somebody who breaks the rules of announcing can do to honest peers, at the level of whole participants: nothing."""

from __future__ import annotations

from dataclasses import replace

from swarm.digest import digest_of
from swarm.events import PeerMisbehaved
from swarm.identity import PeerId
from swarm.messages import Contribution
from swarm.round.facts import Received
from tests.sim.test_rounds import ROUND_S, commits, names
from tests.sim.wires import seal
from tests.sim.world import World, round_config

STRANGER = PeerId(b"\xfe" * 32)


def announced(world: World, seq: int, author: PeerId = STRANGER) -> Contribution:
    chain = world.lives()[0].machine.chain
    root = digest_of("stranger", author.raw, seq.to_bytes(8, "big"))
    return Contribution(author, 1, seq, root, 900, 0, 2, 4096, 4, chain.version, chain.version, chain.head)


def test_a_flood_of_announcements_keeps_nobody_s_contribution_out() -> None:
    """2,048 of them made a peer refuse everybody's."""
    world = World(3, config=round_config(min_peers=3)).run_until(2, 3 * ROUND_S)
    for version in range(3, 7):
        for life in world.lives():
            for seq in range(version * 3000, version * 3000 + 2100):
                one = announced(world, seq)
                life.machine.step(Received(STRANGER, one, seal(STRANGER, one)), life.clock_s())
        world.run_until(version, 3 * ROUND_S)
    late = [event for version, event in commits(world).items() if version > 3]
    assert len(late) >= 3 and {names(world, event) for event in late} == {"abc"}


def test_a_member_that_announces_one_number_with_two_blobs_stops_nobody() -> None:
    """Each honest peer had heard another one first; what the leader listed was fetched by nobody else, round after round."""
    world = World(4, config=round_config(min_peers=4)).run_until(2, 3 * ROUND_S)
    leader = next(life for life in world.lives() if life.machine.is_leader)
    liar = next(life for life in world.lives() if life is not leader)
    fooled = {life.peer.id for life in world.lives() if life not in (liar, leader)}
    real = world.traffic.send

    def send(life, to, message, raw):  # type: ignore[no-untyped-def]
        if isinstance(message, Contribution) and message.author == liar.peer.id and to in fooled:
            message = replace(message, root=digest_of("another blob", message.root.raw))
            raw = seal(liar.peer.id, message)
        return real(life, to, message, raw)

    world.traffic.send = send  # type: ignore[method-assign]
    began_s, before = world.now_s, world.version
    world.run_for(6 * ROUND_S)
    world.traffic.send = real  # type: ignore[method-assign]
    rounds = [event for version, event in commits(world).items() if version > before]
    assert len(rounds) >= (world.now_s - began_s) / ROUND_S - 2
    honest = {life.peer.name for life in world.lives() if life is not liar}
    assert all(honest <= set(names(world, event)) for event in rounds)
    told = [event for _, _, event in world.of_kind(PeerMisbehaved)]
    assert any(event.peer == liar.peer.id and "two contributions" in event.reason for event in told)
    world.settle(2, 6 * ROUND_S)
