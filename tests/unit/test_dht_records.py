"""What of the noticeboard is believed: only a status of this run, in its author's own place, the newest of each."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.dht.records import (
    CLOCK_SLACK_S,
    MAX_RECORD_BYTES,
    NUM_PREFIXES,
    RECORD_LIFETIME_S,
    accept_records,
    expires_in_time,
    open_record,
    prefix_of,
    record_key,
    record_keys,
)
from swarm.digest import ZERO_DIGEST, Digest, digest_of
from swarm.errors import MalformedBytes, RemoteError
from swarm.identity import Keypair, PeerId
from swarm.messages import Activity, Goodbye, PeerStatus, TimeSplit, seal_message

RUN = digest_of("a run for tests")
OTHER_RUN = digest_of("another run")
ALICE, BOB = Keypair.from_seed(b"a" * 32), Keypair.from_seed(b"b" * 32)


def status_of(peer: PeerId, beat: int = 1) -> PeerStatus:
    return PeerStatus(
        peer=peer,
        beat=beat,
        name="a peer",
        device="cpu",
        activity=Activity.TRAINING,
        incarnation=1,
        view=0,
        version=3,
        head=ZERO_DIGEST,
        tokens=10,
        state_digest=ZERO_DIGEST,
        tokens_since_cut=0,
        steps_since_cut=0,
        tokens_per_s=1.0,
        up_bytes=0,
        down_bytes=0,
        up_bytes_per_s=0.0,
        down_bytes_per_s=0.0,
        train_loss=None,
        heldout_loss=None,
        heldout_version=0,
        checkpoint_version=None,
        waits_for="",
        addresses=("/ip4/127.0.0.1/tcp/4001",),
        pending=None,
        holding=(),
        time=TimeSplit(),
    )


def sealed(keypair: Keypair, beat: int = 1, run: Digest = RUN) -> bytes:
    return seal_message(keypair, run, status_of(keypair.peer_id, beat))


def item(keypair: Keypair, value: object) -> tuple[int, object, object]:
    return prefix_of(keypair.peer_id), keypair.peer_id.base58, value


def test_each_prefix_has_a_key_of_its_own_and_each_run_too() -> None:
    keys = record_keys(RUN)
    assert len(set(keys) | set(record_keys(OTHER_RUN))) == 2 * NUM_PREFIXES
    assert keys[5] == record_key(RUN, 5) == f"{RUN.hex()[:16]}.peers.5"
    with pytest.raises(ValueError, match="16"):
        record_key(RUN, NUM_PREFIXES)


def test_good_records_come_back_sorted_with_their_bytes() -> None:
    values = {keypair.peer_id: sealed(keypair) for keypair in (ALICE, BOB)}
    read = [(*item(BOB, values[BOB.peer_id]), 9.0), (*item(ALICE, values[ALICE.peer_id]), 4.0)]
    records, rejected = accept_records(read, RUN)
    assert {record.status.peer: record.age_s for record in records} == {BOB.peer_id: 9.0, ALICE.peer_id: 4.0}
    assert [record.status.peer for record in records] == sorted(values)
    assert all(record.sealed == values[record.status.peer] for record in records)
    assert rejected == 0


@given(st.permutations([1, 2, 3, 7]))
def test_the_newest_beat_wins_in_any_order(beats: list[int]) -> None:
    records, rejected = accept_records([(*item(ALICE, sealed(ALICE, beat)), 0.0) for beat in beats], RUN)
    assert [record.status.beat for record in records] == [7]
    assert rejected == 0


@pytest.mark.parametrize(
    "bad",
    [
        item(ALICE, sealed(BOB)),  # under somebody else's id
        item(ALICE, sealed(ALICE, run=OTHER_RUN)),
        item(ALICE, seal_message(ALICE, RUN, Goodbye("bye", 1))),
        item(ALICE, sealed(ALICE)[:-1] + b"\x00"),
        item(ALICE, sealed(ALICE) + bytes(MAX_RECORD_BYTES)),
        item(ALICE, "text"),
        item(ALICE, None),
        ((prefix_of(ALICE.peer_id) + 1) % NUM_PREFIXES, ALICE.peer_id.base58, sealed(ALICE)),
        (prefix_of(ALICE.peer_id), ALICE.peer_id.raw, sealed(ALICE)),
        (prefix_of(ALICE.peer_id), "nobody", sealed(ALICE)),
        (prefix_of(ALICE.peer_id), None, None),
        (0, [], {}),
    ],
)
def test_bad_records_are_counted_and_hide_nothing(bad: tuple[int, object, object]) -> None:
    with pytest.raises(RemoteError):
        open_record(RUN, *bad)
    records, rejected = accept_records([(*one, 0.0) for one in (bad, item(ALICE, sealed(ALICE)), bad)], RUN)
    assert [record.status.peer for record in records] == [ALICE.peer_id]
    assert rejected == 2


def test_a_status_that_speaks_of_another_peer_is_refused() -> None:
    lie = dataclasses.replace(status_of(ALICE.peer_id), peer=BOB.peer_id)
    value = seal_message(ALICE, RUN, lie)
    assert accept_records([(*item(ALICE, value), 0.0), (*item(BOB, value), 0.0)], RUN) == ((), 2)


@given(st.binary(max_size=200), st.data())
def test_any_bytes_are_at_worst_rejected(junk: bytes, data: st.DataObject) -> None:
    good = bytearray(sealed(ALICE))
    good[data.draw(st.integers(0, len(good) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    records, rejected = accept_records([(*item(ALICE, junk), 0.0), (*item(ALICE, bytes(good)), 0.0)], RUN)
    assert (records, rejected) == ((), 2)


def test_an_overlong_record_is_not_parsed() -> None:
    with pytest.raises(MalformedBytes, match=str(MAX_RECORD_BYTES)):
        open_record(RUN, *item(ALICE, bytes(MAX_RECORD_BYTES + 1)))


def test_expiry_is_soon_or_the_record_is_not_an_honest_one() -> None:
    now_s = 1e9
    assert expires_in_time(now_s + RECORD_LIFETIME_S, now_s)
    assert expires_in_time(now_s - 1.0, now_s)
    for far in (now_s + RECORD_LIFETIME_S + CLOCK_SLACK_S + 1.0, math.inf, -math.inf, math.nan, None, "soon"):
        assert not expires_in_time(far, now_s)
