"""Who may train on what: leases of sample slots, a pure function of the data cursor and the roster.

A slot is a number that is used once along a chain, from 0 upwards without end. Slot s stands for one window of text in
pass s // num_windows. Each head hands every member `cap` slots; whoever leads, the same ones. What a member does not use
stays with it for its next rounds; what a member that left did not use is a hole, which the next pass fills.

A member that has cut may train one round ahead of the commit: on the slots that the next head will hand it if the roster
stays as it is. If it does not, those slots are another's, and what is left of them is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Final

from swarm.errors import LocalError, MalformedBytes
from swarm.identity import PeerId
from swarm.permutation import permute
from swarm.schema import U63, MaxLen, Range, from_value, to_value

MAX_OLDER_LEASES: Final = 2  # as long as a contribution may stay pending: slots older than that are a declared hole
MAX_SLOT: Final = 2**62


@dataclass(frozen=True, order=True, slots=True)
class Lease:
    """The slots [first, first + count)."""

    first: Annotated[int, Range(0, MAX_SLOT)]
    count: Annotated[int, Range(1, 2**40)]

    def __post_init__(self) -> None:
        if not 0 <= self.first <= MAX_SLOT or not 1 <= self.count <= 2**40:
            raise ValueError(f"a lease of {self.count} slots from {self.first}: at least 1 slot, from 0 to {MAX_SLOT}")

    @property
    def stop(self) -> int:
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class LeaseSize:
    """What a member gets for one round: slots to train on, and so the most that its work of that round may weigh."""

    windows: int
    tokens: int


def leases(cursor: int, roster: Sequence[PeerId], cap: int) -> dict[PeerId, Lease]:
    """Each member's slots for the round that starts at `cursor`: disjoint, together [cursor, cursor + len(roster) * cap).

    The order of `roster` does not matter. Raises ValueError for a member that is named twice, or a cap below 1.
    """
    members = sorted(roster)
    if len(set(members)) != len(members):
        raise ValueError("a roster names each member once")
    return {peer: Lease(cursor + place * cap, cap) for place, peer in enumerate(members)}


def window_of_slot(slot: int, num_windows: int, seed: int) -> int:
    """The window that a slot stands for: each pass over the windows has its own order, and uses each window once."""
    done_passes, place = divmod(slot, num_windows)
    return permute(place, num_windows, seed + done_passes)


@dataclass(frozen=True, slots=True)
class _Held:
    """A lease and what is unused of it: ascending, disjoint, inside the lease, in no other lease's unused slots."""

    lease: Lease
    unused: Annotated[tuple[Lease, ...], MaxLen(MAX_OLDER_LEASES + 2)]  # each older lease cuts at most one hole


def _count(held: _Held) -> int:
    return sum(part.count for part in held.unused)


@dataclass(frozen=True, slots=True)
class _QueueState:
    """The saved form of a LeaseQueue."""

    held: Annotated[tuple[_Held, ...], MaxLen(MAX_OLDER_LEASES + 1)]
    dropped: U63


def _without(ranges: tuple[Lease, ...], taken: Lease) -> tuple[Lease, ...]:
    """The slots of `ranges` that are not in `taken`."""
    left: list[Lease] = []
    for one in ranges:
        if one.first < min(one.stop, taken.first):
            left.append(Lease(one.first, min(one.stop, taken.first) - one.first))
        if max(one.first, taken.stop) < one.stop:
            begin = max(one.first, taken.stop)
            left.append(Lease(begin, one.stop - begin))
    return tuple(left)


class LeaseQueue:
    """What a member still may use: its newest lease and the unused slots of at most two older ones, oldest first.

    A slot of any remembered lease is handed out once. `dropped` counts unused slots that grew too old or were given back.
    """

    def __init__(self) -> None:
        self._held: tuple[_Held, ...] = ()  # oldest first
        self.dropped = 0

    @property
    def remaining(self) -> int:
        """How many slots can be taken."""
        return sum(map(_count, self._held))

    def begin_round(self, cursor: int, lease: Lease | None) -> None:
        """A head whose leases begin at `cursor` hands out `lease`; None: to a peer that is no member. Any other lease held
        from there on was taken ahead, or on a branch that was left: it is given back."""
        self._keep(tuple(held for held in self._held if held.lease.first < cursor or held.lease == lease))
        if lease is not None:
            self.add(lease)

    def add(self, lease: Lease) -> None:
        """Takes a new lease in. A lease that is remembered already, or the part of it that is, gives nothing new."""
        if any(held.lease == lease for held in self._held):
            return
        unused: tuple[Lease, ...] = (lease,)
        for held in self._held:
            unused = _without(unused, held.lease)
        self._keep((*self._held, _Held(lease, unused))[-MAX_OLDER_LEASES - 1 :])

    def _keep(self, held: tuple[_Held, ...]) -> None:
        self.dropped += sum(_count(one) for one in self._held if one not in held)
        self._held = held

    def take(self, count: int) -> tuple[int, ...]:
        """The next `count` slots; they count as used. Raises LocalError when fewer remain."""
        if count > self.remaining:
            raise LocalError(f"{count} slots were taken where {self.remaining} remain")
        slots: list[int] = []
        for place, held in enumerate(self._held):
            unused = held.unused
            while unused and len(slots) < count:
                part = unused[0]
                used = min(part.count, count - len(slots))
                slots.extend(range(part.first, part.first + used))
                unused = _without(unused, Lease(part.first, used))
            self._held = (*self._held[:place], _Held(held.lease, unused), *self._held[place + 1 :])
        return tuple(slots)

    def to_value(self) -> Any:
        """The wire value that `from_value` reads."""
        return to_value(_QueueState(self._held, self.dropped))

    @classmethod
    def from_value(cls, value: Any) -> LeaseQueue:
        """The queue that `to_value` wrote; raises MalformedBytes."""
        match value:
            case [held, int(), int(), dropped]:  # version 0.1 counted slots that it used again
                value = [held, dropped]
        state = from_value(_QueueState, value)
        for held in state.held:
            stop = held.lease.first
            for part in held.unused:
                if part.first < stop or part.stop > held.lease.stop:
                    raise MalformedBytes(f"unused slots from {part.first} do not lie in order inside their lease")
                stop = part.stop
        parts = sorted(part for held in state.held for part in held.unused)
        if any(one.stop > other.first for one, other in pairwise(parts)):
            raise MalformedBytes("a slot is unused in two leases")
        queue = cls()
        queue._held = state.held
        queue.dropped = state.dropped
        return queue
