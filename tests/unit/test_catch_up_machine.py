"""The way to the swarm's state as a pure machine: what it asks, what it fetches, what it decides; each path by itself.

Donors are logs and records in memory. What they say is really signed, so forgeries fail where they would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from swarm.chain import ChainState, apply, left_tokens
from swarm.digest import Digest
from swarm.messages import Commit, Contribution, GetLog, GetState, Log, PeerStatus, record_digest, seal_message
from swarm.round.catch_up import (
    ASKED_FOR_STATE,
    MAX_PAGES,
    Adopt,
    CatchUpRequest,
    Failed,
    FetchBlobs,
    Move,
    Wanted,
)
from tests.unit.catch_up_donors import (
    KEYS,
    THEIRS,
    A,
    B,
    C,
    Donor,
    Split,
    donor_of,
    newest_first,
    run,
)
from tests.unit.message_examples import RUN, example_of, keypair
from tests.unit.small_swarm import LEASE, START, commit_on, log_of, open_sealed, richer, state_at

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
    announced = open_sealed(commits[0].announcements[0])
    assert isinstance(announced, Contribution)
    far = replace(announced, num_bytes=1 << 40)
    sealed = seal_message(next(key for key in THEIRS if key.peer_id == far.author), RUN, far)
    forged = replace(commits[0], announcements=(sealed, *commits[0].announcements[1:]))
    liar = Donor(answers={GetLog: Log(chains[0].head, (forged,))})
    outcome = run(CatchUpRequest((A,), (chains[0],), units=units), {A: _once(liar, chains[0].head)}).outcome
    assert isinstance(outcome, Failed) and "at most" in outcome.reason


def _once(donor: Donor, head: Digest) -> Donor:
    """Says its log when asked from that head, and then that there is no more."""

    class Once(Donor):
        def answer(self, message: GetLog | GetState) -> object:
            is_first = isinstance(message, GetLog) and head in message.heads
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


def test_a_barred_branch_is_left() -> None:
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


# -------------------------------------------------------------------- deep branches


def test_a_deep_branch_is_left_for_a_snapshot_and_its_loss_is_said() -> None:
    """Its work goes with it, until it can be replayed from its log by everybody."""
    split = Split.after(4, 5)
    asked = run(split.request(), {A: split.donor()})
    # The log reaches the fork, which is not among the heads that we can go back to.
    assert asked.outcome == Adopt(state_at(split.theirs[-1], []), True, 2 * 3200, 4 * 2 * 100)
    assert [kind for kind, _ in asked.asked] == ["GetLog", "GetState"]
    assert left_tokens(split.ours[-1], split.theirs[-1]) == 4 * 2 * 100
    assert left_tokens(split.theirs[-1], split.theirs[-1]) == 0


def test_whose_state_most_have_takes_no_other_for_a_leader_s_word() -> None:
    chains, _ = log_of(2, THEIRS, [])
    right, wrong = state_at(chains[-1], []), state_at(richer(chains[-1], 7), [])
    request = CatchUpRequest((A, B, C), newest_first(chains), whole=True, digest=record_digest(right))
    liar, honest = Donor(state=wrong), Donor(state=right)
    outcome = run(request, {A: liar, B: honest, C: honest}).outcome
    assert isinstance(outcome, Failed) and "most" in outcome.reason
    outcome = run(request, {A: liar, B: Donor(), C: Donor()}).outcome
    assert isinstance(outcome, Adopt) and outcome.record == wrong, "of two alike the one that was named first"
    outcome = run(replace(request, digest=record_digest(wrong)), {A: liar, B: honest, C: honest}).outcome
    assert isinstance(outcome, Adopt) and outcome.record == right
