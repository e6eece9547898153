"""Which of its addresses a peer tells others, and how traffic is measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.meter import RATE_HALF_LIFE_S, Meter
from peer.own_addresses import announceable
from swarm.identity import Keypair
from swarm.messages import MAX_ADDRESSES

ID = Keypair.from_seed(b"a" * 32).peer_id.base58
LOOPBACK = f"/ip4/127.0.0.1/tcp/4001/p2p/{ID}"
LAN = f"/ip4/192.168.1.7/tcp/4001/p2p/{ID}"
PUBLIC = f"/ip4/8.8.8.8/tcp/4001/p2p/{ID}"
NAME = f"/dns4/peer.example.org/tcp/4001/p2p/{ID}"
USELESS = (
    f"/ip4/0.0.0.0/tcp/4001/p2p/{ID}",
    f"/ip4/169.254.3.4/tcp/4001/p2p/{ID}",
    f"/ip6/fe80::1/tcp/4001/p2p/{ID}",
    f"/ip4/8.8.8.8/udp/4001/quic-v1/p2p/{ID}",
    f"/ip4/8.8.8.8/tcp/4001/p2p/{ID}/p2p-circuit/p2p/{ID}",
)


def test_others_hear_what_they_can_dial_public_first() -> None:
    assert announceable((LOOPBACK, LAN, *USELESS, PUBLIC, NAME, PUBLIC), local=False) == (PUBLIC, NAME, LAN)


def test_a_local_swarm_stays_on_this_machine() -> None:
    ip6 = f"/ip6/::1/tcp/4001/p2p/{ID}"
    assert announceable((PUBLIC, LAN, LOOPBACK, *USELESS, ip6), local=True) == (LOOPBACK, ip6)


def test_there_are_never_too_many() -> None:
    many = tuple(f"/ip4/10.0.0.{n}/tcp/4001/p2p/{ID}" for n in range(1, 100))
    assert announceable(many, local=False) == many[:MAX_ADDRESSES]


@given(st.lists(st.floats(0.0, 5.0), max_size=20), st.lists(st.integers(0, 10**9), min_size=20, max_size=20))
def test_a_meter_counts_all_and_forgets_half_in_a_half_life(gaps_s: list[float], sizes: list[int]) -> None:
    meter, now_s = Meter(0.0), 0.0
    for gap_s, size in zip(gaps_s, sizes, strict=False):
        now_s += gap_s
        meter.add(size, now_s)
    assert meter.num_bytes == sum(sizes[: len(gaps_s)])
    assert meter.bytes_per_s(now_s + RATE_HALF_LIFE_S) == pytest.approx(meter.bytes_per_s(now_s) / 2)


def test_a_steady_stream_is_measured_at_its_rate() -> None:
    meter = Meter(0.0)
    for tenth in range(2000):
        meter.add(100, tenth / 10)  # 1000 bytes/s
    # Between arrivals the mean sags by at most 1 - 2^(-0.1 s / half-life), 0.7 %.
    assert meter.bytes_per_s(200.0) == pytest.approx(1000.0, rel=0.01)


def test_several_at_once_are_the_time_of_one() -> None:
    meter = Meter(0.0)
    assert meter.busy_s(5.0) == 0.0
    meter.begin(10.0)
    meter.begin(11.0)
    assert meter.busy_s(12.0) == 2.0
    meter.end(12.5)
    assert meter.busy_s(13.0) == 3.0
    meter.end(14.0)
    assert meter.busy_s(99.0) == 4.0
    meter.begin(100.0)
    meter.end(101.0)
    assert meter.busy_s(200.0) == 5.0
