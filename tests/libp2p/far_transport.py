"""A Transport whose work is done by `peer_shell.py` in another process: the peer's shell on a real p2pd, seen from trio."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from swarm import errors, wire
from swarm.errors import RemoteError
from swarm.identity import PeerId
from swarm.net.transport import Handler

SCRIPT = Path(__file__).with_name("peer_shell.py")
ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 4 << 20
SLACK_S = 10.0  # the far side keeps the deadline; this one only bounds a test that is broken


class FarTransport:
    """Keeps the Transport promise through the process behind it."""

    def __init__(self, process: trio.Process, nursery: trio.Nursery) -> None:
        self._process, self._nursery = process, nursery
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[trio.Event, list[Any]]] = {}
        self._writing = trio.Lock()
        self._handler: Handler | None = None
        self._buffer = b""
        self._peer_id: PeerId
        self._addresses: tuple[str, ...] = ()

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def serve(self, handler: Handler) -> None:
        self._handler = handler

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        return PeerId(await self._order("connect", address, timeout_s, limit_s=timeout_s))

    async def request(self, to: PeerId, payload: bytes, *, timeout_s: float) -> bytes:
        answer: bytes = await self._order("request", to.raw, payload, timeout_s, limit_s=timeout_s)
        return answer

    async def close(self) -> None:
        await self._order("close", limit_s=SLACK_S)

    async def _order(self, kind: str, *words: Any, limit_s: float) -> Any:
        number = next(self._numbers)
        done, result = trio.Event(), []
        self._waiting[number] = (done, result)
        await self._tell(kind, number, *words)
        with trio.fail_after(limit_s + SLACK_S):
            await done.wait()
        outcome, *value = result
        if outcome == "failed":
            raise getattr(errors, value[0])(value[1])
        return value[0]

    async def _tell(self, *message: Any) -> None:
        raw = wire.encode(message)
        async with self._writing:
            assert self._process.stdin is not None
            await self._process.stdin.send_all(len(raw).to_bytes(4, "big") + raw)

    async def _read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        while len(self._buffer) < count:
            some = await self._process.stdout.receive_some(1 << 20)
            if not some:
                raise EOFError("the peer's shell has ended")
            self._buffer += some
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    async def _hear(self) -> Any:
        length = int.from_bytes(await self._read(4), "big")
        return wire.decode(await self._read(length), max_bytes=MAX_BYTES)

    async def listen(self) -> None:
        """Takes what the process says; ends with the nursery."""
        while True:
            kind, number, *words = await self._hear()
            if kind == "asked":
                self._nursery.start_soon(self._answer, number, PeerId(words[0]), words[1])
            else:
                done, result = self._waiting.pop(number)
                result.extend([kind, *words])
                done.set()

    async def begin(self) -> None:
        """Waits until the process is in its network."""
        kind, peer, addresses = await self._hear()
        assert kind == "up"
        self._peer_id, self._addresses = PeerId(peer), tuple(addresses)

    async def _answer(self, call: int, asker: PeerId, payload: bytes) -> None:
        try:
            answer = None if self._handler is None else await self._handler(asker, payload)
        except RemoteError:
            answer = None
        await self._tell("answer", call, answer)


@asynccontextmanager
async def peer_shell() -> AsyncIterator[FarTransport]:
    """The peer's shell in a process of its own, which ends with the block."""
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=None
        )
        far = FarTransport(process, nursery)
        try:
            with trio.fail_after(60):
                await far.begin()
            nursery.start_soon(far.listen)
            yield far
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                assert process.stdin is not None
                await process.stdin.aclose()
                with trio.move_on_after(10) as waited:
                    await process.wait()
                if waited.cancelled_caught:
                    process.kill()
                    await process.wait()
