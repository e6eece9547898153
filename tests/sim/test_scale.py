"""The law of large groups: what a round costs a member follows from `max_listed`, and what it costs a leader for each member
from their heartbeats alone, however many there are."""

from __future__ import annotations

import pytest

from tests.sim.crowd import TICK_S, Crowd, round_config
from tests.sim.scale import figures

LISTED = 16


@pytest.mark.parametrize("peers", [LISTED + 4, 200])
def test_a_round_costs_no_more_in_a_larger_group(peers: int) -> None:
    config = round_config(peers, max_listed=LISTED, train_deadline_s=8.0)
    crowd = Crowd(peers, config=config).run(3)
    found = figures(crowd, 0.0)
    beats = found["round_s"] / config.round.heartbeat_s + 4  # some come early: cuts, heads, views
    looks = found["round_s"] / 15.0 + 1
    told = 16.0 * looks  # of records that are older than a head
    assert found["leader_received"] <= 1.5 * beats + LISTED, "heartbeats, and what was stored, told of together"
    assert found["leader_sent"] <= 1.5 * beats + LISTED + (8 if peers <= 64 else 0), (
        "answers, and a few hints and repeats"
    )
    assert found["member_sent"] <= 1.5 * beats + 2 * LISTED + told + 16
    assert found["member_received"] <= 1.5 * beats + 3 * LISTED + told + 16
    assert found["member_blobs"] <= 1.5 * LISTED
    assert found["leader_sent_bytes"] < (24_000 if peers > 64 else 40_000)
    assert found["member_sent_bytes"] < 96_000
    assert found["records_read"] <= looks * (peers / 16 + 64) * 1.5
    assert found["caught_up"] < 0.15, "commits arrive by themselves"
    assert found["round_s"] < config.round.train_deadline_s + config.round.exchange_deadline_s + 4 * TICK_S


def test_everybody_contributes_in_turns() -> None:
    crowd = Crowd(40, seed=1, config=round_config(40, max_listed=LISTED, train_deadline_s=8.0)).run(4)
    best = max(crowd.hosts.values(), key=lambda host: host.chain.version).chain
    listed = {numbers.author for numbers in best.listed}
    here = [peer for peer, host in crowd.hosts.items() if host.machine.me.peer in best.roster]
    assert best.entries <= LISTED
    assert sum(peer in listed for peer in here) >= 0.8 * len(here)
