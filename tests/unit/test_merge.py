"""Merging a branch: numbers against plain sets, tokens never twice, each rule of the chain, the table of offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.chain import (
    MAX_HOLES,
    MAX_NUMBER,
    MAX_RECENT,
    MAX_ROSTER,
    ChainState,
    CommitList,
    InvalidList,
    ListedNumbers,
    Merge,
    apply,
    check_merge,
    left_behind,
    left_tokens,
    merge_weight,
)
from swarm.digest import ZERO_DIGEST, digest_of
from swarm.identity import PeerId
from swarm.messages import MergeOffer
from swarm.round.merges import MAX_OFFERS, Merges
from swarm.schema import from_value, to_value
from tests.unit.branches import FORK, LEASE, OURS, PEERS, THEIRS, entry

quick = settings(deadline=None, max_examples=200)

# -------------------------------------------------------------------- numbers against plain sets


def numbers_of(seqs: set[int], tokens_of: dict[int, int], order: list[int] | None = None) -> ListedNumbers:
    listed = ListedNumbers(PEERS[0], 0)
    for seq in order or sorted(seqs):
        listed = listed.including(seq, tokens_of[seq])
    return listed


def listed_in(numbers: ListedNumbers) -> set[int]:
    return {seq for seq in range(1, numbers.highest + 1) if seq in numbers}


some_seqs = st.sets(st.integers(1, MAX_HOLES), max_size=12)
some_tokens = st.lists(st.integers(1, 1000), min_size=MAX_HOLES, max_size=MAX_HOLES)


@quick
@given(some_seqs, some_seqs, some_tokens, st.randoms(use_true_random=False))
def test_numbers_are_sets_and_no_token_counts_twice(
    ours: set[int], theirs: set[int], tokens: list[int], chance: Any
) -> None:
    tokens_of = dict(enumerate(tokens, start=1))
    orders = [chance.sample(sorted(seqs), len(seqs)) for seqs in (ours, theirs)]
    one, other = (numbers_of(seqs, tokens_of, order) for seqs, order in zip((ours, theirs), orders, strict=True))
    assert one.covers(other) == (theirs <= ours) and other.covers(one) == (ours <= theirs)
    both = one.united_with(other)
    assert listed_in(both) == ours | theirs
    assert both.holes == tuple(sorted(set(both.holes))) and all(hole < both.highest for hole in both.holes)
    assert both == other.united_with(one)
    sums = {name: sum(tokens_of[seq] for seq in seqs) for name, seqs in {"one": ours, "other": theirs}.items()}
    in_all = sum(tokens_of[seq] for seq in ours | theirs)
    if ours <= theirs or theirs <= ours:
        assert both.tokens == in_all
    assert max(sums.values()) <= both.tokens <= in_all


@quick
@given(some_seqs, some_seqs, some_seqs, some_tokens)
def test_uniting_is_the_same_in_any_order(one: set[int], two: set[int], three: set[int], tokens: list[int]) -> None:
    """Of the sets; tokens too where one of the sides holds all of another, as branches of one author do."""
    tokens_of = dict(enumerate(tokens, start=1))
    a, b, c = (numbers_of(seqs, tokens_of) for seqs in (one, two, three))
    left, right = a.united_with(b).united_with(c), a.united_with(b.united_with(c))
    assert (left.highest, left.holes) == (right.highest, right.holes)
    assert a.united_with(a) == a and a.united_with(b).covers(a) and a.united_with(b).covers(b)


def test_holes_that_were_forgotten_count_as_listed_on_both_sides() -> None:
    far = ListedNumbers(PEERS[0], 0).including(2 * MAX_HOLES, 5)
    near = ListedNumbers(PEERS[0], 0).including(3, 7)
    assert near.highest < far.holes[0] and far.covers(near), "below the oldest hole everything counts as listed"
    assert far.united_with(near) == far == near.united_with(far)


# -------------------------------------------------------------------- branches


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 2), min_size=1), st.integers(1, 99)), min_size=1, max_size=6),
    st.lists(st.tuples(st.sets(st.integers(3, 4), min_size=1), st.integers(1, 99)), min_size=1, max_size=6),
)
def test_a_merge_lists_what_either_side_did(ours: Any, theirs: Any) -> None:
    branches = []
    for rounds in (ours, theirs):
        branch = FORK
        for places, tokens in rounds:
            branch = branch.grow(tuple(PEERS[place] for place in sorted(places)), tokens)
        branches.append(branch)
    winner, loser = sorted(branches, key=lambda one: one.state.key, reverse=True)
    in_all = sum((winner.listed | loser.listed).values())
    merge, only_left = (
        winner.merge_of(loser),
        sum(tokens for key, tokens in loser.listed.items() if key not in winner.listed),
    )
    assert merge_weight(winner.state, merge) == (only_left, in_all - loser.state.tokens)
    assert left_tokens(loser.state, winner.state) == only_left
    merged = winner.merged(loser)
    assert merged.state.tokens == in_all == sum(numbers.tokens for numbers in merged.state.listed)
    for author in PEERS:
        seqs = {seq for peer, seq in merged.listed if peer == author}
        assert {seq for seq in range(1, 20) if merged.state.has_listed(author, seq)} == seqs
    assert merged.state.version == winner.state.version + 1 and merged.state.roster == winner.state.roster
    assert merged.state.cursor == max(merge.cursor, winner.state.cursor + LEASE * len(winner.state.roster))
    assert merged.state.entries == winner.state.entries, "the learning rate counts with the last round's members"
    assert left_behind(loser.state, merged.state) == () and left_behind(winner.state, merged.state) == ()
    assert from_value(ChainState, to_value(merged.state)) == merged.state


def test_what_both_sides_listed_weighs_nothing() -> None:
    """A contribution that was held on both sides when the swarm split is on both branches."""
    both = PEERS[:1]
    ours, theirs = FORK.grow((*both, *PEERS[1:3]), 20), FORK.grow((*both, PEERS[3]), 20)
    assert [numbers.author for numbers in left_behind(theirs.state, ours.state)] == [PEERS[3]]
    assert merge_weight(ours.state, ours.merge_of(theirs)) == (20, 40)
    assert ours.merged(theirs).state.tokens == FORK.state.tokens + 4 * 20


def test_a_branch_is_merged_once() -> None:
    merged = OURS.merged(THEIRS)
    for merge in (OURS.merge_of(THEIRS), merged.merge_of(THEIRS), merged.merge_of(THEIRS, listed=THEIRS.state.listed)):
        with pytest.raises(InvalidList, match=r"all listed here|not a branch and a head"):
            check_merge(merged.state, merge)
    later = merged.grow(PEERS, 20)
    with pytest.raises(InvalidList, match="all listed here"):
        check_merge(later.state, later.merge_of(THEIRS, listed=THEIRS.state.listed))


def test_of_a_branch_that_grew_only_what_is_new_counts() -> None:
    merged, grown = OURS.merged(THEIRS), THEIRS.grow(PEERS[3:], 7, rounds=2)
    merge = merged.merge_of(grown)
    check_merge(merged.state, merge)
    assert merge_weight(merged.state, merge) == (2 * 2 * 7, 5 * 3 * 20)
    again = merged.merged(grown)
    assert again.state.tokens == sum((OURS.listed | grown.listed).values()) == sum(again.listed.values())
    with pytest.raises(InvalidList, match="all listed here"):
        check_merge(again.state, again.merge_of(THEIRS, listed=THEIRS.state.listed))


def test_three_branches_one_after_the_other() -> None:
    """The next one has to be encoded for the merged head: for the one before, ours would weigh what it no longer does."""
    ours, two, three = (FORK.grow(authors, 20, 3) for authors in (PEERS[:3], PEERS[3:4], PEERS[4:]))
    stale = ours.merge_of(three)
    merged = ours.merged(two)
    with pytest.raises(InvalidList, match="not a branch and a head of ours"):
        check_merge(merged.state, stale)
    assert merge_weight(merged.state, merged.merge_of(three)) == (60, 180 + 60)
    all_three = merged.merged(three)
    assert all_three.state.tokens == sum((ours.listed | two.listed | three.listed).values())


def test_a_merge_may_come_a_few_commits_late() -> None:
    merge = OURS.merge_of(THEIRS)
    ours = OURS
    for _ in range(MAX_RECENT):
        ours = ours.grow(PEERS[:3], 5)
        check_merge(ours.state, merge)
        assert merge_weight(ours.state, merge)[0] == 2 * 5 * 20
    with pytest.raises(InvalidList, match="not a branch and a head of ours"):
        check_merge(ours.grow(PEERS[:3], 5).state, merge)


FAR_NUMBER, FAR_SLOT = MAX_NUMBER // 2, 1 << 61
BROKEN: dict[str, tuple[Any, str]] = {
    "an unknown base": (lambda merge: replace(merge, base=ZERO_DIGEST), "not a branch and a head of ours"),
    "our own head": (lambda merge: replace(merge, left=OURS.state.head), "not a branch and a head of ours"),
    "a head before ours": (lambda merge: replace(merge, left=OURS.state.recent[1]), "not a branch and a head of ours"),
    "authors out of order": (lambda merge: replace(merge, listed=merge.listed[::-1]), "not sorted"),
    "an author twice": (lambda merge: replace(merge, listed=merge.listed[:1] * 2), "not sorted, or one is there twice"),
    "holes out of order": (lambda merge: _with(merge, holes=(5, 4)), "out of order"),
    "a hole twice": (lambda merge: _with(merge, holes=(4, 4)), "out of order"),
    "a hole at the highest": (lambda merge: _with(merge, holes=(merge.listed[0].highest,)), "out of range"),
    "hole 0": (lambda merge: _with(merge, holes=(0,)), "out of range"),
    "more tokens in numbers than in all": (lambda merge: _with(merge, tokens=merge.tokens), "the larger one stays"),
    "a larger branch": (lambda merge: replace(merge, tokens=OURS.state.tokens + 1), "the larger one stays"),
    "nothing new": (lambda merge: replace(merge, listed=FORK.state.listed), "all listed here"),
    "no numbers": (lambda merge: replace(merge, listed=()), "all listed here"),
    "a cursor that leases cannot pass": (lambda merge: replace(merge, cursor=FAR_SLOT + 1), "at most"),
    "a number that cannot be counted on from": (lambda merge: _with(merge, highest=FAR_NUMBER + 1), "at most"),
}


def _with(merge: Merge, **changes: Any) -> Merge:
    return replace(merge, listed=(replace(merge.listed[0], **changes), *merge.listed[1:]))


@pytest.mark.parametrize("fault", BROKEN)
def test_each_rule_of_a_merge(fault: str) -> None:
    good = OURS.merge_of(THEIRS)
    check_merge(OURS.state, good)
    harm, reason = BROKEN[fault]
    with pytest.raises(InvalidList, match=reason):
        check_merge(OURS.state, harm(good))
    with pytest.raises(InvalidList, match=reason):
        apply(OURS.state, CommitList((), PEERS[:1], merge=harm(good)), LEASE)


def test_a_barred_branch_is_not_merged() -> None:
    barring = replace(OURS.state, barred=(THEIRS.state.head,))
    with pytest.raises(InvalidList, match="not a branch and a head of ours"):
        check_merge(barring, OURS.merge_of(THEIRS))


def test_the_farthest_numbers_and_slots_leave_room_to_go_on() -> None:
    merge = _with(OURS.merge_of(THEIRS, cursor=FAR_SLOT), highest=FAR_NUMBER)
    state = apply(OURS.state, CommitList((), PEERS[:2], merge=merge), LEASE)
    after = apply(state, CommitList((entry(PEERS[3], FAR_NUMBER + 1, 5),), PEERS[:2]), LEASE)
    assert after.has_listed(PEERS[3], FAR_NUMBER + 1) and after.cursor == FAR_SLOT + 2 * LEASE


def test_a_chain_never_holds_more_than_a_message_can() -> None:
    crowd = tuple(PeerId(number.to_bytes(32, "big")) for number in range(1, MAX_ROSTER + 1))
    listed = tuple(ListedNumbers(one, 1, (), 1) for one in crowd)
    full = replace(OURS.state, listed=listed, tokens=10 * MAX_ROSTER)
    with pytest.raises(InvalidList, match=f"{MAX_ROSTER + 2} authors"):
        check_merge(full, OURS.merge_of(THEIRS))
    heavy = tuple(replace(numbers, tokens=(1 << 62) - 1) for numbers in OURS.state.listed[:2])
    rich = replace(OURS.state, listed=heavy, tokens=sum(numbers.tokens for numbers in heavy))
    with pytest.raises(InvalidList, match="tokens on one chain"):
        check_merge(rich, OURS.merge_of(THEIRS))


def test_a_merge_comes_alone_and_names_who_stays() -> None:
    merge = OURS.merge_of(THEIRS)
    for commit in (
        CommitList((), (), merge=merge),
        CommitList((entry(PEERS[0], 99, 5),), PEERS[1:3], merge=merge),
    ):
        with pytest.raises(InvalidList, match="a merge with contributions, or without anybody who stays"):
            apply(OURS.state, commit, LEASE)


# -------------------------------------------------------------------- the table of offers


def offer(author: PeerId, merge: Merge) -> MergeOffer:
    return MergeOffer(author, merge)


def test_the_branch_with_most_tokens_is_wanted_once_offers_had_time_to_gather() -> None:
    table, held = Merges(2.0), set()
    merges = [OURS.merge_of(one) for one in (FORK.grow(PEERS[3:4], 9, 2), THEIRS)]
    table.offered(offer(PEERS[3], merges[0]), OURS.state, 10.0)
    table.offered(offer(PEERS[4], merges[1]), OURS.state, 11.5)
    assert [one.merge for one in table.ask()] == merges and table.ask() == ()
    held.update(one.root for one in merges)
    assert table.wanted(held.__contains__, 11.9) is None
    wanted = table.wanted(held.__contains__, 12.0)
    assert wanted is not None and (wanted.merge, wanted.holders) == (merges[1], {PEERS[4]})
    table.offered(offer(PEERS[3], merges[1]), OURS.state, 12.0)
    assert wanted.holders == {PEERS[3], PEERS[4]} and table.wanted(held.__contains__, 12.0) is wanted
    assert table.ask() == (), "whoever offers it again has it fetched again"
    table.clear()
    assert table.wanted(held.__contains__, 99.0) is None


def test_in_short_rounds_offers_gather_from_head_to_head() -> None:
    """Once never merged: the table was cleared at each head, sooner than offers had time to gather."""
    table, merge, ours = Merges(4.0), OURS.merge_of(THEIRS), OURS
    table.offered(offer(PEERS[3], merge), ours.state, 0.0)
    assert [one.merge for one in table.ask()] == [merge]
    for now_s in (1.0, 2.5, 4.0):
        assert table.wanted(lambda root: True, now_s - 0.1) is None
        ours = ours.grow(PEERS[:3], 20)
        table.move(ours.state)
        assert [one.merge for one in table.ask()] == [merge], "a blob that went is asked for again"
    wanted = table.wanted(lambda root: True, 4.0)
    assert wanted is not None and wanted.merge == merge
    check_merge(ours.state, wanted.merge)


def test_what_was_merged_or_came_too_late_leaves_the_table() -> None:
    merge, other = OURS.merge_of(THEIRS), OURS.merge_of(FORK.grow(PEERS[3:4], 9, 2))
    for after in (OURS.merged(THEIRS), OURS.grow(PEERS[:3], 20, MAX_RECENT + 1)):
        table = Merges(0.0)
        table.offered(offer(PEERS[3], merge), OURS.state, 0.0)
        table.offered(offer(PEERS[4], other), OURS.state, 0.0)
        table.move(after.state)
        assert table.ask() == ()


def test_a_blob_that_does_not_come_keeps_nobody_waiting() -> None:
    table = Merges(2.0)
    missing, here = OURS.merge_of(THEIRS), OURS.merge_of(FORK.grow(PEERS[3:4], 9, 2))
    for author, merge in zip(PEERS[3:], (here, missing), strict=True):
        table.offered(offer(author, merge), OURS.state, 0.0)
    wanted = table.wanted({here.root}.__contains__, 2.0)
    assert wanted is not None and wanted.merge == here
    table.fail(missing.root)
    table.offered(offer(PEERS[4], missing), OURS.state, 3.0)
    assert [one.merge for one in table.ask()] == [here, missing], "it was never asked for, or not again"


def test_who_offers_a_later_head_offers_the_earlier_one_no_more() -> None:
    table = Merges(2.0)
    early, late = OURS.merge_of(FORK.grow(PEERS[3:], 9)), OURS.merge_of(FORK.grow(PEERS[3:], 9, 2))
    for author in PEERS[3:]:
        table.offered(offer(author, early), OURS.state, 0.0)
    table.offered(offer(PEERS[3], late), OURS.state, 1.0)
    assert [(one.merge, one.holders) for one in table.ask()] == [(early, {PEERS[4]}), (late, {PEERS[3]})]
    table.offered(offer(PEERS[4], late), OURS.state, 1.0)
    assert table.ask() == () and table.wanted(lambda root: root == early.root, 9.0) is None


def test_a_liar_who_tells_the_same_blob_differently_displaces_nobody() -> None:
    table, merge = Merges(2.0), OURS.merge_of(THEIRS)
    table.offered(offer(PEERS[3], merge), OURS.state, 0.0)
    table.offered(offer(PEERS[0], replace(merge, cursor=merge.cursor + 10**6)), OURS.state, 0.0)
    assert [one.merge == merge for one in table.ask()] == [True, False]
    table.fail(merge.root)
    assert table.wanted(lambda root: True, 9.0) is None


def test_the_table_is_bounded_and_refuses_what_the_chain_would() -> None:
    table = Merges(2.0)
    for number in range(MAX_OFFERS + 3):
        merge = OURS.merge_of(THEIRS, root=digest_of("blob", bytes([number])))
        table.offered(offer(PeerId(bytes([100 + number]) * 32), merge), OURS.state, 0.0)
    assert len(table.ask()) == MAX_OFFERS
    with pytest.raises(InvalidList):
        table.offered(offer(PEERS[3], OURS.merge_of(THEIRS, base=ZERO_DIGEST)), OURS.state, 0.0)
