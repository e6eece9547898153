"""What taking part costs and gave, as it is told."""

from __future__ import annotations

from dataclasses import replace

from peer.given import given, round_cost
from swarm.chain import ListedNumbers, genesis
from swarm.config import RunConfig
from swarm.digest import ZERO_DIGEST
from tests.unit.message_examples import AUTHOR, RUN, keypair

ME, OTHER = AUTHOR.peer_id, keypair(2).peer_id
START = genesis(RUN, ZERO_DIGEST)


def test_what_was_listed_since_the_start_was_given() -> None:
    before = replace(START, tokens=900, listed=(ListedNumbers(ME, 2, (), 100), ListedNumbers(OTHER, 9, (), 800)))
    now = replace(START, tokens=4000, listed=(ListedNumbers(ME, 5, (4,), 1000), ListedNumbers(OTHER, 9, (), 3000)))
    assert given(ME, before, now, 7260.0, (3_000_000, 4_500_000)) == (
        "you gave 900 tokens in 2 contributions over 2 h 01 min (1,000 tokens in all, 25.0 % of the run's); "
        "sent 3.0 MB, received 4.5 MB"
    )


def test_nothing_and_one_are_told_as_such() -> None:
    assert given(ME, START, START, 1.0, (0, 0)).startswith(
        "you gave 0 tokens in 0 contributions over 1 second (0 tokens"
    )
    one = replace(START, tokens=1, listed=(ListedNumbers(ME, 1, (), 1),))
    assert given(ME, START, one, 119.0, (0, 0)).startswith(
        "you gave 1 token in 1 contribution over 2 minutes (1 token in"
    )


def test_a_round_costs_what_the_codec_makes_of_the_model() -> None:
    said = round_cost(10_000_000, RunConfig())
    assert said.startswith("10,000,000; each round you send 10.0 MB and fetch 10.0 MB from each")
