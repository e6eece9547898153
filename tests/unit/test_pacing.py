"""A server with a small upload: joiners get their share of it and no more, the round waits for none of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peer.blob_store import BlobStore
from peer.fetch import Asker, Fetcher
from peer.pacing import Pacer
from peer.serve import ROUND_PINS, Server
from peer.served_states import LEASE_S, MAX_LEASE_S, ServedStates
from swarm.blobs import BUSY
from swarm.digest import CHUNK_BYTES, Digest, blob_digest
from swarm.identity import PeerId
from swarm.messages import (
    Chunk,
    GetChunk,
    GetPeers,
    GetState,
    Refused,
    StateRecord,
    UnitState,
    open_message,
    seal_message,
)
from swarm.net.simnet import SimNet
from swarm.pace import BURST_BYTES, SERVE_SHARE, Upload
from tests.unit.inline_loop import run_inline
from tests.unit.message_examples import AUTHOR, RUN, keypair
from tests.unit.small_swarm import START, log_of, state_at

UPLOAD = 1.25e6  # bytes/s: 10 Mbit/s
SHARE = SERVE_SHARE * UPLOAD


class Small:
    """A peer with a small upload and a state of four units, and joiners."""

    def __init__(self, folder: Path, num_joiners: int, upload: Upload) -> None:
        self.net = SimNet(seed=3, bandwidth=UPLOAD)
        self.folder = folder
        self.store = BlobStore(folder / "donor")
        self.pacer = Pacer(upload)
        self.server = Server(AUTHOR, RUN, b"", self.store, self.pacer)
        self.given: list[tuple[float, int, Digest]] = []  # when a chunk was given out, its length and blob
        self.asked_s: dict[tuple[PeerId, Digest, int], float] = {}
        self.waits: list[tuple[Digest, float]] = []
        draw = random.Random(1)
        self.units = [self.store.put(draw.randbytes(2 * CHUNK_BYTES), durable=False) for _ in range(2)]
        transport = self.net.transport(AUTHOR)
        transport.serve(self._handle)
        self.address = transport.addresses()[0]
        self.joiners = [keypair(number) for number in range(2, 2 + num_joiners)]
        self.done_s: list[float] = []

    async def _handle(self, asker: PeerId, raw: bytes) -> bytes:
        clock = asyncio.get_running_loop().time
        _, message = open_message(raw, run=RUN)
        asked_s = clock()
        answer = await self.server.handle(asker, raw)
        if isinstance(message, GetChunk) and isinstance(open_message(answer, run=RUN)[1], Chunk):
            self.given.append((clock(), len(answer) - 300, message.root))
            self.waits.append((message.root, clock() - asked_s))
        return answer

    async def join(self, number: int, roots: list[Digest]) -> None:
        key = self.joiners[number]
        transport = self.net.transport(key)
        await transport.connect(self.address, timeout_s=5.0)
        store = BlobStore(self.folder / f"joiner-{number}-{roots[0]}")
        fetcher = Fetcher(Asker(transport, key, RUN), store)
        await asyncio.gather(*(fetcher.fetch(root, [AUTHOR.peer_id]) for root in roots))
        for root in roots:
            assert blob_digest(store.read(root, check=True)) == root
        self.done_s.append(asyncio.get_running_loop().time())

    def most(self, span_s: float, of: Callable[[Digest], bool]) -> int:
        given = [(at_s, length) for at_s, length, root in self.given if of(root)]
        return max(sum(length for at_s, length in given[i:] if at_s <= given[i][0] + span_s) for i in range(len(given)))


def in_time(make: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await make()

    run_inline(main())


@pytest.mark.parametrize("num_joiners", [1, 3, 6])
def test_joiners_get_the_share_and_no_more_and_all_of_them_get_there(tmp_path: Path, num_joiners: int) -> None:
    async def main() -> None:
        small = Small(tmp_path, num_joiners, Upload(UPLOAD))
        async with asyncio.TaskGroup() as tasks:
            for number in range(num_joiners):
                tasks.create_task(small.join(number, small.units))
        for span_s in (0.0, 1.0, 5.0, 20.0, 60.0):
            assert small.most(span_s, lambda root: True) <= SHARE * span_s + BURST_BYTES + 4096
        num_bytes = num_joiners * 4 * CHUNK_BYTES
        assert small.pacer.served.num_bytes == num_bytes, "something was served twice"
        assert max(small.done_s) <= 1.25 * num_bytes / SHARE + 10.0
        assert min(small.done_s) >= 0.6 * max(small.done_s), "they were not served in turn"

    in_time(main)


def test_what_the_round_waits_for_waits_for_no_joiner(tmp_path: Path) -> None:
    async def main() -> None:
        small = Small(tmp_path, 5, Upload(UPLOAD))
        contribution = small.store.put(random.Random(2).randbytes(3 * CHUNK_BYTES), durable=False)
        small.store.pin(ROUND_PINS, [contribution])
        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                tasks.create_task(small.join(number, small.units))
            await asyncio.sleep(5.0)
            await small.join(4, [contribution])
            assert len(small.done_s) == 1, "a joiner was done before"
        assert all(wait_s == 0.0 for root, wait_s in small.waits if root == contribution)
        assert max(wait_s for root, wait_s in small.waits if root != contribution) > 1.0

    in_time(main)


def test_contributions_of_older_versions_wait_and_the_newest_do_not(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    server = Server(AUTHOR, RUN, b"", store)
    _, server.log = log_of(3, [AUTHOR], [store])
    roots = [commit.commit.entries[0].root for commit in server.log]
    store.pin(ROUND_PINS, roots)
    assert [server._is_of_the_round(root) for root in roots] == [False, False, True]
    assert not server._is_of_the_round(blob_digest(b"something else"))


def test_more_than_can_be_served_soon_is_told_so(tmp_path: Path) -> None:
    async def main() -> None:
        small = Small(tmp_path, 1, Upload(UPLOAD))
        asks = [GetChunk(root, index) for root in small.units for index in (0, 1)]
        raw = [seal_message(small.joiners[0], RUN, ask) for ask in asks]
        answers = await asyncio.gather(*(small.server.handle(small.joiners[0].peer_id, one) for one in raw))
        opened = [open_message(one, run=RUN)[1] for one in answers]
        refused = [one.reason for one in opened if isinstance(one, Refused)]
        assert refused and all(reason.startswith(BUSY) for reason in refused)
        assert len(refused) == small.pacer.served.num_turned_away < 4

    in_time(main)


def test_the_share_grows_with_the_upload_that_is_seen(tmp_path: Path) -> None:
    async def main() -> None:
        sent = 0
        pacer = Pacer(Upload(), lambda: sent)
        for _ in range(15):
            pacer.look()
            await asyncio.sleep(1.0)
            sent += 40_000_000
        began_s = asyncio.get_running_loop().time()
        for _ in range(20):
            await pacer.turn(AUTHOR.peer_id, CHUNK_BYTES)
        took_s = asyncio.get_running_loop().time() - began_s
        assert took_s == pytest.approx(19 * CHUNK_BYTES / (SERVE_SHARE * 40e6), rel=0.1)

    in_time(main)


class Leases:
    """Served states, and a clock that is set."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 0.0
        self.store = BlobStore(folder, clock=lambda: self.now_s)
        self.served = ServedStates(self.store)
        self.states = []
        for number in range(4):
            chains, _ = log_of(number, [AUTHOR], [])
            self.states.append(state_at(chains[-1], [self.store], salt=bytes([number])))

    def kept(self) -> list[bool]:
        self.store.collect()
        return [all(self.store.has(unit.root) for unit in state.units) for state in self.states]


