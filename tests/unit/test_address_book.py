"""The address book: who was heard last first, only what can be dialled, and never a reason not to start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peer.address_book import MAX_REMEMBERED, AddressBook, Known
from swarm import wire
from swarm.address import parse_address
from swarm.errors import StateError
from swarm.identity import Keypair
from swarm.messages import PeerStatus
from tests.unit.message_examples import example_of

NO_ADDRESS = st.text(max_size=9) | st.integers(0, 9)
BAD_ITEMS = NO_ADDRESS | st.lists(NO_ADDRESS | st.binary(max_size=40), max_size=2)


def status(number: int, *hosts: str) -> PeerStatus:
    peer = Keypair.from_seed(bytes([number]) * 32).peer_id
    addresses = tuple(f"/ip4/{host}/tcp/4001/p2p/{peer.base58}" for host in hosts)
    return replace(example_of(PeerStatus), peer=peer, addresses=addresses)


def test_heard_last_first_and_kept_across_restarts(tmp_path: Path) -> None:
    one, two = status(1, "10.0.0.1", "10.1.0.1"), status(2, "10.0.0.2")
    book = AddressBook(tmp_path / "book")
    book.note([one])
    book.note([two, one])
    due = (two.addresses[0], *one.addresses)
    assert book.addresses() == due == AddressBook(tmp_path / "book").addresses()


def test_many_peers_before_many_addresses_of_one(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "book")
    book.note(status(number, *(f"10.{number}.0.{host}" for host in range(8))) for number in range(1, 101))
    assert len(book.addresses()) == MAX_REMEMBERED
    assert len({parse_address(one).peer for one in book.addresses()}) == MAX_REMEMBERED


def test_addresses_that_cannot_be_dialled_or_name_another_are_left_out(tmp_path: Path) -> None:
    """A hostile status must not keep us from starting the next time, nor send us to a stranger."""
    good, stranger = status(1, "10.0.0.1"), status(2, "10.0.0.2")
    bad = ("", "/ip4/1.2.3.4", "/ip4/999.1.1.1/tcp/1/p2p/x", "\x1b[2J", *stranger.addresses, *good.addresses)
    book = AddressBook(tmp_path / "book")
    book.note([replace(good, addresses=bad)])
    assert book.addresses() == good.addresses


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.lists(BAD_ITEMS, max_size=4).map(wire.encode))
def test_a_damaged_book_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "book").write_bytes(content)
    assert AddressBook(tmp_path / "book").addresses() == ()


def test_what_has_not_changed_is_not_written(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "book")
    book.note([status(1, "10.0.0.1")])
    (tmp_path / "book").unlink()
    book.note([status(1, "10.0.0.1")])
    assert not (tmp_path / "book").exists()


def test_what_could_not_be_written_is_tried_again(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "book")
    (tmp_path / "book").mkdir()
    for _ in range(2):
        with pytest.raises(StateError, match="book: Is a directory"):
            book.note([status(1, "10.0.0.1")])


def test_who_can_be_dialled_comes_first_and_is_remembered_with_our_own_addresses(tmp_path: Path) -> None:
    one, two, relay = status(1, "10.0.0.1"), status(2, "10.0.0.2"), status(3, "10.0.0.3")
    own = status(9, "203.0.113.9").addresses
    dialable = frozenset({two.peer, relay.peer, parse_address(own[0]).peer})
    book = AddressBook(tmp_path / "book")
    book.see(dialable | {status(4).peer}, relay.addresses, own)
    book.note([one, two])
    due = Known((*relay.addresses, *two.addresses, *one.addresses), dialable, own)
    assert book.known == due == AddressBook(tmp_path / "book").known, "of a relay there is no status"


def test_a_book_of_an_older_release_is_read_and_an_older_release_reads_ours(tmp_path: Path) -> None:
    one = status(1, "10.0.0.1")
    (tmp_path / "book").write_bytes(wire.encode(list(one.addresses)))
    book = AddressBook(tmp_path / "book")
    assert book.known == Known(one.addresses)
    book.see(frozenset({one.peer}), (), ())
    book.note([one])
    strings = [item for item in wire.decode((tmp_path / "book").read_bytes()) if isinstance(item, str)]
    assert strings == list(one.addresses), "all that an older release looks for"


def test_what_was_known_of_others_survives_a_restart_until_more_is_seen(tmp_path: Path) -> None:
    one = status(1, "10.0.0.1")
    book = AddressBook(tmp_path / "book")
    book.see(frozenset({one.peer}), (), one.addresses)
    book.note([one])
    again = AddressBook(tmp_path / "book")
    again.note([one])
    assert again.known.dialable == {one.peer} and again.known.own == one.addresses
    again.see(frozenset(), (), ())
    again.note([one])
    assert AddressBook(tmp_path / "book").known == Known(one.addresses)
