"""Drives the catch-up machine: its questions go over the network, what it fetches into the store, what it decides to the
trainer.

Everything is fetched and checked here, in the network thread; the trainer then makes one move. What is fetched stays pinned
until the next time, so that no save of the trainer removes it before it was used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from peer.fetch import Asker, Fetcher
from peer.handoff import AdoptState, ApplyCommits
from swarm.digest import Digest
from swarm.errors import NetworkError, RemoteError
from swarm.identity import PeerId
from swarm.lease import LeaseSize
from swarm.messages import GetLog, GetState, GetStatus, StateRecord, record_digest
from swarm.round import catch_up
from swarm.round.catch_up import Answer, CatchUpMachine, CatchUpRequest, Outcome, Wanted
from swarm.round.commits import Verifier
from swarm.round.joining import Reports, of_strangers

ASKED_FOR_STATE: Final = catch_up.ASKED_FOR_STATE
MAX_REFUSED: Final = 64  # states remembered that could not be used
_TIMEOUT_S: Final = 10.0
_FETCHED_AT_ONCE: Final = 8  # blobs; each asks every holder for a few chunks at a time
_PINS: Final = "catching up"


@dataclass(frozen=True, slots=True)
class Target:
    """What the trainer is told to do, and what it cost to get there."""

    order: ApplyCommits | AdoptState
    how: str
    num_bytes: int
    seconds: float
    left_tokens: int = 0  # of a branch that is left


class CatchUpFailed(NetworkError):
    """Nobody could bring us to the swarm's state now; it is tried again when the need is seen again."""

    def __init__(self, reason: str, is_refused: bool = False) -> None:
        super().__init__(reason)
        self.is_refused = is_refused  # what we were led to is not to be followed


class Catcher:
    """Finds the way to a better head."""

    def __init__(self, asker: Asker, fetcher: Fetcher, verifier: Verifier, lease: LeaseSize) -> None:
        self._asker = asker
        self._fetcher = fetcher
        self._verifier = verifier
        self._lease = lease
        self._refused: dict[Digest, None] = {}

    def refuse(self, record: StateRecord) -> None:
        """Proposes this state no more as long as there are others: the trainer could not use it."""
        self._refused[record_digest(record)] = None
        while len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]

    async def find(self, request: CatchUpRequest, begins: Callable[[], bool] = lambda: True) -> Target:
        """What to do; its blobs are in the store, pinned. `begins` is called once the way is clear, before anything is
        fetched, and says whether it is still wanted.

        Raises CatchUpFailed with each peer's reason, StateError when a blob cannot be stored.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        machine = catch_up.catch_up(replace(request, refused=frozenset(self._refused)), self._verifier, self._lease)
        outcome = await self._drive(machine, begins)
        seconds = clock() - started
        match outcome:
            case catch_up.Move(base, commits, roots, num_bytes):
                return Target(ApplyCommits(base, commits, roots, caught_up=True), "log", num_bytes, seconds)
            case catch_up.Adopt(record, root, keep_progress, num_bytes, left_tokens, by_strangers):
                how = "snapshot, on the word of strangers" if by_strangers else "snapshot"
                return Target(AdoptState(record, root, keep_progress), how, num_bytes, seconds, left_tokens)
            case catch_up.Failed(reason, is_refused):
                raise CatchUpFailed(reason, is_refused)

    async def _drive(self, machine: CatchUpMachine, begins: Callable[[], bool]) -> Outcome:
        answer: Answer = None
        while True:
            # In a thread: every announcement of a log has a signature to be checked.
            question = await asyncio.to_thread(_next, machine, answer)
            match question:
                case catch_up.Ask(peers, message, timeout_s):
                    answer = await ask_all(self._asker, peers, message, timeout_s or _TIMEOUT_S)
                case catch_up.FetchBlobs(wanted):
                    if not begins():
                        raise CatchUpFailed("this peer has gone on meanwhile", is_refused=True)
                    answer = await self._fetch(wanted)
                case _:
                    return question

    async def _fetch(self, wanted: Sequence[Wanted]) -> str:
        try:
            await fetch_all(self._fetcher, wanted)
        except NetworkError as error:
            return str(error) or type(error).__name__
        return ""


def _next(machine: CatchUpMachine, answer: Answer) -> catch_up.Question | Outcome:
    try:
        return machine.send(answer)
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome


async def ask_all(
    asker: Asker, peers: Iterable[PeerId], message: GetLog | GetState | GetStatus, timeout_s: float = _TIMEOUT_S
) -> dict[PeerId, object]:
    """Each peer's answer, or the reason why there is none."""

    async def of(peer: PeerId) -> object:
        try:
            return await asker.ask(peer, message, timeout_s=timeout_s)
        except (NetworkError, RemoteError) as error:
            return str(error)

    asked = tuple(dict.fromkeys(peers))
    answers = await asyncio.gather(*(of(peer) for peer in asked))
    return dict(zip(asked, answers, strict=True))


async def states_of(asker: Asker, peers: Iterable[PeerId]) -> dict[PeerId, StateRecord]:
    """The state records of those peers who have one and say so."""
    answers = await ask_all(asker, peers, GetState())
    return {peer: one for peer, one in answers.items() if isinstance(one, StateRecord)}


async def fetch_reported(fetcher: Fetcher, reported: Mapping[PeerId, StateRecord]) -> tuple[StateRecord, int]:
    """The state that more than half of these peers report, and its bytes; in the store. Raises NetworkError."""
    found = of_strangers(None, Reports(reported))
    faults = [found.reason] if found.reason else []
    for record, holders in found.states:
        try:
            await fetch_all(fetcher, [Wanted(unit.root, holders, unit.num_bytes) for unit in record.units])
        except NetworkError as error:
            faults.append(f"version {record.chain.version}: {error}")
            continue
        return record, sum(unit.num_bytes for unit in record.units)
    raise NetworkError("; ".join(faults))


async def fetch_all(fetcher: Fetcher, wanted: Sequence[Wanted]) -> None:
    """Fetches them together, pinned; the first failure ends the others and rises by itself."""
    fetcher.pin(_PINS, [one.root for one in wanted])
    places = asyncio.Semaphore(_FETCHED_AT_ONCE)

    async def fetch(one: Wanted) -> None:
        async with places:
            await fetcher.fetch(one.root, one.holders, one.num_bytes)

    tasks = [asyncio.create_task(fetch(one)) for one in wanted]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
