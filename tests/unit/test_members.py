"""Whose work a commit may list, whom it may admit, and who has a vote behind it: what the chain says of members."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import chain as chains
from swarm.chain import (
    ATTESTED,
    MAX_AGE_VERSIONS,
    MIN_ADMITTED,
    VOTING_COMMITS,
    ChainState,
    CommitList,
    Departed,
    Entry,
    InvalidList,
    apply,
    genesis,
    is_majority,
    leader_of,
    max_admitted,
)
from swarm.config import RunConfig
from swarm.digest import Digest, digest_of
from swarm.events import PeerMisbehaved
from swarm.identity import PeerId
from swarm.messages import Contribution, seal_message
from swarm.round.commits import Seals
from swarm.round.facts import Effect, Fetch, Happened, HeadReached, Received
from swarm.round.own import Self
from swarm.round.participant import Participant
from swarm.round.root import root_at
from swarm.schema import from_value, to_value
from tests.unit.message_examples import RUN, keypair

PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 13))
STRANGERS = tuple(PeerId(b"stranger" * 3 + number.to_bytes(8, "big")) for number in range(20))
START = genesis(RUN, RUN)


def list_of(
    chain: ChainState,
    authors: Iterable[PeerId],
    admitted: Iterable[PeerId] = (),
    is_minority: bool = False,
    dialable: bytes = b"",
) -> CommitList:
    """One more contribution of each of these authors; admitted besides."""
    entries = []
    for author in sorted(authors):
        seq = chain.highest_seq(author) + 1
        entries.append(Entry(author, seq, 1, digest_of("test", author.raw, seq.to_bytes(4, "big")), 0, 1, 10, 1))
    others = set(admitted) - {entry.author for entry in entries}
    return CommitList(tuple(entries), tuple(sorted(others)), minority=is_minority, dialable=dialable)


def commit(
    chain: ChainState,
    authors: Iterable[PeerId],
    admitted: Iterable[PeerId] = (),
    is_minority: bool = False,
    dialable: bytes = b"",
) -> ChainState:
    """The chain behind such a commit. Raises InvalidList."""
    return apply(chain, list_of(chain, authors, admitted, is_minority, dialable), 4)


def is_refused(
    chain: ChainState, authors: Iterable[PeerId], admitted: Iterable[PeerId] = (), is_minority: bool = False
) -> str:
    """Why such a commit may not follow."""
    with pytest.raises(InvalidList) as error:
        commit(chain, authors, admitted, is_minority)
    return str(error.value)


# -------------------------------------------------------------------- whose work is listed


def test_work_of_a_stranger_is_not_listed() -> None:
    chain = commit(START, PEERS[:3])
    assert "is no member" in is_refused(chain, (*PEERS[:3], STRANGERS[0]))
    chain = commit(chain, PEERS[:3], STRANGERS[:1])
    assert commit(chain, (*PEERS[:3], STRANGERS[0])).roster == (*PEERS[:3], STRANGERS[0]), "once it is admitted"


def test_at_genesis_whoever_is_there_begins() -> None:
    chain = commit(START, PEERS, STRANGERS)
    assert chain.roster == tuple(sorted((*PEERS, *STRANGERS))) and chain.voters == PEERS


@pytest.mark.parametrize("passed", range(MAX_AGE_VERSIONS + 1))
def test_work_of_who_left_the_roster_is_listed_for_two_commits_more_and_not_for_three(passed: int) -> None:
    *stay, leaver = PEERS[:4]
    chain = commit(commit(START, PEERS[:4]), stay)
    for _ in range(passed):
        chain = commit(chain, stay)
    if passed == MAX_AGE_VERSIONS:
        assert not chain.may_author(leaver) and "is no member" in is_refused(chain, (*stay, leaver))
        return
    assert chain.departed == (Departed(leaver, MAX_AGE_VERSIONS - passed),) and chain.may_author(leaver)
    back = commit(chain, (*stay, leaver))
    assert back.roster == PEERS[:4] and back.departed == () and leaver in back.voters
    assert back.entered_at(leaver) == back.version, "a member anew"


def test_who_was_admitted_and_left_again_may_be_listed_as_long() -> None:
    chain = commit(commit(START, PEERS[:3]), PEERS[:3], STRANGERS[:1])
    assert commit(commit(chain, PEERS[:3]), (*PEERS[:3], STRANGERS[0])).roster == (*PEERS[:3], STRANGERS[0])


def test_of_more_who_left_than_are_remembered_those_who_left_last_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "MAX_DEPARTED", 3)
    chain = commit(commit(START, PEERS[:6], PEERS[6:]), PEERS[:6], PEERS[8:])
    assert chain.departed == tuple(Departed(peer, 2) for peer in PEERS[6:8])
    chain = commit(chain, PEERS[:6], PEERS[10:])
    assert chain.departed == (Departed(PEERS[6], 1), Departed(PEERS[8], 2), Departed(PEERS[9], 2))
    assert [peer for peer in PEERS if not chain.may_author(peer)] == [PEERS[7]]


steps = st.lists(
    st.tuples(st.sets(st.sampled_from(PEERS[:6]), min_size=1), st.sets(st.sampled_from(PEERS[:6]))), max_size=9
)


@settings(deadline=None, max_examples=200)
@given(steps)
def test_a_commit_lists_members_of_the_last_three_rosters_alone(steps: list[tuple[set[PeerId], set[PeerId]]]) -> None:
    """Unless it was made without any voter. The reference remembers the rosters."""
    chain = commit(START, PEERS[:2], PEERS[2:4])
    rosters = [frozenset(chain.roster)]
    for authors, admitted in steps:
        lately: frozenset[PeerId] = frozenset().union(*rosters[-1 - MAX_AGE_VERSIONS :])
        assert {peer for peer in PEERS if chain.may_author(peer)} == lately
        voters = set(chain.voters)
        is_minority = not is_majority(len(voters & (authors | admitted)), len(voters))
        if not (is_minority and not voters & authors):
            if not authors <= lately:
                assert "is no member" in is_refused(chain, authors, admitted, is_minority)
                continue
            if len(admitted - authors - rosters[-1]) > max(4, len(voters)):
                assert "newcomers" in is_refused(chain, authors, admitted, is_minority)
                continue
        chain = commit(chain, authors, admitted, is_minority)
        rosters.append(frozenset(chain.roster))
        assert chain.roster == tuple(sorted(authors | admitted)) and from_value(ChainState, to_value(chain)) == chain
        assert [one.peer for one in chain.departed] == sorted({one.peer for one in chain.departed} - rosters[-1])


# -------------------------------------------------------------------- who is admitted


@pytest.mark.parametrize(("num_voters", "most"), [(1, 4), (3, 4), (4, 4), (5, 5), (12, 12)])
def test_one_commit_admits_four_newcomers_or_as_many_as_there_are_voters(num_voters: int, most: int) -> None:
    assert max_admitted(num_voters) == most and MIN_ADMITTED == 4
    chain = commit(START, PEERS[:num_voters])
    assert "newcomers are admitted" in is_refused(chain, chain.voters, STRANGERS[: most + 1])
    grown = commit(chain, chain.voters, STRANGERS[:most])
    assert set(grown.roster) == {*PEERS[:num_voters], *STRANGERS[:most]}
    again = commit(grown, chain.voters, STRANGERS[: most + 4])
    assert len(again.roster) == num_voters + most + 4, "who is a member is no newcomer"


def test_who_comes_back_is_admitted_like_a_newcomer() -> None:
    chain = commit(commit(START, PEERS[:3], PEERS[3:]), PEERS[:3])
    assert "9 newcomers are admitted, at most 4" in is_refused(chain, PEERS[:3], PEERS[3:])
    assert len(commit(chain, PEERS[:3], PEERS[3:7]).roster) == 7


def test_a_commit_keeps_a_majority_of_the_voters_on_the_roster_unless_a_minority_made_it() -> None:
    chain = commit(START, PEERS[:4], PEERS[4:8])
    assert "2 of 4 voters stay" in is_refused(chain, PEERS[:2], PEERS[4:8])
    assert commit(chain, PEERS[:2], PEERS[2:3]).voters == PEERS[:3]
    assert commit(chain, PEERS[:2], is_minority=True).voters == PEERS[:2]


def test_a_minority_without_any_voter_begins_anew_with_whoever_is_there() -> None:
    chain = commit(START, PEERS[:4], PEERS[4:5])
    anew = commit(chain, STRANGERS[:2], STRANGERS[2:], is_minority=True)
    assert anew.roster == tuple(sorted(STRANGERS)) and anew.voters == STRANGERS[:2]
    assert {one.peer for one in anew.departed} == set(PEERS[:5]), "those who were there may come back"
    assert commit(chain, PEERS[4:5], STRANGERS, is_minority=True).voters == PEERS[4:5], "a member without a vote, too"


def test_a_minority_with_a_voter_and_a_majority_list_no_stranger() -> None:
    chain = commit(START, PEERS[:4])
    assert "is no member" in is_refused(chain, (PEERS[0], STRANGERS[0]), is_minority=True)
    assert "newcomers are admitted" in is_refused(chain, PEERS[:1], STRANGERS, is_minority=True)
    assert "is no member" in is_refused(chain, STRANGERS[:1], PEERS[:4])


# -------------------------------------------------------------------- who has a vote


def test_members_have_a_vote_for_the_commit_that_lists_them_and_two_more() -> None:
    """Where each commit lists all that work, and a member that stopped is on the roster still."""
    chain = commit(START, PEERS[:9])
    for _ in range(VOTING_COMMITS - 1):
        assert chain.voters == PEERS[:9]
        chain = commit(chain, PEERS[:8], PEERS[8:9])
    assert chain.voters == PEERS[:9]
    chain = commit(chain, PEERS[:8], PEERS[8:9])
    assert chain.roster == PEERS[:9] and chain.voters == PEERS[:8]
    assert commit(chain, PEERS[:9]).voters == PEERS[:9], "it works again"


def test_in_a_large_group_those_of_the_last_three_lists_have_a_vote() -> None:
    """Each commit lists three of twelve: four commits are a turn, and nine have a vote at any time."""
    chain, turn = START, 4
    for number in range(3 * turn):
        chain = commit(chain, PEERS[number % turn * 3 :][:3], PEERS)
        lately = [PEERS[one % turn * 3 :][:3] for one in range(max(0, number - 2), number + 1)]
        assert set(chain.voters) == {peer for group in lately for peer in group}


@settings(deadline=None, max_examples=200)
@given(steps)
def test_votes_are_counted_from_the_last_commit_that_lists_a_member(
    steps: list[tuple[set[PeerId], set[PeerId]]],
) -> None:
    """The reference looks back: a member has a vote if a commit listed it for that long, and it was never off the roster."""
    chain = START
    listed: dict[PeerId, int] = {}  # the last version that lists each
    for authors, admitted in steps:
        stay = authors | admitted
        is_minority = bool(chain.roster) and not is_majority(len(stay & set(chain.voters)), len(chain.voters))
        try:
            chain = commit(chain, authors, admitted, is_minority)
        except InvalidList:
            continue
        listed = {peer: said for peer, said in listed.items() if peer in chain.roster}
        listed |= dict.fromkeys(authors, chain.version)
        assert set(chain.voters) == {peer for peer, at in listed.items() if chain.version - at < VOTING_COMMITS}
        assert authors <= set(chain.voters) <= set(chain.roster)


def test_a_newcomer_has_no_vote_and_does_not_lead_before_its_work_is_listed() -> None:
    chain = commit(commit(START, PEERS[1:4]), PEERS[1:4], PEERS[:1], dialable=bytes([ATTESTED, 0, 0, 0]))
    assert chain.roster == PEERS[:4] and chain.is_dialable(PEERS[0])
    assert chain.voters == PEERS[1:4] == chain.order
    assert {leader_of(view, chain.order) for view in range(8)} == set(PEERS[1:4])
    chain = commit(chain, PEERS[:4])
    assert chain.voters == PEERS[:4] == chain.order and leader_of(0, chain.order) == PEERS[0], "the only dialable one"


def test_voters_alone_lead_the_dialable_ones_first() -> None:
    said = bytes([ATTESTED, 0, ATTESTED, 0, ATTESTED, 0])
    chain = commit(START, PEERS[1:4], PEERS[:6], dialable=said)
    assert chain.order == (PEERS[2], PEERS[1], PEERS[3]) and chain.voters == PEERS[1:4]


def test_who_leaves_the_roster_has_no_vote_when_it_is_admitted_again() -> None:
    chain = commit(commit(commit(START, PEERS[:4]), PEERS[:3]), PEERS[:3], PEERS[3:4])
    assert chain.roster == PEERS[:4] and chain.voters == PEERS[:3]


def test_idle_members_take_nobody_s_vote() -> None:
    """However many are admitted and bring nothing: who works has a vote, and a majority of those who do decides."""
    chain = commit(START, PEERS[:3])
    for number in range(0, len(STRANGERS), MIN_ADMITTED):
        chain = commit(chain, PEERS[:3], (*chain.roster, *STRANGERS[number : number + MIN_ADMITTED]))
    assert len(chain.roster) == 3 + len(STRANGERS) and chain.voters == PEERS[:3] == chain.order


# -------------------------------------------------------------------- what a participant makes of it

KEYS = {number: keypair(number) for number in range(1, 6)}
IDS = {number: key.peer_id for number, key in KEYS.items()}


def announced_to(chain: ChainState, author: int, head: Digest) -> list[Effect]:
    """What the first peer at this chain does with a contribution of that author, cut at that head."""
    start = HeadReached(chain, RUN, root_at(chain))
    participant = Participant(Self(IDS[1], "me", "cpu", 1), RunConfig(), start, Seals.of(KEYS[1], RUN))
    root = digest_of("blob", bytes([author]))
    one = Contribution(IDS[author], 1, 9, root, 10, 0, 1, 9, 9, chain.version, chain.version, head)
    effects = participant.step(Received(IDS[author], one, seal_message(KEYS[author], RUN, one)), 1.0)
    return [effect for effect in effects if isinstance(effect, Fetch | Happened)]


def test_work_of_strangers_is_not_fetched_and_said_of_them() -> None:
    """A flood of it would fill the disk, and the time, of everybody."""
    before = commit(START, (IDS[1], IDS[2], IDS[4]))
    chain = commit(before, (IDS[1], IDS[2]), (IDS[3],))
    for author in (2, 3, 4):  # one that works, one that was admitted, one that has just left
        (fetch,) = announced_to(chain, author, chain.head)
        assert isinstance(fetch, Fetch) and fetch.contribution.author == IDS[author]
    for head in (chain.head, before.head):
        (said,) = announced_to(chain, 5, head)
        assert said == Happened(PeerMisbehaved(IDS[5], "it contributes, and is no member"))
    assert announced_to(chain, 5, digest_of("test", b"elsewhere")) == [], "where it comes from it may be a member"
    assert len(announced_to(START, 5, START.head)) == 1, "whoever is there at the beginning takes part"
