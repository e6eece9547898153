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
from swarm.identity import PeerId
from swarm.messages import (
    Commit,
    Contribution,
    GetLog,
    GetState,
    GetStatus,
    Log,
    PeerStatus,
    record_digest,
    seal_message,
)
from swarm.round.catch_up import (
    ASKED_FOR_LOG,
    ASKED_FOR_STATE,
    ASKED_TO_VOTE,
    MAX_PAGES,
    STAND_TIMEOUT_S,
    Adopt,
    Ask,
    CatchUpRequest,
    Failed,
    FetchBlobs,
    Move,
    Wanted,
)
from swarm.round.root import Root, root_at
from tests.unit.catch_up_donors import (
    KEYS,
    ME,
    NEWCOMER,
    OURS,
    THEIRS,
    A,
    B,
    C,
    D,
    Donor,
    Split,
    donor_of,
    request_of,
    run,
)
from tests.unit.message_examples import RUN, example_of, keypair
from tests.unit.small_swarm import (
    LEASE,
    START,
    commit_on,
    log_of,
    open_sealed,
    richer,
    roots_along,
    state_at,
    status_at,
    votes_of,
)

EACH = 40 * 32  # bytes of a blob

# -------------------------------------------------------------------- the log


@pytest.mark.parametrize("missed", [1, 2, 7])
def test_missed_commits_come_by_the_log(missed: int) -> None:
    chains, commits = log_of(9, THEIRS, [])
    own, behind = chains[: 10 - missed], commits[9 - missed :]
    donor = donor_of(chains, commits)
    request = request_of((A, B), own, commits, me=C, stands={A: chains[-1], B: chains[-1]})
    asked = run(request, {A: donor, B: donor})
    assert asked.outcome == Move(own[-1].head, behind, roots_along(chains, commits)[-missed:], EACH * 3 * missed)
    assert asked.fetched == [entry.root for commit in behind for entry in commit.commit.entries]
    assert asked.asked == [("GetLog", (A,)), ("GetLog", (A,))], "once more, whether there is more"
    fetch = next(one for one in asked.questions if isinstance(one, FetchBlobs))
    assert all(one.holders[0] == A and one.num_bytes == EACH for one in fetch.wanted)
    assert {holder for one in fetch.wanted for holder in one.holders} == {A, *behind[0].holders[0].peers}


@pytest.mark.parametrize("depth", [1, 2])
def test_a_shallow_fork_is_left_by_the_log(depth: int) -> None:
    split = Split.after(depth, depth)
    there = split.theirs[-1]
    asked = run(split.request(stands={A: there, B: there, C: there, D: split.ours[-1]}), {A: split.donor()})
    commits, roots = tuple(split.commits[2:]), split.their_roots()[3:]
    assert asked.outcome == Move(split.ours[2].head, commits, roots, EACH * 3 * depth)
    assert len(asked.asked) == 2, "nobody needs to be asked where it stands"


def test_several_pages_are_followed_and_the_last_one_may_be_missing() -> None:
    """Of a log that is not read to its end, what is proved is taken: nobody is known to stand where it ends for us."""
    chains, commits = log_of(13, THEIRS[:1], [])
    roots = roots_along(chains, commits)[2:]
    first, behind = chains[1].head, commits[1:]
    request = request_of((A,), chains[:2], commits, stands={A: chains[-1]})
    assert run(request, {A: donor_of(chains, commits, page=5)}).outcome == Move(first, behind, roots, EACH * 12)
    most = MAX_PAGES * 2 - 1
    assert run(request, {A: donor_of(chains, commits, page=2)}).outcome == Move(
        first, behind[:most], roots[:most], EACH * most
    )

    class Silent(Donor):
        def answer(self, message: GetLog | GetState) -> object:
            return super().answer(message) if first in getattr(message, "heads", ()) else "gone"

    silent = Silent(chains, commits, page=5)
    assert run(request, {A: silent}).outcome == Move(first, behind[:4], roots[:4], EACH * 4)
    there = replace(request, stands={**request.stands, A: chains[6].head})
    assert run(there, {A: silent}).outcome == Move(first, behind[:5], roots[:5], EACH * 5)


