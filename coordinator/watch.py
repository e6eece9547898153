"""A monitor at work, without a screen: transport, archive and collector together, and the view that they make.

    watching -> nursery -> Collector.run (which folds what it learns into `Watch.view`)

`view` is replaced whole, and only by the collector's tasks; whoever draws reads it between two checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import trio

from coordinator.archive import Archive
from coordinator.collect import Collector, Item
from coordinator.home import Home
from coordinator.net import Libp2pTransport, open_transport
from coordinator.summary import Summary, summarize
from coordinator.view import SwarmView, Trouble, fold, said_here
from swarm.address import nobody_answers
from swarm.errors import Unreachable
from swarm.identity import PeerId

FIRST_ANSWER_S: Final = 15.0  # at most; less when every address has refused a few times
NOTES_S: Final = 0.2  # between two looks at a file of notes
SETTLE_S: Final = 5.0  # after the first answer, for the others that it told of: a dial in vain, and a hop


class Watch:
    """What is known of a swarm, kept up to date."""

    def __init__(self, home: Home, transport: Libp2pTransport, archive: Archive) -> None:
        self.home = home
        self.transport = transport
        self.view = SwarmView(home.run)
        self.collector = Collector(transport, home.run, archive, self._take, time.time, home.keypair)

    def _take(self, item: Item) -> None:
        self.view = fold(self.view, item)

    async def tell_lines_of(self, path: Path) -> None:
        """Whatever is appended to that file becomes news, until it is cancelled."""
        with path.open(errors="replace") as file:
            while True:
                if (line := file.readline()).strip():
                    self.view = said_here(self.view, time.time(), line)
                else:
                    await trio.sleep(NOTES_S)

    def summary(self) -> Summary:
        """The swarm now."""
        return summarize(self.view, time.time())

    def remembered(self, reason: str) -> tuple[Summary, float] | None:
        """The swarm as it was when it was seen last, without anybody live, as nobody answers for that reason; and how many
        seconds ago that was. None when nothing is remembered."""
        now_s = time.time()
        for peer in self.view.peers:
            self._take(Trouble(peer, now_s, reason, bad=False))
        newest_s = max((peer.seen_at_s for peer in self.view.peers.values()), default=None)
        return None if newest_s is None else (self.summary(), max(0.0, now_s - newest_s))

    def live(self) -> list[PeerId]:
        """The peers that are there now and can be asked for blobs, which no third passes on."""
        now_s = time.time()
        return [peer for peer, seen in self.view.peers.items() if seen.is_live(now_s) and seen.through is None]

    async def first_answer(self) -> None:
        """Returns once a peer has answered. Raises Unreachable with the addresses that were tried."""
        with trio.move_on_after(FIRST_ANSWER_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, self.collector.gave_up, nursery.cancel_scope)
                await self.collector.reached.wait()
                nursery.cancel_scope.cancel()
        if self.collector.reached.is_set():
            return
        raise Unreachable(nobody_answers(dict(sorted(self.collector.tried.items()))))

    async def settled(self) -> None:
        """Returns once a peer has answered and those it told of were asked too, or were given their time."""
        await self.first_answer()
        with trio.move_on_after(SETTLE_S):
            await self.collector.settled()


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


@asynccontextmanager
async def watching(home: Home) -> AsyncIterator[Watch]:
    """Watches a run for as long as the block lasts."""
    with closing(Archive(home.history, home.run)) as archive:
        async with open_transport(home.keypair) as transport:
            watch = Watch(home, transport, archive)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch.collector.run, home.addresses)
                yield watch
                nursery.cancel_scope.cancel()