def test_a_served_state_is_kept_while_it_is_fetched_and_not_for_ever(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    leases.served.serve(leases.states[0])
    assert leases.kept() == [True, False, False, False]
    leases.now_s = LEASE_S - 1.0
    leases.served.asked(leases.states[0].units[1].root)
    leases.now_s = 2 * LEASE_S - 2.0
    assert leases.kept()[0]
    leases.now_s = 2 * LEASE_S
    assert not leases.kept()[0]


def test_a_state_that_is_asked_for_again_and_again_goes_in_the_end(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    leases.served.serve(leases.states[0])
    while leases.now_s < MAX_LEASE_S:
        assert leases.kept()[0]
        leases.now_s += 100.0
        leases.served.asked(leases.states[0].units[0].root)
    assert not leases.kept()[0]


def test_two_states_are_kept_and_a_third_only_when_one_is_not_fetched_any_more(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    for state in leases.states[:3]:
        leases.served.serve(state)
    assert leases.kept() == [True, True, False, False]
    leases.now_s = 50.0
    leases.served.asked(leases.states[1].units[0].root)
    leases.now_s = 100.0
    leases.served.serve(leases.states[3])
    assert leases.kept() == [False, True, False, False]  # the fourth had been collected before; the first made room


def test_no_state_is_kept_where_the_disk_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = Leases(tmp_path)
    monkeypatch.setattr(BlobStore, "has_space", lambda self, num_bytes: num_bytes < 100)
    leases.served.serve(leases.states[0])
    assert leases.kept() == [False] * 4


def test_the_server_keeps_the_state_that_it_tells_of(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    server = Server(AUTHOR, RUN, b"", store)
    root = store.put(b"a unit")
    server.state = StateRecord(log_of(0, [AUTHOR], [])[0][0], (UnitState(root, 6),))
    asker = keypair(2)
    asyncio.run(server.handle(asker.peer_id, seal_message(asker, RUN, GetState())))
    assert store.collect() == 0 and store.has(root)


def test_long_answers_of_any_kind_are_served_at_the_pace(tmp_path: Path) -> None:
    """Only chunks were: a stranger could ask for states and logs as fast as it liked."""

    async def main() -> None:
        small = Small(tmp_path, 1, Upload(UPLOAD))
        small.server.state = state_at(START, [small.store])
        small.server.state = replace(small.server.state, units=small.server.state.units * 300)
        clock = asyncio.get_running_loop().time
        asker, began_s, num_bytes = small.joiners[0], clock(), 0
        for _ in range(200):
            answer = await small.server.handle(asker.peer_id, seal_message(asker, RUN, GetState()))
            num_bytes += len(answer)
        assert num_bytes > 2 * BURST_BYTES
        assert clock() - began_s >= (num_bytes - BURST_BYTES) / SHARE - 0.1
        short_s = clock()
        await small.server.handle(asker.peer_id, seal_message(asker, RUN, GetPeers()))
        assert clock() - short_s < 0.01, "a short one waits for nobody"

    run_inline(main())
