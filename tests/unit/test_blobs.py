"""Fetching a blob: liars, the dead and the slow never yield wrong bytes, and one honest holder is enough."""

from __future__ import annotations

import random
from collections import Counter
from enum import Enum

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import swarm.digest
from swarm.blobs import LATE_S, MAX_FAILURES, Ask, BlobFetch
from swarm.digest import CHUNK_BYTES, Digest, blob_digest, chunks_of, leaves_of
from swarm.identity import PeerId
from swarm.messages import BlobInfo, GetBlob, GetChunk

PEERS = [PeerId(bytes([number]) * 32) for number in range(1, 9)]
BLOBS = [random.Random(7).randbytes(size) for size in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 5, 5 * CHUNK_BYTES + 1)]


class Kind(Enum):
    HONEST = "honest"
    LIAR = "liar"  # each answer is wrong in its own way
    LIES_LATER = "lies later"  # true digests, wrong chunks
    DEAD = "dead"
    FLAKY = "flaky"  # fails every other time
    FROZEN = "frozen"  # never answers until the shell's timeout
    LACKS = "lacks"  # says so


class World:
    """Holders of one blob, answering a machine's requests in an order of its own choosing."""

    def __init__(self, blob: bytes, kinds: dict[PeerId, Kind], seed: int) -> None:
        self.blob, self.kinds, self.random = blob, kinds, random.Random(seed)
        self.got: dict[int, bytes] = {}
        self.asked: Counter[tuple[str, int]] = Counter()
        self.now_s = 0.0

    def run(self, fetch: BlobFetch) -> None:
        in_flight: list[Ask] = []
        for _ in range(2000):
            in_flight += (asks := fetch.next_requests(self.now_s))
            per_holder = Counter(ask.to for ask in in_flight)
            assert all(self.kinds[peer] is Kind.FROZEN or count <= 4 for peer, count in per_holder.items())
            for ask in asks:
                self.asked[type(ask.message).__name__, getattr(ask.message, "index", -1)] += 1
            if fetch.done or fetch.failed_reason:
                return
            ready = [ask for ask in in_flight if self.kinds[ask.to] is not Kind.FROZEN]
            if ready:
                ask = self.random.choice(ready)
                in_flight.remove(ask)
                self.answer(fetch, ask)
            else:
                next_s = fetch.next_look_s(self.now_s)
                if next_s is None:  # only the shell's timeouts are left to happen
                    assert in_flight
                    self.now_s += 10.0
                    frozen, in_flight = in_flight, []
                    for ask in frozen:
                        fetch.on_failure(ask.to, "timed out")
                else:
                    assert next_s > self.now_s
                    self.now_s = next_s
        raise AssertionError("the machine did not come to an end")

    def answer(self, fetch: BlobFetch, ask: Ask) -> None:
        kind = self.kinds[ask.to]
        if kind is Kind.LACKS:
            return fetch.on_failure(ask.to, "not held", refused=True)
        if kind is Kind.DEAD or (kind is Kind.FLAKY and self.random.random() < 0.5):
            return fetch.on_failure(ask.to, "connection lost")
        if isinstance(ask.message, GetBlob):
            leaves = leaves_of(self.blob)
            if kind is Kind.LIAR:
                leaves = self.random.choice([leaves[:-1], (*leaves, leaves[0]), (Digest(bytes(32)), *leaves[1:])])
            fetch.on_info(ask.to, BlobInfo(len(self.blob), leaves))
            return None
        index = ask.message.index
        chunk = bytes(list(chunks_of(self.blob))[index])
        if kind in (Kind.LIAR, Kind.LIES_LATER):
            chunk = self.random.choice([b"", chunk + b"\0", chunk[:-1], b"\1" + chunk[1:]] if chunk else [b"\0"])
            true = list(chunks_of(self.blob))[index]
            chunk = chunk if chunk != true else chunk + b"\0"
        if fetch.on_chunk(ask.to, index, chunk):
            assert index not in self.got
            self.got[index] = chunk
        return None

    @property
    def bytes(self) -> bytes:
        return b"".join(self.got[index] for index in sorted(self.got))


@given(
    size=st.sampled_from(range(len(BLOBS))),
    others=st.lists(st.sampled_from(list(Kind)), max_size=6),
    at=st.integers(0, 6),
    seed=st.integers(0, 2**32),
)
@example(size=4, others=[Kind.LIAR, Kind.FLAKY, Kind.FLAKY, Kind.LIAR], at=1, seed=4)
@settings(max_examples=60, deadline=None)
def test_one_honest_holder_is_enough(size: int, others: list[Kind], at: int, seed: int) -> None:
    blob = BLOBS[size]
    kinds = dict(zip(PEERS, [*others[:at], Kind.HONEST, *others[at:]], strict=False))
    world = World(blob, kinds, seed)
    fetch = BlobFetch(blob_digest(blob), kinds)
    world.run(fetch)
    assert fetch.done and fetch.failed_reason is None
    assert world.bytes == blob, "wrong bytes were taken"
    liars = {peer for peer, kind in kinds.items() if kind in (Kind.LIAR, Kind.LIES_LATER)}
    assert set(fetch.wrong) <= liars
    assert all(count <= 4 for count in fetch.wrong.values()), "a liar was asked again"


