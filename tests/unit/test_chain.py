"""The chain's laws: each number at most once on any chain, tokens the sum of what is listed, equal heads equal states.

The reference is plain: a chain is its list of commits, and what it lists is a set of (author, number) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swarm import chain as chains
from swarm import wire
from swarm.chain import (
    MAX_BARRED,
    MAX_DEPARTED,
    MAX_ENTRIES,
    MAX_HOLES,
    MAX_NUMBER,
    MAX_ROSTER,
    ChainState,
    CommitList,
    Entry,
    InvalidList,
    ListedNumbers,
    apply,
    genesis,
    head_after,
    is_majority,
    leader_of,
)
from swarm.digest import ZERO_DIGEST, Digest, digest_of
from swarm.identity import PeerId
from swarm.schema import from_value, to_value
from tests.unit.message_examples import RUN

PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 6))
LEASE = 7
START = genesis(RUN, ZERO_DIGEST)


def _entry(author: PeerId, seq: int, tokens: int = 5, **changes: Any) -> Entry:
    root = digest_of("test", author.raw, seq.to_bytes(8, "little"))
    return replace(Entry(author, seq, 1, root, 0, 4, tokens, 3), **changes)


def _list(*entries: Entry, admitted: tuple[PeerId, ...] = ()) -> CommitList:
    return CommitList(entries=tuple(sorted(entries)), admitted=admitted)


@dataclass(frozen=True)
class Plain:
    """The reference chain: its commits, and the numbers they list."""

    state: ChainState
    commits: tuple[CommitList, ...] = ()

    @property
    def numbers(self) -> list[tuple[PeerId, int]]:
        return [(entry.author, entry.seq) for commit in self.commits for entry in commit.entries]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(2, 40))
def test_every_number_at_most_once_on_any_chain(seed: int, events: int) -> None:
    """Law (II): lists, forks and re-delivery in any order; refused exactly when the reference lists it already."""
    chance = Random(seed)
    branches = [Plain(START)]
    delivered: list[CommitList] = []
    for _ in range(events):
        tip = chance.choice(branches)
        if delivered and chance.random() < 0.4:  # by two leaders, late, or on another branch
            commit = chance.choice(delivered)
        else:
            authors = chance.sample(PEERS, chance.randint(1, len(PEERS)))
            others = tuple(peer for peer in PEERS if peer not in authors)  # all are members on every branch
            entries = (_entry(one, chance.randint(1, 8), chance.randint(1, 99)) for one in authors)
            commit = _list(*entries, admitted=others)
            delivered.append(commit)
        fresh = not any((entry.author, entry.seq) in tip.numbers for entry in commit.entries)
        if not fresh:
            with pytest.raises(InvalidList, match="already on this chain"):
                apply(tip.state, commit, LEASE)
            continue
        branches.append(Plain(apply(tip.state, commit, LEASE), (*tip.commits, commit)))
    for one in branches:
        assert len(one.numbers) == len(set(one.numbers))
        assert one.state.tokens == sum(entry.tokens for commit in one.commits for entry in commit.entries)
        assert one.state.version == len(one.commits)
        for author in PEERS:
            seen = {seq for peer, seq in one.numbers if peer == author}
            assert {seq for seq in range(1, 12) if one.state.has_listed(author, seq)} == seen
            assert one.state.highest_seq(author) == max(seen, default=0)
    by_head: dict[Digest, ChainState] = {}
    for one in branches:  # equal heads are equal states, and so have equal digests
        assert by_head.setdefault(one.state.head, one.state) == one.state
        assert by_head[one.state.head].digest() == one.state.digest()
    assert len({one.commits for one in branches}) == len(by_head)


@example(numbers=[1, 35, 3], base=0)
@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 90), max_size=60), st.integers(0, 10**12))
def test_holes_are_a_plain_set(numbers: list[int], base: int) -> None:
    """Until more than MAX_HOLES numbers are missing; from then on the oldest count as listed: none is counted twice."""
    listed = ListedNumbers(PEERS[0], base)
    seen: set[int] = set()
    forgot = False  # once there were more than MAX_HOLES, the oldest stay listed, however many are filled later
    for seq in (base + one for one in numbers):
        if seq in listed:
            assert seq in seen or forgot
            continue
        listed = listed.including(seq, 1)
        seen.add(seq)
        top = max(seen)
        missing = sorted(set(range(base + 1, top + 1)) - seen)
        assert listed.highest == top and all(one in listed for one in seen)
        assert listed.holes == tuple(sorted(listed.holes)) and set(listed.holes) <= set(missing)
        forgot = forgot or len(missing) > MAX_HOLES
        if not forgot:
            assert list(listed.holes) == missing
        assert len(listed.holes) <= MAX_HOLES
        assert all(one in listed for one in (1, base // 2 + 1, base) if one <= base), "what was listed stays listed"
        assert top + 1 not in listed


def test_a_far_number_costs_nothing() -> None:
    far = ListedNumbers(PEERS[0], 3, (1,)).including(2**63 - 1, 1)
    assert far.holes == tuple(range(2**63 - 1 - MAX_HOLES, 2**63 - 1)) and 1 in far


BAD_LISTS: dict[str, tuple[CommitList, str]] = {
    "empty": (CommitList(entries=(), admitted=()), "without contributions"),
    "unsorted": (CommitList(entries=(_entry(PEERS[1], 1), _entry(PEERS[0], 1)), admitted=()), "not sorted"),
    "numbers unsorted": (CommitList(entries=(_entry(PEERS[0], 3), _entry(PEERS[0], 2)), admitted=()), "not sorted"),
    "twice": (CommitList(entries=(_entry(PEERS[0], 2),) * 2, admitted=()), "there twice"),
    "twice, another incarnation": (_list(_entry(PEERS[0], 2), _entry(PEERS[0], 2, incarnation=2)), "there twice"),
    "listed before": (_list(_entry(PEERS[0], 1)), "already on this chain"),
    "listed before, another incarnation": (_list(_entry(PEERS[0], 1, incarnation=2)), "already on this chain"),
    "number 0": (_list(_entry(PEERS[0], 0)), "already on this chain"),
    "no tokens": (_list(_entry(PEERS[0], 2, tokens=0)), "no tokens"),
    "no units": (_list(_entry(PEERS[0], 2, first_unit=4)), "no units"),
    "admitted unsorted": (_list(_entry(PEERS[0], 2), admitted=(PEERS[2], PEERS[1])), "admitted"),
    "admitted twice": (_list(_entry(PEERS[0], 2), admitted=(PEERS[1], PEERS[1])), "admitted"),
    "admitted author": (_list(_entry(PEERS[0], 2), admitted=(PEERS[0],)), "admitted"),
    "of a stranger": (_list(_entry(PEERS[0], 2), _entry(PEERS[1], 1)), "is no member"),
    "five newcomers": (
        _list(_entry(PEERS[0], 2), admitted=(*PEERS[1:], PeerId(bytes([6]) * 32))),
        "5 newcomers are admitted, at most 4",
    ),
    "too many tokens": (_list(_entry(PEERS[0], 2, tokens=2**63 - 5)), "tokens on one chain"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_bad_lists_name_their_rule(name: str) -> None:
    state = apply(START, _list(_entry(PEERS[0], 1)), LEASE)
    commit, reason = BAD_LISTS[name]
    with pytest.raises(InvalidList, match=reason):
        apply(state, commit, LEASE)


def test_a_state_stays_small_enough_for_a_message() -> None:
    """Every author has listed a number, with as many holes as there can be, and as many as are remembered have left."""
    many = tuple(PeerId(number.to_bytes(32, "big")) for number in range(1, MAX_ROSTER + 1))
    idle = tuple(PeerId(b"i" + number.to_bytes(31, "big")) for number in range(MAX_DEPARTED))
    kept = MAX_ROSTER - MAX_DEPARTED
    state = apply(START, _list(_entry(many[0], 1), admitted=(*many[1:kept], *idle)), LEASE)
    for begin in range(0, kept, MAX_ENTRIES):
        authors = many[begin : min(kept, begin + MAX_ENTRIES)]
        others = tuple(peer for peer in state.roster if peer not in authors)
        state = apply(state, _list(*(_entry(one, MAX_NUMBER - 1) for one in authors), admitted=others), LEASE)
    late = many[kept:]  # in the place of those who never worked
    state = apply(state, _list(_entry(many[0], MAX_NUMBER - 2), admitted=many[1:]), LEASE)
    state = apply(state, _list(*(_entry(one, MAX_NUMBER - 1) for one in late), admitted=many[:kept]), LEASE)
    assert state.roster == many and len(state.departed) == MAX_DEPARTED
    assert from_value(ChainState, wire.decode(wire.encode(to_value(state)))) == state  # held to a frame
    with pytest.raises(InvalidList, match="at most 4294967295"):
        apply(state, _list(_entry(many[0], MAX_NUMBER + 1)), LEASE)
    stranger = PeerId(b"\xff" * 32)
    with pytest.raises(InvalidList, match="authors on one chain"):
        apply(state, _list(_entry(idle[0], 1), admitted=many[1:]), LEASE)
    with pytest.raises(InvalidList, match="a roster of"):
        apply(state, _list(_entry(many[0], MAX_NUMBER), admitted=(*many[1:], stranger)), LEASE)


def test_roster_cursor_and_barred_heads() -> None:
    first = apply(START, _list(_entry(PEERS[0], 1), _entry(PEERS[2], 1), admitted=(PEERS[1], PEERS[3])), LEASE)
    assert first.roster == PEERS[:4] and first.entries == 2
    assert first.cursor == 4 * LEASE, "at genesis the leases were those of the authors and the admitted"
    second = apply(first, replace(_list(_entry(PEERS[2], 2)), minority=True), LEASE)
    assert second.roster == (PEERS[2],) and second.cursor == 8 * LEASE, "four members had leases"
    state = second
    for number in range(MAX_BARRED + 3):
        barred = replace(_list(_entry(PEERS[2], 3 + number)), barred=(digest_of("test", bytes([number])),))
        state = apply(state, barred, LEASE)
    assert len(state.barred) == MAX_BARRED and state.barred[-1] == digest_of("test", bytes([MAX_BARRED + 2]))


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_head_stands_for_its_list(data: st.DataObject) -> None:
    """Any change of a list, whatever the field, leads to another head."""
    commit = _list(_entry(PEERS[0], 1), _entry(PEERS[1], 1), admitted=(PEERS[2],))
    field = data.draw(
        st.sampled_from(["author", "seq", "incarnation", "root", "first_unit", "end_unit", "tokens", "steps"])
    )
    first = commit.entries[0]
    other = {"author": PEERS[3], "root": ZERO_DIGEST}.get(field) or getattr(first, field) + 1
    changed = replace(commit, entries=(replace(first, **{field: other}), commit.entries[1]))
    heads = {
        head_after(START.head, one)
        for one in (
            commit,
            changed,
            replace(commit, minority=True),
            replace(commit, admitted=()),
            replace(commit, barred=(ZERO_DIGEST,)),
        )
    }
    assert len(heads) == 5 and head_after(ZERO_DIGEST, commit) not in heads


def test_runs_and_parameters_have_their_own_genesis() -> None:
    other = digest_of("test", b"other")
    assert len({genesis(RUN, ZERO_DIGEST).head, genesis(other, ZERO_DIGEST).head, genesis(RUN, other).head}) == 3


def test_the_order_on_heads_is_tokens_then_version_then_hash() -> None:
    heavy = apply(START, _list(_entry(PEERS[0], 1, tokens=9)), LEASE)
    first = apply(START, _list(_entry(PEERS[0], 1, 4), admitted=PEERS[1:3]), LEASE)
    light = apply(first, _list(_entry(PEERS[1], 1, 4), admitted=(PEERS[0], PEERS[2])), LEASE)
    longer = apply(light, _list(_entry(PEERS[2], 1, 1), admitted=PEERS[:2]), LEASE)
    assert light.key < heavy.key < longer.key
    twins = [apply(START, _list(_entry(peer, 1)), LEASE) for peer in PEERS]
    assert max(twins, key=lambda state: state.key).head == max(state.head for state in twins)


def test_majorities_and_leaders() -> None:
    least = {size: min(count for count in range(size + 2) if is_majority(count, size)) for size in range(1, 6)}
    assert least == {1: 1, 2: 2, 3: 2, 4: 3, 5: 3}
    assert [leader_of(view, PEERS) for view in range(6)] == [*PEERS, PEERS[0]] and leader_of(3, ()) is None


def test_a_barred_state_reads_back() -> None:
    state = apply(START, replace(_list(_entry(PEERS[0], 5)), barred=(ZERO_DIGEST,)), LEASE)
    assert from_value(ChainState, to_value(state)) == state
    assert from_value(CommitList, to_value(_list(_entry(PEERS[0], 5)))) == _list(_entry(PEERS[0], 5))
    assert chains.MAX_AGE_VERSIONS == 2, "what an undo may bring back and what is kept on disk follow from it"
