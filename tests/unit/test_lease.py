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
        for peer, lease in leases(cursor, roster, 8).items():
            queues[peer].add(lease)
        cursor = cursor + len(roster) * 8
        for place, peer in enumerate(roster):
            used.update(queues[peer].take(min(queues[peer].remaining, 3 * place + version % 5)))
    assert max(used.values()) == 1 and max(used) < cursor
    assert sum(queue.duplicates for queue in queues.values()) == 0
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
        elif remembered:
            before, free = queue.duplicates, sum(map(len, unused))
            taken = queue.take(action)
            assert len(taken) == action
            fresh, again = taken[:free], taken[free:]
            assert fresh == tuple([slot for slots in unused for slot in sorted(slots)][:action])
            assert all(remembered[-1].first <= slot < remembered[-1].stop for slot in again)
            assert queue.duplicates == before + len(again)
            unused = [slots - set(fresh) for slots in unused]
        assert queue.remaining == sum(map(len, unused))
        queue = LeaseQueue.from_value(wire.decode(wire.encode(queue.to_value())))


def test_an_empty_queue_starts_over_and_counts() -> None:
    queue = LeaseQueue()
    with pytest.raises(LocalError):
        queue.take(1)
    queue.add(Lease(10, 3))
    assert queue.take(8) == (10, 11, 12, 10, 11, 12, 10, 11)
    assert queue.duplicates == 5
    queue.add(Lease(20, 2))
    assert queue.take(3) == (20, 21, 20)


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
        [[], -1, 0, 0],
        [[[[0, 0], []]], 0, 0, 0],
        [[[[0, 10], [[5, 10]]]], 0, 0, 0],
        [[[[0, 10], [[5, 2], [4, 1]]]], 0, 0, 0],
        [[[[0, 10], [[0, 5]]], [[2, 10], [[3, 1]]]], 0, 0, 0],
        [[[[number, 1], []] for number in range(4)], 0, 0, 0],
        [[[[2**63, 1], []]], 0, 0, 0],
    ],
)
def test_a_state_that_cannot_be_is_refused(value: object) -> None:
    with pytest.raises(MalformedBytes):
        LeaseQueue.from_value(value)


def test_each_pass_uses_each_window_once_in_its_own_order() -> None:
    passes = [[window_of_slot(slot, 37, 5) for slot in range(start, start + 37)] for start in (0, 37, 74)]
    assert all(sorted(order) == list(range(37)) for order in passes)
    assert passes[0] != passes[1] != passes[2]
