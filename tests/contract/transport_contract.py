"""What every Transport must do, as plain async functions that know neither asyncio nor trio nor the network below.

A test module makes a fresh `Meeting` for each check in `CHECKS` and awaits `check(meeting)`. `asker` is the shell under
test; `answerer` has at least one address and may be the same kind of shell or another kind that must understand it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pytest

from swarm.digest import CHUNK_BYTES
from swarm.errors import MalformedBytes, Refusal, TimedOut, Unreachable
from swarm.identity import Keypair, PeerId
from swarm.net.transport import Transport
from swarm.wire import MAX_FRAME_BYTES

GENEROUS_S: Final = 30.0  # a limit that no healthy exchange comes near, not a measurement
BRIEF_S: Final = 1.0
NUM_CONCURRENT: Final = 32
STRANGER: Final = Keypair.from_seed(bytes(range(32))).peer_id


class Runtime(Protocol):
    """The two things that the checks need of an async framework."""

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        ...

    async def gather(self, jobs: list[Callable[[], Awaitable[Any]]]) -> list[Any]:
        """Runs the jobs at the same time; returns their results in order. The first error rises."""
        ...


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two transports that have not met, and an address where nobody listens."""

    asker: Transport
    answerer: Transport
    runtime: Runtime
    dead_address: str  # well formed, `/p2p/<id>` included

    async def connect(self) -> PeerId:
        return await self.asker.connect(self.answerer.addresses()[0], timeout_s=GENEROUS_S)

    async def ask(self, payload: bytes, timeout_s: float = GENEROUS_S) -> bytes:
        return await self.asker.request(self.answerer.peer_id, payload, timeout_s=timeout_s)


async def _echo(asker: PeerId, payload: bytes) -> bytes:
    return payload


async def check_connect_says_who_is_there(meeting: Meeting) -> None:
    assert await meeting.connect() == meeting.answerer.peer_id


async def check_addresses_name_the_peer(meeting: Meeting) -> None:
    for transport in (meeting.asker, meeting.answerer):
        assert all(address.endswith(f"/p2p/{transport.peer_id.base58}") for address in transport.addresses())
    assert meeting.answerer.addresses()


async def check_echo(meeting: Meeting) -> None:
    seen: list[PeerId] = []

    async def remember(asker: PeerId, payload: bytes) -> bytes:
        seen.append(asker)
        return payload[::-1]

    meeting.answerer.serve(remember)
    await meeting.connect()
    assert await meeting.ask(b"drawer") == b"reward"
    assert await meeting.ask(b"") == b""
    assert seen == [meeting.asker.peer_id] * 2  # the identity is the connection's, not the payload's


async def check_both_sides_may_ask(meeting: Meeting) -> None:
    meeting.asker.serve(_echo)
    meeting.answerer.serve(_echo)
    await meeting.connect()
    await meeting.ask(b"there")
    assert await meeting.answerer.request(meeting.asker.peer_id, b"back", timeout_s=GENEROUS_S) == b"back"


