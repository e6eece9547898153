"""Fetching a blob: liars, the dead and the slow never yield wrong bytes, and one honest holder is enough."""

from __future__ import annotations

import math
import random
from collections import Counter
from enum import Enum

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import swarm.digest
from swarm.blobs import BUSY, LATE_INFO_S, MAX_FAILURES, Ask, BlobFetch
from swarm.digest import CHUNK_BYTES, Digest, blob_digest, chunks_of, leaves_of
from swarm.errors import Refusal, TimedOut, Unreachable
from swarm.holders import Holders
from swarm.identity import PeerId
from swarm.messages import BlobInfo, Chunk, GetBlob, GetChunk

PEERS = [PeerId(bytes([number]) * 32) for number in range(1, 9)]
BLOBS = [random.Random(7).randbytes(size) for size in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 5, 5 * CHUNK_BYTES + 1)]

TIMEOUT_S = 10.0


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
        sent_s: dict[Ask, float] = {}
        for _ in range(2000):
            in_flight += (asks := fetch.next_requests(self.now_s))
            sent_s.update(dict.fromkeys(asks, self.now_s))
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
                continue
            next_s = fetch.next_look_s(self.now_s)
            timeout_s = min((sent_s[ask] + TIMEOUT_S for ask in in_flight), default=math.inf)  # the shell's
            assert next_s is not None or in_flight
            assert next_s is None or next_s > self.now_s
            self.now_s = max(self.now_s, min(timeout_s, math.inf if next_s is None else next_s))
            for ask in [ask for ask in in_flight if self.now_s >= sent_s[ask] + TIMEOUT_S]:
                in_flight.remove(ask)
                fetch.on_failure(ask.to, "timed out", ask=ask)
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


def fetching(num_chunks: int, holders: list[PeerId], known: Holders | None = None) -> tuple[BlobFetch, list[bytes]]:
    """A fetch that has its chunk digests, and the chunks."""
    blob = b"".join(bytes([index]) * CHUNK_BYTES for index in range(num_chunks))
    fetch = BlobFetch(blob_digest(blob), holders, known=known)
    (info,) = fetch.next_requests(0.0)
    fetch.on_info(info.to, BlobInfo(len(blob), leaves_of(blob)))
    return fetch, [bytes(one) for one in chunks_of(blob)]


def test_holders_share_the_work_once_each_has_proved_itself() -> None:
    fetch, chunks = fetching(15, PEERS[:3])
    asks = fetch.next_requests(0.0)
    assert Counter(ask.to for ask in asks) == dict.fromkeys(PEERS[:3], 1)
    assert fetch.next_requests(0.1) == ()
    for ask in asks:
        fetch.take(ask, Chunk(chunks[ask.piece]), 0.1)
    assert Counter(ask.to for ask in fetch.next_requests(0.1)) == dict.fromkeys(PEERS[:3], 4)


def test_all_blobs_share_what_is_known_of_a_holder() -> None:
    """A liar costs one chunk, not one of each blob; what is under way to a holder is bounded over all blobs."""
    known = Holders()
    fetches = [fetching(9, PEERS[:2], known) for _ in range(3)]
    asks = [(one, chunks, ask) for one, chunks in fetches for ask in one.next_requests(0.0)]
    assert Counter(ask.to for _, _, ask in asks) == dict.fromkeys(PEERS[:2], 1)
    for one, chunks, ask in asks:
        one.take(ask, Chunk(b"wrong" if ask.to == PEERS[1] else chunks[ask.piece]), 0.1)
    later = [ask for one, _ in fetches for ask in one.next_requests(0.2)]
    assert Counter(ask.to for ask in later) == {PEERS[0]: 4}, "asked of a liar, or of one holder too often"


def test_one_who_lied_is_asked_again_for_what_nobody_else_has() -> None:
    known = Holders()
    known[PEERS[0]].sent_wrong(0.0)
    fetch, _ = fetching(9, PEERS[:1], known)
    assert len(fetch.next_requests(1.0)) == 1


