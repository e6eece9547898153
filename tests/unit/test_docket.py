"""Who holds a contribution whole: in a peer's own words, and only in those of its living process."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.chain import MAX_AGE_VERSIONS, genesis
from swarm.digest import Digest, digest_of
from swarm.identity import PeerId
from swarm.messages import Contribution
from swarm.round.commits import Listed
from swarm.round.docket import MAX_OPEN, Docket
from swarm.round.exchange import Exchange
from swarm.round.own import HELD_VERSIONS, OWN_REMEMBERED, OwnContributions, Self
from swarm.round.roll import MAX_HEARD
from tests.unit.message_examples import RUN

START = genesis(RUN, RUN)
PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 6))
ME, AUTHOR, OTHER = PEERS[:3]
MEMBERS = frozenset(PEERS[:3])


def made(author: PeerId = AUTHOR, seq: int = 1, incarnation: int = 1) -> Contribution:
    root = digest_of("blob", author.raw, seq.to_bytes(8, "big"))
    return Contribution(author, incarnation, seq, root, 1, 0, 1, 9, 9, 0, 0, START.head)


def docket_with(*contributions: Contribution) -> Docket:
    docket = Docket(ME, 1)
    for number, one in enumerate(contributions):
        docket.announce(one, bytes([number]), START)
    return docket


def holders(docket: Docket, root: Digest) -> set[PeerId]:
    waiting = docket.get(root)
    assert waiting is not None
    return waiting.holders


def test_a_majority_that_lost_a_holder_is_none() -> None:
    """It fetched the blob, died, and comes back without it: nobody may list what is held by one of two."""
    one = made()
    docket = docket_with(one)
    docket.hold(OTHER, 7, (one.root,))
    waiting = docket.get(one.root)
    assert waiting is not None and waiting.is_held(MEMBERS)
    docket.hold(OTHER, 8, ())
    assert holders(docket, one.root) == {AUTHOR} and not waiting.is_held(MEMBERS)
    docket.hold(OTHER, 7, (one.root,))  # long on its way
    assert not waiting.is_held(MEMBERS)
    docket.hold(OTHER, 8, (one.root,))
    assert waiting.is_held(MEMBERS)


def test_an_author_that_came_back_has_to_say_what_it_still_has() -> None:
    one, two = made(), made(seq=2)
    docket = docket_with(one)
    docket.hold(AUTHOR, 2, ())
    assert holders(docket, one.root) == set()
    docket.announce(two, b"passed on by somebody", START)
    assert holders(docket, two.root) == set()
    docket.hold(AUTHOR, 2, (one.root,))
    assert holders(docket, one.root) == {AUTHOR}


def test_own_work_of_a_life_before_is_held_where_it_was_kept() -> None:
    kept, lost = made(ME, 1), made(ME, 2)
    exchange = Exchange(Self(ME, "me", "cpu", 2), 1.0)
    exchange.add_own(kept, b"kept", START)
    assert exchange.announced(lost, b"lost", START) == ()
    assert holders(exchange.docket, kept.root) == {ME}
    assert holders(exchange.docket, lost.root) == set()


def test_whom_a_commit_names_is_asked_and_not_counted() -> None:
    one = made()
    exchange = Exchange(Self(ME, "me", "cpu", 1), 1.0)
    (fetch,) = exchange.listed(Listed(one, b"sealed", (ME, OTHER)), START)
    assert fetch.holders == (OTHER,)
    assert holders(exchange.docket, one.root) == {AUTHOR}
    exchange.failed(one.root, 5.0)
    (again,) = exchange.retries(START, 6.0)
    assert set(again.holders) == {AUTHOR, OTHER}


words = st.tuples(st.sampled_from(PEERS[1:]), st.integers(1, 4), st.sets(st.integers(0, 3)))


@settings(deadline=None, max_examples=200)
@given(st.lists(words, max_size=30))
def test_holders_are_those_whose_newest_process_said_so(said: list[tuple[PeerId, int, set[int]]]) -> None:
    contributions = [made(ME, seq) for seq in range(4)]
    docket = docket_with(*contributions)
    for peer, incarnation, numbers in said:
        docket.hold(peer, incarnation, [contributions[number].root for number in numbers])
    newest = {peer: max(incarnation for other, incarnation, _ in said if other == peer) for peer, *_ in said}
    for number, one in enumerate(contributions):
        told = {peer for peer, incarnation, numbers in said if number in numbers and incarnation == newest[peer]}
        assert holders(docket, one.root) == told | {ME}


def test_who_holds_nothing_is_forgotten_when_there_are_too_many() -> None:
    one = made(ME)
    docket = docket_with(one)
    for number in range(MAX_HEARD + 8):
        docket.hold(PeerId(number.to_bytes(32, "big")), 1, ())
    docket.hold(OTHER, 3, (one.root,))
    docket.prune(START)
    assert len(docket._incarnations) == 2
    docket.hold(OTHER, 2, ())
    docket.hold(ME, 1, ())
    assert holders(docket, one.root) == {ME, OTHER}


def test_bytes_announced_under_a_later_number_are_kept_anew() -> None:
    """An author went back to an older disk and did the same work again. The blob came with the first number, and its time on
    the disk is counted from then: it was collected while a leader still counted on it."""
    exchange, chain = Exchange(Self(ME, "me", "cpu", 1), 2.0), START
    first = replace(made(), version=0)
    (fetch,) = exchange.announced(first, b"first", chain)
    assert fetch.contribution == first
    exchange.stored(first.root, 0)
    later = replace(START, version=HELD_VERSIONS - 1)
    exchange.move(later, ())
    assert exchange.holds(first.root) and not list(exchange.docket.roots())
    again = replace(first, seq=2, version=later.version)
    (fetch,) = exchange.announced(again, b"again", later)
    assert fetch.contribution == again and exchange.held_waiting(9, 0) == ()
    assert holders(exchange.docket, again.root) == {AUTHOR}
    exchange.failed(again.root, 0.0)
    assert [one.contribution for one in exchange.retries(later, 2.0)] == [again]
    exchange.stored(again.root, later.version)
    assert holders(exchange.docket, again.root) == {AUTHOR, ME} and exchange.held_waiting(9, 0) == (again.root,)
    exchange.move(replace(START, version=later.version + MAX_AGE_VERSIONS), ())
    assert exchange.held_waiting(9, 0) == (again.root,), "for as long as it may be listed"


def test_what_was_cut_on_a_longer_branch_is_forgotten_on_the_shorter_one_that_won() -> None:
    own = OwnContributions()
    for seq in range(1, 30):
        own.add(replace(made(ME, seq), version=100 + seq), b"sealed")
        own.move((seq,), 100 + seq)
        assert len(own._known) <= OWN_REMEMBERED
    own.move((), 10)
    for seq in range(30, 60):
        own.add(replace(made(ME, seq), version=seq - 20), b"sealed")
        own.move((seq,), seq - 20)
        assert len(own._known) <= OWN_REMEMBERED + 1
        assert [one.seq for one, _ in own.pending()] == [seq]


def test_one_author_fills_no_docket() -> None:
    """2,048 announcements by a stranger made a peer refuse everybody's contribution."""
    flood = [made(OTHER, seq) for seq in range(1, 100)]
    docket = docket_with(*flood)
    assert len(list(docket.roots())) == MAX_OPEN
    assert docket.announce(made(), b"of a member", START) is not None
    docket.prune(replace(START, version=MAX_AGE_VERSIONS + 1))
    assert docket.announce(replace(flood[0], version=5), b"later", replace(START, version=5)) is not None