@given(
    kinds=st.lists(st.sampled_from([kind for kind in Kind if kind is not Kind.HONEST]), max_size=5),
    seed=st.integers(0, 2**32),
)
@example(kinds=[Kind.LIAR, Kind.FLAKY, Kind.LIAR, Kind.FLAKY], seed=20557)
@settings(max_examples=60, deadline=None)
def test_without_an_honest_holder_it_ends_and_never_with_wrong_bytes(kinds: list[Kind], seed: int) -> None:
    blob = BLOBS[-1]
    world = World(blob, dict(zip(PEERS, kinds, strict=False)), seed)
    fetch = BlobFetch(blob_digest(blob), world.kinds)
    world.run(fetch)
    true = list(chunks_of(blob))
    assert all(chunk == true[index] for index, chunk in world.got.items())
    assert fetch.done or fetch.failed_reason


@pytest.mark.parametrize("blob", BLOBS, ids=len)
def test_nothing_is_asked_twice_when_nobody_fails(blob: bytes) -> None:
    world = World(blob, dict.fromkeys(PEERS[:3], Kind.HONEST), seed=1)
    fetch = BlobFetch(blob_digest(blob), world.kinds)
    world.run(fetch)
    assert world.bytes == blob
    assert set(world.asked.values()) == {1}


def test_holders_share_the_work() -> None:
    blob = b"".join(bytes([index]) * CHUNK_BYTES for index in range(12))
    fetch = BlobFetch(blob_digest(blob), PEERS[:3])
    (info,) = fetch.next_requests(0.0)
    fetch.on_info(info.to, BlobInfo(len(blob), leaves_of(blob)))
    assert Counter(ask.to for ask in fetch.next_requests(0.0)) == dict.fromkeys(PEERS[:3], 4)


def test_chunks_found_on_disk_are_not_asked_for() -> None:
    blob = BLOBS[-1]
    chunks = list(chunks_of(blob))
    fetch = BlobFetch(blob_digest(blob), PEERS[:1], max_in_flight=99)
    assert not fetch.on_local(0, chunks[0]), "without digests nothing can be checked"
    fetch.next_requests(0.0)
    fetch.on_info(PEERS[0], BlobInfo(len(blob), leaves_of(blob)))
    assert fetch.on_local(1, chunks[1])
    assert not fetch.on_local(2, bytes(CHUNK_BYTES))
    assert [ask.message for ask in fetch.next_requests(0.0)] == [GetChunk(fetch.root, i) for i in (0, 2, 3, 4, 5)]
    assert not fetch.wrong


def test_a_blob_of_another_length_than_announced_is_refused() -> None:
    blob = b"abc"
    fetch = BlobFetch(blob_digest(blob), PEERS[:1], num_bytes=4)
    fetch.next_requests(0.0)
    assert not fetch.on_info(PEERS[0], BlobInfo(3, leaves_of(blob)))
    assert "no holder left of 1" in (fetch.failed_reason or "")


def test_a_new_holder_revives_it_but_a_liar_stays_out() -> None:
    blob = b"abc"
    fetch = BlobFetch(blob_digest(blob), PEERS[:2])
    now_s = 0.0
    for _ in range(2 * MAX_FAILURES):
        for ask in fetch.next_requests(now_s):
            if ask.to == PEERS[0]:
                fetch.on_info(ask.to, BlobInfo(3, (swarm.digest.ZERO_DIGEST,)))
            else:
                fetch.on_failure(ask.to, "timed out")
        now_s += 10.0
    assert fetch.failed_reason and fetch.next_look_s(now_s) is None
    fetch.add_holder(PEERS[0])
    assert fetch.failed_reason
    fetch.add_holder(PEERS[1])
    assert fetch.failed_reason is None
    assert [ask.to for ask in fetch.next_requests(now_s)] == [PEERS[1]]


def test_a_late_piece_is_asked_of_one_more_holder() -> None:
    fetch = BlobFetch(blob_digest(b"abc"), PEERS[:3])
    (first,) = fetch.next_requests(0.0)
    assert fetch.next_requests(LATE_S / 2) == ()
    assert fetch.next_look_s(0.0) == LATE_S
    (second,) = fetch.next_requests(LATE_S)
    assert second.to != first.to
    assert fetch.next_requests(9 * LATE_S) == ()


def test_requests_that_die_together_are_one_failure() -> None:
    blob = BLOBS[-1]
    fetch = BlobFetch(blob_digest(blob), PEERS[:1])
    fetch.next_requests(0.0)
    fetch.on_info(PEERS[0], BlobInfo(len(blob), leaves_of(blob)))
    for ask in fetch.next_requests(0.0):
        fetch.on_failure(ask.to, "connection lost")
    assert fetch.failed_reason is None
    assert fetch.next_requests(0.0) == ()
    assert len(fetch.next_requests(1.0)) == 4
