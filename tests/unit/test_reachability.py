"""What a contributor reads of who can dial this peer: never a claim that nobody knows to be true, and no more than needed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from peer.reachability import AGAIN_S, ALONE_S, FIRST_S, Facts, Reachability, facts_of
from swarm.chain import genesis
from swarm.config import RunConfig
from swarm.identity import PeerId
from swarm.messages import PeerStatus, seal_message
from swarm.round.commits import Seals
from swarm.round.facts import Figures, HeadReached, Measured
from swarm.round.own import Self
from swarm.round.participant import Participant
from swarm.round.root import root_at
from tests.unit.message_examples import RUN, example_of, keypair

ME = keypair(1).peer_id
LAN = f"/ip4/192.168.1.5/tcp/4001/p2p/{ME.base58}"
PUBLIC = f"/ip4/203.0.113.5/tcp/4001/p2p/{ME.base58}"
BEHIND = Facts((LAN,), is_dialable=False, is_near=False, has_company=True)
ALONE = replace(BEHIND, has_company=False)
DIALLED = Facts((PUBLIC, LAN), is_dialable=True, is_near=False, has_company=True)
NOBODY = "not reachable from outside: you still contribute; forward TCP 4001 to help others"
NO_PEER = "no reachable peer: forward TCP 4001, or start a monitor"


def said(*moments: tuple[float, Facts], shown: tuple[str, ...] = (LAN,)) -> list[tuple[float, str]]:
    """When each line was said."""
    reachability = Reachability(shown, 4001, 0.0)
    return [(at_s, line) for at_s, facts in moments for line in reachability.lines(facts, at_s)]


def test_a_home_behind_nat_is_told_once_after_the_first_minute() -> None:
    assert said(*((float(second), BEHIND) for second in range(0, 600, 2))) == [(FIRST_S, NOBODY)]


def test_whom_others_have_dialled_is_told_at_once_and_where() -> None:
    lines = said((3.0, DIALLED), (5.0, DIALLED), (90.0, DIALLED), shown=DIALLED.addresses)
    assert lines == [(3.0, "reachable from outside at /ip4/203.0.113.5/tcp/4001")]


def test_whom_only_its_own_network_has_dialled_is_not_called_reachable_from_outside() -> None:
    (line,) = said((3.0, replace(DIALLED, is_near=True)), shown=DIALLED.addresses)
    assert line[1] == (
        "reachable in this network at /ip4/192.168.1.5/tcp/4001; forward TCP 4001 to help others outside it"
    )


def test_a_change_is_told_again_but_not_more_than_once_a_minute() -> None:
    unsure = replace(BEHIND, addresses=DIALLED.addresses)
    flapping = [(float(second), DIALLED if second % 20 < 10 else unsure) for second in range(61, 601, 10)]
    times = [at_s for at_s, _ in said(*flapping, shown=DIALLED.addresses)]
    assert len(times) > 4 and all(later - earlier >= AGAIN_S for earlier, later in pairwise(times))


def test_who_can_reach_nobody_is_told_what_helps() -> None:
    lost = [(30.0, BEHIND), *((float(second), ALONE) for second in range(31, 200))]
    assert said(*lost) == [(30.0 + ALONE_S, NO_PEER)]
    never_met = [(float(second), ALONE) for second in range(200)]
    assert said(*never_met) == [(FIRST_S, NO_PEER)], "at first others may still be coming"
    told_before = [(FIRST_S, BEHIND), *((float(second), ALONE) for second in range(61, 200))]
    assert [line for _, line in said(*told_before)] == [NOBODY, NO_PEER]
    assert said(*told_before)[1][0] < FIRST_S + AGAIN_S, "that does not wait for the minute to be over"


def test_the_first_peer_of_a_run_at_a_public_address_waits_for_others_in_silence() -> None:
    assert said(*((float(second), replace(ALONE, addresses=(PUBLIC,))) for second in range(200)), shown=(PUBLIC,)) == []


def test_new_addresses_are_shown() -> None:
    """A router that was restarted has another address: what stood on the screen is wrong from then on."""
    moved = replace(BEHIND, addresses=(PUBLIC, LAN))
    lines = said((10.0, BEHIND), (12.0, moved), (14.0, BEHIND), (80.0, replace(BEHIND, addresses=())))
    told = "the addresses that others are told of this peer are now: "
    assert [line for line in lines if line[1] != NOBODY] == [
        (12.0, f"{told}/ip4/203.0.113.5/tcp/4001, /ip4/192.168.1.5/tcp/4001"),
        (80.0, f"{told}none"),
    ]


# -------------------------------------------------------------------- the facts


def a_participant(dialled: tuple[PeerId, ...] = ()) -> Participant:
    chain = genesis(RUN, RUN)
    start = HeadReached(chain, RUN, root_at(chain))
    participant = Participant(Self(ME, "me", "cpu", 1), RunConfig(), start, Seals.of(keypair(1), RUN))
    participant.step(Measured(Figures(dialled=dialled)), 100.0)
    return participant


def hear(participant: Participant, number: int, host: str, dialled: tuple[PeerId, ...], age_s: float = 0.0) -> None:
    peer = keypair(number).peer_id
    address = f"/ip4/{host}/tcp/4001/p2p/{peer.base58}"
    status: PeerStatus = replace(
        example_of(PeerStatus), peer=peer, addresses=(address,), dialled=dialled, pending=None, holding=()
    )
    participant.presence.hear(status, seal_message(keypair(number), RUN, status), 100.0, age_s)


def test_company_is_whoever_is_heard_or_answers_a_dial() -> None:
    assert not facts_of(a_participant(), (LAN,), 100.0).has_company
    assert facts_of(a_participant((keypair(2).peer_id,)), (LAN,), 100.0).has_company
    participant = a_participant()
    hear(participant, 2, "10.0.0.1", (), age_s=500.0)
    assert not facts_of(participant, (LAN,), 100.0).has_company, "what somebody said long ago"
    hear(participant, 3, "10.0.0.1", ())
    assert facts_of(participant, (LAN,), 100.0).has_company


@pytest.mark.parametrize(
    ("own", "hosts", "is_near"),
    [
        ((LAN,), ["192.168.1.6"], True),
        ((LAN,), ["192.168.1.6", "192.168.2.6"], False),
        ((PUBLIC, LAN), ["192.168.1.6", "203.0.113.5"], True),  # the same router
        ((PUBLIC, LAN), ["203.0.113.6"], False),  # an internet provider's next customer
        ((PUBLIC,), ["198.51.100.1"], False),
    ],
)
def test_dials_of_neighbours_say_nothing_of_the_outside(own: tuple[str, ...], hosts: list[str], is_near: bool) -> None:
    participant = a_participant()
    assert not facts_of(participant, own, 100.0).is_dialable
    for number, host in enumerate(hosts, 2):
        hear(participant, number, host, (ME,))
    facts = facts_of(participant, own, 100.0)
    assert facts.is_dialable and facts.is_near == is_near


def test_what_the_chain_says_counts_where_no_status_is_at_hand() -> None:
    participant = a_participant()
    chain = replace(participant.chain, roster=(ME,), entered=(0,), dialable=bytes([1]), voting=b"\3")
    participant._turn.chain = chain
    assert facts_of(participant, (PUBLIC,), 100.0).is_dialable
    assert not facts_of(participant, (PUBLIC,), 100.0).is_near
    assert facts_of(participant, (LAN,), 100.0).is_near, "a private address alone is no claim of more"