def test_own_contributions_are_always_on_the_docket() -> None:
    docket = docket_with(*(made(ME, seq) for seq in range(1, 9)))
    assert len(list(docket.roots())) == 8


def test_on_a_full_docket_a_member_takes_the_place_of_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.round.docket.MAX_WAITING", 4)
    chain = replace(START, roster=(AUTHOR,), entered=(0,), dialable=b"\0", voting=b"\3")
    docket = docket_with(*(made(peer, 1) for peer in (*PEERS[2:], PeerId(bytes(32)))))
    stranger = made(PeerId(bytes([9]) * 32))
    assert docket.announce(stranger, b"one more", chain) is None
    one = made()
    assert docket.announce(one, b"of a member", chain) is not None
    assert len(list(docket.roots())) == 4 and docket.get(one.root) is not None


def test_one_number_with_two_blobs_is_listed_by_nobody_who_knows_of_both() -> None:
    """Each honest peer had heard another one first, and fetched it for ever."""
    one = made()
    other = replace(one, root=digest_of("another blob"))
    docket = docket_with(one)
    assert len(docket.waiting()) == 1 and not docket.is_two_faced(AUTHOR, 1)
    assert docket.announce(other, b"other", START) is None
    assert docket.is_two_faced(AUTHOR, 1) and not docket.is_two_faced(AUTHOR, 2)
    assert docket.waiting() == ()


def test_a_number_used_again_by_a_later_life_is_no_lie() -> None:
    one = made()
    docket = docket_with(one)
    docket.announce(replace(one, incarnation=2, root=digest_of("done again")), b"later life", START)
    assert not docket.is_two_faced(AUTHOR, 2) and len(docket.waiting()) == 1


def test_what_a_commit_lists_is_fetched_whatever_was_heard_before() -> None:
    heard, listed = made(), replace(made(), root=digest_of("another blob"))
    exchange = Exchange(Self(ME, "me", "cpu", 1), 1.0)
    exchange.announced(heard, b"heard", START)
    (fetch,) = exchange.listed(Listed(listed, b"listed", (OTHER,)), START)
    assert fetch.contribution == listed and fetch.holders == (OTHER,)
    assert exchange.docket.get(heard.root) is None
    exchange.failed(listed.root, 5.0)
    (again,) = exchange.retries(START, 9.0)
    assert again.contribution == listed
    wrong_units = replace(listed, end_unit=7)
    (fetch,) = exchange.listed(Listed(wrong_units, b"units", (OTHER,)), START)
    assert fetch.contribution == wrong_units, "the same blob under other units"
