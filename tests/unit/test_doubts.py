"""Who claims heads that nobody can reach is believed later each time, and never kept for long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm.chain import genesis
from swarm.digest import ZERO_DIGEST, Digest, digest_of
from swarm.identity import PeerId
from swarm.messages import MAX_LOST
from swarm.round import doubts as module
from swarm.round.doubts import MAX_DOUBT_S, Doubts
from tests.unit.message_examples import RUN

PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 4))
HEARTBEAT_S = 2.0
CHAIN = genesis(RUN, ZERO_DIGEST)


def head(number: int) -> Digest:
    return digest_of("test", number.to_bytes(4, "big"))


def doubted_for(doubts: Doubts, peer: PeerId, now_s: float) -> float:
    """Seconds from now until the peer is believed again, to a hundredth."""
    low, high = 0.0, 2 * MAX_DOUBT_S
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (middle, high) if doubts.is_doubted(peer, now_s + middle) else (low, middle)
    return round(high, 2)


def test_each_failure_in_a_row_doubles_the_doubt_up_to_its_limit() -> None:
    doubts, now_s, waits = Doubts(HEARTBEAT_S), 100.0, []
    for _ in range(9):
        doubts.failed(PEERS[:1], (), now_s)
        waits.append(doubted_for(doubts, PEERS[0], now_s))
        now_s += 500.0
    assert waits == pytest.approx([4, 8, 16, 32, 64, 120, 120, 120, 120], abs=0.02), "2 heartbeats, 4, 8 ..."
    assert not doubts.is_doubted(PEERS[1], now_s) and not doubts.is_doubted(PEERS[0], now_s)


def test_who_led_us_somewhere_is_trusted_again_at_once() -> None:
    doubts = Doubts(HEARTBEAT_S)
    for _ in range(4):
        doubts.failed(PEERS[:2], (), 0.0)
    doubts.reached(CHAIN, PEERS[:1])
    assert [doubts.is_doubted(peer, 1.0) for peer in PEERS] == [False, True, False]
    doubts.failed(PEERS[:1], (), 1.0)
    assert doubted_for(doubts, PEERS[0], 1.0) == pytest.approx(2 * HEARTBEAT_S, abs=0.02), "it began anew"


def test_lost_heads_are_told_until_they_are_reached_passed_or_barred() -> None:
    doubts = Doubts(HEARTBEAT_S)
    doubts.failed(PEERS[:1], [head(1), head(2)], 0.0)
    doubts.failed(PEERS[:1], [head(2), head(3), head(4)], 0.0)
    assert doubts.lost == tuple(head(number) for number in (1, 2, 3, 4)), "oldest first, each once"
    doubts.reached(replace(CHAIN, head=head(1), recent=(head(3),), barred=(head(4),)), ())
    assert doubts.lost == (head(2),)


def test_only_the_newest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_DOUBTED", 2)
    doubts = Doubts(HEARTBEAT_S)
    doubts.failed(PEERS, [head(number) for number in range(MAX_LOST + 2)], 0.0)
    assert doubts.lost == tuple(head(number) for number in range(2, MAX_LOST + 2))
    assert [doubts.is_doubted(peer, 1.0) for peer in PEERS] == [False, True, True]
    doubts.failed(PEERS[1:2], (), 0.0)  # it is the newest now
    doubts.failed(PEERS[:1], (), 0.0)
    assert [doubts.is_doubted(peer, 1.0) for peer in PEERS] == [True, True, False]
