"""A swarm in one process and one thread: the product's own peers on a virtual clock, without sockets.

Each `Member` is a whole peer as the product builds it: round machine, replica with its files on disk, inner trainer,
trainer, handoff, server, catcher. Two things stand in for the rest: `Member` does at once what the network side does in
tasks, and `Group` carries every message as sealed bytes. Nothing happens by chance: mail arrives in the order it was
sent, or in one that descends from a seed.

With every head that anyone reaches the group checks the law of the run: equal heads have equal state digests.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from peer import handoff as work
from swarm import chain as chains
from swarm.chain import Entry
from swarm.config import RunConfig
from swarm.digest import Digest
from swarm.identity import Keypair, PeerId
from swarm.messages import Commit, Contribution, record_digest
from swarm.round.facts import Unreached
from tests.equivalence.member import Member, Place
from tests.equivalence.stand_ins import Killed, with_batch

SWEEP_S = 0.1  # virtual time of one pass over all members
MAX_DELAY_S = 0.5  # of mail whose order descends from a seed
MAX_SWEEPS = 4000

_Result = TypeVar("_Result")


class Group:
    """Members by number, sorted by peer id, and the mail between them. A context manager: it owns an event loop."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        num_members: int,
        *,
        batches: Sequence[int] = (),  # windows of a step by member; each divides config.lease_windows
        dtype: torch.dtype = torch.float32,
        arrival_seed: int | None = None,  # None: mail arrives in the order it was sent
        checkpoints: bool = False,
    ) -> None:
        self.config, self.dtype, self.checkpoints = config, dtype, checkpoints
        self.now_s = 0.0
        self.states: dict[Digest, Digest] = {}  # head -> state digest
        self.commits: dict[Digest, Commit] = {}  # head -> the commit that led to it
        self.saved_updates: dict[int, Tensor] = {}  # by member: the inner updates that its saved state holds
        self.deaths: list[int] = []
        # What a test may bend: contributions that a member cannot fetch, the bytes of a message on its way, and what a
        # member's trainer is told to apply when its machine wants it to apply a commit.
        self.withheld: Callable[[Member, Contribution], bool] = lambda fetcher, contribution: False
        self.rewrite: Callable[[Member, Member, Any, bytes], bytes] = lambda sender, to, message, raw: raw
        self.commits_to_apply: Callable[[Member, Commit], list[Commit]] = lambda member, commit: [commit]
        self._sides: dict[PeerId, int] = {}  # of a network that is split
        self._arrival = None if arrival_seed is None else random.Random(arrival_seed)
        self._mail: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._loop = asyncio.new_event_loop()
        keypairs = sorted((Keypair.from_seed(bytes([7 + n] * 32)) for n in range(num_members)), key=lambda k: k.peer_id)
        own_configs = [with_batch(config, batch) for batch in batches] or [config] * num_members
        self.places = [
            Place(number, keypair, folder / f"member-{number}", own_config)
            for number, (keypair, own_config) in enumerate(zip(keypairs, own_configs, strict=True))
        ]
        self._members: dict[int, Member] = {}
        for place in self.places:
            self.start(place.number)  # introduces it to those before it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._loop.shutdown_default_executor())
        self._loop.close()

    # ---------------------------------------------------------------- life

    def start(self, number: int) -> Member:
        """Starts the process of a member, from what its folder holds."""
        member = Member(self, self.places[number])
        for other in self.members:
            for one, to in ((member, other), (other, member)):
                self.send(one, to.id, None, one.seal(one.participant.status()))
        self._members[number] = member
        member.trainer.begin()
        return member

    def kill(self, number: int) -> None:
        """Ends a member's process where it is."""
        del self._members[number]

    def __getitem__(self, number: int) -> Member:
        return self._members[number]

    def split(self, *sides: Sequence[int]) -> None:
        """From now on members hear only those of their own side."""
        self._sides = {
            self.places[number].keypair.peer_id: place for place, side in enumerate(sides) for number in side
        }

    def heal(self) -> None:
        """Everyone can hear everyone again."""
        self._sides = {}

    def are_apart(self, one: PeerId, other: PeerId) -> bool:
        return self._sides.get(one) != self._sides.get(other)

    @property
    def members(self) -> list[Member]:
        return list(self._members.values())

    def by_id(self, peer: PeerId) -> Member | None:
        return next((member for member in self.members if member.id == peer), None)

    # ---------------------------------------------------------------- running

    def sweep(self) -> None:
        """Mail that is due, one pass of each trainer, one tick. A member that dies in it starts again from its disk."""
        self._deliver()
        for member in self.members:
            with suppress(Killed):
                member.turn()
                continue
            self.deaths.append(member.place.number)
            self.kill(member.place.number)
            self.start(member.place.number)
        self.now_s += SWEEP_S
        for member in self.members:
            member.tick()

    def run_until(self, reached: Callable[[], bool]) -> None:
        for _ in range(MAX_SWEEPS):
            if reached():
                return
            self.sweep()
        waits = [(member.version, member.participant.waits_for) for member in self.members]
        raise AssertionError(f"not reached after {self.now_s:.0f} s of virtual time: {waits}")

    def run_to(self, version: int) -> None:
        """Until everyone has reached that version; those ahead may be further."""
        self.run_until(lambda: all(member.version >= version for member in self.members))

    def settle(self, version: int) -> None:
        """Until everyone stands at one head of at least that version."""
        self.run_until(
            lambda: len({member.head for member in self.members}) == 1 and self.members[0].version >= version
        )

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        return self._loop.run_until_complete(coroutine)

    # ---------------------------------------------------------------- mail

    def send(self, sender: Member, to: PeerId, message: object, raw: bytes) -> None:
        def arrive() -> None:
            receiver = self.by_id(to)
            if receiver is None or self.are_apart(sender.id, to):
                sender.post(Unreached(to))
                return
            _at_once(receiver.server.handle(sender.id, self.rewrite(sender, receiver, message, raw)))

        self._put(arrive)

    def later(self, member: Member, then: Callable[[], None]) -> None:
        """Runs `then` with the mail, if the member's process is still there."""
        self._put(lambda: then() if member in self.members else None)

    def _put(self, deliver: Callable[[], None]) -> None:
        delay_s = 0.0 if self._arrival is None else self._arrival.uniform(0.0, MAX_DELAY_S)
        heapq.heappush(self._mail, (self.now_s + delay_s, next(self._numbers), deliver))

    def _deliver(self) -> None:
        while self._mail and self._mail[0][0] <= self.now_s:
            heapq.heappop(self._mail)[2]()

    # ---------------------------------------------------------------- laws

    def note(self, member: Member, moved: work.Moved) -> None:
        """A member reached a head: equal heads have equal digests."""
        head, digest = moved.record.chain.head, record_digest(moved.record)
        assert self.states.setdefault(head, digest) == digest, (
            f"member {member.place.number} differs at version {moved.record.chain.version}"
        )
        for commit in moved.log:
            self.commits[chains.head_after(commit.parent, commit.commit)] = commit

    def chain_to(self, head: Digest) -> list[Commit]:
        """The commits that lead to a head, oldest first."""
        found: list[Commit] = []
        while head in self.commits:
            found.append(self.commits[head])
            head = found[-1].parent
        return found[::-1]

    def entries_of(self, head: Digest) -> list[Entry]:
        """Everything that the chain up to a head lists."""
        return [entry for commit in self.chain_to(head) for entry in commit.commit.entries]

    def digests_to(self, head: Digest) -> list[Digest]:
        """The state digests of versions 1, 2 ... up to a head."""
        heads = [chains.head_after(commit.parent, commit.commit) for commit in self.chain_to(head)]
        return [self.states[one] for one in heads]


def _at_once(coroutine: Coroutine[Any, Any, bytes]) -> None:
    """Runs a coroutine that has nothing to wait for: a one-way message at its server."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("a one-way message made its server wait")
