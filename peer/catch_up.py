"""Coming to the swarm's state: by the commit log when another peer's reaches one of our heads, else by a snapshot.

Everything is fetched and checked here, in the network thread; the trainer then makes one move.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from peer.fetch import Asker, Fetcher
from peer.handoff import AdoptState, ApplyCommits
from swarm.allreduce.shared import record_digest
from swarm.chain import ChainState, apply
from swarm.digest import Digest
from swarm.errors import MalformedBytes, NetworkError, RemoteError
from swarm.identity import PeerId
from swarm.messages import GetLog, GetState, Log, StateRecord
from swarm.round.commits import OpenContribution, check_commit

ASKED_FOR_STATE: Final = 5  # peers whose state records are compared
_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """What the trainer is told to move to, and what it cost to get it."""

    order: ApplyCommits | AdoptState
    how: str
    num_bytes: int
    seconds: float


class CatchUpFailed(NetworkError):
    """Nobody could bring us to the swarm's state now; it is tried again when the need is seen again."""


class Catcher:
    """Finds the way to a better head."""

    def __init__(self, asker: Asker, fetcher: Fetcher, open_contribution: OpenContribution, lease_windows: int) -> None:
        self._asker = asker
        self._fetcher = fetcher
        self._open_contribution = open_contribution
        self._lease_windows = lease_windows

    async def find(self, peers: Sequence[PeerId], chains: Sequence[ChainState], *, whole: bool) -> Target:
        """The move to make; its blobs are in the store. `chains`: states we can go back to, newest first.

        `whole`: take a snapshot in any case. Raises CatchUpFailed with each peer's reason.
        """
        started = time.monotonic()
        faults = []
        for peer in () if whole else peers[:ASKED_FOR_STATE]:
            try:
                order, num_bytes = await self._by_log(peer, chains)
                return Target(order, "log", num_bytes, time.monotonic() - started)
            except (NetworkError, RemoteError) as error:
                faults.append(f"{peer}: {error}")
        try:
            snapshot, num_bytes = await self._by_snapshot(peers, chains[0], keep_progress=not whole)
        except (NetworkError, RemoteError) as error:
            raise CatchUpFailed("; ".join([*faults, str(error)])) from None
        return Target(snapshot, "snapshot", num_bytes, time.monotonic() - started)

    async def _by_log(self, peer: PeerId, chains: Sequence[ChainState]) -> tuple[ApplyCommits, int]:
        heads = tuple(chain.head for chain in chains)
        log = await self._asker.ask(peer, GetLog(heads), timeout_s=_TIMEOUT_S)
        if not isinstance(log, Log) or log.base not in heads:
            raise MalformedBytes("its log starts from a head that we did not name")
        chain = chains[heads.index(log.base)]
        num_bytes = 0
        fetches = []
        for commit in log.commits:
            for one in check_commit(chain, commit, self._open_contribution):
                holders = [peer, *(holder for holder in one.holders if holder != peer)]
                fetches.append(self._fetch(one.contribution.root, holders, one.contribution.num_bytes))
                num_bytes += one.contribution.num_bytes
            chain = apply(chain, commit.commit, self._lease_windows)
        if chain.key <= chains[0].key:
            for fetch in fetches:
                fetch.close()
            raise MalformedBytes(f"its log leads to version {chain.version}, which is no better than ours")
        await _all(fetches)
        return ApplyCommits(log.base, log.commits, caught_up=True), num_bytes

    async def _by_snapshot(
        self, peers: Sequence[PeerId], own: ChainState, *, keep_progress: bool
    ) -> tuple[AdoptState, int]:
        """The state that most of the asked peers report; among equals the one that ranks highest."""
        answers = await asyncio.gather(*(self._state_of(peer) for peer in peers[:ASKED_FOR_STATE]))
        reported = {peer: one for peer, one in zip(peers, answers, strict=False) if one is not None}
        usable = [one for one in reported.values() if not keep_progress or one.chain.key > own.key]
        if not usable:
            raise NetworkError("nobody has a state that ranks above ours")
        votes = Counter(record_digest(one) for one in usable)
        best = max(usable, key=lambda one: (votes[record_digest(one)], one.chain.key))
        holders = [peer for peer, one in reported.items() if record_digest(one) == record_digest(best)]
        await _all([self._fetch(unit.root, holders, unit.num_bytes) for unit in best.units])
        return AdoptState(best, keep_progress), sum(unit.num_bytes for unit in best.units)

    async def _state_of(self, peer: PeerId) -> StateRecord | None:
        try:
            answer = await self._asker.ask(peer, GetState(), timeout_s=_TIMEOUT_S)
        except (NetworkError, RemoteError):
            return None
        return answer if isinstance(answer, StateRecord) else None

    async def _fetch(self, root: Digest, holders: Sequence[PeerId], num_bytes: int) -> None:
        await self._fetcher.fetch(root, holders, num_bytes)


async def _all(fetches: Sequence[object]) -> None:
    """Runs them together; the first failure ends the others and rises by itself."""
    tasks = [asyncio.ensure_future(fetch) for fetch in fetches]  # type: ignore[call-overload]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
