"""Signed envelopes: bound to run, purpose, version and author, with one form each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import wire
from swarm.digest import ZERO_DIGEST
from swarm.envelope import MAX_PURPOSE_LETTERS, PROTOCOL_VERSION, Envelope, _to_sign, open_envelope, seal
from swarm.errors import BadSignature, MalformedBytes, RemoteError
from tests.unit.message_examples import AUTHOR, RUN, damaged, keypair, wire_values

quick = settings(deadline=None, max_examples=150)
VERSION, RUN_RAW, PURPOSE, AUTHOR_RAW, BODY, SIGNATURE = range(6)


@quick
@given(wire_values, st.text(max_size=MAX_PURPOSE_LETTERS))
def test_what_was_sealed_is_opened(body: Any, purpose: str) -> None:
    opened = open_envelope(seal(AUTHOR, RUN, purpose, body), run=RUN)
    assert opened == Envelope(RUN, purpose, AUTHOR.peer_id, body)


def test_any_run_is_opened_by_who_does_not_know_it_yet() -> None:
    raw = seal(AUTHOR, RUN, "p", 1)
    assert open_envelope(raw, run=None).run == RUN
    with pytest.raises(BadSignature, match="meant for run"):
        open_envelope(raw, run=ZERO_DIGEST)


@quick
@given(st.data())
def test_harmed_bytes_are_refused(data: st.DataObject) -> None:
    whole = seal(AUTHOR, RUN, "p", data.draw(wire_values))
    raw = data.draw(damaged(whole))
    try:
        open_envelope(raw, run=RUN)
    except RemoteError:
        return
    assert raw == whole, "other bytes must not open"


@quick
@given(st.lists(wire_values, min_size=6, max_size=6) | wire_values)
def test_any_value_is_refused(value: Any) -> None:
    with pytest.raises(RemoteError):
        open_envelope(wire.encode(value), run=None)


@pytest.mark.parametrize(
    ("place", "other"),
    [
        (VERSION, PROTOCOL_VERSION + 1),
        (VERSION, True),  # equal to 1, but other bytes: an envelope has one form
        (VERSION, 1.0),
        (RUN_RAW, ZERO_DIGEST.raw),
        (PURPOSE, "q"),
        (PURPOSE, "p" * (MAX_PURPOSE_LETTERS + 1)),
        (AUTHOR_RAW, keypair(2).peer_id.raw),
        (AUTHOR_RAW, bytes(32)),
        (AUTHOR_RAW, b"\x01" + bytes(31)),
        (AUTHOR_RAW, b"\xff" * 32),
        (BODY, wire.encode(2)),
        (SIGNATURE, bytes(64)),
        (SIGNATURE, bytes(63)),
    ],
)
def test_every_field_is_signed(place: int, other: Any) -> None:
    fields = wire.decode(seal(AUTHOR, RUN, "p", 1))
    fields[place] = other
    with pytest.raises(RemoteError):
        open_envelope(wire.encode(fields), run=None)


def test_the_signature_is_not_malleable() -> None:
    """s + L verifies under a lax rule; with it, one message would have two sets of bytes (RFC 8032, 5.1.7)."""
    order = 2**252 + 27742317777372353535851937790883648493
    fields = wire.decode(seal(AUTHOR, RUN, "p", 1))
    s = int.from_bytes(fields[SIGNATURE][32:], "little") + order
    fields[SIGNATURE] = fields[SIGNATURE][:32] + s.to_bytes(32, "little")
    with pytest.raises(BadSignature):
        open_envelope(wire.encode(fields), run=RUN)


def test_the_body_is_not_parsed_before_its_signature_holds() -> None:
    fields = wire.decode(seal(AUTHOR, RUN, "p", 1))
    fields[BODY] = b"\x91" * 1000  # would be refused as too deep
    with pytest.raises(BadSignature):
        open_envelope(wire.encode(fields), run=RUN)


def test_a_signed_body_may_still_be_malformed() -> None:
    """Whoever signs rubbish gets the same answer as whoever sends it."""
    body = b"\x91" * 1000
    signature = AUTHOR.sign(_to_sign(RUN.raw, "p", AUTHOR.peer_id.raw, body))
    raw = wire.encode([PROTOCOL_VERSION, RUN.raw, "p", AUTHOR.peer_id.raw, body, signature])
    with pytest.raises(MalformedBytes):
        open_envelope(raw, run=RUN)


def test_size_is_bounded() -> None:
    raw = seal(AUTHOR, RUN, "p", bytes(100))
    with pytest.raises(MalformedBytes):
        open_envelope(raw, run=RUN, max_bytes=len(raw) - 1)
    assert replace(open_envelope(raw, run=RUN, max_bytes=len(raw)), body=None).purpose == "p"
