"""A fresh invite from a monitor's memory: whom somebody has dialled, and nobody who is gone."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.archive import Archive
from coordinator.home import Home, open_home
from coordinator.invitation import RECENT_S, invitation
from swarm.errors import ConfigError
from swarm.events import PeerLeft, event_bytes
from swarm.invite import Invite
from tests.unit.fake_swarm import RUN, FakePeer, FakeSwarm

NOW = 1e6
ADDRESS = f"/ip4/198.51.100.9/tcp/4001/p2p/{FakeSwarm(1).peers[0].peer_id.base58}"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(Invite(RUN, (ADDRESS,)).encode(), tmp_path)


def remember(home: Home, peer: FakePeer, *hosts: str, seen_at_s: float = NOW, reached: str = "") -> list[str]:
    addresses = [f"/ip4/{host}/tcp/4001/p2p/{peer.peer_id.base58}" for host in hosts]
    peer.status = replace(peer.status, addresses=tuple(addresses))
    with closing(Archive(home.history, RUN)) as archive:
        archive.put_status(peer.peer_id, 1, peer.sealed_status(), seen_at_s)
        archive.note_addresses(peer.peer_id, addresses, seen_at_s)
        if reached:
            archive.note_addresses(peer.peer_id, [one for one in addresses if reached in one], seen_at_s, reached=True)
    return addresses


def test_those_are_in_it_whom_the_monitor_or_a_peer_has_dialled(home: Home) -> None:
    one, two, three, gone, left = FakeSwarm(5).peers
    _, public = remember(home, one, "192.168.1.2", "203.0.113.1", reached="203.0.113.1")
    remember(home, two, "203.0.113.2")
    three.status = replace(three.status, dialled=(two.peer_id, three.peer_id))
    remember(home, three, "203.0.113.3", seen_at_s=NOW - RECENT_S)
    remember(home, gone, "203.0.113.4", seen_at_s=NOW - RECENT_S - 1, reached="203")
    remember(home, left, "203.0.113.5", reached="203")
    with closing(Archive(home.history, RUN)) as archive:
        archive.add_events(one.peer_id, [(1, event_bytes(NOW + 1, PeerLeft(left.peer_id, "left on purpose")))])
    found, note = invitation(home)
    assert set(found.addresses) == {public, two.status.addresses[0]} and note == ""
    assert found.run == RUN


def test_a_relay_that_answered_is_in_it_although_nobody_has_a_status_of_it(home: Home) -> None:
    hidden, relay, other = FakeSwarm(3).peers
    remember(home, hidden, "203.0.113.1")
    addresses = [
        f"/ip4/203.0.113.{number}/tcp/4001/p2p/{peer.peer_id.base58}" for number, peer in ((2, relay), (3, other))
    ]
    with closing(Archive(home.history, RUN)) as archive:
        archive.note_addresses(relay.peer_id, addresses[:1], NOW - 10, reached=True)
        archive.note_addresses(other.peer_id, addresses[1:], NOW - RECENT_S - 1, reached=True)
    assert invitation(home)[0].addresses == (addresses[0],)


def test_before_anything_was_seen_it_is_the_invite_that_was_given(home: Home) -> None:
    found, note = invitation(home)
    assert found.addresses == (ADDRESS,) and note
    again = open_home(None, home.directory)
    with pytest.raises(ConfigError, match="watch the run first"):
        invitation(again)


def test_private_addresses_are_in_it_only_where_there_are_no_others(home: Home) -> None:
    again = open_home(None, home.directory)
    (peer,) = FakeSwarm(1).peers
    addresses = remember(again, peer, "192.168.1.2", reached="192")
    found, note = invitation(again)
    assert list(found.addresses) == addresses and "same local network" in note
