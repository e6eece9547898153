"""Which of two branches is followed, how far: by what is barred, what is proved, where voters stand, and the larger head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.chain import ChainState
from swarm.digest import Digest, digest_of
from swarm.identity import PeerId
from swarm.round.fork import Decision, Ours, Sides, Theirs, Verdict, count, follow, sides_of
from swarm.round.root import Root
from tests.unit.small_swarm import START

PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 12))
VOTERS, NEWER, STRANGERS = PEERS[:5], PEERS[3:8], PEERS[8:]
FORK = 5  # the version at which the branches of these tests part


def chain(version: int, name: str = "common", tokens: int | None = None) -> ChainState:
    head = digest_of("test", name.encode(), bytes([version]))
    return replace(START, head=head, version=version, tokens=100 * version if tokens is None else tokens)


COMMON = [chain(FORK - back) for back in range(3)]


def root(version: int, voters: tuple[PeerId, ...] = VOTERS) -> Root:
    return Root(version, digest_of("test", b"root", bytes([version])), voters)


def ours(above: int, proved: int = FORK - 1, tokens: int | None = None) -> Ours:
    """A branch with so many heads above the fork, and that version proved."""
    own = [chain(FORK + number, "ours", tokens) for number in range(above, 0, -1)]
    chains = [*own, *COMMON][:3]
    return Ours(chains, [root(min(proved, max(0, one.version - 1))) for one in chains])


def theirs(length: int, proved: int = FORK - 1, tokens: int | None = None, **changes: object) -> Theirs:
    """The other one, and what of it is proved by its own voters, some of whom we do not know."""
    heads = [chain(FORK + number, "theirs", tokens) for number in range(1, length + 1)]
    found = Theirs(COMMON[0], heads, frozenset(), root(proved, NEWER if proved > FORK else VOTERS))
    return replace(found, **changes)  # type: ignore[arg-type]


def standing(*groups: tuple[Iterable[PeerId], ChainState]) -> dict[PeerId, Digest]:
    return {peer: one.head for peers, one in groups for peer in peers}


def decide(own: Ours, other: Theirs, stands: Mapping[PeerId, Digest], silent: Iterable[PeerId] = PEERS) -> Decision:
    """What is decided when those of whom nothing is known were asked in vain."""
    return follow(own, other, stands, frozenset(silent))


# -------------------------------------------------------------------- barred heads


def test_a_barred_branch_is_left_though_it_is_proved_and_all_voters_stand_there() -> None:
    own = ours(2, proved=FORK + 1)
    barring = theirs(1, barred=frozenset({own.chains[1].head}))
    decision = decide(own, barring, standing((VOTERS, own.tip)))
    assert decision.verdict is Verdict.MOVE and decision.depth == 1


def test_behind_the_commit_that_bars_our_branch_voters_are_counted() -> None:
    own = ours(2)
    barring = theirs(3, barred=frozenset({own.chains[1].head}))
    alone = decide(own, barring, standing((VOTERS[:3], barring.chains[0]), (VOTERS[3:], barring.tip)))
    assert (alone.verdict, alone.depth) == (Verdict.MOVE, 1)
    followed = decide(own, barring, standing((VOTERS[:3], barring.tip), (VOTERS[3:], barring.chains[0])))
    assert (followed.verdict, followed.depth) == (Verdict.MOVE, 3)


def test_only_the_first_head_that_we_would_leave_can_be_barred_by_the_commit_that_takes_its_place() -> None:
    own = ours(2)
    decision = decide(own, theirs(1, barred=frozenset({own.tip.head})), standing((VOTERS, own.tip)))
    assert decision.verdict is Verdict.STAY


@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_way_leads_over_a_head_that_is_barred_for_us(place: int) -> None:
    other = theirs(3, proved=FORK + 2)
    own = ours(1)
    barred = replace(own.tip, barred=(other.chains[place].head,))
    decision = decide(Ours([barred, *own.chains[1:]], own.roots), other, standing((PEERS, other.tip)))
    assert decision.verdict is Verdict.STAY and "barred" in decision.reason


# -------------------------------------------------------------------- what is proved


def test_what_is_proved_beyond_the_fork_is_not_left_whoever_stands_elsewhere_and_whatever_is_proved_there() -> None:
    for proved in (FORK - 1, FORK + 1, FORK + 2):
        other = theirs(3, proved=proved, tokens=10**9)
        decision = decide(ours(2, proved=FORK + 1), other, standing((PEERS, other.tip)))
        assert decision.verdict is Verdict.STAY and f"{FORK + 1} is proved" in decision.reason


def test_a_root_at_the_fork_itself_holds_nobody() -> None:
    other = theirs(2)
    decision = decide(ours(2, proved=FORK), other, standing((VOTERS[:3], other.tip)))
    assert (decision.verdict, decision.depth) == (Verdict.MOVE, 2)


@pytest.mark.parametrize("above", [0, 1, 2])
def test_what_is_proved_of_theirs_is_taken_though_all_stand_with_us(above: int) -> None:
    own = ours(above, tokens=10**9)
    decision = decide(own, theirs(4, proved=FORK + 2), standing((PEERS, own.tip)))
    assert (decision.verdict, decision.depth) == (Verdict.MOVE, 2)


def test_behind_what_is_proved_the_voters_of_the_proved_head_are_counted() -> None:
    """Ours may be long gone, and whoever mines on alone from a proved head has nobody's word."""
    other = theirs(4, proved=FORK + 2)
    for there, depth in ((NEWER[:3], 4), (NEWER[:2], 2), (VOTERS[:3], 2)):
        rest = [peer for peer in PEERS if peer not in there]
        decision = decide(ours(1), other, standing((there, other.tip), (rest, other.chains[1])))
        assert (decision.verdict, decision.depth) == (Verdict.MOVE, depth)


