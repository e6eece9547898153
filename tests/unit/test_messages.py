"""Every message kind: round trips, golden bytes, hostile bytes, and who may speak of whom.

Golden files: `BARNRAISE_REGENERATE_GOLDEN=1` writes them anew. A change of theirs is a change of the protocol.
"""

from __future__ import annotations

import dataclasses
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import wire
from swarm.chain import CommitList, Entry, apply, genesis
from swarm.digest import CHUNK_BYTES, blob_digest, digest_of
from swarm.envelope import seal
from swarm.errors import BadSignature, MalformedBytes, RemoteError
from swarm.messages import PURPOSES, Contribution, CutHint, GetState, PeerStatus, open_as, open_message, seal_message
from swarm.schema import from_value, to_value
from tests.unit.message_examples import AUTHOR, RUN, damaged, example_of, keypair, messages_of, wire_values

GOLDEN = Path(__file__).parents[1] / "golden"
quick = settings(deadline=None, max_examples=15)
by_kind = pytest.mark.parametrize("purpose", PURPOSES)


def _own(kind: type[Any]) -> dict[str, Any]:
    """The fields that must name whoever signs."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: AUTHOR.peer_id for name in ("author", "peer") if name in names}


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("BARNRAISE_REGENERATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, f"{name}: the bytes of the protocol have changed"


def _hex_lines(raw: bytes) -> str:
    text = raw.hex()
    return "".join(text[begin : begin + 96] + "\n" for begin in range(0, len(text), 96))


@by_kind
def test_golden_bytes(purpose: str) -> None:
    message = example_of(PURPOSES[purpose])
    sealed = seal_message(AUTHOR, RUN, message)
    check_golden(f"message-{purpose}.txt", _hex_lines(sealed))
    assert open_message(sealed, run=RUN) == (AUTHOR.peer_id, message)


def test_golden_digests() -> None:
    """Heads of a small chain, and roots of blobs of one, two and three chunks."""
    state = genesis(RUN, digest_of("test", b"parameters"))
    lines = [f"genesis {state.head.hex()} {state.digest().hex()}"]
    for version in range(1, 4):
        peers = sorted(keypair(number).peer_id for number in range(1, version + 1))
        next_peer = keypair(version + 1).peer_id
        root = digest_of("test", bytes([version]))
        entries = tuple(Entry(peer, version, 1, root, 0, 4, 1000 + version, version) for peer in peers)
        state = apply(state, CommitList(entries, admitted=(next_peer,), minority=version == 1), lease_windows=10)
        lines.append(f"version {version} {state.head.hex()} {state.digest().hex()}")
    pattern = bytes(range(251)) * (3 * CHUNK_BYTES // 251 + 1)
    for num_bytes in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES):
        lines.append(f"blob of {num_bytes} {blob_digest(pattern[:num_bytes]).hex()}")
    check_golden("digests.txt", "\n".join(lines) + "\n")


def test_golden_files_are_those_of_the_messages() -> None:
    assert {path.stem for path in GOLDEN.glob("message-*.txt")} == {f"message-{purpose}" for purpose in PURPOSES}


@by_kind
@quick
@given(st.data())
def test_round_trip(purpose: str, data: st.DataObject) -> None:
    kind = PURPOSES[purpose]
    message = data.draw(messages_of(kind, _own(kind)))
    raw = seal_message(AUTHOR, RUN, message)
    assert open_message(raw, run=RUN) == (AUTHOR.peer_id, message) and open_as(kind, raw, run=RUN) == message


@by_kind
@quick
@given(st.data())
def test_harmed_bodies_are_refused_or_another_message(purpose: str, data: st.DataObject) -> None:
    """The author itself may be hostile: then the signature holds, and the body is anything."""
    kind = PURPOSES[purpose]
    raw = data.draw(damaged(wire.encode(to_value(data.draw(messages_of(kind, _own(kind)))))))
    try:
        body = wire.decode(raw)
        message = from_value(kind, body)
    except MalformedBytes:
        return
    assert wire.encode(to_value(message)) == raw
    try:
        assert open_message(seal(AUTHOR, RUN, purpose, body), run=RUN)[1] == message
    except BadSignature:
        assert any(getattr(message, name) != peer for name, peer in _own(kind).items())


@by_kind
@quick
@given(value=wire_values, swapped=st.data())
def test_any_body_is_refused_or_a_message(purpose: str, value: Any, swapped: st.DataObject) -> None:
    kind = PURPOSES[purpose]
    good = to_value(example_of(kind))
    if good and swapped.draw(st.booleans()):  # one field of a good message replaced: gets further in
        place = swapped.draw(st.integers(0, len(good) - 1))
        value = [*good[:place], value, *good[place + 1 :]]
    try:
        _, message = open_message(seal(AUTHOR, RUN, purpose, value), run=RUN)
    except RemoteError:
        return
    assert to_value(message) == value


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_harmed_envelopes_are_refused(data: st.DataObject) -> None:
    whole = seal_message(AUTHOR, RUN, example_of(data.draw(st.sampled_from(list(PURPOSES.values())))))
    raw = data.draw(damaged(whole))
    try:
        open_message(raw, run=RUN)
    except RemoteError:
        return
    assert raw == whole


@pytest.mark.parametrize("kind", [PeerStatus, Contribution])
def test_nobody_speaks_of_another(kind: type[Any]) -> None:
    with pytest.raises(BadSignature, match="signed a"):
        open_message(seal_message(keypair(2), RUN, example_of(kind)), run=RUN)


def test_purposes_are_not_interchangeable() -> None:
    raw = seal_message(AUTHOR, RUN, GetState())
    with pytest.raises(MalformedBytes, match="a cut is due"):
        open_as(CutHint, raw, run=RUN)
    with pytest.raises(MalformedBytes, match="unknown purpose"):
        open_message(seal(AUTHOR, RUN, "nonsense", []), run=RUN)


@by_kind
def test_lists_have_limits(purpose: str) -> None:
    """Every list of every message is bounded far below what a frame could hold."""
    kind = PURPOSES[purpose]
    good = to_value(example_of(kind))
    for place, field in enumerate(dataclasses.fields(kind)):
        if isinstance(good[place], list) and good[place] and isinstance(getattr(example_of(kind), field.name), tuple):
            endless = [*good[:place], good[place][:1] * 31_000, *good[place + 1 :]]
            with pytest.raises(MalformedBytes, match="exceeds"):
                from_value(kind, endless)


def test_opening_a_hostile_message_takes_bounded_memory() -> None:
    count = wire.MAX_VALUES - 100
    raw = seal(AUTHOR, RUN, "peers", [0, [[]] * count])
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBytes):
            open_message(raw, run=RUN)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < wire.MAX_VALUES * 64 + 4 * len(raw)  # as for `wire.decode`, and the body inside the envelope
