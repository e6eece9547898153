"""One commit, whole: decode, mean, outer step and the state digest have the same bits on every CPU setting and in any order
of arrival."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import pytest
import torch

from swarm.allreduce.codec import make_codec
from swarm.allreduce.layout import build_layout
from swarm.allreduce.ledger import cut, joined
from swarm.allreduce.shared import RunMath, after_commit, from_snapshot, genesis_state, snapshot
from swarm.chain import CommitList, Entry
from swarm.config import CodecConfig, OuterConfig
from swarm.digest import Digest, blob_digest, digest_of
from swarm.errors import MalformedBytes
from swarm.identity import PeerId
from swarm.messages import record_digest
from tests.unit.in_other_settings import outputs

# The first unit is above the 32,768 elements at which torch turns to several threads; none is a multiple of a vector width.
LAYOUT = build_layout([[("wte", (900, 41))], [("a", (41, 41)), ("b", (41,))], [("c", (7, 89))], [("head", (41, 30))]])
PEERS = tuple(PeerId(bytes([number]) * 32) for number in (1, 2, 3))
OPTIMIZERS = ("sgd", "nesterov", "adamw")
CODECS = ("raw", "int8")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """In this process; the subprocesses have one or two. Idle threads of OpenMP spin, which is slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def math_of(codec: str, optimizer: str) -> RunMath:
    outer = OuterConfig.model_validate({"optimizer": optimizer, "learning_rate": 0.3, "weight_decay": 0.01})
    block = CodecConfig.model_validate({"name": codec, "block_size": 256})
    return RunMath(LAYOUT, make_codec(block), outer, error_decay=0.95, lease_windows=3)


def vector(multiplier: int) -> torch.Tensor:
    """Fixed numbers by integer arithmetic: torch.randn differs between CPU capabilities."""
    return ((torch.arange(1, LAYOUT.numel + 1) * multiplier) % 20_011 - 10_005).to(torch.float32) * (2.0**-14)


def digests(codec: str, optimizer: str, versions: int = 2, arrival: tuple[int, ...] = (0, 1, 2)) -> list[str]:
    """State digests of some versions; `arrival` is the order in which the peers' blobs come in."""
    math = math_of(codec, optimizer)
    state = genesis_state(math, digest_of("test", b"run"), vector(7919))
    found = [record_digest(snapshot(math, state)[0]).hex()]
    for version in range(1, versions + 1):
        blobs: dict[Digest, bytes] = {}
        entries = []
        for place in arrival:
            theta_N = state.anchor_N - vector(101 * version + 31 * place) * 0.01
            _, blob = cut(math, joined(PEERS[place], state), state, theta_N, version, (1, 1))
            blobs[blob_digest(blob)] = blob
            entries.append(Entry(PEERS[place], version, 1, blob_digest(blob), 0, 4, 1000 + 777 * place, 5))
        commit = CommitList(entries=tuple(sorted(entries)), admitted=())
        state = after_commit(math, state, commit, blobs.__getitem__)
        found.append(record_digest(snapshot(math, state)[0]).hex())
    return found


def all_digests() -> str:
    return "\n".join(" ".join([codec, name, *digests(codec, name)]) for codec in CODECS for name in OPTIMIZERS)


def test_every_cpu_setting_gives_the_same_state() -> None:
    """With the blobs cut there too: the int8 encoder need not be alike everywhere, but on these settings it is."""
    found = outputs("from tests.unit.test_determinism import all_digests; print(all_digests())")
    assert set(found.values()) == {all_digests() + "\n"}


@pytest.mark.parametrize("codec", CODECS)
def test_the_order_of_arrival_does_not_matter(codec: str) -> None:
    assert len({tuple(digests(codec, "nesterov", 1, order)) for order in permutations((0, 1, 2))}) == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_snapshot_holds_everything_that_the_next_version_needs(optimizer: str) -> None:
    math = math_of("int8", optimizer)
    state = genesis_state(math, digest_of("test", b"run"), vector(7919))
    for version in (1, 2):
        record, blobs = snapshot(math, state)
        again = from_snapshot(math, record, [memoryview(one) for one in blobs])
        assert record_digest(snapshot(math, again)[0]) == record_digest(record)
        _, blob = cut(math, joined(PEERS[0], state), state, state.anchor_N - vector(31), version, (1, 1))
        commit = CommitList(entries=(Entry(PEERS[0], version, 1, blob_digest(blob), 0, 4, 9, 1),), admitted=())
        state, other = (after_commit(math, one, commit, lambda root, blob=blob: blob) for one in (state, again))
        assert snapshot(math, state) == snapshot(math, other)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_snapshots_that_do_not_fit_are_refused(optimizer: str) -> None:
    math = math_of("raw", optimizer)
    record, blobs = snapshot(math, genesis_state(math, digest_of("test", b"run"), vector(7919)))
    not_finite = b"\x00\x00\xc0\x7f"
    for bad in (blobs[:-1], (*blobs, b""), (blobs[0][:-1], *blobs[1:]), (b"", *blobs[1:]), blobs[::-1]):
        with pytest.raises(MalformedBytes):
            from_snapshot(math, record, bad)
    with pytest.raises(MalformedBytes, match="finite"):
        from_snapshot(math, record, (not_finite + blobs[0][4:], *blobs[1:]))
    if optimizer == "adamw":
        for power in (b"\x00" * 8, b"\x00" * 6 + b"\xf8\x7f"):  # another than in the other units, and not a number
            with pytest.raises(MalformedBytes, match="beta powers"):
                from_snapshot(math, record, (blobs[0][:-8] + power, *blobs[1:]))
