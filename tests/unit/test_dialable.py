"""Who counts as dialable on a chain, the order of leaders that follows from it, and who leads behind a commit."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.chain import (
    ATTESTED,
    DIALABLE_COMMITS,
    UNSEATED,
    ChainState,
    CommitList,
    Entry,
    InvalidList,
    apply,
    genesis,
    is_majority,
    leader_of,
)
from swarm.digest import digest_of
from swarm.errors import MalformedBytes
from swarm.identity import PeerId
from swarm.round.turn import view_after
from swarm.schema import from_value, to_value
from tests.unit.message_examples import RUN

PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 6))
START = genesis(RUN, RUN)


def entry_of(chain: ChainState, author: PeerId) -> Entry:
    seq = chain.highest_seq(author) + 1
    return Entry(author, seq, 1, digest_of("test", author.raw, seq.to_bytes(4, "big")), 0, 1, 10, 1)


def commit(
    chain: ChainState,
    roster: tuple[PeerId, ...],
    said: dict[PeerId, int] | None = None,
    workers: tuple[PeerId, ...] = PEERS,
) -> ChainState:
    """The chain behind a commit of the work of all `workers` of a roster who may be listed, or of all where none may; `said`
    of who is dialable."""
    authors = tuple(peer for peer in roster if chain.may_author(peer) and peer in workers)
    authors = authors or tuple(peer for peer in roster if chain.may_author(peer)) or roster
    admitted = tuple(sorted(set(roster) - set(authors)))
    dialable = bytes((said or {}).get(peer, 0) for peer in sorted(roster)) if said else b""
    stay = set(chain.voters) & set(roster)
    is_minority = bool(chain.roster) and not is_majority(len(stay), len(chain.voters))
    entries = tuple(sorted(entry_of(chain, author) for author in authors))
    return apply(chain, CommitList(entries, admitted, minority=is_minority, dialable=dialable), 4)


def test_a_bit_outlives_its_last_attestation_by_two_commits() -> None:
    chain = commit(START, PEERS, {PEERS[3]: ATTESTED})
    for _ in range(DIALABLE_COMMITS):
        assert chain.is_dialable(PEERS[3]) and chain.order == (PEERS[3], *PEERS[:3], PEERS[4])
        chain = commit(chain, PEERS)
    assert not chain.is_dialable(PEERS[3]) and chain.order == PEERS


def test_who_was_silent_in_its_turn_or_leaves_the_roster_loses_its_bit() -> None:
    chain = commit(START, PEERS, dict.fromkeys(PEERS, ATTESTED))
    assert commit(chain, PEERS, {PEERS[0]: UNSEATED}).order == (*PEERS[1:], PEERS[0])
    back = commit(commit(chain, PEERS[1:]), PEERS[1:] + PEERS[:1])
    assert not back.is_dialable(PEERS[0]) and back.is_dialable(PEERS[1])


def test_since_when_each_is_a_member_is_remembered_until_it_leaves() -> None:
    chain = commit(commit(START, PEERS[:2]), PEERS[:3])
    assert [chain.entered_at(peer) for peer in PEERS[:4]] == [1, 1, 2, chain.version]
    chain = commit(commit(chain, PEERS[1:3]), PEERS[:3])
    assert [chain.entered_at(peer) for peer in PEERS[:3]] == [4, 1, 2]


@pytest.mark.parametrize("said", [bytes(5), bytes([1] * 4), bytes([1] * 6), bytes([3, 0, 0, 0, 1])])
def test_it_is_said_of_each_member_or_of_none(said: bytes) -> None:
    entry = Entry(PEERS[0], 1, 1, RUN, 0, 1, 10, 1)
    with pytest.raises(InvalidList, match="dialable"):
        apply(START, CommitList((entry,), PEERS[1:], dialable=said), 4)


def test_a_state_that_does_not_say_it_of_each_member_is_refused() -> None:
    chain = commit(START, PEERS, {PEERS[0]: ATTESTED})
    value = to_value(chain)
    assert from_value(ChainState, value) == chain
    for name in ("dialable", "voting"):
        wrong = list(value)
        wrong[[field.name for field in fields(ChainState)].index(name)] = bytes(3)
        with pytest.raises(MalformedBytes):
            from_value(ChainState, wrong)
    with pytest.raises(ValueError, match="a roster of 5"):
        replace(chain, entered=(1,))


rosters = st.sets(st.sampled_from(PEERS), min_size=1).map(lambda some: tuple(sorted(some)))


@given(
    st.lists(st.tuples(rosters, st.sets(st.sampled_from(PEERS)), rosters), min_size=2, max_size=6), st.integers(0, 30)
)
def test_its_leader_goes_on_unless_a_dialable_one_has_to(
    steps: list[tuple[tuple[PeerId, ...], set[PeerId], tuple[PeerId, ...]]], view: int
) -> None:
    """The view never goes back, a voter leads behind each commit, and where a voter is dialable a dialable one."""
    chains = [START]
    for roster, attested, workers in steps:
        chains.append(commit(chains[-1], roster, {peer: ATTESTED for peer in roster if peer in attested}, workers))
    for old, new in pairwise(chains[1:]):
        before, after = leader_of(view, old.order), view_after(view, old.order, new)
        leader = leader_of(after, new.order)
        assert view <= after < view + len(new.voters) and leader in new.voters
        can_be_led = any(map(new.is_dialable, new.voters))
        assert new.is_dialable(leader) == can_be_led
        if before in new.voters and new.is_dialable(before) == can_be_led:
            assert leader == before
        view = after