def test_a_page_that_does_not_follow_the_one_before_is_no_log() -> None:
    chains, commits = log_of(5, THEIRS[:1], [])

    class Liar(Donor):
        def answer(self, message: GetLog | GetState) -> object:
            first = isinstance(message, GetLog) and chains[1].head in message.heads
            return Log(chains[1].head, commits[1:3]) if first else Log(chains[3].head, commits[1:3])

    honest = donor_of(chains, commits)
    request = request_of((A, B), chains[:2], commits, stands={A: chains[-1]})
    asked = run(request, {A: Liar(chains, commits), B: honest})
    assert asked.outcome == Move(chains[1].head, commits[1:], roots_along(chains, commits)[2:], EACH * 4)
    assert ("GetLog", (B,)) in asked.asked


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
    "without votes": lambda chains, commits: Log(chains[0].head, (replace(commits[0], votes=None),)),
    "with the votes of two of five": lambda chains, commits: Log(
        chains[0].head, (replace(commits[0], votes=votes_of(chains[0], THEIRS[:2])),)
    ),
    "with votes for another head": lambda chains, commits: Log(
        chains[0].head, (replace(commits[0], votes=votes_of(chains[1], THEIRS)),)
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_liar_s_log_is_refused_and_the_next_peer_asked(lie: str) -> None:
    common, before = log_of(1, KEYS, [])
    chains, commits = log_of(2, THEIRS, [], common[-1])
    liar = Donor(answers={GetLog: LIES[lie](chains, commits)})
    stands = dict.fromkeys((A, B, C), chains[-1])
    asked = run(request_of((B, A), common, before, stands=stands), {A: donor_of(chains, commits), B: liar})
    roots = roots_along([*common, *chains[1:]], [*before, *commits])[2:]
    assert asked.outcome == Move(chains[0].head, commits, roots, EACH * 6)
    alone = run(request_of((B,), common, before, stands=stands), {B: liar}).outcome
    assert isinstance(alone, Failed) and str(B) in alone.reason


def test_a_log_with_a_blob_longer_than_any_can_be_is_refused() -> None:
    chains, commits = log_of(1, THEIRS, [])
    units = state_at(chains[0], []).units
    asked = run(request_of((A,), chains[:1], (), units=units), {A: donor_of(chains, commits)})
    assert isinstance(asked.outcome, Move)
    announced = open_sealed(commits[0].announcements[0])
    assert isinstance(announced, Contribution)
    far = replace(announced, num_bytes=1 << 40)
    sealed = seal_message(next(key for key in THEIRS if key.peer_id == far.author), RUN, far)
    forged = replace(commits[0], announcements=(sealed, *commits[0].announcements[1:]))
    liar = Donor(answers={GetLog: Log(chains[0].head, (forged,))})
    outcome = run(request_of((A,), chains[:1], (), units=units), {A: _once(liar, chains[0].head)}).outcome
    assert isinstance(outcome, Failed) and "at most" in outcome.reason


def _once(donor: Donor, head: Digest) -> Donor:
    """Says its log when asked from that head, and then that there is no more."""

    class Once(Donor):
        def answer(self, message: GetLog | GetState) -> object:
            is_first = isinstance(message, GetLog) and head in message.heads
            return donor.answers[GetLog] if is_first else "no more"

    return Once()


def test_a_log_that_leads_nowhere_new_is_refused() -> None:
    chains, commits = log_of(4, KEYS, [])
    for donor in (donor_of(chains, commits), donor_of(chains[:4], commits[:3])):
        asked = run(request_of((A,), chains, commits), {A: donor})
        assert isinstance(asked.outcome, Failed) and "which we have" in asked.outcome.reason
        assert asked.fetched == []


def test_a_blob_that_cannot_be_had_leads_to_the_next_peer() -> None:
    chains, commits = log_of(4, THEIRS, [])
    donors = {A: donor_of(chains, commits), B: donor_of(chains[:4], commits[:3])}
    fetches = iter(["no holder left", ""])
    request = request_of((A, B), chains[:3], commits, me=C, stands={A: chains[4], B: chains[3]})
    asked = run(request, donors, lambda wanted: next(fetches))
    assert asked.outcome == Move(chains[2].head, commits[2:3], roots_along(chains, commits)[3:4], EACH * 3)


def test_only_so_many_are_asked() -> None:
    chains, _ = log_of(0, KEYS, [])
    peers = tuple(keypair(number).peer_id for number in range(20, 30))
    asked = run(request_of(peers, chains, ()), {})
    assert isinstance(asked.outcome, Failed)
    assert asked.asked == [
        *(("GetLog", (peer,)) for peer in peers[:ASKED_FOR_LOG]),
        ("GetState", peers[:ASKED_FOR_STATE]),
    ]
    assert all(str(peer) in asked.outcome.reason for peer in peers[:ASKED_FOR_LOG])


def test_a_snapshot_is_asked_of_voters_before_others() -> None:
    chains, commits = log_of(4, THEIRS, [])
    strangers = tuple(keypair(number).peer_id for number in range(20, 30))
    asked = run(request_of(strangers, chains, commits, me=A), {})
    assert asked.asked[-1] == ("GetState", (strangers[0], B, C, *strangers[1:])[:ASKED_FOR_STATE])


# -------------------------------------------------------------------- which branch


def test_the_branch_where_more_voters_of_the_root_stand_is_followed_however_short_it_is() -> None:
    """Ours is longer and has more tokens, and was made by two of the five alone."""
    split = Split.after(2, 1)
    assert split.theirs[-1].key < split.ours[-1].key
    there, here = split.donor(), split.our_donor()
    asked = run(split.request(), {A: there, B: there, C: there, D: here})
    assert asked.outcome == Move(split.ours[2].head, tuple(split.commits[2:]), split.their_roots()[3:], EACH * 3)
    log, where = ("GetLog", (A,)), ("GetStatus", (A, B, C, D))
    assert asked.asked == [log, log, where, log, log], "where they stand was not known, and they may have gone on since"


def test_a_log_that_fewer_voters_of_the_root_follow_is_refused_however_long_it_is() -> None:
    split = Split.after(3, 1).turned()
    assert split.theirs[-1].key > split.ours[-1].key
    donors = {D: split.donor(), ME: split.donor(), **{peer: split.our_donor() for peer in (B, C)}}
    request = request_of((D,), split.ours, split.our_commits, me=A)
    asked = run(request, donors)
    assert isinstance(asked.outcome, Failed) and asked.outcome.is_refused and asked.fetched == []
    assert "2 of 5 voters stand there, 3 with us" in asked.outcome.reason


def test_of_as_many_voters_the_larger_head_is_followed_by_both_sides() -> None:
    """The fifth says nothing to anybody."""
    common, commits = log_of(3, KEYS, [])
    small, more = log_of(1, KEYS[:2], [], common[-1], salt=b"small")
    large, most = log_of(2, KEYS[2:4], [], common[-1], salt=b"large")
    sides = [([*common, *small[1:]], [*commits, *more]), ([*common, *large[1:]], [*commits, *most])]
    donors = {peer: donor_of(*sides[place // 2]) for place, peer in enumerate((A, B, C, D))}
    moves = run(request_of((C,), *sides[0], me=A), {peer: donors[peer] for peer in (B, C, D)}).outcome
    stays = run(request_of((A,), *sides[1], me=C), {peer: donors[peer] for peer in (A, B, D)}).outcome
    assert isinstance(moves, Move) and moves.commits == most
    assert isinstance(stays, Failed) and stays.is_refused


@pytest.mark.parametrize("is_known", [True, False], ids=["known before", "asked"])
def test_a_proved_head_is_not_left_though_more_voters_stand_elsewhere(is_known: bool) -> None:
    """Three of five have voted for a head beyond the fork, and one of them is elsewhere by now, with the other two."""
    split = Split.after(2, 2).turned()
    assert roots_along(split.ours, split.our_commits)[-1].version == 3
    there, here = split.donor(), split.our_donor()
    known = {**dict.fromkeys((C, D, ME), split.theirs[-1]), B: split.ours[-1]} if is_known else {}
    request = request_of((D,), split.ours, split.our_commits, me=A, stands=known)
    asked = run(request, {**dict.fromkeys((C, D, ME), there), B: here})
    assert isinstance(asked.outcome, Failed) and "3 is proved" in asked.outcome.reason and asked.outcome.is_refused
    assert [kind for kind, _ in asked.asked] == ["GetLog", "GetLog", "GetState"] and asked.fetched == []


@pytest.mark.parametrize("at", [3, None], ids=["they stand at the proved head", "nobody says anything"])
def test_what_is_proved_is_taken_and_what_comes_behind_it_only_with_its_voters(at: int | None) -> None:
    """Whoever mines on from a proved head has its proof, and nobody's word."""
    split = Split.after(2, 4)
    stands = {} if at is None else dict.fromkeys((A, B, C), split.theirs[at])
    fork, roots = split.ours[2].head, split.their_roots()[3:]
    asked = run(split.request(stands=stands), {A: Donor(split.theirs, split.commits, answers={GetStatus: "asleep"})})
    assert asked.outcome == Move(fork, tuple(split.commits[2:5]), roots[:3], EACH * 9)
    there = dict.fromkeys((A, B), split.theirs[-1])
    asked = run(split.request(stands=there), {A: split.donor()})
    assert asked.outcome == Move(fork, tuple(split.commits[2:]), roots, EACH * 12)


def test_a_commit_of_our_own_leader_that_we_missed_is_taken_whoever_is_known_to_have_it() -> None:
    """Its leader is told by its signature; a commit that nobody proves may not be a minority's, and is the next one."""
    chains, commits = log_of(5, KEYS, [])
    own, donor = chains[:5], donor_of(chains, commits)
    here = dict.fromkeys((A, B, C, D), chains[4])
    request = request_of((A,), own, commits, stands=here, views=(0, 4))
    asked = run(request, {A: donor})
    assert asked.outcome == Move(chains[4].head, commits[4:], roots_along(chains, commits)[5:], EACH * 5)
    assert [kind for kind, _ in asked.asked] == ["GetLog", "GetLog"]
    leaderless = replace(commits[4], issued=commits[3].issued)
    for views, last in (((1, 4), commits[4]), (None, commits[4]), ((0, 4), leaderless)):
        liar = Donor(chains, [*commits[:4], last])
        outcome = run(replace(request, views=views), {A: liar}).outcome
        assert isinstance(outcome, Failed) and "0 of 5 voters stand there, 5 with us" in outcome.reason


def test_behind_our_own_leader_s_commit_the_voters_are_asked_again() -> None:
    chains, commits = log_of(6, KEYS, [])
    fork, more = log_of(1, THEIRS[:1], [], chains[5], salt=b"alone")
    log = Donor([*chains[:6], *fork[1:]], [*commits[:5], *more])
    here = dict.fromkeys((A, B, C, D), chains[4])
    asked = run(request_of((A,), chains[:5], commits, stands=here, views=(0, 4)), {A: log})
    assert asked.outcome == Move(chains[4].head, commits[4:5], roots_along(chains, commits)[5:6], EACH * 5)


def test_voters_are_asked_where_they_stand_for_a_short_time_only() -> None:
    split = Split.after(1, 1)
    asked = run(split.request(), {A: split.donor()})
    (question,) = [one for one in asked.questions if isinstance(one, Ask) and isinstance(one.message, GetStatus)]
    assert question.peers == (A, B, C, D) and question.timeout_s == STAND_TIMEOUT_S
    assert all(one.timeout_s is None for one in asked.questions if isinstance(one, Ask) and one is not question)


def test_who_is_asked_where_it_stands_speaks_for_itself_alone() -> None:
    """Three say nothing, and one says where the other three stand."""
    split = Split.after(2, 1)
    elsewhere = {peer: Donor(answers={GetStatus: status_at(A, split.theirs[-1])}) for peer in (B, C)}
    asked = run(split.request(), {A: split.donor(), D: split.our_donor(), **elsewhere})
    assert isinstance(asked.outcome, Failed) and "1 of 5 voters stand there, 2 with us" in asked.outcome.reason


def test_an_answer_takes_the_place_of_what_was_known() -> None:
    split = Split.after(1, 1)
    donors = {**dict.fromkeys((A, B, C), split.donor()), D: split.our_donor()}
    here = split.ours[-1]  # so they said before they went over
    asked = run(split.request(stands={A: here}), donors)
    assert isinstance(asked.outcome, Move) and ("GetStatus", (A, B, C, D)) in asked.asked
    asked = run(split.request(stands={A: here, B: here}), donors)
    assert isinstance(asked.outcome, Adopt), "three of five were with us, nobody was asked; their states show it"


def test_of_two_logs_with_as_many_voters_as_ours_the_larger_is_followed_and_only_if_no_other_has_more() -> None:
    """Of seven, two are with us, two at each of two larger heads, and one at none."""
    keys = sorted((keypair(number) for number in range(40, 47)), key=lambda key: key.peer_id)
    ids = [key.peer_id for key in keys]
    common, commits = log_of(3, keys, [])
    ours, our_commits = log_of(1, keys[:2], [], common[-1], salt=b"ours")
    small, to_small = log_of(2, keys[2:4], [], common[-1], salt=b"small")
    large, to_large = log_of(3, keys[4:6], [], common[-1], salt=b"large")
    donors = {
        ids[2]: donor_of([*common, *small[1:]], [*commits, *to_small]),
        ids[4]: donor_of([*common, *large[1:]], [*commits, *to_large]),
    }
    stands = {ids[1]: ours[-1], ids[2]: small[-1], ids[3]: small[-1], ids[4]: large[-1], ids[5]: large[-1]}
    chains = [*common, *ours[1:]]
    request = request_of(
        (ids[2], ids[4]), chains, [*commits, *our_commits], me=ids[0], stands={**stands, ids[6]: common[0]}
    )
    asked = run(request, donors)
    assert isinstance(asked.outcome, Move) and asked.outcome.commits == to_large
    assert [peers for kind, peers in asked.asked if kind == "GetLog"] == [(ids[2],)] * 2 + [(ids[4],)] * 2
    asked = run(replace(request, stands={**request.stands, ids[6]: small[-1].head}), donors)
    assert isinstance(asked.outcome, Move) and asked.outcome.commits == to_small, "three"
    asked = run(replace(request, stands={**request.stands, ids[6]: ours[-1].head}), donors)
    assert isinstance(asked.outcome, Failed) and asked.outcome.is_refused, "three are with us"


def test_what_is_proved_is_taken_though_most_who_vote_there_joined_since_we_were_gone() -> None:
    """We have never heard of them; those whom we know say where they stand, and the newcomers too if they are asked."""
    new = [keypair(number) for number in range(40, 44)]
    chains, commits = log_of(3, THEIRS, [])
    joining = commit_on(chains[-1], THEIRS[:2], [], admitted=(*THEIRS[2:], *new))
    joined = apply(chains[-1], joining.commit, LEASE)
    after, more = log_of(3, [*THEIRS[:2], *new], [], joined)
    donor = donor_of([*chains, *after], [*commits, joining, *more])
    donors = dict.fromkeys((A, B, *(key.peer_id for key in new)), donor)
    asked = run(request_of((A, B), chains, commits, me=C), donors)
    assert isinstance(asked.outcome, Move) and asked.outcome.commits[:3] == (joining, *more[:2])


def test_of_very_many_voters_a_few_are_asked() -> None:
    many = tuple(PeerId(number.to_bytes(32, "big")) for number in range(1, ASKED_TO_VOTE + 9))
    split = Split.after(1, 1)
    root = Root(1, split.ours[1].head, many)
    asked = run(replace(split.request(), roots=(root,) * 3), {A: split.donor()})
    assert dict(asked.asked)["GetStatus"] == many[:ASKED_TO_VOTE]


# -------------------------------------------------------------------- barred heads


def barring(parent: ChainState, gone: Digest, witnesses: Sequence[Any], **changes: Any) -> Commit:
    """A list on `parent` that bars a head, with statuses of these as evidence."""
    status = example_of(PeerStatus)
    said = [
        replace(status, **{"peer": key.peer_id, "head": parent.head, "lost": (gone,), "pending": None, **changes})
        for key in witnesses
    ]
    commit = commit_on(parent, THEIRS, [], salt=b"instead")
    evidence = tuple(seal_message(key, RUN, one) for key, one in zip(witnesses, said, strict=True))
    return replace(_forged(commit, barred=(gone,)), evidence=evidence)


def test_a_head_that_a_majority_barred_is_left_although_it_ranks_higher() -> None:
    """Whoever else stands there."""
    chains, commits = log_of(2, KEYS, [])
    instead = barring(chains[1], chains[2].head, KEYS[:3])
    new = apply(chains[1], instead.commit, LEASE)
    assert new.key < chains[2].key and new.ranks_above(chains[2]) and not chains[2].ranks_above(new)
    donor = donor_of([*chains[:2], new], [commits[0], instead])
    request = request_of((A,), chains, commits, stands=dict.fromkeys((B, C, D), chains[2]))
    asked = run(request, {A: donor})
    roots = roots_along([*chains[:2], new], [commits[0], instead])
    assert asked.outcome == Move(chains[1].head, (instead,), roots[2:], EACH * 3)


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
    chains, commits = log_of(2, KEYS, [])
    instead = TOO_LITTLE[evidence](chains)
    liar = Donor(answers={GetLog: Log(chains[1].head, (instead,))}, state=state_at(chains[1], []))
    asked = run(request_of((A,), chains, commits), {A: liar})
    assert isinstance(asked.outcome, Failed) and "barred by" in asked.outcome.reason and asked.fetched == []
    assert "no majority" in asked.outcome.reason


def test_nobody_goes_back_to_a_head_that_our_chain_bars() -> None:
    """Though all others stand there."""
    chains, commits = log_of(5, KEYS, [])
    own = replace(chains[3], barred=(chains[5].head,))
    for state in (None, state_at(chains[5], [])):
        donor = Donor(chains, commits, state)
        request = request_of((A,), [*chains[:3], own], commits, stands=dict.fromkeys((A, B, C, D), chains[5]))
        asked = run(request, dict.fromkeys((A, B, C, D), donor))
        assert isinstance(asked.outcome, Failed) and "barred" in asked.outcome.reason and asked.fetched == []


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
    asked = run(request_of((A, B), chains[:4], commits, me=C), {A: donor, B: donor})
    assert donor.state is not None
    assert asked.outcome == Adopt(donor.state, root_at(chains[-1]), True, 2 * 3200, 0), "on the word of two of three"
    fetch = next(one for one in asked.questions if isinstance(one, FetchBlobs))
    assert [(one.root, one.holders) for one in fetch.wanted] == [(unit.root, (A, B)) for unit in donor.state.units]


def test_whose_state_is_wrong_takes_a_snapshot_and_keeps_nothing() -> None:
    chains, commits = log_of(2, THEIRS, [])
    donor = donor_of(chains, commits)
    for own in (chains, chains[:2]):  # at the same head, or behind
        asked = run(request_of((A,), own, commits, me=C, whole=True), {A: donor})
        assert isinstance(asked.outcome, Adopt) and not asked.outcome.keep_progress
        assert [kind for kind, _ in asked.asked] == ["GetState"] and asked.asked[0][1][0] == A


def test_a_state_that_few_voters_report_is_taken_and_proves_nothing() -> None:
    """It may be a liar's: our root stays, and its voters can call us back."""
    chains, commits = log_of(20, KEYS, [])
    donor = donor_of(chains, commits)
    request = request_of((A, B), chains[:4], commits)
    two, three = (dict.fromkeys(some, donor) for some in ((A, B), (A, B, C)))
    assert donor.state is not None
    assert run(request, two).outcome == Adopt(donor.state, request.roots[0], True, 2 * 3200, 0)
    assert run(request, three).outcome == Adopt(donor.state, root_at(chains[-1]), True, 2 * 3200, 0)


def test_what_more_voters_report_is_taken_whatever_the_others_claim() -> None:
    chains, commits = log_of(6, KEYS, [])
    good, lie = state_at(chains[5], []), state_at(richer(chains[6], 10**6), [])
    donors = {A: Donor(state=lie), B: Donor(state=good), C: Donor(state=good)}
    request = request_of((A, B, C), chains[:4], commits)
    outcome = run(request, donors).outcome
    assert isinstance(outcome, Adopt) and outcome.record == good
    with_us = replace(request, stands={ME: chains[3].head, D: chains[3].head})
    outcome = run(with_us, {A: donors[A]}).outcome
    assert isinstance(outcome, Failed) and "2 of 5 voters stand with us" in outcome.reason, "one lies, two are here"


def test_of_other_states_the_one_that_most_have_is_taken_and_what_could_not_be_used_only_if_nothing_else_is_there() -> (
    None
):
    chains, commits = log_of(3, KEYS, [])
    good, lie = state_at(chains[3], []), state_at(chains[3], [], salt=b"lie")
    donors = {A: Donor(state=lie), B: Donor(state=good), C: Donor(state=good)}
    request = request_of((A, B, C), chains, commits, whole=True, digest=record_digest(state_at(chains[3], [], b"own")))
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


def test_a_voter_that_reports_a_state_which_is_not_there_keeps_us_from_nobody() -> None:
    """Of three voters we are one; as many report the one as the other, and neither is a log that we can follow."""
    chains, commits = log_of(20, THEIRS, [])
    good, lie = state_at(chains[-1], []), state_at(richer(chains[-1], 10**6), [])
    asked = run(
        request_of((A, B), chains[:4], commits, me=C),
        {A: Donor(state=lie), B: Donor(state=good)},
        lambda wanted: "no holder left" if wanted[0].root == lie.units[0].root else "",
    )
    assert isinstance(asked.outcome, Adopt) and asked.outcome.record == good


def test_states_of_other_sizes_or_below_ours_are_not_fetched() -> None:
    chains, commits = log_of(5, THEIRS, [])
    units = state_at(chains[3], []).units
    small = replace(chains[5], tokens=1, recent=())  # of another branch
    other_sizes = state_at(chains[5], [], num_units=3)
    for state in (other_sizes, state_at(small, []), state_at(chains[2], []), state_at(chains[3], [])):
        asked = run(request_of((A,), chains[:4], commits, me=C, units=units), {A: Donor(state=state)})
        assert isinstance(asked.outcome, Failed) and asked.fetched == []


# -------------------------------------------------------------------- deep branches


def test_a_deep_branch_is_left_for_a_snapshot_and_its_loss_is_said() -> None:
    """Its work goes with it, until it can be replayed from its log by everybody."""
    split = Split.after(4, 5)
    asked = run(split.request(), {A: split.donor()})
    # The log reaches the fork, which is not among the heads that we can go back to.
    root = split.request().roots[0]
    assert asked.outcome == Adopt(state_at(split.theirs[-1], []), root, True, 2 * 3200, 4 * 2 * 100)
    assert [kind for kind, _ in asked.asked] == ["GetLog", "GetState"]
    assert left_tokens(split.ours[-1], split.theirs[-1]) == 4 * 2 * 100
    assert left_tokens(split.theirs[-1], split.theirs[-1]) == 0


def test_a_deep_branch_of_most_voters_is_not_left_for_a_longer_one_of_fewer() -> None:
    split = Split.after(9, 4).turned()
    assert split.theirs[-1].key > split.ours[-1].key
    request = request_of((D,), split.ours, split.our_commits, me=A, stands={B: split.ours[-1]})
    asked = run(request, {D: split.donor(), ME: split.donor()})
    assert isinstance(asked.outcome, Failed) and asked.outcome.is_refused and asked.fetched == []


def test_whose_state_most_have_takes_no_other_for_a_leader_s_word() -> None:
    chains, commits = log_of(2, THEIRS, [])
    right, wrong = state_at(chains[-1], []), state_at(richer(chains[-1], 7), [])
    request = request_of((A, B, C), chains, commits, whole=True, digest=record_digest(right))
    liar, honest = Donor(state=wrong), Donor(state=right)
    outcome = run(request, {A: liar, B: honest, C: honest}).outcome
    assert isinstance(outcome, Failed) and "most" in outcome.reason
    outcome = run(request, {A: liar, B: Donor(), C: Donor()}).outcome
    assert isinstance(outcome, Adopt) and outcome.record == wrong, "of two alike the one that was named first"
    outcome = run(replace(request, digest=record_digest(wrong)), {A: liar, B: honest, C: honest}).outcome
    assert isinstance(outcome, Adopt) and outcome.record == right


# -------------------------------------------------------------------- among strangers


def newcomer(peers: Sequence[Any], **changes: Any) -> CatchUpRequest:
    """One who knows nobody, at version 0."""
    return CatchUpRequest(
        NEWCOMER, tuple(peers), (START,), (root_at(START),), {NEWCOMER: START.head}, is_among_strangers=True, **changes
    )


def test_a_newcomer_takes_what_more_than_half_of_those_asked_report() -> None:
    chains, commits = log_of(20, THEIRS, [])
    honest = donor_of(chains, commits)
    crowd, _ = log_of(30, OURS, [], salt=b"lie")
    lie = Donor(state=state_at(crowd[-1], []))
    asked = run(newcomer((D, A, B, C)), {A: honest, B: honest, C: honest, D: lie})
    assert honest.state is not None
    assert asked.outcome == Adopt(honest.state, root_at(chains[-1]), True, 2 * 3200, 0, by_strangers=True)
    assert asked.asked == [("GetState", (D, A, B, C)), *(("GetLog", (peer,)) for peer in (A, B, C))]
    for donors in ({A: honest, D: lie}, {A: honest, B: Donor(state=state_at(chains[3], [])), D: lie}):
        outcome = run(newcomer((D, A, B, C)), donors).outcome
        assert isinstance(outcome, Failed) and outcome.is_refused and "no state is that of most" in outcome.reason


def test_what_most_strangers_report_is_taken_or_nothing_else() -> None:
    """Its blobs may not be had: then it is tried again later, and what few report is not taken in its place."""
    chains, commits = log_of(20, THEIRS, [])
    lie = Donor(state=state_at(log_of(30, OURS, [], salt=b"lie")[0][-1], []))
    donors = {A: donor_of(chains, commits), B: donor_of(chains, commits), D: lie}
    for changes in ({}, {"refused": frozenset({record_digest(state_at(chains[-1], []))})}):
        asked = run(newcomer((D, A, B), **changes), donors, lambda wanted: "no holder left")
        assert isinstance(asked.outcome, Failed) and not asked.outcome.is_refused
        assert set(asked.fetched) == {unit.root for unit in state_at(chains[-1], []).units}


def test_a_newcomer_moves_by_the_log_where_it_leads_to_what_most_report() -> None:
    chains, commits = log_of(3, THEIRS, [])
    honest = donor_of(chains, commits)
    other, more = log_of(5, OURS, [], salt=b"lie")
    asked = run(newcomer((D, A, B)), {A: honest, B: honest, D: donor_of(other, more)})
    assert asked.outcome == Move(START.head, commits, roots_along(chains, commits)[1:], EACH * 9)
    assert [peers for kind, peers in asked.asked if kind == "GetLog"] == [(A,), (A,)]


def test_a_newcomer_follows_a_log_as_far_as_most_stand_and_no_farther() -> None:
    """Who is a commit ahead vouches for the head it came from; what it made since, it may have made alone."""
    chains, commits = log_of(3, THEIRS, [])
    ahead, more = log_of(2, THEIRS[:1], [], chains[-1])
    donors = {A: donor_of([*chains, *ahead[1:]], [*commits, *more]), B: donor_of(chains, commits)}
    asked = run(newcomer((A, B)), donors)
    assert asked.outcome == Move(START.head, commits, roots_along(chains, commits)[1:], EACH * 9)


def test_a_log_that_leads_elsewhere_than_most_report_is_not_followed() -> None:
    chains, commits = log_of(3, THEIRS, [])
    other, more = log_of(5, OURS, [], salt=b"lie")
    state = state_at(chains[-1], [])
    turncoat = Donor(other, more, state)  # says what the others say, and leads elsewhere
    asked = run(newcomer((A, B)), {A: turncoat, B: donor_of(chains, commits)})
    assert isinstance(asked.outcome, Move) and asked.outcome.commits == commits
    asked = run(newcomer((A, B)), {A: turncoat, B: turncoat})
    assert isinstance(asked.outcome, Adopt) and asked.outcome.record == state


def test_a_newcomer_asks_those_who_invited_it_first_and_goes_where_one_of_them_stands() -> None:
    chains, commits = log_of(20, THEIRS, [])
    honest = donor_of(chains, commits)
    strangers = tuple(keypair(number).peer_id for number in range(20, 30))
    crowd = dict.fromkeys(strangers, Donor(state=state_at(log_of(30, OURS, [], salt=b"lie")[0][-1], [])))
    asked = run(newcomer((*strangers, A), introducers=frozenset({A})), {A: honest, **crowd})
    assert asked.asked == [("GetState", (A, *strangers)[:ASKED_FOR_STATE])]
    assert isinstance(asked.outcome, Failed) and asked.outcome.is_refused
    asked = run(newcomer(strangers, introducers=frozenset({A})), crowd)
    assert isinstance(asked.outcome, Adopt), "nobody who invited us answers"


def test_a_member_whose_voters_are_all_gone_goes_where_several_strangers_stand() -> None:
    chains, commits = log_of(4, OURS, [])
    others, more = log_of(20, THEIRS, [], salt=b"others")
    request = replace(request_of((A, B), chains, commits), is_among_strangers=True)
    donor = donor_of(others, more)
    asked = run(request, {A: donor, B: donor})
    assert isinstance(asked.outcome, Adopt) and asked.outcome.by_strangers and asked.outcome.left_tokens == 800
    small = Donor(state=state_at(log_of(3, THEIRS[:1], [], salt=b"others")[0][-1], []))
    assert isinstance(run(request, {A: small}).outcome, Failed), "one alone, with less"
