"""Groups larger than a commit lists: whose turn it is, how a commit travels, and that every message of them fits a frame."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import wire
from swarm.chain import MAX_ENTRIES, MAX_ROSTER, ChainState, CommitList, Entry, ListedNumbers, genesis
from swarm.digest import digest_of
from swarm.events import RoundCommitted, event_bytes
from swarm.identity import PeerId
from swarm.messages import MAX_SEALED_BYTES, Commit, Contribution, Holders
from swarm.round.choose import (
    MAX_EVIDENCE_BYTES,
    Deadlines,
    LostHead,
    RoundView,
    choose_barred,
    choose_hint,
    choose_list,
)
from swarm.round.commits import committed
from swarm.round.docket import Waiting
from swarm.round.exchange import Exchange
from swarm.round.facts import HeadReached
from swarm.round.leader import Leading, _holders
from swarm.round.looks import LOOK_S, Looks
from swarm.round.own import HOLDING_PAUSE_S, HoldingNews, Self
from swarm.round.relay import FANOUT, RELAYED_ABOVE, passed_on_by, sent_by_leader
from swarm.round.root import root_at
from swarm.round.rotation import Work, next_to_cut
from swarm.schema import to_value

HEAD = digest_of("test", b"head")
DEADLINES = Deadlines(
    target_tokens=0, train_s=10.0, exchange_s=10.0, isolation_s=30.0, max_listed=4, local_steps=0, heartbeat_s=1.0
)


def peers(count: int) -> tuple[PeerId, ...]:
    return tuple(sorted(PeerId(digest_of("peer", number.to_bytes(4, "big")).raw) for number in range(count)))


PEERS = peers(12)


def entry(author: PeerId, seq: int = 1) -> Entry:
    return Entry(author, seq, 1, digest_of("blob", author.raw), 0, 1, 1000, 10)


def commit_of(authors: tuple[PeerId, ...], admitted: tuple[PeerId, ...], parent: bytes = b"") -> Commit:
    chosen = CommitList(tuple(entry(author) for author in authors), admitted)
    sealed = (bytes(400),) * len(authors)
    holders = tuple(_holders(set(admitted or authors), place, len(authors)) for place in range(len(authors)))
    return Commit(0, digest_of("test", b"parent", parent), chosen, sealed, holders, "all are in")


# ---------------------------------------------------------------- turns


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 99))
def test_everybody_contributes_once_in_a_turn(members: int, most: int, salt: int) -> None:
    done = dict.fromkeys(peers(members), salt)
    told: Counter[PeerId] = Counter()
    rounds = -(-members // most)
    for _ in range(rounds):
        turn = next_to_cut([Work(peer, tokens, 1) for peer, tokens in done.items()], set(), set(), most)
        assert len(turn) == min(most, members)
        told.update(one.peer for one in turn)
        done = {peer: tokens + 7 for peer, tokens in done.items()} | {one.peer: 0 for one in turn}
    assert set(told) == set(peers(members))


def test_who_waits_comes_first_and_who_was_asked_in_vain_last() -> None:
    done = [Work(peer, 100 - place, 1) for place, peer in enumerate(PEERS)]
    turn = next_to_cut(done, {PEERS[9]}, {PEERS[0], PEERS[1]}, 4)
    assert [one.peer for one in turn] == [PEERS[9], PEERS[2], PEERS[3], PEERS[4]]


def view_of(chain: ChainState, cut: tuple[PeerId, ...], held: tuple[PeerId, ...], **changes: object) -> RoundView:
    waiting = tuple(
        Waiting(
            Contribution(author, 1, 1, digest_of("blob", author.raw), 1, 0, 1, 9, 9, 0, 0, chain.head),
            b"",
            set(PEERS) if author in held else {author},
        )
        for author in sorted(cut)
    )
    view = RoundView(
        me=PEERS[0],
        chain=chain,
        members=PEERS,
        awaited=PEERS,
        present=PEERS,
        waiting=waiting,
        tokens=100,
        since_head_s=1.0,
        since_hint_s=1.0,
        since_majority_s=0.0,
        since_regained_s=100.0,
        is_followed=True,
        lease_tokens=1000,
        voters=frozenset(PEERS),
        votes=dict.fromkeys(PEERS, b""),
        state_digest=HEAD,
        turns=PEERS[:4],
    )
    return replace(view, **changes)  # type: ignore[arg-type]


START = genesis(digest_of("run", b"large"), HEAD)


def test_a_round_waits_for_those_whose_turn_it_is() -> None:
    waits, reason = choose_list(view_of(START, PEERS[:4], PEERS[:3]), DEADLINES)
    assert waits is None and str(PEERS[3]) in reason
    chosen, reason = choose_list(view_of(START, PEERS[:4], PEERS[:4]), DEADLINES)
    assert chosen is not None and reason == "all are held: 4 contributions"
    assert {one.author for one in chosen.entries} == set(PEERS[:4]) and chosen.admitted == PEERS[4:]
    gone = view_of(START, PEERS[:3], PEERS[:3], awaited=PEERS[:3] + PEERS[4:])
    assert choose_list(gone, DEADLINES)[0] is not None, "who is gone is not waited for"


def test_a_list_is_full_at_its_limit_and_holds_the_oldest() -> None:
    view = view_of(replace(START, version=2), PEERS[:6], PEERS[:6])
    young = tuple(
        replace(one, contribution=replace(one.contribution, version=place % 3))
        for place, one in enumerate(view.waiting)
    )
    chosen, _ = choose_list(replace(view, waiting=young), DEADLINES)
    assert chosen is not None
    assert {one.author for one in chosen.entries} == {PEERS[place] for place in (0, 3, 1, 4)}


def test_a_cut_is_hinted_when_those_whose_turn_it_is_have_done_their_steps() -> None:
    view = view_of(START, (), (), since_hint_s=None)
    steps = replace(DEADLINES, local_steps=5)
    assert choose_hint(view, steps) is None
    assert choose_hint(replace(view, are_ready=True), steps) == "4 members have done 5 steps"
    assert choose_hint(view_of(START, PEERS[:4], (), since_hint_s=None), DEADLINES) == "everyone has cut"


def test_who_brought_nothing_in_time_is_passed_over() -> None:
    leading = Leading(0, START.head, began_s=0.0)
    view = view_of(START, (), (), since_hint_s=None, since_head_s=10.0)
    assert leading.hint(view, DEADLINES, 10.0) is not None and leading.asked == PEERS[:4]
    leading.asks_others(replace(view, since_hint_s=9.0), DEADLINES)
    assert leading.asked == PEERS[:4], "they have their time"
    leading.asks_others(replace(view, since_hint_s=10.0), DEADLINES)
    assert leading.asked is None and leading.passed_over == frozenset(PEERS[:4])
    assert leading.hint(replace(view, turns=PEERS[4:8]), DEADLINES, 20.0) is not None


def test_a_status_names_all_that_is_held_in_turns() -> None:
    exchange = Exchange(Self(PEERS[0], "me", "cpu", 1), 1.0)
    roots = {digest_of("blob", bytes([number])) for number in range(100)}
    for number, root in enumerate(sorted(roots)):
        author = PeerId(digest_of("author", bytes([number])).raw)
        one = Contribution(author, 1, 1, root, 1, 0, 1, 9, 9, 0, 0, START.head)
        exchange.announced(one, bytes([number]), START)
        exchange.stored(root, 0)
    named = [exchange.held_waiting(64, turn) for turn in range(4)]
    assert all(len(set(one)) == 64 for one in named) and set().union(*named) == roots


def test_authors_beyond_what_a_chain_holds_are_not_listed() -> None:
    many = tuple(ListedNumbers(peer, 1) for peer in peers(MAX_ROSTER + 20) if peer not in PEERS)[: MAX_ROSTER - 2]
    chosen, _ = choose_list(
        view_of(replace(START, listed=many), PEERS[:4], PEERS[:4]), replace(DEADLINES, exchange_s=0)
    )
    assert chosen is not None and len(chosen.entries) == 2


# ---------------------------------------------------------------- commits on their way


@pytest.mark.parametrize("size", [1, 2, RELAYED_ABOVE, RELAYED_ABOVE + 1, RELAYED_ABOVE + 2, 500, MAX_ROSTER])
def test_a_commit_reaches_everybody_once_through_few_hands(size: int) -> None:
    group = peers(size)
    leader, stranger = group[size // 2], PeerId(b"\xff" * 32)
    commit = commit_of(group[: min(size, 64)], group[min(size, 64) :])
    reached = list(sent_by_leader(commit, leader, (*group, stranger)))
    assert len(reached) <= max(RELAYED_ABOVE + 1, FANOUT + 1)
    for peer in reached:  # grows while it is read
        told = passed_on_by(commit, leader, peer)
        assert len(told) <= FANOUT and (not told or size > RELAYED_ABOVE)
        reached.extend(told)
    assert sorted(reached) == sorted({*group, stranger} - {leader})


def test_other_heads_have_others_pass_on() -> None:
    group = peers(500)
    first = [sent_by_leader(commit_of(group[:64], group[64:], bytes([turn])), group[0], group) for turn in range(8)]
    assert len(set(first)) > 1


@pytest.mark.parametrize(("members", "listed"), [(1000, 64), (MAX_ROSTER, 64), (MAX_ROSTER, MAX_ENTRIES)])
def test_a_commit_to_a_large_group_fits_a_frame(members: int, listed: int) -> None:
    group = peers(members)
    commit = commit_of(group[:listed], group[listed:])
    assert max(len(one.peers) for one in commit.holders) == 4
    assert len({one.peers for one in commit.holders}) > 10, "not everybody is sent to the same four"
    commit = replace(commit, evidence=(bytes(MAX_EVIDENCE_BYTES // 2),) * 2)
    wire.frame(wire.encode(to_value(commit)))


def test_a_short_list_names_as_many_holders_as_ever() -> None:
    assert _holders(set(PEERS), 3, 16) == Holders(PEERS)
    assert len(_holders(set(peers(40)), 0, 8).peers) == 16


def test_a_head_is_barred_only_by_what_a_commit_can_carry() -> None:
    lost = LostHead(HEAD, tuple((peer, bytes(600)) for peer in PEERS))
    chain = replace(
        START, roster=PEERS, entered=(0,) * len(PEERS), dialable=bytes(len(PEERS)), voting=b"\3" * len(PEERS)
    )
    assert choose_barred(replace(view_of(chain, (), ()), lost=(lost,))) == (HEAD,)
    long = LostHead(HEAD, tuple((peer, bytes(MAX_EVIDENCE_BYTES // 6)) for peer in PEERS))
    assert choose_barred(replace(view_of(chain, (), ()), lost=(long,))) == ()


def test_the_event_of_a_round_fits_a_message() -> None:
    group = peers(MAX_ROSTER)
    commit = commit_of(group[:MAX_ENTRIES], group[MAX_ENTRIES:])
    old = replace(START, roster=group, entered=(0,) * len(group), dialable=bytes(len(group)), voting=b"\3" * len(group))
    reached = replace(START, version=1)
    event = committed(commit, old, HeadReached(reached, HEAD, root_at(reached)), 12.5)
    assert isinstance(event, RoundCommitted) and len(event_bytes(1e9, event)) <= MAX_SEALED_BYTES
    assert (event.num_listed, event.num_left_out) == (MAX_ENTRIES, MAX_ROSTER - MAX_ENTRIES)


# ---------------------------------------------------------------- how often


@given(st.integers(65, 5000), st.floats(0, 1e6))
def test_looks_cost_the_same_share_in_every_group(size: int, now_s: float) -> None:
    looks = Looks()
    assert looks.is_due(size, now_s) and not looks.is_due(size, now_s + size * LOOK_S * 0.9)
    assert looks.is_due(size, now_s + size * LOOK_S * 1.1)
    assert all(Looks().is_due(64, now_s) for _ in range(3))


def test_in_a_large_group_blobs_are_told_of_together() -> None:
    roots = [digest_of("blob", bytes([number])) for number in range(200)]
    news = HoldingNews()
    told = []
    for place, root in enumerate(roots):
        news.add(root)
        told.append(news.due(1000, place * 0.01))
    assert told[0] == (roots[0],) and sum(map(bool, told)) == 1
    assert news.due(1000, 1000 * HOLDING_PAUSE_S) == tuple(roots[1:])
    small = HoldingNews()
    for place, root in enumerate(roots):
        small.add(root)
        assert small.due(12, place * 0.01) == (root,)
