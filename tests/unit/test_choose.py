"""What a leader lists, with a majority and without one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm.chain import ChainState, CommitList, Departed, Entry, apply, check_list, genesis
from swarm.digest import digest_of
from swarm.errors import RemoteError
from swarm.identity import Keypair, PeerId
from swarm.messages import Commit, Contribution, Holders, seal_message
from swarm.round.ballot import Ballot
from swarm.round.choose import Deadlines, RoundView, choose_hint, choose_list
from swarm.round.commits import Seals, Verifier, check_commit
from swarm.round.docket import NEW_VERSIONS, Docket, Waiting, weights
from swarm.round.leader import Leading
from swarm.votes import gather
from tests.unit.message_examples import AUTHOR, RUN, keypair
from tests.unit.small_swarm import open_sealed

VERIFIER = Verifier(open_sealed, lambda peer, vote, stand: True, lambda *_: True)
PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 5))
ME = PEERS[0]
VOTES = dict.fromkeys(PEERS, b"")
CHAIN = replace(
    genesis(RUN, RUN),
    roster=PEERS,
    version=3,
    entered=(0,) * len(PEERS),
    dialable=bytes(len(PEERS)),
    voting=b"\3" * len(PEERS),
)
DEADLINES = Deadlines(
    target_tokens=0, train_s=10.0, exchange_s=10.0, isolation_s=30.0, max_listed=64, local_steps=0, heartbeat_s=1.0
)


def waiting(author: PeerId, *holders: PeerId) -> Waiting:
    root = digest_of("blob", author.raw)
    return Waiting(Contribution(author, 1, 1, root, 1, 0, 1, 9, 9, 3, 3, CHAIN.head), b"", set(holders))


ALONE = RoundView(
    me=ME,
    chain=CHAIN,
    members=PEERS,
    awaited=(ME,),
    present=(ME,),
    waiting=(waiting(ME, ME),),
    tokens=9,
    since_head_s=60.0,
    since_hint_s=50.0,
    since_majority_s=45.0,
    since_regained_s=100.0,
    is_followed=False,
    lease_tokens=1000,
    voters=frozenset(PEERS),
    votes={ME: b""},
    state_digest=RUN,
)


def listing(chain: ChainState, made: dict[Contribution, tuple[Keypair, int]]) -> Commit:
    """A commit of these, each with who signed it and what it is to weigh; all have voted for its parent."""
    ordered = sorted(made, key=lambda one: one.author)
    entries = (Entry(one.author, one.seq, one.incarnation, one.root, 0, 1, made[one][1], one.steps) for one in ordered)
    sealed = tuple(seal_message(made[one][0], RUN, one) for one in ordered)
    stay = tuple(peer for peer in chain.roster if peer not in {one.author for one in ordered})
    votes = gather(chain, RUN, dict.fromkeys(chain.voters, b""), len(chain.voters))
    holders = (Holders(()),) * len(ordered)
    return Commit(0, chain.head, CommitList(tuple(entries), stay), sealed, holders, "a test", votes=votes)


def test_who_is_left_alone_goes_on_and_says_so() -> None:
    chosen, _ = choose_list(ALONE, DEADLINES)
    assert chosen is not None and chosen.minority and [entry.author for entry in chosen.entries] == [ME]
    chosen, reason = choose_list(replace(ALONE, since_majority_s=29.0), DEADLINES)
    assert chosen is None and "alone in 1 s" in reason


def test_no_list_goes_out_before_a_heartbeat_is_over_at_a_head() -> None:
    """Where rounds were shorter, a newcomer was always a version behind when it was heard, and never admitted."""
    held = [waiting(peer, *PEERS) for peer in PEERS]
    full = replace(ALONE, awaited=PEERS, present=PEERS, waiting=tuple(held), is_followed=True, since_majority_s=0.0)
    full = replace(full, votes=VOTES)
    chosen, reason = choose_list(replace(full, since_head_s=0.9), DEADLINES)
    assert chosen is None and "one heartbeat" in reason
    assert choose_list(replace(full, since_head_s=1.0), DEADLINES)[0] is not None


def test_who_was_frozen_and_hears_the_others_lists_nothing_that_it_alone_holds() -> None:
    """The words of all the others waited for it; it has not looked since who of them makes a majority."""
    held = [waiting(peer, *PEERS[1:]) for peer in PEERS[1:3]]
    thawed = replace(ALONE, awaited=PEERS, present=PEERS, waiting=(*ALONE.waiting, *held), is_followed=True)
    thawed = replace(thawed, votes=VOTES)
    chosen, _ = choose_list(thawed, DEADLINES)
    assert chosen is not None and not chosen.minority
    assert {entry.author for entry in chosen.entries} == set(PEERS[1:3])


@pytest.mark.parametrize(
    ("since_version", "entered", "due"),
    [(3, 0, 1000), (2, 0, 2000), (0, 0, 3000), (9, 0, 1000), (0, 2, 2000), (0, 3, 1000), (2, 1, 2000), (0, None, 1000)],
)
def test_whoever_leads_the_leases_cap_what_a_contribution_weighs(
    since_version: int, entered: int | None, due: int
) -> None:
    """Its leader may neither favour nor slight anybody: all members count for themselves. Nor does an author's word count
    beyond the age that a contribution may have, and the time since when the chain knows it as a member (None: it has left).
    """
    author = AUTHOR.peer_id
    roster = PEERS if entered is None else tuple(sorted((*PEERS, author)))
    versions = tuple((entered or 0) if peer == author else 0 for peer in roster)
    chain = replace(
        CHAIN,
        roster=roster,
        entered=versions,
        dialable=bytes(len(roster)),
        voting=b"\3" * len(roster),
        departed=(Departed(author, 1),) if entered is None else (),
    )
    made = replace(waiting(author).contribution, tokens=5000, since_version=since_version)
    assert check_commit(chain, listing(chain, {made: (AUTHOR, due)}), VERIFIER, 1000)[0].contribution == made
    for tokens in (5000, due + 1, due - 1):
        with pytest.raises(RemoteError, match=f"weighs {tokens} tokens where {due} are due"):
            check_commit(chain, listing(chain, {made: (AUTHOR, tokens)}), VERIFIER, 1000)


# -------------------------------------------------------------------- the weight of newcomers

BALLOT = Ballot(AUTHOR.peer_id, Seals.of(AUTHOR, RUN))
KEYS = sorted((keypair(number) for number in range(2, 7)), key=lambda key: key.peer_id)


def chain_of(entered: dict[PeerId, int], voters: frozenset[PeerId] | None = None, version: int = 3) -> ChainState:
    """A chain with these members; who has a vote, of all where it is not said."""
    roster = tuple(sorted(entered))
    return replace(
        CHAIN,
        version=version,
        roster=roster,
        entered=tuple(entered[peer] for peer in roster),
        dialable=bytes(len(roster)),
        voting=bytes(3 if voters is None or peer in voters else 0 for peer in roster),
    )


NEWCOMER = PeerId(bytes([9]) * 32)
WITH_NEWCOMER = chain_of(dict.fromkeys(PEERS, 0) | {NEWCOMER: 3}, voters=frozenset(PEERS))


def full_view(chain: ChainState, cut: tuple[PeerId, ...], **changes: object) -> RoundView:
    """All members are here, and all hold what these have cut."""
    view = replace(
        ALONE,
        chain=chain,
        members=chain.roster,
        awaited=chain.roster,
        present=chain.roster,
        waiting=tuple(waiting(peer, *chain.roster) for peer in sorted(cut)),
        is_followed=True,
        since_majority_s=0.0,
        voters=frozenset(chain.voters),
        votes=dict.fromkeys(chain.voters, b""),
    )
    return replace(view, **changes)  # type: ignore[arg-type]


def made_by(key: Keypair, tokens: int) -> Contribution:
    return replace(waiting(key.peer_id).contribution, tokens=tokens, since_version=0)


@pytest.mark.parametrize(
    ("others", "new", "due"),
    [
        ([900, 300, 500], 800, 500),
        ([900, 300], 800, 300),  # of an even number the lower one
        ([900, 300, 500, 700], 800, 500),
        ([900, 300, 500], 200, 200),
        ([900], 900, 900),
        ([], 800, 800),  # all are new
    ],
)
def test_new_members_weigh_no_more_than_the_middle_one_of_the_others(others: list[int], new: int, due: int) -> None:
    """Whoever comes with a number that it made up moves the model by no more than one that has worked for a while."""
    *old, newcomer = KEYS[: len(others) + 1]
    made = {made_by(key, tokens): (key, tokens) for key, tokens in zip(old, others, strict=True)}
    one = made_by(newcomer, new)
    for entered in range(3 - NEW_VERSIONS + 1, 4):
        chain = chain_of({key.peer_id: 0 for key in old} | {newcomer.peer_id: entered})
        assert weights((one, *made), chain, 1000) == (due, *others)
        assert check_commit(chain, listing(chain, made | {one: (newcomer, due)}), VERIFIER, 1000)
        for tokens in {due - 1, due + 1, new} - {due}:
            with pytest.raises(RemoteError, match=f"weighs {tokens} tokens where {due} are due"):
                check_commit(chain, listing(chain, made | {one: (newcomer, tokens)}), VERIFIER, 1000)


def test_members_of_three_heads_weigh_what_they_did() -> None:
    one, *others = [made_by(key, tokens) for key, tokens in zip(KEYS[:4], [2500, 300, 500, 400], strict=True)]
    chain = chain_of({key.peer_id: 0 for key in KEYS[:4]})
    assert weights((one, *others), chain, 1000) == (2500, 300, 500, 400)
    left = replace(chain_of({key.peer_id: 0 for key in KEYS[1:4]}), departed=(Departed(KEYS[0].peer_id, 2),))
    assert weights((one, *others), left, 1000)[0] == 400, "who has left the roster meanwhile is new again"


def test_in_the_first_heads_of_a_run_nobody_is_held_back() -> None:
    one, other = made_by(KEYS[0], 900), made_by(KEYS[1], 100)
    for version in range(1, 4):
        chain = chain_of({key.peer_id: 1 for key in KEYS[:2]}, version=version)
        assert weights((one, other), chain, 1000) == (900, 100)


def test_a_leader_gives_newcomers_the_weight_that_all_count() -> None:
    view = full_view(WITH_NEWCOMER, (*PEERS, NEWCOMER))
    *others, last = view.waiting
    heavy = replace(last, contribution=replace(last.contribution, tokens=500))
    chosen, _ = choose_list(replace(view, waiting=(*others, heavy)), DEADLINES)
    assert chosen is not None and chosen.entries[-1].author == NEWCOMER
    assert [entry.tokens for entry in chosen.entries] == [9, 9, 9, 9, 9]


# -------------------------------------------------------------------- newcomers that bring nothing


@pytest.mark.parametrize(
    ("took_s", "patience_s"),
    [(3.0, 6.0), (4.9, 9.8), (0.2, 2.0), (0.0, 2.0), (8.0, 10.0)],
    ids=["as long again", "as long again", "two heartbeats", "two heartbeats", "never beyond the deadline"],
)
def test_newcomers_have_as_long_again_as_the_voters_took(took_s: float, patience_s: float) -> None:
    leading, docket = Leading(0, CHAIN.head, began_s=0.0), Docket(ME, 1)
    view = full_view(WITH_NEWCOMER, PEERS[:3], since_hint_s=took_s / 2)
    assert leading.commit(view, DEADLINES, docket, BALLOT) is None and str(PEERS[3]) in leading.reason
    view = full_view(WITH_NEWCOMER, PEERS)
    for since_s in (took_s, patience_s - 0.1):
        assert leading.commit(replace(view, since_hint_s=since_s), DEADLINES, docket, BALLOT) is None
        assert leading.reason == f"waits a little for {NEWCOMER}, new here"
    commit = leading.commit(replace(view, since_hint_s=patience_s), DEADLINES, docket, BALLOT)
    assert commit is not None and commit.commit.admitted == (NEWCOMER,), "it may bring something in the next round"


def test_a_newcomer_whose_work_is_held_is_listed_and_not_waited_for() -> None:
    chosen, reason = choose_list(full_view(WITH_NEWCOMER, (*PEERS, NEWCOMER), since_hint_s=0.1), DEADLINES)
    assert chosen is not None and chosen.roster == (*PEERS, NEWCOMER) and not chosen.admitted
    assert reason == "all are held: 5 contributions"


def test_members_without_a_vote_are_not_waited_for_after_three_heads() -> None:
    """Somebody who is admitted and never contributes holds up three rounds a little, and then none."""
    for entered in range(4):
        chain = chain_of(dict.fromkeys(PEERS, 0) | {NEWCOMER: entered}, voters=frozenset(PEERS))
        chosen, _ = choose_list(full_view(chain, PEERS, since_hint_s=0.5, voters_took_s=0.5), DEADLINES)
        assert (chosen is None) == (chain.version - entered < NEW_VERSIONS)


def test_a_hint_and_a_commit_wait_for_voters_alone() -> None:
    view = full_view(WITH_NEWCOMER, PEERS, since_hint_s=None, since_head_s=5.0)
    assert view.due == PEERS and view.newcomers == (NEWCOMER,)
    assert choose_hint(view, DEADLINES) == "everyone has cut"
    waits, reason = choose_list(full_view(WITH_NEWCOMER, (*PEERS[:3], NEWCOMER), since_hint_s=9.9), DEADLINES)
    assert waits is None and reason == f"waits for {PEERS[3]} (4 of 4 contributions held)"


def test_a_majority_of_the_voters_holds_what_is_listed() -> None:
    """Ten idle members hold whatever they say they hold: it proves nothing."""
    idle = tuple(PeerId(b"idle" * 7 + number.to_bytes(4, "big")) for number in range(10))
    chain = chain_of(dict.fromkeys((*PEERS, *idle), 0), voters=frozenset(PEERS))
    by_few = tuple(waiting(peer, *idle, *PEERS[:2]) for peer in PEERS)
    assert choose_list(full_view(chain, (), waiting=by_few), DEADLINES)[0] is None
    by_most = tuple(waiting(peer, *PEERS[:3]) for peer in PEERS)
    chosen, _ = choose_list(full_view(chain, (), waiting=by_most), DEADLINES)
    assert chosen is not None and not chosen.minority and chosen.roster == chain.roster


# -------------------------------------------------------------------- a flood of strangers

STRANGERS = tuple(PeerId(digest_of("stranger", bytes([number])).raw) for number in range(100))


def admitted_at(chain: ChainState, strangers: tuple[PeerId, ...] = STRANGERS) -> set[PeerId]:
    """Who of these strangers, who have all answered, is on the next roster."""
    present = tuple(sorted((*chain.roster, *strangers)))
    authors = tuple(peer for peer in chain.roster if peer in chain.voters)
    chosen, _ = choose_list(full_view(chain, authors, present=present), DEADLINES)
    assert chosen is not None and set(chain.roster) <= set(chosen.roster), "members stay"
    check_list(chain, chosen)
    return set(chosen.roster) - set(chain.roster)


def test_of_a_flood_of_strangers_four_are_admitted_and_others_at_the_next_head() -> None:
    first = admitted_at(CHAIN)
    after = admitted_at(replace(CHAIN, head=digest_of("test", b"the next head")))
    assert len(first) == len(after) == 4 and not first & after
    heads = [replace(CHAIN, head=digest_of("test", bytes([number]))) for number in range(200)]
    assert len(set().union(*map(admitted_at, heads))) > 90, "everybody's time comes"


def test_of_a_flood_as_many_are_admitted_as_there_are_voters() -> None:
    group = tuple(sorted(STRANGERS[:7]))
    assert len(admitted_at(chain_of(dict.fromkeys(group, 0)), STRANGERS[7:])) == 7
    few = chain_of(dict.fromkeys(group, 0), voters=frozenset(group[:2]))
    assert len(admitted_at(few, STRANGERS[7:])) == 4, "members who bring nothing let nobody in"
    assert admitted_at(few, STRANGERS[7:10]) == set(STRANGERS[7:10])


def test_at_genesis_all_are_admitted_who_opened_and_are_here() -> None:
    group = tuple(sorted((*PEERS, *STRANGERS)))
    start = genesis(RUN, RUN)
    opened = full_view(start, PEERS, members=group, awaited=group, present=group, voters=frozenset(group))
    held = tuple(replace(one, holders=set(group)) for one in opened.waiting)
    held = tuple(replace(one, contribution=replace(one.contribution, version=0)) for one in held)
    chosen, _ = choose_list(replace(opened, waiting=held, since_hint_s=10.0), DEADLINES)
    assert chosen is not None and chosen.roster == group
    assert apply(start, chosen, 4).voters == PEERS


def test_who_begins_anew_lists_the_work_of_those_who_opened() -> None:
    """No voter was found for long: whoever is left goes on, and what the others left is not listed under their names."""
    here = tuple(sorted(STRANGERS[:6]))
    held = tuple(waiting(peer, *here) for peer in sorted((*here, PEERS[0])))
    view = full_view(
        CHAIN, (), members=here, awaited=here, present=here, waiting=held, voters=frozenset(here), votes={}
    )
    assert view.begins_anew
    chosen, _ = choose_list(view, DEADLINES)
    assert chosen is not None and chosen.minority and {entry.author for entry in chosen.entries} == set(here)
    assert apply(CHAIN, chosen, 4).voters == here
