"""The asyncio shell of `swarm.pace`: whoever is to be sent something that no round waits for waits here for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from swarm.blobs import BUSY
from swarm.errors import Refusal
from swarm.identity import PeerId
from swarm.pace import NEWCOMER_FACTOR, RoundTraffic, ServeQueue, Upload


@dataclass(slots=True)
class Served:
    """What was served at the pace so far."""

    num_bytes: int = 0
    num_turned_away: int = 0
    waited_s: float = 0.0


class Pacer:
    """Grants turns at a share of the upload. Lives in one event loop."""

    def __init__(self, upload: Upload, sent_bytes: Callable[[], int] = lambda: 0) -> None:
        """`sent_bytes`: how many bytes were sent in all, whatever for."""
        self.served = Served()
        self._upload = upload
        self._sent_bytes = sent_bytes
        self._rounds = RoundTraffic()
        self._queue: ServeQueue | None = None
        self._turns: dict[int, asyncio.Future[bool]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note_round(self, num_bytes: float) -> None:
        """A round has ended; `num_bytes` of what it listed are our part of serving a newcomer."""
        self._rounds.note(num_bytes, asyncio.get_running_loop().time())

    def look(self) -> None:
        """Takes note of what is sent; to be called now and then, in the loop."""
        self._upload.note(self._sent_bytes(), asyncio.get_running_loop().time())

    async def turn(self, remote: PeerId, num_bytes: int) -> None:
        """Returns when `num_bytes` may be sent to `remote`; raises Refusal, beginning with "busy", when not any time soon."""
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        queue = self._queue
        if queue is None:
            queue = self._queue = ServeQueue(0.0, asked_s)
        self.look()
        queue.set_rate(self._upload.serving(NEWCOMER_FACTOR * self._rounds.bytes_per_s(asked_s)), asked_s)
        ticket = queue.ask(remote, num_bytes, asked_s)
        turn = self._turns[ticket] = loop.create_future()
        self._settle()
        try:
            is_granted = await turn
        finally:
            queue.leave(ticket)
            self._turns.pop(ticket, None)
            self._settle()
        self.served.waited_s += loop.time() - asked_s
        if not is_granted:
            self.served.num_turned_away += 1
            raise Refusal(f"{BUSY}: others are being served; ask again later")
        self.served.num_bytes += num_bytes

    def _settle(self) -> None:
        """Tells those whose wait is over, and looks again when the next one's will be."""
        assert self._queue is not None
        loop = asyncio.get_running_loop()
        settled = self._queue.settle(loop.time())
        for tickets, outcome in ((settled.granted, True), (settled.turned_away, False)):
            for ticket in tickets:
                turn = self._turns.pop(ticket, None)
                if turn is not None and not turn.done():
                    turn.set_result(outcome)
        if self._timer is not None:
            self._timer.cancel()
        next_s = self._queue.next_s(loop.time())
        self._timer = None if next_s is None else loop.call_at(next_s, self._settle)
