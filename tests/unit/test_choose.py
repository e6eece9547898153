"""What a leader lists, with a majority and without one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm.chain import CommitList, Entry, genesis
from swarm.digest import digest_of
from swarm.errors import RemoteError
from swarm.identity import PeerId
from swarm.messages import Commit, Contribution, Holders, seal_message
from swarm.round.choose import Deadlines, RoundView, choose_list
from swarm.round.commits import check_commit
from swarm.round.docket import Waiting
from tests.unit.message_examples import AUTHOR, RUN
from tests.unit.small_swarm import open_sealed

PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 5))
ME = PEERS[0]
CHAIN = replace(genesis(RUN, RUN), roster=PEERS, version=3, entered=(0,) * len(PEERS), dialable=bytes(len(PEERS)))
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
    electorate=frozenset(PEERS),
)


def test_who_is_left_alone_goes_on_and_says_so() -> None:
    chosen, _ = choose_list(ALONE, DEADLINES)
    assert chosen is not None and chosen.minority and [entry.author for entry in chosen.entries] == [ME]
    chosen, reason = choose_list(replace(ALONE, since_majority_s=29.0), DEADLINES)
    assert chosen is None and "alone in 1 s" in reason


def test_no_list_goes_out_before_a_heartbeat_is_over_at_a_head() -> None:
    """Where rounds were shorter, a newcomer was always a version behind when it was heard, and never admitted."""
    held = [waiting(peer, *PEERS) for peer in PEERS]
    full = replace(ALONE, awaited=PEERS, present=PEERS, waiting=tuple(held), is_followed=True, since_majority_s=0.0)
    chosen, reason = choose_list(replace(full, since_head_s=0.9), DEADLINES)
    assert chosen is None and "one heartbeat" in reason
    assert choose_list(replace(full, since_head_s=1.0), DEADLINES)[0] is not None


def test_who_was_frozen_and_hears_the_others_lists_nothing_that_it_alone_holds() -> None:
    """The words of all the others waited for it; it has not looked since who of them makes a majority."""
    held = [waiting(peer, *PEERS[1:]) for peer in PEERS[1:3]]
    thawed = replace(ALONE, awaited=PEERS, present=PEERS, waiting=(*ALONE.waiting, *held), is_followed=True)
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
    beyond the age that a contribution may have, and the time since when the chain knows it as a member (None: it is none).
    """
    author = AUTHOR.peer_id
    roster = PEERS if entered is None else tuple(sorted((*PEERS, author)))
    versions = tuple((entered or 0) if peer == author else 0 for peer in roster)
    chain = replace(CHAIN, roster=roster, entered=versions, dialable=bytes(len(roster)))
    made = replace(waiting(author).contribution, tokens=5000, since_version=since_version)
    sealed = seal_message(AUTHOR, RUN, made)

    def listing(tokens: int) -> Commit:
        entry = Entry(author, made.seq, made.incarnation, made.root, 0, 1, tokens, made.steps)
        return Commit(0, CHAIN.head, CommitList((entry,), ()), (sealed,), (Holders((author,)),), "a test")

    (listed,) = check_commit(chain, listing(due), open_sealed, 1000)
    assert listed.contribution == made
    for tokens in (5000, due + 1, due - 1):
        with pytest.raises(RemoteError, match=f"weighs {tokens} tokens where {due} are due"):
            check_commit(chain, listing(tokens), open_sealed, 1000)
