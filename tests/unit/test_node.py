"""The node over the network in memory: facts in, effects out, bounded in time, tasks and disk; nothing left when it ends."""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peer import handoff as work
from peer.address_book import AddressBook
from peer.dht import Noticeboard
from peer.fetch import Fetcher
from peer.handoff import Handoff
from peer.node import Node
from peer.node_parts import NodeParts
from peer.reach import Reach
from peer.routes import Routes
from swarm.address import Address
from swarm.chain import ChainState
from swarm.config import RoundConfig, RunConfig
from swarm.dht.records import Record, prefix_of
from swarm.digest import blob_digest
from swarm.errors import LocalError, MalformedBytes, Unreachable
from swarm.events import Evaluated, Event, LossJumped, PeerJoined, PeerLeft, PeerMisbehaved, PeerStarted
from swarm.identity import PeerId
from swarm.messages import (
    Commit,
    Contribution,
    GetPeers,
    Goodbye,
    Peers,
    PeerStatus,
    open_as,
    record_digest,
    seal_message,
)
from swarm.net.simnet import SimTransport
from swarm.round.commits import Seals
from swarm.round.facts import CatchUpEnded, CutDone, HeadReached, Send
from swarm.round.own import Self
from swarm.round.participant import Participant
from swarm.round.root import root_at
from tests.unit.message_examples import RUN
from tests.unit.small_swarm import (
    LEASE_SIZE,
    START,
    VERIFIER,
    Host,
    SmallSwarm,
    contribution_of,
    log_of,
    roots_along,
    run_clean,
    state_at,
)

CONFIG = RunConfig(round=RoundConfig(heartbeat_s=0.05, leader_timeout_s=5.0, train_deadline_s=60.0))
BAD = b"does not decode"


class Board:
    """A noticeboard that is out of order; with the interface of the real one (see below)."""

    async def publish(self, author: PeerId, sealed: bytes) -> bool:
        raise Unreachable("no board")

    async def read(self, prefixes: Sequence[int] = ()) -> tuple[Record, ...]:
        raise Unreachable("no board")


class SharedBoard(Board):
    """One in memory, for all peers; the status that is pinned to it while `faulty` is one that no board takes."""

    def __init__(self) -> None:
        self.faulty = False
        self.refused = 0
        self.sealed: dict[PeerId, bytes] = {}

    async def publish(self, author: PeerId, sealed: bytes) -> bool:
        if self.faulty:
            self.refused += 1
            raise LocalError("a status of 5000 bytes")
        self.sealed[author] = sealed
        return True

    async def read(self, prefixes: Sequence[int] = ()) -> tuple[Record, ...]:
        found = [(peer, sealed) for peer, sealed in self.sealed.items() if prefix_of(peer) in prefixes]
        return tuple(Record(open_as(PeerStatus, sealed, run=RUN), sealed) for _, sealed in found)


class StubNetwork:
    """What a node asks of a `Network`, over a simulated transport."""

    def __init__(self, transport: SimTransport, known: tuple[PeerId, ...]) -> None:
        transport.known = OrderedDict.fromkeys(known)  # type: ignore[attr-defined]
        self.transport = transport
        self.board = Board()
        self.num_restarts = 0
        self.up_bytes = self.down_bytes = 0
        self.up_s = self.down_s = 0.0
        self.up_bytes_per_s = self.down_bytes_per_s = 0.0

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.transport.addresses()

    async def connect_all(self, addresses: tuple[str, ...]) -> tuple[PeerId, ...]:
        return tuple([await self.transport.connect(one, timeout_s=1.0) for one in addresses])


async def dials(address: Address, *, timeout_s: float) -> bool:
    """In memory everybody can be dialled."""
    return True


