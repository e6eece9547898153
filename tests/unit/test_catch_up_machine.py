"""The way to the swarm's state as a pure machine: what it asks, what it fetches, what it decides; each path by itself.

Donors are logs and records in memory. What they say is really signed, so forgeries fail where they would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from swarm.chain import MAX_RECENT, ChainState, apply, head_after, left_tokens
from swarm.digest import Digest
from swarm.messages import Commit, GetLog, GetState, Log, PeerStatus, record_digest, seal_message
from swarm.round.catch_up import (
    ASKED_FOR_STATE,
    MAX_PAGES,
    Adopt,
    CatchUpRequest,
    Failed,
    FetchBlobs,
    Move,
    PrepareMerge,
    Wait,
    Wanted,
)
from tests.unit.catch_up_donors import (
    KEYS,
    OURS,
    THEIRS,
    A,
    B,
    C,
    Donor,
    Split,
    donor_of,
    merge_of,
    merging,
    newest_first,
    run,
)
from tests.unit.message_examples import RUN, example_of, keypair
from tests.unit.small_swarm import LEASE, START, commit_on, log_of, richer, state_at

# -------------------------------------------------------------------- the log


@pytest.mark.parametrize("missed", [1, 2, 7])
def test_missed_commits_come_by_the_log(missed: int) -> None:
    chains, commits = log_of(9, THEIRS, [])
    own = chains[: 10 - missed]
    asked = run(CatchUpRequest((A, B), newest_first(own)), {A: donor_of(chains, commits)})
    behind = commits[9 - missed :]
    assert asked.outcome == Move(own[-1].head, behind, 40 * 32 * 3 * missed)
    assert asked.fetched == [entry.root for commit in behind for entry in commit.commit.entries]
    assert asked.asked == [("GetLog", (A,)), ("GetLog", (A,))], "once more, whether there is more"
    fetch = next(one for one in asked.questions if isinstance(one, FetchBlobs))
    assert all(one.holders[0] == A and one.num_bytes == 40 * 32 for one in fetch.wanted)
    assert {holder for one in fetch.wanted for holder in one.holders} == {A, *behind[0].holders[0].peers}


@pytest.mark.parametrize("depth", [1, 2])
def test_a_shallow_fork_is_left_by_the_log(depth: int) -> None:
    split = Split.after(depth, depth)
    asked = run(split.request(), {A: split.donor()})
    assert asked.outcome == Move(split.ours[2].head, tuple(split.commits[2:]), 40 * 32 * 3 * depth)


def test_several_pages_are_followed_and_the_last_one_may_be_missing() -> None:
    chains, commits = log_of(12, THEIRS[:1], [])
    request = CatchUpRequest((A,), (chains[0],))
    assert run(request, {A: donor_of(chains, commits, page=5)}).outcome == Move(chains[0].head, commits, 40 * 32 * 12)
    most = MAX_PAGES * 2
    assert run(request, {A: donor_of(chains, commits, page=2)}).outcome == Move(
        chains[0].head, commits[:most], 40 * 32 * most
    )

    class Silent(Donor):
        def answer(self, message: GetLog | GetState) -> object:
            return super().answer(message) if START.head in getattr(message, "heads", ()) else "gone"

    silent = Silent(chains, commits, page=5)
    assert run(request, {A: silent}).outcome == Move(chains[0].head, commits[:5], 40 * 32 * 5)


def test_a_page_that_does_not_follow_the_one_before_is_no_log() -> None:
    chains, commits = log_of(4, THEIRS[:1], [])

    class Liar(Donor):
        def answer(self, message: GetLog | GetState) -> object:
            first = isinstance(message, GetLog) and chains[0].head in message.heads
            return Log(chains[0].head, commits[:2]) if first else Log(chains[2].head, commits[:2])

    honest = donor_of(chains, commits)
    asked = run(CatchUpRequest((A, B), (chains[0],)), {A: Liar(chains, commits), B: honest})
    assert asked.outcome == Move(chains[0].head, commits, 40 * 32 * 4) and ("GetLog", (B,)) in asked.asked


def _forged(commit: Commit, **changes: Any) -> Commit:
    return replace(commit, commit=replace(commit.commit, **changes))


LIES: dict[str, Callable[[Sequence[ChainState], tuple[Commit, ...]], object]] = {
    "more tokens than announced": lambda chains, commits: Log(
        chains[0].head,
        (_forged(commits[0], entries=tuple(replace(one, tokens=10**6) for one in commits[0].commit.entries)),),
    ),
    "commits out of order": lambda chains, commits: Log(chains[0].head, commits[::-1]),
    "a commit twice": lambda chains, commits: Log(chains[0].head, (commits[0], commits[0])),
    "without announcements": lambda chains, commits: Log(chains[0].head, (replace(commits[0], announcements=()),)),
    "from a head that is not ours": lambda chains, commits: Log(chains[1].head, commits[1:]),
    "no log at all": lambda chains, commits: state_at(chains[-1], []),
    "a list that bars us on nobody's word": lambda chains, commits: Log(
        chains[0].head, (_forged(commits[0], barred=(chains[0].head,)),)
    ),
    "a merge of a branch that is not there": lambda chains, commits: Log(
        chains[0].head, (merging(chains[0], merge_of(chains[1], chains[0])),)
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_liar_s_log_is_refused_and_the_next_peer_asked(lie: str) -> None:
    common, _ = log_of(1, KEYS, [])
    chains, commits = log_of(2, THEIRS, [], common[-1])
    liar = Donor(answers={GetLog: LIES[lie](chains, commits)})
    asked = run(CatchUpRequest((B, A), (chains[0],)), {A: donor_of(chains, commits), B: liar})
    assert asked.outcome == Move(chains[0].head, commits, 40 * 32 * 6)
    alone = run(CatchUpRequest((B,), (chains[0],)), {B: liar}).outcome
    assert isinstance(alone, Failed) and str(B) in alone.reason


def test_a_log_with_a_blob_longer_than_any_can_be_is_refused() -> None:
    chains, commits = log_of(1, THEIRS, [])
    units = state_at(chains[0], []).units
    asked = run(CatchUpRequest((A,), (chains[0],), units=units), {A: donor_of(chains, commits)})
    assert isinstance(asked.outcome, Move)
    own = apply(chains[0], commits[0].commit, LEASE)
    grown = commit_on(own, THEIRS, [])
    left = log_of(1, OURS, [], own)[0][1]
    merge = merging(apply(own, grown.commit, LEASE), merge_of(left, apply(own, grown.commit, LEASE)))
    assert merge.commit.merge is not None
    far = _forged(merge, merge=replace(merge.commit.merge, num_bytes=1 << 40))
    for last, is_refused in ((merge, False), (far, True)):
        liar = Donor([own], (), answers={GetLog: Log(own.head, (grown, last))})
        outcome = run(CatchUpRequest((A,), (own,), units=units), {A: _once(liar)}).outcome
        assert isinstance(outcome, Failed if is_refused else Move), outcome


def _once(donor: Donor) -> Donor:
    """Says its log when asked from its first head, and then that there is no more."""

    class Once(Donor):
        def answer(self, message: GetLog | GetState) -> object:
            is_first = isinstance(message, GetLog) and donor.chains[0].head in message.heads
            return donor.answers[GetLog] if is_first else "no more"

    return Once()


def test_a_log_that_leads_nowhere_better_is_refused() -> None:
    split = Split.after(2, 1)
    asked = run(split.request(), {A: split.donor()})
    assert isinstance(asked.outcome, Failed) and "no better than ours" in asked.outcome.reason
    assert asked.fetched == [], "its blobs are not even fetched"


def test_a_blob_that_cannot_be_had_leads_to_the_next_peer() -> None:
    chains, commits = log_of(2, THEIRS, [])
    donors = {A: donor_of(chains, commits), B: donor_of(chains, commits[:1])}
    fetches = iter(["no holder left", ""])
    asked = run(CatchUpRequest((A, B), (chains[0],)), donors, lambda wanted: next(fetches))
    assert asked.outcome == Move(chains[0].head, commits[:1], 40 * 32 * 3)


def test_only_so_many_are_asked() -> None:
    chains, _ = log_of(0, KEYS, [])
    peers = tuple(keypair(number).peer_id for number in range(20, 30))
    asked = run(CatchUpRequest(peers, (chains[0],)), {})
    assert isinstance(asked.outcome, Failed)
    assert asked.asked == [
        *(("GetLog", (peer,)) for peer in peers[:ASKED_FOR_STATE]),
        ("GetState", peers[:ASKED_FOR_STATE]),
    ]
    assert all(str(peer) in asked.outcome.reason for peer in peers[:ASKED_FOR_STATE])


# -------------------------------------------------------------------- barred heads


def barring(parent: ChainState, gone: Digest, witnesses: Sequence[Any], **changes: Any) -> Commit:
    """A list on `parent` that bars a head, with statuses of these as evidence."""
    status = example_of(PeerStatus)
    said = [
        replace(status, **{"peer": key.peer_id, "head": parent.head, "lost": (gone,), "pending": None, **changes})
        for key in witnesses
    ]
    commit = commit_on(parent, THEIRS[:1], [], salt=b"instead")
    evidence = tuple(seal_message(key, RUN, one) for key, one in zip(witnesses, said, strict=True))
    return replace(_forged(commit, barred=(gone,)), evidence=evidence)


def test_a_head_that_a_majority_barred_is_left_although_it_ranks_higher() -> None:
    chains, commits = log_of(2, KEYS, [])
    instead = barring(chains[1], chains[2].head, KEYS[:3])
    new = apply(chains[1], instead.commit, LEASE)
    assert new.key < chains[2].key and new.ranks_above(chains[2]) and not chains[2].ranks_above(new)
    donor = donor_of([*chains[:2], new], [commits[0], instead])
    asked = run(CatchUpRequest((A,), newest_first(chains)), {A: donor})
    assert asked.outcome == Move(chains[1].head, (instead,), 40 * 32)


TOO_LITTLE: dict[str, Callable[[Sequence[ChainState]], Commit]] = {
    "two of five": lambda chains: barring(chains[1], chains[2].head, KEYS[:2]),
    "the same one thrice": lambda chains: barring(chains[1], chains[2].head, KEYS[:1] * 3),
    "peers outside the roster": lambda chains: barring(chains[1], chains[2].head, [keypair(n) for n in (30, 31, 32)]),
    "said at another head": lambda chains: barring(chains[1], chains[2].head, KEYS[:3], head=chains[0].head),
    "said of another head": lambda chains: barring(chains[1], chains[2].head, KEYS[:3], lost=(chains[0].head,)),
    "nothing said": lambda chains: replace(barring(chains[1], chains[2].head, KEYS[:3]), evidence=()),
}


@pytest.mark.parametrize("evidence", TOO_LITTLE)
def test_a_head_barred_on_too_little_evidence_is_kept(evidence: str) -> None:
    chains, _ = log_of(2, KEYS, [])
    instead = TOO_LITTLE[evidence](chains)
    liar = Donor(answers={GetLog: Log(chains[1].head, (instead,))}, state=state_at(chains[1], []))
    asked = run(CatchUpRequest((A,), newest_first(chains)), {A: liar})
    assert isinstance(asked.outcome, Failed) and "no majority" in asked.outcome.reason and asked.fetched == []


def test_nobody_goes_back_to_a_head_that_our_chain_bars() -> None:
    chains, commits = log_of(3, KEYS, [])
    own = replace(chains[1], barred=(chains[3].head,))
    for state in (None, state_at(chains[3], [])):
        donor = Donor(chains, commits, state)
        asked = run(CatchUpRequest((A,), (own,)), {A: donor})
        assert isinstance(asked.outcome, Failed) and "barred" in asked.outcome.reason


def test_a_barred_branch_is_left_not_merged() -> None:
    """Nobody would merge it: its peers would only wait."""
    split = Split.after(4, 5)
    barred = replace(split.theirs[-1], barred=(split.ours[-1].head,))
    donor = Donor(state=state_at(barred, []))
    outcome = run(split.request(), {A: donor}).outcome
    assert isinstance(outcome, Adopt) and outcome.left_tokens == 4 * 2 * 100


# -------------------------------------------------------------------- snapshots


def test_beyond_the_log_a_snapshot_brings_what_was_missed() -> None:
    chains, commits = log_of(20, THEIRS, [])
    donor = donor_of(chains, commits)
    asked = run(CatchUpRequest((A, B), (chains[2],)), {A: donor, B: donor})
    assert donor.state is not None
    assert asked.outcome == Adopt(donor.state, True, 2 * 3200, 0)
    fetch = next(one for one in asked.questions if isinstance(one, FetchBlobs))
    assert [(one.root, one.holders) for one in fetch.wanted] == [(unit.root, (A, B)) for unit in donor.state.units]


def test_whose_state_is_wrong_takes_a_snapshot_and_keeps_nothing() -> None:
    chains, commits = log_of(2, THEIRS, [])
    donor = donor_of(chains, commits)
    for own in (chains, chains[:2]):  # at the same head, or behind
        asked = run(CatchUpRequest((A,), newest_first(own), whole=True), {A: donor})
        assert isinstance(asked.outcome, Adopt) and not asked.outcome.keep_progress
        assert asked.asked == [("GetState", (A,))]


def test_what_most_report_is_taken_and_what_could_not_be_used_only_if_nothing_else_is_there() -> None:
    chains, _ = log_of(3, THEIRS, [])
    own, good, lie = chains[0], state_at(chains[2], []), state_at(richer(chains[3], 10**6), [])
    donors = {A: Donor(state=lie), B: Donor(state=good), C: Donor(state=good)}
    request = CatchUpRequest((A, B, C), (own,))
    outcome = run(request, donors).outcome
    assert isinstance(outcome, Adopt) and outcome.record == good
    refused = frozenset({record_digest(good)})
    outcome = run(replace(request, refused=refused), donors).outcome
    assert isinstance(outcome, Adopt) and outcome.record == lie
    outcome = run(replace(request, refused=refused | {record_digest(lie)}), donors).outcome
    assert isinstance(outcome, Adopt) and outcome.record == good
    tried: list[Digest] = []

    def fetch(wanted: tuple[Wanted, ...]) -> str:
        tried.append(wanted[0].root)
        return "no holder left" if wanted[0].root == good.units[0].root else ""

    outcome = run(request, donors, fetch).outcome
    assert isinstance(outcome, Adopt) and outcome.record == lie and tried == [good.units[0].root, lie.units[0].root]


def test_states_of_other_sizes_or_below_ours_are_not_fetched() -> None:
    chains, _ = log_of(3, THEIRS, [])
    units = state_at(chains[1], []).units
    for state in (state_at(chains[3], [], num_units=3), state_at(chains[0], []), state_at(chains[1], [])):
        asked = run(CatchUpRequest((A,), (chains[1],), units=units), {A: Donor(state=state)})
        assert isinstance(asked.outcome, Failed) and asked.fetched == []


# -------------------------------------------------------------------- merges


def test_a_deep_branch_is_prepared_for_a_merge() -> None:
    split = Split.after(3, 3)
    donor = split.donor()
    asked = run(split.request(), {A: donor})
    # The log reaches the fork, which is not among the heads that we can go back to.
    assert asked.outcome == PrepareMerge(state_at(split.theirs[-1], []), 2 * 3200)
    assert [kind for kind, _ in asked.asked] == ["GetLog", "GetState"]


def test_a_branch_waits_until_it_is_merged_and_moves_from_the_state_beside_it() -> None:
    split = Split.after(4, 5)
    beside = split.theirs[-1]
    request = split.request(beside=beside)
    assert isinstance(run(request, {A: split.donor()}).outcome, Wait), "nothing has happened there"
    split.go_on()
    waits = run(request, {A: split.donor()})
    assert isinstance(waits.outcome, Wait) and waits.fetched == []
    merge = merge_of(split.ours[-1], beside)
    split.go_on(merging(split.theirs[-1], merge))
    split.go_on()
    asked = run(request, {A: split.donor()})
    assert isinstance(asked.outcome, Move)
    assert (asked.outcome.base, asked.outcome.commits) == (beside.head, tuple(split.commits[-3:]))
    fetch = next(one for one in asked.questions if isinstance(one, FetchBlobs))
    wanted = next(one for one in fetch.wanted if one.root == merge.root)
    assert wanted == Wanted(merge.root, (A, OURS[0].peer_id), 1000)
    assert isinstance(run(replace(request, gives_up=True), {A: split.donor()}).outcome, Move), "it is merged: why leave"


def test_a_branch_that_is_not_merged_in_time_is_left_and_its_loss_is_said() -> None:
    split = Split.after(4, 5)
    beside = split.theirs[-1]
    split.go_on()
    outcome = run(split.request(beside=beside, gives_up=True), {A: split.donor()}).outcome
    assert outcome == Adopt(state_at(split.theirs[-1], []), True, 2 * 3200, 4 * 2 * 100)
    assert left_tokens(split.ours[-1], split.theirs[-1]) == 4 * 2 * 100


def test_a_state_beside_us_that_has_grown_old_is_replaced_before_it_is_too_old_to_merge_into() -> None:
    split = Split.after(4, 5)
    beside, outcomes = split.theirs[-1], []
    for _ in range(MAX_RECENT):
        split.go_on()
        outcomes.append(run(split.request(beside=beside), {A: split.donor()}).outcome)
    waits = [isinstance(one, Wait) for one in outcomes]
    assert waits == sorted(waits, reverse=True) and 1 <= sum(waits) < MAX_RECENT - 1
    for age, outcome in enumerate(outcomes, start=1):
        if not isinstance(outcome, Wait):
            assert outcome == PrepareMerge(
                state_at(split.theirs[len(split.theirs) - 1 - MAX_RECENT + age], []), 2 * 3200
            )


def test_another_branch_that_was_merged_first_has_ours_prepared_anew() -> None:
    split = Split.after(4, 5)
    beside = split.theirs[-1]
    third, _ = log_of(3, OURS[:1], [], split.theirs[2], salt=b"third")
    split.go_on(merging(beside, merge_of(third[-1], beside)))
    asked = run(split.request(beside=beside), {A: split.donor()})
    assert asked.outcome == PrepareMerge(state_at(split.theirs[-1], []), 2 * 3200)


def test_an_earlier_head_of_a_branch_that_was_merged_later_has_nothing_left_to_merge() -> None:
    """One of the branch went on alone and was merged: who stayed behind moves with it."""
    split = Split.after(5, 6)
    beside = split.theirs[-1]
    split.go_on(merging(beside, merge_of(split.ours[-1], beside)))
    behind = CatchUpRequest((A,), newest_first(split.ours[:-1]), beside=beside)
    outcome = run(behind, {A: split.donor()}).outcome
    assert isinstance(outcome, Move) and outcome.base == beside.head
    fresh = run(replace(behind, beside=None), {A: split.donor()}).outcome  # after a restart nothing is beside it
    assert outcome.commits[-1].commit.merge is not None
    assert fresh == Adopt(state_at(split.theirs[-1], []), True, 2 * 3200, 0)


def test_our_branch_outgrew_theirs_meanwhile() -> None:
    split = Split.after(3, 3)
    beside = split.theirs[-1]
    split.ours += log_of(4, OURS, [], split.ours[-1], salt=b"more")[0][1:]
    outcome = run(split.request(beside=beside), {A: split.donor()}).outcome
    assert isinstance(outcome, Failed) and "no better than ours" in outcome.reason
    assert head_after(split.theirs[-2].head, split.commits[-1].commit) == split.theirs[-1].head
