"""Which of the states that others report is taken: most strangers', that of the voters, or what most have at a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.chain import MAX_RECENT, ChainState
from swarm.digest import Digest, digest_of
from swarm.identity import PeerId
from swarm.messages import StateRecord, UnitState, record_digest
from swarm.round.joining import Found, Reports, of_other_state, of_strangers, of_voters
from swarm.round.root import Root
from tests.unit.small_swarm import START

PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 12))
VOTERS, STRANGERS = PEERS[:5], PEERS[5:]
ME = VOTERS[0]


def head(name: str, version: int) -> Digest:
    return digest_of("test", name.encode(), bytes([version])) if version else START.head


def chain(version: int, name: str = "", tokens: int | None = None) -> ChainState:
    """A head of the branch of that name; all are of one chain up to version 3."""
    names = {number: name if number > 3 else "" for number in range(version + 1)}
    recent = tuple(head(names[number], number) for number in range(version - 1, -1, -1))[:MAX_RECENT]
    weight = 100 * version if tokens is None else tokens
    return replace(START, head=head(names[version], version), version=version, tokens=weight, recent=recent)


def state(one: ChainState, salt: bytes = b"") -> StateRecord:
    return StateRecord(one, (UnitState(digest_of("unit", salt, one.head.raw), 100),))


def reports(said: Mapping[PeerId, StateRecord | ChainState]) -> Reports:
    return Reports({peer: state(one) if isinstance(one, ChainState) else one for peer, one in said.items()})


def root(voters: tuple[PeerId, ...] = VOTERS) -> Root:
    return Root(3, head("", 3), voters)


def taken(found: Found) -> list[ChainState]:
    assert bool(found.reason) != bool(found.states)
    return [record.chain for record, _ in found.states]


OWN = chain(5, "ours")
ROSTER = replace(OWN, roster=VOTERS, entered=(1,) * 5, dialable=bytes(5), voting=b"\3" * 5)

# -------------------------------------------------------------------- reports


def test_who_is_ahead_vouches_for_the_head_it_came_from() -> None:
    said = reports({PEERS[0]: chain(7), PEERS[1]: chain(6), PEERS[2]: chain(6, "other"), PEERS[3]: chain(7)})
    sixth, seventh = (record_digest(state(chain(number))) for number in (6, 7))
    assert set(said.vouching_for(sixth)) == {PEERS[0], PEERS[1], PEERS[3]}
    assert set(said.vouching_for(seventh)) == {PEERS[0], PEERS[3]}
    assert list(said.best_first())[:2] == [sixth, seventh]


def test_another_state_at_the_same_head_is_vouched_for_by_those_who_have_it() -> None:
    said = reports({PEERS[0]: state(chain(6), b"wrong"), PEERS[1]: chain(6), PEERS[2]: chain(6)})
    assert said.vouching_for(record_digest(state(chain(6), b"wrong"))) == (PEERS[0],)
    assert len(said.vouching_for(record_digest(state(chain(6))))) == 2


def test_of_states_that_as_many_vouch_for_the_largest_comes_first() -> None:
    small, large = chain(6, "small"), chain(6, "large", 10**6)
    said = reports({PEERS[0]: small, PEERS[1]: large})
    assert [said.record(digest).chain for digest in said.best_first()] == [large, small]


def test_holders_are_those_who_have_the_state_itself() -> None:
    found = of_strangers(None, reports({PEERS[0]: chain(7), PEERS[1]: chain(6), PEERS[2]: chain(6)}))
    assert found.states == ((state(chain(6)), (PEERS[1], PEERS[2])),)
    assert set(found.vouching) == set(PEERS[:3]) and found.heads == {chain(6).head}


def test_what_could_not_be_used_before_comes_last() -> None:
    first, second = state(chain(6, "a")), state(chain(6, "b"))
    found = Found(((first, PEERS[:1]), (second, PEERS[1:2])))
    assert [record for record, _ in found.candidates(frozenset())] == [first, second]
    assert [record for record, _ in found.candidates(frozenset({record_digest(first)}))] == [second, first]


# -------------------------------------------------------------------- among strangers


@pytest.mark.parametrize("others", range(1, 5))
def test_more_than_half_of_those_who_answered_have_to_vouch(others: int) -> None:
    said = {peer: chain(9) for peer in PEERS[:3]} | {peer: chain(9, str(peer), 10**6) for peer in PEERS[3 : 3 + others]}
    found = of_strangers(START, reports(said))
    if others < 3:
        assert taken(found) == [chain(9)] and found.is_proved
    else:
        assert not found.states and f"most of the {3 + others}" in found.reason


def test_where_nobody_answers_there_is_nothing() -> None:
    assert of_strangers(START, reports({})).reason == "nobody has a state"


def test_who_has_not_begun_has_no_word() -> None:
    """Newcomers that come at the same time do not hold each other up."""
    waiting = dict.fromkeys(STRANGERS, START)
    assert taken(of_strangers(START, reports(waiting | {PEERS[0]: chain(6), PEERS[1]: chain(6)}))) == [chain(6)]
    assert of_strangers(START, reports(waiting)).reason == "nobody has a state"


def test_one_of_those_who_invited_us_has_to_vouch_if_any_answered() -> None:
    crowd = {peer: chain(9, "lie", 10**6) for peer in STRANGERS}
    asked_us = frozenset({PEERS[0], PEERS[1]})
    assert taken(of_strangers(START, reports(crowd), asked_us)) == [chain(9, "lie", 10**6)]
    assert of_strangers(START, reports(crowd | {PEERS[0]: chain(4)}), asked_us).reason
    assert of_strangers(START, reports(crowd | {PEERS[0]: chain(4), PEERS[1]: chain(5)}), asked_us).reason
    found = of_strangers(START, reports(crowd | {PEERS[0]: chain(4), PEERS[1]: chain(10, "lie", 2 * 10**6)}), asked_us)
    assert taken(found) == [chain(9, "lie", 10**6)], "one of them is ahead of the others, and came from there"


@pytest.mark.parametrize(
    "where", [chain(5, "ours"), chain(4, "ours"), chain(0)], ids=["ours", "before ours", "genesis"]
)
def test_where_strangers_stand_with_us_there_is_nowhere_to_go(where: ChainState) -> None:
    assert of_strangers(OWN, reports(dict.fromkeys(STRANGERS, where))).reason


def test_nobody_goes_to_a_head_that_is_barred_for_us() -> None:
    own = replace(OWN, barred=(chain(9).head,))
    assert of_strangers(own, reports(dict.fromkeys(STRANGERS, chain(9)))).reason


@pytest.mark.parametrize("tokens", [1, 10**9], ids=["small", "large"])
def test_who_has_made_versions_goes_to_several_that_stand_together_or_to_one_with_more(tokens: int) -> None:
    other = chain(9, "other", tokens)
    several, one = reports(dict.fromkeys(STRANGERS[:2], other)), reports({STRANGERS[0]: other})
    assert taken(of_strangers(OWN, several)) == [other]
    assert bool(of_strangers(OWN, one).states) == (tokens > OWN.tokens)
    assert taken(of_strangers(START, one)) == [other], "who has made none goes to one"
    assert taken(of_strangers(None, one)) == [other]


branches = st.builds(
    chain, st.integers(1, 9), st.sampled_from(["ours", "a", "b"]), st.sampled_from([None, None, 1, 10**6])
)
answers = st.dictionaries(st.sampled_from(PEERS), branches, max_size=8)


@settings(max_examples=400)
@given(answers, st.frozensets(st.sampled_from(PEERS), max_size=3), st.sampled_from([None, START, OWN]))
def test_among_strangers_it_is_the_word_of_more_than_half_or_none(
    said: dict[PeerId, ChainState], introducers: frozenset[PeerId], own: ChainState | None
) -> None:
    found = of_strangers(own, reports(said), introducers)
    if found.reason:
        assert not found.states and not found.vouching
        return
    (where,) = taken(found)
    vouching = {peer for peer, one in said.items() if one == where or where.head in one.recent}
    assert set(found.vouching) == vouching and 2 * len(vouching) > len(said)
    assert not introducers & said.keys() or introducers & vouching
    if own is not None:
        assert where.head not in (own.head, *own.recent)


# -------------------------------------------------------------------- on the word of voters

COUNTS = [(2, 1, True), (3, 2, True), (1, 2, False), (1, 4, False)]  # voters there, with us, and whether we go


@pytest.mark.parametrize("there, here, is_taken", COUNTS)
@pytest.mark.parametrize("tokens", [1, 10**9], ids=["small", "large"])
def test_more_voters_than_with_us_have_to_vouch(there: int, here: int, is_taken: bool, tokens: int) -> None:
    other = chain(9, "other", tokens)
    said = dict.fromkeys(VOTERS[5 - there :], other)
    stands = dict.fromkeys(VOTERS[:here], OWN.head)
    found = of_voters(ME, OWN, root(), stands, reports(said))
    assert bool(found.states) == is_taken
    if is_taken:
        assert taken(found) == [other] and found.is_proved == (there > 2), "proved by a majority of all voters alone"
    else:
        assert f"{here} of 5 voters stand with us, {there} there" in found.reason


@pytest.mark.parametrize("tokens, is_taken", [(1, False), (10**9, True)])
def test_of_as_many_the_larger_state_is_taken_and_proves_nothing(tokens: int, is_taken: bool) -> None:
    said = dict.fromkeys(VOTERS[3:], chain(9, "other", tokens))
    found = of_voters(ME, OWN, root(), {VOTERS[1]: OWN.head}, reports(said))
    assert bool(found.states) == is_taken and not (is_taken and found.is_proved)


def test_we_are_one_of_those_who_stand_with_us() -> None:
    said = reports({VOTERS[4]: chain(9, "other", 1)})
    assert of_voters(ME, OWN, root(), {}, said).reason
    assert of_voters(STRANGERS[0], OWN, root(), {}, said).states, "if we have a vote"


def test_what_a_voter_reports_takes_the_place_of_what_was_known_of_it() -> None:
    stands = {VOTERS[1]: OWN.head, VOTERS[2]: OWN.head, VOTERS[4]: chain(9, "other").head}
    said = {VOTERS[1]: chain(9, "other", 1), VOTERS[2]: chain(9, "other", 1)}
    assert of_voters(ME, OWN, root(), stands, reports(said)).states
    assert of_voters(ME, OWN, root(), stands, reports({VOTERS[4]: OWN})).reason


def test_who_stands_where_we_came_from_stands_with_us() -> None:
    said = {VOTERS[1]: chain(4, "ours"), VOTERS[2]: chain(2), VOTERS[3]: chain(9, "b", 1), VOTERS[4]: chain(9, "b", 1)}
    assert "3 of 5 voters stand with us, 2 there" in of_voters(ME, OWN, root(), {}, reports(said)).reason


def test_strangers_words_count_for_nothing() -> None:
    crowd = dict.fromkeys(STRANGERS, chain(9, "crowd", 10**9))
    said = crowd | dict.fromkeys(VOTERS[3:], chain(9, "other", 1))
    assert taken(of_voters(ME, OWN, root(), {}, reports(said))) == [chain(9, "other", 1)]
    assert of_voters(ME, OWN, root(), {}, reports(crowd)).reason


def test_states_of_our_own_branch_and_of_barred_heads_are_none_to_go_to() -> None:
    own = replace(OWN, barred=(chain(9, "barred").head,))
    for where in (OWN, chain(4, "ours"), chain(2), chain(9, "barred")):
        assert of_voters(ME, own, root(), {}, reports(dict.fromkeys(VOTERS[1:], where))).reason


@settings(max_examples=400)
@given(answers, st.dictionaries(st.sampled_from(PEERS), st.sampled_from([OWN.head, chain(9, "a").head]), max_size=6))
def test_nobody_goes_where_fewer_voters_stand_than_with_us(
    said: dict[PeerId, ChainState], stands: dict[PeerId, Digest]
) -> None:
    found = of_voters(ME, OWN, root(), stands, reports({peer: one for peer, one in said.items() if peer != ME}))
    if found.reason:
        return
    heads = {peer: head for peer, head in stands.items() if peer not in said} | {
        peer: one.head for peer, one in said.items() if peer != ME
    }
    here = {peer for peer in VOTERS if heads.get(peer) in (OWN.head, *OWN.recent)} | {ME}
    best, *others = taken(found)
    for where in (best, *others):
        there = {
            peer for peer in VOTERS[1:] if peer in said and (said[peer] == where or where.head in said[peer].recent)
        }
        assert len(there) > len(here) or (len(there) == len(here) and best.key > OWN.key)
        assert best.key >= where.key
    assert found.is_proved == (len(there) > 2)


# -------------------------------------------------------------------- another state at our head

RIGHT, WRONG = state(ROSTER), state(ROSTER, b"wrong")


def other_state(digest: Digest | None, said: Mapping[PeerId, StateRecord]) -> list[StateRecord]:
    return [record for record, _ in of_other_state(ROSTER, root(), digest, Reports(dict(said))).states]


def test_whose_state_is_wrong_takes_what_most_voters_have() -> None:
    said = {VOTERS[1]: RIGHT, VOTERS[2]: RIGHT, VOTERS[3]: WRONG}
    assert other_state(record_digest(state(ROSTER, b"own")), said) == [RIGHT, WRONG]
    assert other_state(record_digest(WRONG), said) == [RIGHT]
    assert other_state(None, said) == [RIGHT, WRONG], "without a state of its own"


def test_whose_state_most_have_keeps_it() -> None:
    said = {VOTERS[1]: RIGHT, VOTERS[2]: WRONG}
    found = of_other_state(ROSTER, root(), record_digest(RIGHT), Reports(said))
    assert "most of those who answered have the state that we have" in found.reason
    assert of_other_state(ROSTER, root(), record_digest(RIGHT), Reports({VOTERS[1]: RIGHT})).reason


def test_strangers_have_no_word_in_it_where_any_voter_is_known() -> None:
    crowd = dict.fromkeys(STRANGERS, WRONG)
    assert other_state(record_digest(RIGHT), crowd) == []
    assert other_state(record_digest(RIGHT), {**crowd, VOTERS[1]: RIGHT}) == []
    assert other_state(record_digest(WRONG), {**crowd, VOTERS[1]: RIGHT}) == [RIGHT]
    of_root = of_other_state(ROSTER, root(STRANGERS[:1]), record_digest(RIGHT), Reports(crowd))
    assert [record for record, _ in of_root.states] == [WRONG], "voters of the root have one"


def test_a_newcomer_that_knows_no_voter_asks_everybody() -> None:
    found = of_other_state(
        START, Root(0, START.head, ()), record_digest(RIGHT), Reports(dict.fromkeys(STRANGERS, WRONG))
    )
    assert [record for record, _ in found.states] == [WRONG]


def test_a_barred_state_is_none() -> None:
    own = replace(ROSTER, barred=(chain(9).head,))
    found = of_other_state(own, root(), record_digest(RIGHT), reports(dict.fromkeys(VOTERS[1:], chain(9))))
    assert found.reason == "nobody has another state than ours"