def test_a_commit_of_our_own_leader_is_taken_and_what_comes_behind_it_only_with_its_voters() -> None:
    own = ours(0)
    assert decide(own, theirs(1, is_led=True), standing((VOTERS, own.tip))) == Decision(Verdict.MOVE, 1, "")
    other = theirs(3, is_led=True)
    assert decide(own, other, standing((VOTERS, own.tip))).depth == 1
    assert decide(own, other, standing((VOTERS[:3], other.tip))).depth == 3
    unled = decide(own, theirs(1), standing((VOTERS, own.tip)))
    assert unled.verdict is Verdict.STAY


def test_a_log_that_leads_to_where_we_are_or_were_is_none() -> None:
    for above in range(3):
        decision = decide(ours(above), theirs(0), standing((VOTERS, COMMON[0])))
        assert decision.verdict is Verdict.STAY and "which we have" in decision.reason


APART = [chain(number, "theirs") for number in range(1, 4)]


def apart(proved: int = 1) -> Ours:
    """At version 2 of a branch that began with one of five."""
    chains = [chain(2, "ours"), chain(1, "ours"), START]
    return Ours(chains, [root(proved), root(1), Root(0, START.head, ())])


def test_who_began_apart_counts_its_own_first_voters_and_no_root_of_theirs() -> None:
    """Anybody can begin a branch, and prove it with ids of its own."""
    other = Theirs(START, APART, frozenset(), root(2, NEWER))
    own = apart()
    crowd = standing((STRANGERS, other.tip))
    assert decide(own, other, crowd | standing((VOTERS, own.tip))).verdict is Verdict.STAY
    assert decide(own, other, crowd | standing((VOTERS[:3], own.tip), (VOTERS[3:], other.tip))).verdict is Verdict.STAY
    decision = decide(own, other, crowd | standing((VOTERS[:2], own.tip), (VOTERS[2:], other.tip)))
    assert (decision.verdict, decision.depth) == (Verdict.MOVE, 3) and "3 of 5" in decision.reason


def test_who_began_apart_stays_once_its_own_branch_is_proved() -> None:
    other = Theirs(START, APART, frozenset(), root(2, NEWER))
    decision = decide(apart(proved=2), other, standing((PEERS, other.tip)))
    assert decision.verdict is Verdict.STAY and "2 is proved" in decision.reason


# -------------------------------------------------------------------- where voters stand

SPLITS = [  # standing: at their tip, at an earlier head of theirs, at our tip, at the fork; and what follows
    (3, 0, 2, 0, Verdict.MOVE),
    (1, 2, 2, 0, Verdict.MOVE),
    (2, 0, 3, 0, Verdict.STAY),
    (2, 0, 0, 3, Verdict.STAY),
    (2, 0, 1, 2, Verdict.STAY),
    (2, 1, 1, 1, Verdict.MOVE),
    (1, 0, 0, 0, Verdict.MOVE),
    (0, 0, 1, 0, Verdict.STAY),
]


