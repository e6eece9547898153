"""A state from several donors of whom some lie, die, freeze or crawl: the right bytes, and hardly more of them than needed.

The product's fetcher and servers over the network in memory, in virtual time. Counted are the bytes that have left the
donors for us, also those that never arrived.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peer.blob_store import BlobStore
from peer.fetch import Asker, Fetcher
from peer.serve import Server
from swarm.digest import CHUNK_BYTES, Digest, blob_digest
from swarm.identity import Keypair, PeerId
from swarm.messages import BlobInfo, Chunk, GetBlob, GetChunk, open_message, seal_message
from swarm.net.simnet import SimNet
from tests.unit.inline_loop import run_inline
from tests.unit.message_examples import RUN, keypair

LINK = 12.5e6  # bytes/s of each uplink
MOST = 1.3  # times the bytes of the state
CRAWLING_S = 8.0  # a chunk
Fault = Callable[["Download", "Donor", Any], Awaitable[object | None]]


class CountingNet(SimNet):
    """Counts what has left each peer: of an answer that is broken off, the part that was on its way."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, bandwidth=LINK)
        self.sent_bytes: Counter[PeerId] = Counter()

    async def carry(self, sender: PeerId, receiver: PeerId, num_bytes: int) -> None:
        clock = asyncio.get_running_loop().time
        begins_s = max(clock(), self._uplink_free_s.get(sender, 0.0))
        try:
            await super().carry(sender, receiver, num_bytes)
        except asyncio.CancelledError:
            if sender not in self._frozen:
                self.sent_bytes[sender] += min(num_bytes, max(0, round((clock() - begins_s) * LINK)))
            raise
        self.sent_bytes[sender] += num_bytes


@dataclass
class Donor:
    """One donor: what it has sent, and the fault it has after so many chunks."""

    key: Keypair
    fault: Fault | None
    after: int
    num_chunks: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class Download:
    """One download over a network of its own."""

    seed: int
    donors: list[Donor]
    store: BlobStore  # of the donors; they all have the same
    own: BlobStore
    net: CountingNet = field(init=False)
    took_s: float = 0.0

    async def run(self, roots: list[tuple[Digest, int]]) -> None:
        self.net = CountingNet(self.seed)
        me = keypair(1)
        transport = self.net.transport(me)
        for donor in self.donors:
            server = Server(donor.key, RUN, b"", self.store)
            away = self.net.transport(donor.key)
            away.serve(lambda asker, raw, donor=donor, server=server: self.answer(donor, server, asker, raw))
            await transport.connect(away.addresses()[0], timeout_s=5.0)
        fetcher = Fetcher(Asker(transport, me, RUN), self.own)
        ids = [donor.key.peer_id for donor in self.donors]
        began_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            for root, num_bytes in roots:
                tasks.create_task(fetcher.fetch(root, ids, num_bytes))
        self.took_s = asyncio.get_running_loop().time() - began_s

    async def answer(self, donor: Donor, server: Server, asker: PeerId, raw: bytes) -> bytes:
        _, message = open_message(raw, run=RUN)
        is_chunk = isinstance(message, GetChunk)
        donor.num_chunks += is_chunk
        lie = None
        if donor.fault is not None and donor.num_chunks > donor.after:
            lie = await donor.fault(self, donor, message)
        return await server.handle(asker, raw) if lie is None else seal_message(donor.key, RUN, lie)

    @property
    def sent_bytes(self) -> list[int]:
        """By donor."""
        return [self.net.sent_bytes[donor.key.peer_id] for donor in self.donors]


async def dies(download: Download, donor: Donor, message: Any) -> None:
    download.net.kill(donor.key.peer_id)


async def freezes(download: Download, donor: Donor, message: Any) -> None:
    download.net.freeze(donor.key.peer_id)
    await asyncio.Event().wait()  # what it has not sent by now it never sends


async def crawls(download: Download, donor: Donor, message: Any) -> None:
    async with donor.turn:
        await asyncio.sleep(CRAWLING_S if isinstance(message, GetChunk) else 0.0)