async def check_a_chunk_both_ways(meeting: Meeting) -> None:
    meeting.answerer.serve(_echo)
    await meeting.connect()
    chunk = bytes(range(256)) * (CHUNK_BYTES // 256)
    assert await meeting.ask(chunk) == chunk


async def check_the_longest_frame(meeting: Meeting) -> None:
    meeting.answerer.serve(_echo)
    await meeting.connect()
    longest = bytes(MAX_FRAME_BYTES)
    assert await meeting.ask(longest) == longest


async def check_an_overlong_request_is_not_sent(meeting: Meeting) -> None:
    calls: list[int] = []

    async def count(asker: PeerId, payload: bytes) -> bytes:
        calls.append(len(payload))
        return b""

    meeting.answerer.serve(count)
    await meeting.connect()
    with pytest.raises(MalformedBytes):
        await meeting.ask(bytes(MAX_FRAME_BYTES + 1))
    assert await meeting.ask(b"short") == b""  # and the transport is as good as before
    assert calls == [5]


async def check_an_overlong_answer_is_not_sent(meeting: Meeting) -> None:
    async def say_too_much(asker: PeerId, payload: bytes) -> bytes:
        return bytes(MAX_FRAME_BYTES + 1)

    meeting.answerer.serve(say_too_much)
    await meeting.connect()
    with pytest.raises((Unreachable, MalformedBytes)):
        await meeting.ask(b"tell me")


async def check_an_unknown_peer_is_unreachable(meeting: Meeting) -> None:
    with pytest.raises(Unreachable):
        await meeting.asker.request(STRANGER, b"hello?", timeout_s=GENEROUS_S)


async def check_without_a_handler_requests_are_refused(meeting: Meeting) -> None:
    await meeting.connect()
    with pytest.raises(Unreachable):
        await meeting.ask(b"anyone?")


async def check_a_silent_handler_times_out(meeting: Meeting) -> None:
    async def brood(asker: PeerId, payload: bytes) -> bytes:
        if payload == b"brood":
            await meeting.runtime.sleep(1000 * GENEROUS_S)
        return b"quick"

    meeting.answerer.serve(brood)
    await meeting.connect()
    with pytest.raises(TimedOut):
        await meeting.ask(b"brood", timeout_s=BRIEF_S)
    assert await meeting.ask(b"now") == b"quick"


async def check_a_handler_that_refuses_closes_unanswered(meeting: Meeting) -> None:
    async def refuse(asker: PeerId, payload: bytes) -> bytes:
        if payload == b"bad":
            raise Refusal("not like this")
        return b"good"

    meeting.answerer.serve(refuse)
    await meeting.connect()
    with pytest.raises(Unreachable):
        await meeting.ask(b"bad")
    assert await meeting.ask(b"fine") == b"good"


async def check_many_requests_at_once(meeting: Meeting) -> None:
    async def double(asker: PeerId, payload: bytes) -> bytes:
        return payload * 2

    meeting.answerer.serve(double)
    await meeting.connect()

    def job(index: int) -> Callable[[], Awaitable[bytes]]:
        return lambda: meeting.ask(b"%04d" % index)

    answers = await meeting.runtime.gather([job(index) for index in range(NUM_CONCURRENT)])
    assert answers == [b"%04d" % index * 2 for index in range(NUM_CONCURRENT)]


async def check_closed_is_unreachable(meeting: Meeting) -> None:
    meeting.answerer.serve(_echo)
    await meeting.connect()
    await meeting.ask(b"first")
    await meeting.answerer.close()
    with pytest.raises(Unreachable):
        await meeting.ask(b"still there?")


async def check_close_is_idempotent_and_final(meeting: Meeting) -> None:
    meeting.answerer.serve(_echo)
    await meeting.connect()
    await meeting.asker.close()
    await meeting.asker.close()
    with pytest.raises(Unreachable):
        await meeting.ask(b"after close")
    with pytest.raises(Unreachable):
        await meeting.connect()


async def check_malformed_addresses_are_refused(meeting: Meeting) -> None:
    good = meeting.answerer.addresses()[0]
    for address in (
        "",
        "nonsense",
        "/",
        "/ip4/127.0.0.1",
        f"{good}x",
        good.rsplit("/p2p/", 1)[0] + "/p2p/",
        "/x" * 5000,
    ):
        with pytest.raises(MalformedBytes):
            await meeting.asker.connect(address, timeout_s=GENEROUS_S)


async def check_a_dead_address_is_unreachable(meeting: Meeting) -> None:
    with pytest.raises((Unreachable, TimedOut)):
        await meeting.asker.connect(meeting.dead_address, timeout_s=GENEROUS_S)


Check = Callable[[Meeting], Awaitable[None]]
CHECKS: Final[tuple[Check, ...]] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith("check_")
)
