"""Coming to the swarm's state: by the commit log when another peer's reaches one of our heads, else by a snapshot.

Everything is fetched and checked here, in the network thread; the trainer then makes one move. What is fetched stays pinned
until the next time, so that no save of the trainer removes it before it was used.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from peer.fetch import Asker, Fetcher
from peer.handoff import AdoptState, ApplyCommits
from swarm.allreduce.shared import record_digest
from swarm.chain import ChainState, apply
from swarm.digest import Digest
from swarm.errors import MalformedBytes, NetworkError, RemoteError
from swarm.identity import PeerId
from swarm.messages import GetLog, GetState, Log, StateRecord, UnitState
from swarm.round.commits import Listed, OpenContribution, check_commit

ASKED_FOR_STATE: Final = 5  # peers whose state records are compared
MAX_REFUSED: Final = 64  # states remembered that could not be used
_TIMEOUT_S: Final = 10.0
_FETCHED_AT_ONCE: Final = 8  # blobs; each asks every holder for a few chunks at a time
_PINS: Final = "catching up"


@dataclass(frozen=True, slots=True)
class Target:
    """What the trainer is told to move to, and what it cost to get it."""

    order: ApplyCommits | AdoptState
    how: str
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """One blob to fetch."""

    root: Digest
    holders: tuple[PeerId, ...]
    num_bytes: int


class CatchUpFailed(NetworkError):
    """Nobody could bring us to the swarm's state now; it is tried again when the need is seen again."""


class Catcher:
    """Finds the way to a better head."""

    def __init__(self, asker: Asker, fetcher: Fetcher, open_contribution: OpenContribution, lease_windows: int) -> None:
        self._asker = asker
        self._fetcher = fetcher
        self._open_contribution = open_contribution
        self._lease_windows = lease_windows
        self._refused: dict[Digest, None] = {}

    def refuse(self, record: StateRecord) -> None:
        """Proposes this state no more as long as there are others: the trainer could not use it."""
        self._refused[record_digest(record)] = None
        while len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]

    async def find(
        self, peers: Sequence[PeerId], chains: Sequence[ChainState], *, whole: bool, units: tuple[UnitState, ...] = ()
    ) -> Target:
        """The move to make; its blobs are in the store, pinned. `chains`: states we can go back to, newest first.

        `whole`: take a snapshot in any case. `units`: of our own state; all states of a run have as many, of these lengths.
        Raises CatchUpFailed with each peer's reason, StateError when a blob cannot be stored.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        faults = []
        for peer in () if whole else peers[:ASKED_FOR_STATE]:
            try:
                order, num_bytes = await self._by_log(peer, chains)
                return Target(order, "log", num_bytes, clock() - started)
            except (NetworkError, RemoteError) as error:
                faults.append(f"{peer}: {error}")
        try:
            snapshot, num_bytes = await self._by_snapshot(peers, chains[0], units, keep_progress=not whole)
        except (NetworkError, RemoteError) as error:
            raise CatchUpFailed("; ".join([*faults, str(error)])) from None
        return Target(snapshot, "snapshot", num_bytes, clock() - started)

    async def _by_log(self, peer: PeerId, chains: Sequence[ChainState]) -> tuple[ApplyCommits, int]:
        heads = tuple(chain.head for chain in chains)
        log = await self._asker.ask(peer, GetLog(heads), timeout_s=_TIMEOUT_S)
        if not isinstance(log, Log) or log.base not in heads:
            raise MalformedBytes("its log starts from a head that we did not name")
        # In a thread: every announcement in it has a signature to be checked.
        chain, listed = await asyncio.to_thread(self._follow, chains[heads.index(log.base)], log)
        if chain.head in chains[0].barred:
            raise MalformedBytes(f"its log leads to head {chain.head}, which is barred")
        if chain.key <= chains[0].key:
            raise NetworkError(f"its log leads to version {chain.version}, which is no better than ours")
        wanted = [
            Wanted(
                one.contribution.root,
                tuple(dict.fromkeys((peer, *one.holders))),
                one.contribution.num_bytes,
            )
            for one in listed
        ]
        await fetch_all(self._fetcher, wanted)
        return ApplyCommits(log.base, log.commits, caught_up=True), sum(one.num_bytes for one in wanted)

    def _follow(self, chain: ChainState, log: Log) -> tuple[ChainState, list[Listed]]:
        """Where the log leads from `chain`, and all that it lists on the way; raises RemoteError."""
        listed: list[Listed] = []
        for commit in log.commits:
            listed += check_commit(chain, commit, self._open_contribution)
            chain = apply(chain, commit.commit, self._lease_windows)
        return chain, listed

    async def _by_snapshot(
        self, peers: Sequence[PeerId], own: ChainState, units: tuple[UnitState, ...], *, keep_progress: bool
    ) -> tuple[AdoptState, int]:
        reported = await states_of(self._asker, peers[:ASKED_FOR_STATE])
        lengths = [unit.num_bytes for unit in units]
        usable = {
            peer: one
            for peer, one in reported.items()
            if (not keep_progress or one.chain.key > own.key)
            and one.chain.head not in own.barred
            and (not units or [unit.num_bytes for unit in one.units] == lengths)
        }
        if not usable:
            raise NetworkError("nobody has a state that ranks above ours")
        # Of states that could not be used before, only if there is no other: the fault may have been ours.
        usable = {peer: one for peer, one in usable.items() if record_digest(one) not in self._refused} or usable
        record, num_bytes = await fetch_best_state(self._fetcher, usable)
        return AdoptState(record, keep_progress), num_bytes


async def states_of(asker: Asker, peers: Iterable[PeerId]) -> dict[PeerId, StateRecord]:
    """The state records of those peers who have one and say so."""

    async def of(peer: PeerId) -> StateRecord | None:
        try:
            answer = await asker.ask(peer, GetState(), timeout_s=_TIMEOUT_S)
        except (NetworkError, RemoteError):
            return None
        return answer if isinstance(answer, StateRecord) else None

    asked = tuple(dict.fromkeys(peers))
    answers = await asyncio.gather(*(of(peer) for peer in asked))
    return {peer: one for peer, one in zip(asked, answers, strict=True) if one is not None}


async def fetch_best_state(fetcher: Fetcher, reported: Mapping[PeerId, StateRecord]) -> tuple[StateRecord, int]:
    """The state that most of these peers report, among equals the one that ranks highest, and its bytes; in the store.

    When its blobs cannot be had the next one is tried: who reports a state that is not there keeps nobody from the others.
    Raises NetworkError with each reason.
    """
    by_digest = {record_digest(one): one for one in reported.values()}
    votes = Counter(record_digest(one) for one in reported.values())
    faults = []
    for digest, record in sorted(by_digest.items(), key=lambda item: (votes[item[0]], item[1].chain.key), reverse=True):
        holders = tuple(peer for peer, one in reported.items() if record_digest(one) == digest)
        try:
            await fetch_all(fetcher, [Wanted(unit.root, holders, unit.num_bytes) for unit in record.units])
        except NetworkError as error:
            faults.append(f"version {record.chain.version}: {error}")
            continue
        return record, sum(unit.num_bytes for unit in record.units)
    raise NetworkError("; ".join(faults) or "nobody has a state")


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
