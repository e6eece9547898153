"""Votes and roots: what is signed, what a commit carries of it, and which head a majority of the voters stands behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.chain import ChainState, is_majority
from swarm.digest import Digest, digest_of
from swarm.errors import RemoteError
from swarm.identity import Keypair, PeerId
from swarm.messages import is_issue, is_vote, sign_issue, sign_vote
from swarm.round.commits import check_commit
from swarm.round.root import Root, root_after, root_at
from swarm.schema import from_value, to_value
from swarm.votes import ALL_VOTES, VOTE_BYTES, Votes, check_votes, gather, stand_at, to_sign, voted_by
from tests.unit.catch_up_donors import KEYS, OURS, THEIRS
from tests.unit.message_examples import RUN, keypair
from tests.unit.small_swarm import LEASE_SIZE, START, STATE, VERIFIER, commit_on, log_of, votes_of

SOME = sorted((keypair(number) for number in range(1, 13)), key=lambda key: key.peer_id)
OTHER_RUN = digest_of("test", b"another run")


def chain_of(voters: tuple[PeerId, ...], idle: tuple[PeerId, ...] = (), version: int = 7) -> ChainState:
    """A head with these voters and these members without a vote."""
    roster = tuple(sorted((*voters, *idle)))
    voting = bytes(3 if peer in voters else 0 for peer in roster)
    head = digest_of("test", version.to_bytes(8, "big"))
    dialable, entered = bytes(len(roster)), (1,) * len(roster)
    return replace(START, head=head, version=version, roster=roster, voting=voting, dialable=dialable, entered=entered)


def is_good(peer: PeerId, vote: bytes, stand: object) -> bool:
    return is_vote(RUN, peer, vote, stand)  # type: ignore[arg-type]


groups = st.lists(st.sampled_from(SOME), min_size=1, unique=True)


# -------------------------------------------------------------------- a vote


@dataclass(frozen=True)
class Signed:
    """What a vote may be said to be for."""

    run: Digest
    key: Keypair
    version: int
    head: Digest
    state: Digest


heads = st.sampled_from([digest_of("test", bytes([number])) for number in range(3)])
signed = st.builds(
    Signed, st.sampled_from([RUN, OTHER_RUN]), st.sampled_from(SOME[:3]), st.integers(0, 2), heads, heads
)


@given(signed, signed)
def test_a_vote_is_of_one_peer_for_one_run_version_head_and_state(one: Signed, other: Signed) -> None:
    def stand_of(what: Signed) -> object:
        return stand_at(replace(START, version=what.version, head=what.head), what.state)

    vote = sign_vote(one.key, one.run, stand_of(one))  # type: ignore[arg-type]
    assert len(vote) == VOTE_BYTES
    assert is_vote(other.run, other.key.peer_id, vote, stand_of(other)) == (one == other)  # type: ignore[arg-type]


@pytest.mark.parametrize("vote", [b"", bytes(VOTE_BYTES), b"\xff" * VOTE_BYTES, bytes(VOTE_BYTES - 1)])
def test_other_bytes_are_no_vote(vote: bytes) -> None:
    assert not is_vote(RUN, SOME[0].peer_id, vote, stand_at(START, STATE))


@given(st.tuples(st.sampled_from(SOME[:2]), st.integers(0, 2), heads, st.sampled_from([RUN, OTHER_RUN])), st.data())
def test_a_leader_s_signature_is_for_one_run_view_and_head(
    what: tuple[Keypair, int, Digest, Digest], data: st.DataObject
) -> None:
    other = data.draw(st.tuples(st.sampled_from(SOME[:2]), st.integers(0, 2), heads, st.sampled_from([RUN, OTHER_RUN])))
    key, view, head, run = what
    signature = sign_issue(key, run, view, head)
    key, view, head, run = other
    assert is_issue(run, key.peer_id, signature, view, head) == (what == other)


def test_neither_signature_can_be_taken_for_the_other() -> None:
    stand = stand_at(START, STATE)
    assert not is_issue(RUN, SOME[0].peer_id, sign_vote(SOME[0], RUN, stand), stand.version, stand.head)
    assert not is_vote(RUN, SOME[0].peer_id, sign_issue(SOME[0], RUN, stand.version, stand.head), stand)
    assert to_sign(RUN, stand) != to_sign(OTHER_RUN, stand)


# -------------------------------------------------------------------- what a commit carries


@given(groups, st.lists(st.sampled_from(SOME), unique=True), st.data())
def test_what_is_gathered_is_what_is_found_again(
    voting: list[Keypair], idle: list[Keypair], data: st.DataObject
) -> None:
    voters = tuple(sorted(key.peer_id for key in voting))
    chain = chain_of(voters, tuple(key.peer_id for key in idle if key not in voting))
    some = data.draw(st.lists(st.sampled_from(voting), unique=True))
    votes = {key.peer_id: sign_vote(key, RUN, stand_at(chain, STATE)) for key in some}
    carried = from_value(Votes, to_value(gather(chain, STATE, votes, len(votes))))
    assert carried.state_digest == STATE
    assert check_votes(chain, carried, is_good) == voted_by(chain, carried) == frozenset(votes)


def test_no_votes_are_of_nobody() -> None:
    chain = chain_of(tuple(key.peer_id for key in SOME))
    assert check_votes(chain, None, is_good) == voted_by(chain, None) == frozenset()
    assert check_votes(chain, gather(chain, STATE, {}, 0), is_good) == frozenset()
    assert check_votes(START, Votes(STATE, b"", ()), is_good) == frozenset(), "at genesis nobody has a vote"


@pytest.mark.parametrize("num_voters, num_carried", [(ALL_VOTES, ALL_VOTES), (ALL_VOTES + 1, ALL_VOTES // 2 + 1)])
def test_of_many_voters_only_as_many_votes_as_are_needed_are_carried(num_voters: int, num_carried: int) -> None:
    voters = tuple(sorted(PeerId(digest_of("peer", bytes([number])).raw) for number in range(num_voters)))
    chain = chain_of(voters)
    first = tuple(reversed(voters))
    votes = gather(chain, STATE, {peer: peer.raw * 2 for peer in first}, num_voters // 2 + 1)
    assert len(votes.signatures) == num_carried
    found = check_votes(chain, votes, lambda peer, vote, stand: vote == peer.raw * 2)
    assert found == frozenset(first[:num_carried]), "of more, those that come first"


@given(st.sampled_from([1, 5, 8, 9]), st.data())
def test_votes_whose_bits_or_number_do_not_fit_the_voters_are_refused(num: int, data: st.DataObject) -> None:
    keys = SOME[:num]
    chain = chain_of(tuple(sorted(key.peer_id for key in keys)))
    good = gather(chain, STATE, {key.peer_id: sign_vote(key, RUN, stand_at(chain, STATE)) for key in keys}, num)
    bits = int.from_bytes(good.voted, "little")
    beyond = [bits | 1 << place for place in range(num, 8 * len(good.voted))]
    wrong = [
        replace(good, voted=good.voted + b"\0"),
        replace(good, voted=good.voted[:-1]),
        replace(good, voted=b""),
        replace(good, signatures=good.signatures[:-1]),
        replace(good, signatures=(*good.signatures, good.signatures[-1])),
        replace(good, voted=(bits >> 1).to_bytes(len(good.voted), "little")),
        *(replace(good, voted=one.to_bytes(len(good.voted), "little")) for one in beyond),
    ]
    with pytest.raises(RemoteError, match="votes"):
        check_votes(chain, data.draw(st.sampled_from(wrong)), is_good)


@given(st.sampled_from(["order", "another state", "another head", "a flipped bit", "another's"]), st.data())
def test_votes_that_a_voter_has_not_signed_are_refused(how: str, data: st.DataObject) -> None:
    chain = chain_of(tuple(sorted(key.peer_id for key in SOME)))
    good = gather(chain, STATE, {key.peer_id: sign_vote(key, RUN, stand_at(chain, STATE)) for key in SOME}, len(SOME))
    place = data.draw(st.integers(0, len(SOME) - 1))
    signatures = list(good.signatures)
    match how:
        case "order":
            signatures = signatures[1:] + signatures[:1]
        case "another state":
            good = replace(good, state_digest=digest_of("test", b"another"))
        case "another head":
            signatures[place] = sign_vote(SOME[place], RUN, stand_at(chain_of(chain.voters, version=8), STATE))
        case "a flipped bit":
            flipped = bytearray(signatures[place])
            flipped[data.draw(st.integers(0, VOTE_BYTES - 1))] ^= 1 << data.draw(st.integers(0, 7))
            signatures[place] = bytes(flipped)
        case _:
            signatures[place] = sign_vote(keypair(99), RUN, stand_at(chain, STATE))
    with pytest.raises(RemoteError, match="is not signed by it"):
        check_votes(chain, replace(good, signatures=tuple(signatures)), is_good)


@pytest.mark.parametrize("voting", range(6))
def test_a_commit_has_the_votes_of_a_majority_or_says_that_it_has_not(voting: int) -> None:
    chains, _ = log_of(2, KEYS, [])
    commit = replace(commit_on(chains[2], KEYS, []), votes=votes_of(chains[2], KEYS[:voting]))
    if is_majority(voting, 5):
        assert len(check_commit(chains[2], commit, VERIFIER, LEASE_SIZE.tokens)) == 5
    else:
        with pytest.raises(RemoteError, match=f"{voting} of 5 voters are behind its parent"):
            check_commit(chains[2], commit, VERIFIER, LEASE_SIZE.tokens)
        alone = replace(commit, commit=replace(commit.commit, minority=True))
        assert len(check_commit(chains[2], alone, VERIFIER, LEASE_SIZE.tokens)) == 5


# -------------------------------------------------------------------- roots


def test_the_first_commit_is_a_root_and_each_that_a_majority_votes_for_is_one_from_the_next_on() -> None:
    chains, commits = log_of(4, KEYS, [])
    roots = [root_at(START)]
    for parent, commit, child in zip(chains, commits, chains[1:], strict=False):
        roots.append(root_after(roots[-1], parent, voted_by(parent, commit.votes), child))
    assert [root.version for root in roots] == [0, 1, 1, 2, 3]
    assert [root.head for root in roots[1:]] == [chains[number].head for number in (1, 1, 2, 3)]
    assert all(root.voters == chains[root.version].voters and not root.backers for root in roots)


def test_two_of_five_who_go_on_alone_are_behind_no_root_of_five_however_long_they_do() -> None:
    chains, _ = log_of(3, KEYS, [])
    mine, more = log_of(30, OURS, [], chains[3])
    root = Root(2, chains[2].head, chains[2].voters)
    for parent, commit, child in zip(mine, more, mine[1:], strict=False):
        root = root_after(root, parent, voted_by(parent, commit.votes), child)
    assert root.version == 2 and set(root.backers) == {key.peer_id for key in OURS}
    most, to_most = log_of(2, THEIRS, [], chains[3])
    root = Root(2, chains[2].head, chains[2].voters)
    for parent, commit, child in zip(most, to_most, most[1:], strict=False):
        root = root_after(root, parent, voted_by(parent, commit.votes), child)
    assert root.version == 4, "three are"


def test_those_behind_a_root_may_have_voted_for_different_heads_beyond_it() -> None:
    """Three of five, never more than two at a time."""
    ids = tuple(key.peer_id for key in KEYS)
    first, *later = [chain_of(ids, version=number) for number in range(3, 7)]
    root = root_at(first)
    root = root_after(root, later[0], frozenset(ids[:2]), later[1])
    assert root.version == 3 and root.backers == ids[:2]
    assert root_after(root, later[1], frozenset(ids[1:2]), later[2]).version == 3, "nobody counts twice"
    assert root_after(root, later[1], frozenset(ids[2:3]), later[2]) == root_at(later[1])


ids = st.sampled_from([key.peer_id for key in SOME])
sets = st.frozensets(ids, max_size=8)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.frozensets(ids, min_size=1, max_size=8), sets), min_size=2, max_size=12))
def test_a_root_moves_only_when_a_majority_of_its_voters_stands_behind_the_branch(
    steps: list[tuple[frozenset[PeerId], frozenset[PeerId]]],
) -> None:
    """Whoever else votes: rosters and votes are drawn at will, as a branch of invented ids has them."""
    chains = [START, *(chain_of(tuple(sorted(voters)), version=place + 1) for place, (voters, _) in enumerate(steps))]
    voted = [frozenset(), *(who & frozenset(chain.voters) for chain, (_, who) in zip(chains[1:], steps, strict=True))]
    root = root_at(START)
    for place, (parent, child) in enumerate(pairwise(chains)):
        before, root = root, root_after(root, parent, voted[place], child)
        assert before.version <= root.version <= child.version
        assert frozenset(root.backers) <= frozenset(root.voters) and root.backers == tuple(sorted(root.backers))
        since = frozenset().union(*voted[before.version + 1 : place + 1])
        behind = since & frozenset(before.voters)
        if before.version and root.version == before.version:
            assert not is_majority(len(behind), len(before.voters)) and frozenset(root.backers) == behind
        elif before.version:
            assert is_majority(len(behind), len(before.voters)) and root == root_at(parent)
        else:
            assert root == root_at(child), "those whose work is listed first are the first voters"