@pytest.mark.parametrize("tip, earlier, own_tip, fork, verdict", SPLITS)
@pytest.mark.parametrize("tokens", [1, 10**9], ids=["small", "large"])
def test_more_voters_of_the_root_win_whatever_the_heads_weigh(
    tip: int, earlier: int, own_tip: int, fork: int, verdict: Verdict, tokens: int
) -> None:
    own, other = ours(1), theirs(2, tokens=tokens)
    places = [other.tip] * tip + [other.chains[0]] * earlier + [own.tip] * own_tip + [COMMON[0]] * fork
    stands = {peer: one.head for peer, one in zip(VOTERS, places, strict=False)}
    crowd = standing((STRANGERS, other.tip if verdict is Verdict.STAY else own.tip))
    assert decide(own, other, stands | crowd).verdict is verdict
    if verdict is Verdict.MOVE:
        assert decide(own, other, stands).depth == 2


def test_voters_who_stand_together_at_a_third_head_keep_us_from_theirs() -> None:
    own, other, third = ours(1), theirs(1, tokens=1), chain(FORK + 1, "third")
    as_many = decide(own, other, standing((VOTERS[:1], own.tip), (VOTERS[1:3], other.tip), (VOTERS[3:], third)))
    assert as_many.verdict is Verdict.STAY
    scattered = {VOTERS[3]: third.head, VOTERS[4]: chain(FORK + 1, "fourth").head}
    assert (
        decide(own, other, standing((VOTERS[:1], own.tip), (VOTERS[1:3], other.tip)) | scattered).verdict
        is Verdict.MOVE
    )
    most = decide(own, other, standing((VOTERS[:1], own.tip), (VOTERS[1:2], other.tip), (VOTERS[2:], third)))
    assert most.verdict is Verdict.STAY


@pytest.mark.parametrize("tokens, verdict", [(10**9, Verdict.TIE), (1, Verdict.STAY)])
def test_of_as_many_the_larger_head_may_be_followed(tokens: int, verdict: Verdict) -> None:
    own, other = ours(1), theirs(1, tokens=tokens)
    decision = decide(own, other, standing((VOTERS[:2], own.tip), (VOTERS[2:4], other.tip)))
    assert decision.verdict is verdict


def test_the_voters_of_the_root_at_the_fork_are_counted_not_those_of_our_head() -> None:
    """Ours have gone on with invented ids: they have no word where the branches part."""
    own, other = ours(2), theirs(1)
    own = Ours(own.chains, [root(FORK - 1, STRANGERS), root(FORK - 1, STRANGERS), root(FORK - 1)])
    decision = decide(own, other, standing((STRANGERS, own.tip), (VOTERS[:2], own.tip), (VOTERS[2:], other.tip)))
    assert (decision.verdict, decision.depth) == (Verdict.MOVE, 1) and "3 of 5" in decision.reason


def test_who_may_turn_it_is_asked_and_who_is_silent_then_counts_for_nobody() -> None:
    own, other = ours(1), theirs(1, tokens=10**9)
    stands = standing((VOTERS[:1], own.tip), (VOTERS[1:3], other.tip))
    assert follow(own, other, stands, ()).verdict is Verdict.ASK
    assert follow(own, other, stands, VOTERS[3:4]).verdict is Verdict.ASK
    assert follow(own, other, stands, VOTERS[3:]).verdict is Verdict.MOVE
    assert follow(own, other, stands | standing((VOTERS[3:], own.tip)), ()).verdict is Verdict.STAY
    enough = standing((VOTERS[:1], own.tip), (VOTERS[1:4], other.tip))
    assert follow(own, other, enough, ()).verdict is Verdict.MOVE, "the fifth could not turn it"


# -------------------------------------------------------------------- laws

WHERE = {
    "our tip": ours(2).tip.head,
    "above the fork": ours(2).chains[1].head,
    "the fork": COMMON[0].head,
    "their first": theirs(3).chains[0].head,
    "their tip": theirs(3).tip.head,
    "a third head": chain(FORK + 1, "third").head,
    "a fourth head": chain(FORK + 1, "fourth").head,
}
places = st.none() | st.sampled_from(sorted(WHERE))


@st.composite
def known(draw: st.DrawFn, peers: tuple[PeerId, ...] = VOTERS) -> dict[PeerId, Digest]:
    found = {peer: draw(places) for peer in peers}
    return {peer: WHERE[place] for peer, place in found.items() if place is not None}


@given(known(PEERS), st.sets(st.sampled_from(PEERS)))
def test_voters_are_on_one_side_or_the_other_or_elsewhere_or_unknown(
    stands: dict[PeerId, Digest], silent: set[PeerId]
) -> None:
    there, here = {WHERE["their first"], WHERE["their tip"]}, {WHERE["our tip"], WHERE["the fork"]}
    sides = sides_of(VOTERS, stands, there, here, silent)
    assert sides.theirs == {peer for peer in VOTERS if stands.get(peer) in there}
    assert sides.ours == {peer for peer in VOTERS if stands.get(peer) in here}
    assert sides.unknown == {peer for peer in VOTERS if peer not in stands and peer not in silent}
    others = [stands[peer] for peer in VOTERS if peer in stands and stands[peer] not in there | here]
    assert sides.elsewhere == max(map(others.count, others), default=0)