def test_chunks_found_on_disk_are_not_asked_for() -> None:
    fetch = BlobFetch(blob_digest(BLOBS[-1]), PEERS[:1])
    assert not fetch.on_local(0, next(iter(chunks_of(BLOBS[-1])))), "without digests nothing can be checked"
    fetch, chunks = fetching(6, PEERS[:1])
    assert fetch.on_local(1, chunks[1])
    assert not fetch.on_local(2, bytes(5))
    asked = []
    while not fetch.done:
        for ask in fetch.next_requests(0.0):
            asked.append(ask.message)
            fetch.take(ask, Chunk(chunks[ask.piece]), 0.0)
    assert asked == [GetChunk(fetch.root, i) for i in (0, 2, 3, 4, 5)]
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


def test_late_digests_are_asked_of_one_more_holder_at_a_time() -> None:
    fetch = BlobFetch(blob_digest(b"abc"), PEERS[:3])
    (first,) = fetch.next_requests(0.0)
    assert fetch.next_requests(LATE_INFO_S / 2) == ()
    assert fetch.next_look_s(0.0) == LATE_INFO_S
    (second,) = fetch.next_requests(LATE_INFO_S)
    assert second.to != first.to
    assert fetch.next_requests(1.5 * LATE_INFO_S) == ()
    (third,) = fetch.next_requests(2 * LATE_INFO_S)
    assert len({first.to, second.to, third.to}) == 3
    assert fetch.next_requests(9 * LATE_INFO_S) == ()


def proved(fetch: BlobFetch, chunks: list[bytes], took_s: dict[PeerId, float]) -> None:
    """Each holder sends its first chunk after so many seconds."""
    asks = sorted(fetch.next_requests(0.0), key=lambda ask: took_s[ask.to])
    for ask in asks:
        fetch.take(ask, Chunk(chunks[ask.piece]), took_s[ask.to])


def test_what_a_silent_holder_owes_is_asked_of_another_when_nothing_else_is_left() -> None:
    fetch, chunks = fetching(10, PEERS[:2])
    proved(fetch, chunks, {PEERS[0]: 0.1, PEERS[1]: 0.1})
    asks = fetch.next_requests(0.1)
    assert Counter(ask.to for ask in asks) == dict.fromkeys(PEERS[:2], 4)
    now_s = 0.1
    for ask in asks:
        if ask.to == PEERS[0]:
            now_s += 0.1
            fetch.take(ask, Chunk(chunks[ask.piece]), now_s)
    assert fetch.next_requests(now_s) == (), "too early"
    owed = [ask for ask in asks if ask.to == PEERS[1]]
    again = fetch.next_requests(now_s + 2.0)
    assert {ask.piece for ask in again} == {ask.piece for ask in owed} and {ask.to for ask in again} == {PEERS[0]}
    assert all(fetch.is_wanted(ask) for ask in (*owed, *again))
    fetch.take(again[0], Chunk(chunks[again[0].piece]), now_s + 2.1)
    assert [fetch.is_wanted(ask) for ask in owed].count(False) == 1, "the loser of a piece is to be ended"


def test_a_second_holder_that_is_silent_too_does_not_keep_a_third_from_being_asked() -> None:
    fetch, chunks = fetching(3, PEERS[:3])
    slow, silent, good = fetch.next_requests(0.0)
    fetch.take(good, Chunk(chunks[good.piece]), 0.1)
    fetch.take(silent, Chunk(chunks[silent.piece]), 0.1)
    (second,) = fetch.next_requests(2.0)
    assert second.piece == slow.piece
    (third,) = fetch.next_requests(5.0)
    assert third.piece == slow.piece and {slow.to, second.to, third.to} == set(PEERS[:3])


def test_a_slow_holder_gets_nothing_that_the_others_finish_before_it() -> None:
    fetch, chunks = fetching(6, PEERS[:2])
    proved(fetch, chunks, {PEERS[0]: 0.1, PEERS[1]: 20.0})
    assert {ask.to for ask in fetch.next_requests(20.0)} == {PEERS[0]}
    fetch, chunks = fetching(250, PEERS[:2])
    proved(fetch, chunks, {PEERS[0]: 0.1, PEERS[1]: 4.0})
    assert Counter(ask.to for ask in fetch.next_requests(4.0)) == {PEERS[0]: 4, PEERS[1]: 2}