async def lies_in_chunks(download: Download, donor: Donor, message: Any) -> object | None:
    return Chunk(bytes(CHUNK_BYTES)) if isinstance(message, GetChunk) else None


async def lies_in_digests(download: Download, donor: Donor, message: Any) -> object | None:
    match message:
        case GetBlob(root):
            return BlobInfo(3 * CHUNK_BYTES, (root,) * 3)
        case GetChunk():
            return Chunk(bytes(CHUNK_BYTES))
    return None


async def lies_in_length(download: Download, donor: Donor, message: Any) -> object | None:
    if isinstance(message, GetChunk):
        return Chunk(bytes(CHUNK_BYTES // 2))
    info = download.store.info(message.root)
    assert info is not None
    return BlobInfo(info.num_bytes + 1, info.leaves)


LIES: list[Fault] = [lies_in_chunks, lies_in_digests, lies_in_length]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> tuple[BlobStore, dict[str, list[tuple[Digest, int]]]]:
    """24 chunks: as one blob, and as the units of a model."""
    store = BlobStore(tmp_path_factory.mktemp("donors"))
    draw = random.Random(5)
    whole = [draw.randbytes(24 * CHUNK_BYTES - 5)]
    units = [draw.randbytes(size) for size in (7 * CHUNK_BYTES, *[3 * CHUNK_BYTES + 77] * 5)]
    shapes = {"one blob": whole, "six units": units}
    return store, {name: [(store.put(one, durable=False), len(one)) for one in blobs] for name, blobs in shapes.items()}


def download_of(seed: int, store: BlobStore, folder: Path, kinds: str) -> Download:
    """A download from an honest donor and others: l(iar), d(ying), f(reezing), c(rawling), h(onest), in any order."""
    draw = random.Random(seed)
    donors = []
    for number, kind in enumerate(draw.sample(kinds, len(kinds))):
        fault: Fault | None = {"l": draw.choice(LIES), "d": dies, "f": freezes, "c": crawls, "h": None}[kind]
        after = draw.randrange(12) if kind in "df" else draw.choice([0, 0, 3]) if kind == "l" else 0
        donors.append(Donor(keypair(number + 2), fault, after))
    return Download(seed, donors, store, BlobStore(folder))


@pytest.mark.parametrize("kinds", ["hld", "hldf", "hhldfc"])
@pytest.mark.parametrize("shape", ["one blob", "six units"])
@pytest.mark.parametrize("seed", range(4))
def test_the_right_bytes_and_hardly_more_of_them(
    state: tuple[BlobStore, dict[str, list[tuple[Digest, int]]]], tmp_path: Path, kinds: str, shape: str, seed: int
) -> None:
    store, shapes = state
    download = download_of(seed, store, tmp_path / "own", kinds)
    run_inline(download.run(shapes[shape]))
    for root, num_bytes in shapes[shape]:
        blob = download.own.read(root, check=True)
        assert len(blob) == num_bytes and blob_digest(blob) == root
    num_bytes = sum(length for _, length in shapes[shape])
    assert sum(download.sent_bytes) <= MOST * num_bytes, download.sent_bytes


@pytest.mark.parametrize("shape", ["one blob", "six units"])
@pytest.mark.parametrize("kinds", ["hc", "hhcc"])
def test_a_slow_donor_does_not_hold_the_last_chunk(
    state: tuple[BlobStore, dict[str, list[tuple[Digest, int]]]], tmp_path: Path, kinds: str, shape: str
) -> None:
    store, shapes = state
    download = download_of(1, store, tmp_path / "own", kinds)
    run_inline(download.run(shapes[shape]))
    num_bytes = sum(length for _, length in shapes[shape])
    assert download.took_s <= num_bytes / (LINK * kinds.count("h")) + 2.0 < CRAWLING_S
    assert sum(download.sent_bytes) <= 1.1 * num_bytes
