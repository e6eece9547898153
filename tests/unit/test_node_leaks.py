"""Nothing that a node holds grows with the rounds: hundreds of them, with peers that leave and come back all the while.

Every container that can be reached from a node is measured, by the class and the attribute that hold it, so that one which
is added tomorrow is watched too. The most of the middle third of the time is compared with the most of the last third.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peer import handoff as work
from peer.handoff import Handoff
from peer.node import MAX_SENDS_PER_PEER
from peer.serve import KEPT_EVENTS
from swarm.chain import MAX_AGE_VERSIONS, ChainState, apply
from swarm.config import RoundConfig, RunConfig
from swarm.digest import Digest, digest_of
from swarm.messages import HOLDING_NAMED, MAX_HELD, Commit, seal_message
from swarm.round.answers import MAX_SAID
from swarm.round.facts import CutDone
from swarm.round.root import Root, root_at
from tests.unit.message_examples import RUN
from tests.unit.small_swarm import LEASE, START, SmallSwarm, contribution_of, run_clean, state_at
from tests.unit.test_node import Peer

LIVES = 6
ROUNDS_OF_A_LIFE = 15
LOOK_EVERY = 5  # rounds
STAYING = 3
GENEROUS_S = 120.0
COMING_AND_GOING = 2
KEPT_COMMITS = 16
KEPT_STATES = 3
FLICKER = 12  # what is under way at one moment is not what is under way at another
# What fills up to a limit that it states, slowly: held to that limit instead.
LIMITS = {
    "Answers._said": MAX_SAID,
    "EventLog._events": KEPT_EVENTS,
    "HeldBlobs._roots": MAX_HELD,
    "PeerStatus.holding": HOLDING_NAMED * (STAYING + COMING_AND_GOING),
    "Node._effects": MAX_SENDS_PER_PEER * (STAYING + COMING_AND_GOING),
    "Holders.peers": KEPT_COMMITS * (STAYING + COMING_AND_GOING) ** 2,  # of each entry of a log
    "SimTransport._exchanges": 2 * MAX_SENDS_PER_PEER * (STAYING + COMING_AND_GOING),  # own ones, and those it answers
}


class StubTrainer(Handoff):
    """Carries out orders at once, in the loop: cuts as soon as it may, and applies what is committed."""

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self._peer = peer
        self._chains: tuple[ChainState, ...] = (START,)
        self._roots: tuple[Root, ...] = (root_at(START),)
        self._log: tuple[Commit, ...] = ()
        self._pending: dict[int, tuple[Digest, int]] = {}  # number: root, and the version it was cut at
        self._seq = 0

    def give(self, order: work.Order) -> None:
        asyncio.get_running_loop().call_soon(self._carry_out, order)

    def _carry_out(self, order: work.Order) -> None:
        me = self._peer.host.id
        match order:
            case work.OpenRound(members) if me in members:
                self._cut()
            case work.CutNow():
                self._cut()
            case work.ApplyCommits(base, commits, roots, caught_up):
                chain = next(chain for chain in self._chains if chain.head == base)
                for commit in commits:
                    chain = apply(chain, commit.commit, LEASE)
                self._move(chain, roots[-1], (*self._log, *commits)[-KEPT_COMMITS:], caught_up)
            case work.AdoptState(record, root):
                self._move(record.chain, root, (), True)

    def _cut(self) -> None:
        if self._pending:
            return
        chain, host = self._chains[0], self._peer.host
        self._seq = max(self._seq, chain.highest_seq(host.id)) + 1
        blob = digest_of("cut", host.id.raw, chain.head.raw, self._seq.to_bytes(8, "big")).raw * 40
        root = host.store.put(blob, durable=False)
        self._pending[self._seq] = root, chain.version
        contribution = contribution_of(host.key, chain, root, len(blob), self._seq)
        self.report(CutDone(contribution, seal_message(host.key, RUN, contribution)))

    def _move(self, chain: ChainState, root: Root, log: tuple[Commit, ...], caught_up: bool) -> None:
        host = self._peer.host
        self._chains, self._log = (chain, *self._chains)[:KEPT_STATES], log
        self._roots = (root, *self._roots)[:KEPT_STATES]
        self._pending = {
            seq: (root, version)
            for seq, (root, version) in self._pending.items()
            if not chain.has_listed(host.id, seq) and version + MAX_AGE_VERSIONS >= chain.version
        }
        records = [state_at(one, [host.store]) for one in self._chains]
        units = {unit.root for record in records for unit in record.units}
        listed = {entry.root for commit in log for entry in commit.commit.entries}
        host.store.pin("generations", units | listed | {root for root, _ in self._pending.values()})
        host.store.collect()
        pending = tuple(self._pending)
        self.report(work.Moved(records[0], self._chains, self._roots, log, pending, 0, 0, caught_up=caught_up))
        if host.id in chain.roster:
            self._cut()


class Training(Peer):
    """A node with a trainer that has nothing to train."""

    config = RunConfig(round=RoundConfig(heartbeat_s=0.3, leader_timeout_s=5.0, train_deadline_s=60.0))

    def make_handoff(self) -> Handoff:
        return StubTrainer(self)

    @property
    def version(self) -> int:
        return self.node.participant.chain.version

    def sizes(self) -> Counter[str]:
        """How much is in each container; and what lies in the store."""
        found = sizes(self.node)
        names = [path.name for path in self.host.store._folder.iterdir()]
        found["blobs"] = len(names)
        found["partial files"] = sum(not name.isalnum() for name in names)
        return found


def sizes(root: object) -> Counter[str]:
    """The number of things in all containers that can be reached from `root` through objects of ours, by what holds them."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    waiting: list[tuple[object, str]] = [(root, "")]
    while waiting:
        one, held_by = waiting.pop()
        if id(one) in seen or isinstance(one, str | bytes | int | float | None):
            continue
        seen.add(id(one))
        if isinstance(one, dict | set | frozenset | list | tuple | deque):
            found[held_by] += len(one)
            inside = one.values() if isinstance(one, dict) else one
            waiting += [(each, f"{held_by}[]") for each in inside if held_by not in LIMITS]
        elif isinstance(one, asyncio.Queue):
            found[held_by] += one.qsize()
        elif type(one).__module__.split(".")[0] in ("peer", "swarm"):
            waiting += [(value, f"{type(one).__name__}.{field}") for field, value in fields_of(one)]
    return found