def test_a_busy_holder_is_left_alone_for_a_while_and_not_given_up() -> None:
    fetch, chunks = fetching(3, PEERS[:1])
    now_s = 0.0
    for _ in range(20):
        (ask,) = fetch.next_requests(now_s)
        fetch.take(ask, Refusal(f"{BUSY}: ask again later"), now_s)
        assert fetch.next_requests(now_s) == () and fetch.failed_reason is None
        now_s = fetch.next_look_s(now_s) or now_s
        assert fetch.next_requests(now_s - 0.001) == ()
    while not fetch.done:
        for ask in fetch.next_requests(now_s):
            fetch.take(ask, Chunk(chunks[ask.piece]), now_s)


def test_one_who_is_always_busy_is_given_up_in_the_end() -> None:
    fetch, _ = fetching(3, PEERS[:1])
    now_s = 0.0
    while fetch.failed_reason is None:
        assert now_s < 600.0
        for ask in fetch.next_requests(now_s):
            fetch.take(ask, Refusal(BUSY), now_s)
        now_s = fetch.next_look_s(now_s) or now_s


def test_requests_that_die_together_are_one_failure() -> None:
    fetch, chunks = fetching(9, PEERS[:1])
    proved(fetch, chunks, {PEERS[0]: 0.0})
    for ask in fetch.next_requests(0.0):
        fetch.take(ask, Unreachable("connection lost"), 0.0)
    assert fetch.failed_reason is None
    assert fetch.next_requests(0.0) == ()
    assert len(fetch.next_requests(1.0)) == 4


def test_one_failed_request_leaves_the_others_under_way() -> None:
    fetch, chunks = fetching(9, PEERS[:1])
    proved(fetch, chunks, {PEERS[0]: 0.0})
    lost, *others = fetch.next_requests(0.0)
    fetch.take(lost, TimedOut("late"), 0.0)
    assert not fetch.is_wanted(lost) and all(fetch.is_wanted(ask) for ask in others)
    assert fetch.take(others[0], Chunk(chunks[others[0].piece]), 0.1) == chunks[others[0].piece]


def test_who_does_not_hold_it_yet_is_asked_again_beside_one_who_is_silent() -> None:
    """A relay that had just begun to fetch the blob was given up for good, and a dead peer waited for three times over."""
    blob, (relay, dead) = BLOBS[3], PEERS[:2]
    fetch = BlobFetch(blob_digest(blob), (relay, dead))
    now_s = 0.0
    while not fetch.done:
        assert fetch.failed_reason is None
        for ask in fetch.next_requests(now_s):
            if ask.to == dead:
                continue
            if now_s < 1.2:
                fetch.take(ask, Refusal("blob is not here"), now_s)
            elif isinstance(ask.message, GetBlob):
                fetch.take(ask, BlobInfo(len(blob), leaves_of(blob)), now_s)
            else:
                fetch.take(ask, Chunk(bytes(list(chunks_of(blob))[ask.message.index])), now_s)
        now_s += 0.25
    assert now_s < 4.0, "the dead one was waited for"


def test_who_had_to_say_not_yet_and_gives_it_now_is_a_holder_as_any_other() -> None:
    """Beside another one it may have been asked often; when that one is given up, it is not."""
    blob, (relay, dead) = BLOBS[4], PEERS[:2]
    fetch = BlobFetch(blob_digest(blob), (relay, dead))
    now_s = 0.0
    while fetch.info is None:
        for ask in fetch.next_requests(now_s):
            if ask.to == relay:
                answer = Refusal("blob is not here") if now_s < 9.0 else BlobInfo(len(blob), leaves_of(blob))
                fetch.take(ask, answer, now_s)
        now_s += 0.25
    while not fetch._holders[dead].dropped:
        now_s += 5.0
        for ask in fetch.next_requests(now_s):
            if ask.to == dead:
                fetch.take(ask, TimedOut("no answer"), now_s)
        assert now_s < 200.0
    assert fetch.failed_reason is None


def test_one_that_all_lack_is_given_up_soon() -> None:
    fetch = BlobFetch(blob_digest(BLOBS[3]), PEERS[:2])
    now_s = 0.0
    while fetch.failed_reason is None:
        for ask in fetch.next_requests(now_s):
            fetch.take(ask, Refusal("blob is not here"), now_s)
        now_s += 0.25
    assert now_s < 4.0 and "not here" in fetch.failed_reason
    fetch.add_holder(PEERS[0])
    assert fetch.failed_reason is None