def completed(sides: Sides) -> Iterable[Sides]:
    """Each way in which those who are unknown may turn out to stand, or to be silent."""
    for choice in product(range(4), repeat=len(sides.unknown)):
        went = list(zip(sides.unknown, choice, strict=True))
        there, here = (frozenset(peer for peer, side in went if side == number) for number in (0, 1))
        elsewhere = sides.elsewhere + sum(side == 2 for side in choice)
        yield Sides(sides.theirs | there, sides.ours | here, frozenset(), elsewhere)


@settings(max_examples=300)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 3), st.booleans())
def test_what_is_decided_no_answer_could_turn_and_what_is_asked_some_could(
    there: int, here: int, elsewhere: int, unknown: int, is_larger: bool
) -> None:
    groups = [frozenset(PEERS[:there]), frozenset(PEERS[4 : 4 + here]), frozenset(PEERS[8 : 8 + unknown])]
    sides = Sides(groups[0], groups[1], groups[2], elsewhere)
    verdict = count(sides, is_larger=is_larger)
    answers = {count(one, is_larger=is_larger) for one in completed(sides)}
    assert Verdict.ASK not in answers
    assert verdict is Verdict.ASK or answers == {verdict}
    assert verdict is not Verdict.ASK or abs(there - max(here, elsewhere)) <= unknown


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_with_one_voter_more_there_it_is_never_less_followed(
    there: int, here: int, elsewhere: int, is_larger: bool
) -> None:
    rank = {Verdict.STAY: 0, Verdict.TIE: 1, Verdict.MOVE: 2}

    def verdict_of(num: int) -> int:
        sides = Sides(frozenset(PEERS[:num]), frozenset(PEERS[6 : 6 + here]), frozenset(), elsewhere)
        return rank[count(sides, is_larger=is_larger)]

    assert verdict_of(there) <= verdict_of(there + 1)
    if there + 1 > max(here, elsewhere):
        assert verdict_of(there + 1) == 2
    if there < max(here, elsewhere):
        assert verdict_of(there) == 0


@settings(max_examples=300)
@given(known(), known(STRANGERS), known(STRANGERS), st.sampled_from([1, 350, 10**9]), st.integers(0, 2))
def test_words_of_strangers_turn_nothing(
    stands: dict[PeerId, Digest], one: dict[PeerId, Digest], other: dict[PeerId, Digest], tokens: int, above: int
) -> None:
    own, branch = ours(above), theirs(3, tokens=tokens)
    assert follow(own, branch, stands | one, ()) == follow(own, branch, stands | other, ())


@settings(max_examples=500)
@given(known(), st.sampled_from([1, 350, 10**9]), st.sampled_from([1, 350, 10**9]))
def test_two_peers_on_two_sides_who_know_the_same_never_both_go_over(
    stands: dict[PeerId, Digest], our_tokens: int, their_tokens: int
) -> None:
    """Nothing beyond the fork is proved on either side."""
    one, other = ours(2, tokens=our_tokens), theirs(2, tokens=their_tokens)
    there = Ours([*reversed(other.chains), COMMON[0]], one.roots)
    here = Theirs(COMMON[0], [*reversed(one.chains[:2])], frozenset(), one.root)
    verdicts = [decide(one, other, stands).verdict, decide(there, here, stands).verdict]
    assert Verdict.ASK not in verdicts
    assert not {Verdict.MOVE, Verdict.TIE}.issuperset(verdicts), "one of them stays"


@settings(max_examples=300)
@given(known(PEERS), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.sets(st.sampled_from(PEERS)))
def test_as_much_is_taken_as_is_proved_or_has_its_voters(
    stands: dict[PeerId, Digest], length: int, proved: int, is_led: bool, silent: set[PeerId]
) -> None:
    proved = min(proved, length - 1)
    other = theirs(length, proved=FORK + proved if proved else FORK - 1, is_led=is_led)
    decision = follow(ours(0 if is_led else 2), other, stands, silent)
    sure = max(proved, int(is_led))
    if decision.verdict is Verdict.MOVE:
        assert max(1, sure) <= decision.depth <= length and decision.depth in (sure, length)
    else:
        assert not sure or decision.verdict is Verdict.ASK, "what is sure is taken, once the voters were asked"