def fields_of(one: object) -> Iterator[tuple[str, Any]]:
    yield from getattr(one, "__dict__", {}).items()
    names = [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
    yield from ((name, getattr(one, name)) for name in names if hasattr(one, name))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GENEROUS_S):
        while not condition():  # noqa: ASYNC110  what is waited for has no event of its own
            await asyncio.sleep(0.01)


async def watch(peers: list[Training], rounds: int, most: Counter[str]) -> None:
    """Until so many more rounds are over; `most` takes the largest sizes in."""
    ends_at = min(peer.version for peer in peers) + rounds
    while (version := min(peer.version for peer in peers)) < ends_at:
        for peer in peers:
            for path, size in peer.sizes().items():
                most[path] = max(most[path], size)
        await until(lambda version=version: min(peer.version for peer in peers) >= version + LOOK_EVERY)  # type: ignore[misc]


async def lives(swarm: SmallSwarm, folder: Path, staying: list[Training]) -> list[Counter[str]]:
    """One newcomer after the other, the same two in turn, joins, is listed, and leaves; the largest sizes in each life."""
    found = []
    for life in range(LIVES):
        host = swarm.host(STAYING + 1 + life % COMING_AND_GOING)
        for other in staying:
            await host.transport.connect(other.host.transport.addresses()[0], timeout_s=5)
        newcomer = Training(host, folder, tuple(peer.host.id for peer in staying), incarnation=1 + life)
        try:
            await until(lambda host=host: host.id in staying[0].node.participant.chain.roster)  # type: ignore[misc]
            found.append(Counter())
            await watch(staying, ROUNDS_OF_A_LIFE, found[-1])
        finally:
            newcomer.node.leave()
            await newcomer.task
    return found


def test_nothing_grows_with_the_rounds(tmp_path: Path) -> None:
    async def main() -> list[Counter[str]]:
        swarm = SmallSwarm(tmp_path)
        hosts = await swarm.hosts(STAYING)
        staying = [Training(host, tmp_path, tuple(one.id for one in hosts[:place])) for place, host in enumerate(hosts)]
        try:
            return await lives(swarm, tmp_path, staying)
        finally:
            for peer in staying:
                peer.node.leave()
            await asyncio.gather(*(peer.task for peer in staying), return_exceptions=True)

    found = run_clean(main())
    early, late = (Counter[str](), Counter[str]())
    for part, most in ((found[LIVES // 3 : 2 * LIVES // 3], early), (found[2 * LIVES // 3 :], late)):
        for sizes_of_life in part:
            most |= sizes_of_life  # the larger of the two, each
    grown = {path: (early[path], size) for path, size in late.items() if size > LIMITS.get(path, early[path] + FLICKER)}
    assert not grown, grown
    assert (
        late["HeldBlobs._roots"] > FLICKER and late["Roll._heard"] == STAYING + COMING_AND_GOING - 1
    )  # the walk finds what is inside
