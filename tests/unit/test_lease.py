"""Leases by their laws: disjoint and covering, each slot handed out once, nothing forgotten over a restart."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import wire
from swarm.errors import LocalError, MalformedBytes
from swarm.identity import PeerId
from swarm.lease import MAX_OLDER_LEASES, Lease, LeaseQueue, leases, window_of_slot

peers = st.lists(st.binary(min_size=32, max_size=32).map(PeerId), min_size=1, max_size=12, unique=True)


@given(cursor=st.integers(0, 2**50), roster=peers, cap=st.integers(1, 1000), chance=st.randoms())
def test_leases_cover_the_round_and_never_meet(cursor, roster, cap, chance) -> None:
    handed = leases(cursor, roster, cap)
    assert set(handed) == set(roster)
    place = cursor
    for lease in sorted(handed.values()):
        assert lease == Lease(place, cap)
        place = lease.stop
    assert place == cursor + len(roster) * cap
    shuffled = list(roster)
    chance.shuffle(shuffled)
    assert leases(cursor, shuffled, cap) == handed


def test_a_member_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="once"):
        leases(0, [PeerId(bytes(32)), PeerId(bytes(32))], 4)


def test_no_slot_twice_over_many_rounds_of_changing_rosters() -> None:
    members = [PeerId(bytes([number]) * 32) for number in range(5)]
    queues = {peer: LeaseQueue() for peer in members}
    used: Counter[int] = Counter()
    cursor = 0
    for version in range(30):
        roster = [peer for place, peer in enumerate(members) if (version >> place) % 3 != 1]
        handed = leases(cursor, roster, 8)
        for peer, queue in queues.items():
            queue.begin_round(cursor, handed.get(peer))
        cursor = cursor + len(roster) * 8
        for place, peer in enumerate(roster):
            used.update(queues[peer].take(min(queues[peer].remaining, 3 * place + version % 5)))
    assert max(used.values()) == 1 and max(used) < cursor
    left = sum(queue.remaining + queue.dropped for queue in queues.values())
    assert len(used) + left == cursor  # what was handed out is used, still held, or a counted hole


spans = st.builds(Lease, st.integers(0, 60), st.integers(1, 25))


@given(st.lists(st.one_of(spans, st.integers(0, 12)), max_size=25))
def test_a_remembered_slot_is_handed_out_once(actions: list[Lease | int]) -> None:
    """Against a plain reference of sets: overlapping leases stand for forks and take-overs."""
    queue = LeaseQueue()
    remembered: list[Lease] = []
    unused: list[set[int]] = []
    for action in actions:
        if isinstance(action, Lease):
            queue.add(action)
            if action not in remembered:
                seen = {slot for lease in remembered for slot in range(lease.first, lease.stop)}
                remembered.append(action)
                unused.append(set(range(action.first, action.stop)) - seen)
                del remembered[: -MAX_OLDER_LEASES - 1], unused[: -MAX_OLDER_LEASES - 1]
        else:
            free = [slot for slots in unused for slot in sorted(slots)]
            if action > len(free):
                with pytest.raises(LocalError, match="remain"):
                    queue.take(action)
                continue
            taken = queue.take(action)
            assert taken == tuple(free[:action])
            unused = [slots - set(taken) for slots in unused]
        assert queue.remaining == sum(map(len, unused))
        queue = LeaseQueue.from_value(wire.decode(wire.encode(queue.to_value())))


def test_an_empty_queue_gives_nothing() -> None:
    queue = LeaseQueue()
    with pytest.raises(LocalError, match="1 slots were taken where 0 remain"):
        queue.take(1)
    queue.add(Lease(10, 3))
    assert queue.take(3) == (10, 11, 12)
    queue.add(Lease(10, 3))  # the same once more
    with pytest.raises(LocalError, match="remain"):
        queue.take(1)


def test_a_lease_taken_ahead_is_the_next_one_if_the_roster_stays() -> None:
    queue = LeaseQueue()
    queue.begin_round(10, Lease(10, 4))
    assert queue.take(4) == (10, 11, 12, 13)
    queue.add(Lease(18, 4))  # of the next head, which begins at 18
    assert queue.take(3) == (18, 19, 20)
    queue.begin_round(18, Lease(18, 4))
    assert queue.remaining == 1 and queue.take(1) == (21,)
    queue.begin_round(26, Lease(26, 4))
    assert queue.remaining == 4 and queue.dropped == 0


@pytest.mark.parametrize("handed", [Lease(22, 4), None], ids=["another place in the roster", "no member any more"])
def test_a_lease_taken_ahead_is_given_back_if_the_roster_changes(handed: Lease | None) -> None:
    """What is left of it is another member's now."""
    queue = LeaseQueue()
    queue.begin_round(10, Lease(10, 4))
    queue.take(3)
    queue.add(Lease(18, 4))
    assert queue.take(2) == (13, 18)
    queue.begin_round(18, handed)
    assert queue.dropped == 3 and queue.remaining == (4 if handed else 0)
    if handed:
        assert queue.take(4) == (22, 23, 24, 25)


def test_a_lease_of_a_branch_that_was_left_is_given_back() -> None:
    queue = LeaseQueue()
    for cursor in (0, 10, 20):
        queue.begin_round(cursor, Lease(cursor, 5))
    queue.begin_round(10, Lease(15, 5))
    assert queue.take(10) == (0, 1, 2, 3, 4, 15, 16, 17, 18, 19) and queue.remaining == 0


def test_slots_that_grow_too_old_are_counted() -> None:
    queue = LeaseQueue()
    for first in range(0, 50, 10):
        queue.add(Lease(first, 10))
    assert (queue.remaining, queue.dropped) == (30, 20)
    assert queue.take(1) == (20,)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [[], 0, 0],
        [[], -1],
        [[[[0, 0], []]], 0],
        [[[[0, 10], [[5, 10]]]], 0],
        [[[[0, 10], [[5, 2], [4, 1]]]], 0],
        [[[[0, 10], [[0, 5]]], [[2, 10], [[3, 1]]]], 0],
        [[[[number, 1], []] for number in range(4)], 0],
        [[[[2**63, 1], []]], 0],
    ],
)
def test_a_state_that_cannot_be_is_refused(value: object) -> None:
    with pytest.raises(MalformedBytes):
        LeaseQueue.from_value(value)


def test_a_state_of_version_0_1_is_read() -> None:
    queue = LeaseQueue.from_value([[[[0, 10], [[7, 3]]]], 2, 2, 5])
    assert queue.take(3) == (7, 8, 9) and queue.dropped == 5


def test_each_pass_uses_each_window_once_in_its_own_order() -> None:
    passes = [[window_of_slot(slot, 37, 5) for slot in range(start, start + 37)] for start in (0, 37, 74)]
    assert all(sorted(order) == list(range(37)) for order in passes)
    assert passes[0] != passes[1] != passes[2]