class Peer:
    """A node with everything around it but a trainer, whose place the test takes."""

    config = CONFIG

    def __init__(self, host: Host, folder: Path, known: tuple[PeerId, ...] = (), *, incarnation: int = 1) -> None:
        self.host = host
        self.events: list[Event] = []
        self.handoff = self.make_handoff()
        me = Self(host.id, f"peer-{host.id}", "cpu", incarnation)
        record = state_at(START, [host.store])
        host.server.state = record
        start = HeadReached(START, record_digest(record), root_at(START))
        participant = Participant(me, self.config, start, Seals.of(host.key, RUN))
        self.network = StubNetwork(host.transport, known)
        self.reach = Reach(participant, host.transport, {}, dials)
        routes = Routes(host.transport, host.key, RUN, incarnation << 32)
        self.node = Node(
            NodeParts(
                participant=participant,
                network=self.network,  # type: ignore[arg-type]
                server=host.server,
                store=host.store,
                asker=replace(host.asker, transport=routes),
                routes=routes,
                reach=self.reach,
                fetcher=Fetcher(host.asker, host.store, routes),
                handoff=self.handoff,
                book=AddressBook(folder / f"{host.id}.book"),
                check_blob=self._check,
                verifier=VERIFIER,
                record_event=lambda _, event: self.events.append(event),
                lease=LEASE_SIZE,
            ),
            (START,),
            (root_at(START),),
        )
        self.task = asyncio.create_task(self.node.run(PeerStarted(host.id, me.name, "cpu", 0)))

    def make_handoff(self) -> Handoff:
        return Handoff()

    @staticmethod
    def _check(contribution: Contribution, blob: bytes) -> None:
        if blob == BAD:
            raise MalformedBytes("not a contribution")

    def cut(self, blob: bytes, num_bytes: int | None = None) -> Contribution:
        """What the trainer does at a cut."""
        root = self.host.store.put(blob)
        contribution = contribution_of(self.host.key, START, root, len(blob) if num_bytes is None else num_bytes, 1)
        self.handoff.report(CutDone(contribution, seal_message(self.host.key, RUN, contribution)))
        return contribution

    def saw(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def moved_to(chain: ChainState) -> work.Moved:
    """A trainer's word that it is at that head, and has forgotten all before it."""
    return work.Moved(state_at(chain, []), (chain,), (root_at(chain),), (), (), 0, 0, caught_up=False)


def orders_of(peer: Peer) -> list[Any]:
    """What its trainer is told to do, and has not been told before."""
    return list(iter(lambda: peer.handoff.next_order(0.0), None))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  what is waited for has no event of its own
            await asyncio.sleep(0.01)


def play(tmp_path: Path, count: int, story: Callable[..., Awaitable[None]]) -> None:
    """Runs a story with so many peers that met; afterwards every node ends and leaves no task."""

    async def main() -> None:
        hosts = await SmallSwarm(tmp_path).hosts(count)
        peers = [Peer(host, tmp_path, tuple(one.id for one in hosts[:place])) for place, host in enumerate(hosts)]
        try:
            await story(*peers)
        finally:
            for peer in peers:
                peer.node.leave()
            await asyncio.gather(*(peer.task for peer in peers), return_exceptions=True)

    run_clean(main())


@pytest.mark.parametrize("name", ["publish", "read"])
def test_the_boards_of_these_tests_are_asked_as_the_real_one_is(name: str) -> None:
    """One took no prefixes, so what follows a read had never run."""
    stubs, real = (Board, SharedBoard), inspect.signature(getattr(Noticeboard, name))
    for stub in stubs:
        assert list(inspect.signature(getattr(stub, name)).parameters) == list(real.parameters)


def test_peers_meet_on_the_noticeboard_and_outlive_one_that_refuses_them(tmp_path: Path) -> None:
    async def story(one: Peer, two: Peer) -> None:
        board = SharedBoard()
        board.faulty = True
        one.network.board = two.network.board = board
        one.network.transport.known.clear()  # type: ignore[attr-defined]
        two.network.transport.known.clear()  # type: ignore[attr-defined]
        await until(lambda: board.refused >= 2)
        board.faulty = False
        await until(lambda: len(board.sealed) == 2)
        await until(lambda: bool(one.saw(PeerJoined) and two.saw(PeerJoined)))
        assert not one.task.done() and not two.task.done()

    play(tmp_path, 2, story)


def test_peers_meet_and_say_goodbye(tmp_path: Path) -> None:
    async def story(one: Peer, two: Peer, three: Peer) -> None:
        await until(lambda: all(len({e.peer for e in peer.saw(PeerJoined)}) == 2 for peer in (one, two, three)))
        two.node.leave()
        await two.task
        await until(lambda: all(PeerLeft(two.host.id, "left on purpose") in p.events for p in (one, three)))
        assert not one.task.done() and not three.task.done()  # one that ends takes nothing of the others along
        answer = await one.host.asker.ask(three.host.id, GetPeers(), timeout_s=5)
        assert isinstance(answer, Peers) and len(answer.known) == 2

    play(tmp_path, 3, story)


def test_a_contribution_is_fetched_checked_and_pinned(tmp_path: Path) -> None:
    async def story(one: Peer, two: Peer) -> None:
        await until(lambda: bool(one.saw(PeerJoined) and two.saw(PeerJoined)))
        blob = bytes(range(200)) * 10
        contribution = one.cut(blob)
        await until(lambda: two.host.store.has(contribution.root))
        assert two.host.store.read(contribution.root, check=True) == blob
        two.host.store.put(b"unneeded")
        two.host.store.collect()
        assert two.host.store.has(contribution.root) and one.host.store.has(contribution.root)

    play(tmp_path, 2, story)


@pytest.mark.parametrize("blob, num_bytes", [(BAD, None), (b"short", 1 << 40)], ids=["does not decode", "too long"])
def test_a_bad_contribution_is_told_once_and_ends_nothing(tmp_path: Path, blob: bytes, num_bytes: int | None) -> None:
    async def story(one: Peer, two: Peer) -> None:
        await until(lambda: bool(one.saw(PeerJoined) and two.saw(PeerJoined)))
        contribution = one.cut(blob, num_bytes)
        await until(lambda: bool(two.saw(PeerMisbehaved)))
        for _ in range(3):  # as with each heartbeat that tries again
            await two.node._fetch(contribution, (one.host.id,))
        told = [event for event in two.saw(PeerMisbehaved) if "its contribution" in event.reason]
        assert len(told) == 1 and told[0].peer == one.host.id
        assert not two.task.done()

    play(tmp_path, 2, story)


def test_sends_to_a_silent_peer_are_bounded_and_counters_are_forgotten(tmp_path: Path) -> None:
    async def story(one: Peer, two: Peer) -> None:
        await until(lambda: bool(one.saw(PeerJoined)))

        async def brood(asker: PeerId, raw: bytes) -> bytes:
            await asyncio.Event().wait()
            return b""

        two.host.transport.serve(brood)
        for number in range(200):
            one.node._perform(Send(two.host.id, Goodbye(str(number), 1)))
        assert len(one.node._effects) <= 40
        two.host.transport._net.kill(two.host.id)  # the connections break
        await until(lambda: not one.node._sends)

    play(tmp_path, 2, story)


def test_losses_beyond_what_a_status_holds_are_left_out(tmp_path: Path) -> None:
    async def story(one: Peer) -> None:
        one.handoff.report(work.Evaluation(3, float("nan")))
        one.handoff.report(work.Evaluation(4, 2.0))
        one.handoff.report(work.Progress(train_loss=float("inf"), heldout_loss=float("nan")))
        one.handoff.report(work.Evaluation(5, 2.0))
        await until(lambda: len(one.saw(Evaluated)) == 2)
        assert [event.version for event in one.saw(Evaluated)] == [4, 5]
        one.node._measure()
        status = one.node.participant.status()
        assert status.train_loss is None and status.heldout_loss is None

    play(tmp_path, 1, story)


def test_a_jump_of_the_loss_is_told_once_whoever_evaluated_it(tmp_path: Path) -> None:
    async def story(one: Peer, two: Peer) -> None:
        chain = replace(START, version=6, head=blob_digest(b"6"), tokens=6)
        for peer in (one, two):
            peer.handoff.report(moved_to(chain))
        for version, loss in ((3, 3.2), (4, 3.0), (5, 3.1), (6, 4.5)):
            one.handoff.report(work.Evaluation(version, loss))
        two.handoff.report(work.Evaluation(3, 3.3))
        await until(lambda: bool(one.saw(LossJumped)))
        assert one.saw(LossJumped) == [LossJumped(6, 4.5, pytest.approx(3.1))]
        one.handoff.report(work.Progress(heldout_loss=4.5, heldout_version=6))
        await until(lambda: bool(two.saw(LossJumped)))  # by the other's heartbeat
        assert two.saw(LossJumped) == [LossJumped(6, 4.5, 3.3)] and len(one.saw(LossJumped)) == 1

    play(tmp_path, 2, story)


def test_a_loss_of_a_version_that_is_not_there_yet_is_not_believed(tmp_path: Path) -> None:
    async def story(one: Peer, two: Peer) -> None:
        await until(lambda: bool(one.saw(PeerJoined)))
        one.handoff.report(work.Evaluation(0, 3.0))
        await until(lambda: bool(one.saw(Evaluated)))
        status = replace(two.node.participant.status(), heldout_version=7, heldout_loss=9.0)
        one.node._received(two.host.id, status, b"")
        assert not one.saw(LossJumped)

    play(tmp_path, 2, story)


def test_what_the_trainer_waits_for_is_in_the_status(tmp_path: Path) -> None:
    async def story(one: Peer) -> None:
        one.handoff.report(work.Progress(waits_for="waiting for a commit: trained one round ahead"))
        await until(lambda: "trained one round ahead" in one.node.participant.figures.waits_for)
        status = one.node.participant.status()
        assert status.waits_for.startswith("waiting for a commit: trained one round ahead; ")
        one.handoff.report(work.Progress())
        await until(lambda: not one.node.participant.figures.waits_for)
        assert "trained" not in one.node.participant.status().waits_for

    play(tmp_path, 1, story)


def test_catching_up_by_the_log_ends_in_an_order_with_its_blobs(tmp_path: Path) -> None:
    async def story(one: Peer, two: Peer) -> None:
        chains, commits = log_of(2, [one.host.key, two.host.key], [two.host.store])
        record = state_at(chains[-1], [two.host.store])
        newest_first, roots = tuple(reversed(chains)), roots_along(chains, commits)
        two.handoff.report(work.Moved(record, newest_first, roots[::-1], commits, (), 0, 0, caught_up=False))
        orders: list[Any] = []

        def took() -> bool:
            orders.extend(orders_of(one))
            return any(isinstance(order, work.ApplyCommits) for order in orders)

        await until(took)
        (order,) = [order for order in orders if isinstance(order, work.ApplyCommits)]
        assert order == work.ApplyCommits(START.head, commits, roots[1:], caught_up=True)
        one.host.store.collect()
        assert all(one.host.store.has(entry.root) for commit in commits for entry in commit.commit.entries)
        one.handoff.report(work.Moved(record, newest_first, roots[::-1], commits, (), 0, 0, caught_up=True))
        await until(lambda: one.node.participant.chain.head == chains[-1].head)
        assert any(type(event).__name__ == "CaughtUp" for event in one.events)

    play(tmp_path, 2, story)


def test_a_newcomer_goes_only_where_one_who_invited_it_stands(tmp_path: Path) -> None:
    async def story(one: Peer, two: Peer, three: Peer, four: Peer) -> None:
        stores = [peer.host.store for peer in (two, three, four)]
        honest, to_honest = log_of(1, [two.host.key], stores, salt=b"honest")
        crowd, to_crowd = log_of(2, [three.host.key, four.host.key], stores, salt=b"crowd")

        def stands(peer: Peer, chains: list[ChainState], commits: tuple[Commit, ...]) -> None:
            newest_first, roots = tuple(reversed(chains)), roots_along(chains, commits)[::-1]
            record = state_at(chains[-1], stores)
            peer.handoff.report(work.Moved(record, newest_first, roots, commits, (), 0, 0, caught_up=False))

        object.__setattr__(one.node._parts, "introducers", frozenset({two.host.id}))
        refused: list[str] = []
        fail = one.node.post

        def post(fact: Any) -> None:
            refused.extend([fact.reason] if isinstance(fact, CatchUpEnded) and fact.is_refused else [])
            fail(fact)

        one.node.post = post  # type: ignore[method-assign]
        await until(lambda: len(one.saw(PeerJoined)) == 3)
        stands(two, honest, to_honest)
        for peer in (three, four):
            stands(peer, crowd, to_crowd)
        await until(lambda: sum("no state is that of most of the 3" in one for one in refused) >= 2)
        assert not any(isinstance(order, work.ApplyCommits | work.AdoptState) for order in orders_of(one))
        stands(two, crowd, to_crowd)
        await until(lambda: any(isinstance(order, work.ApplyCommits) for order in orders_of(one)))

    play(tmp_path, 4, story)


def test_pins_of_old_versions_are_let_go(tmp_path: Path) -> None:
    async def story(one: Peer) -> None:
        root = one.cut(b"a contribution").root
        await until(lambda: root in one.node._pinned)
        chain = START
        for version in range(1, 7):
            chain = replace(chain, version=version, head=blob_digest(bytes([version])), tokens=version)
            one.handoff.report(moved_to(chain))
        await until(lambda: one.node.participant.chain.version == 6)
        assert root not in one.node._pinned
        assert one.host.store.has(root) and one.host.store.collect() > 0 and not one.host.store.has(root)

    play(tmp_path, 1, story)


def test_a_fault_in_taking_a_report_rises(tmp_path: Path) -> None:
    """Logged and passed over, it would leave a node that never hears of its own heads again."""

    async def story(one: Peer) -> None:
        def broken(at_unix_s: float, event: Event) -> None:
            raise LocalError("a bug")

        object.__setattr__(one.node._parts, "record_event", broken)
        one.handoff.report(work.Evaluation(1, 1.0))
        with pytest.raises(BaseExceptionGroup):
            await one.task

    play(tmp_path, 1, story)


def test_the_end_of_the_trainer_ends_the_node_even_beside_a_frozen_peer(tmp_path: Path) -> None:
    async def story(one: Peer, two: Peer) -> None:
        await until(lambda: bool(one.saw(PeerJoined)))
        two.host.transport._net.freeze(two.host.id)
        one.handoff.report(work.TrainerEnded("stopped"))
        async with asyncio.timeout(10):
            await one.task
        one.handoff.report(work.Evaluation(1, 1.0))  # dropped
        two.host.transport._net.thaw(two.host.id)

    play(tmp_path, 2, story)
