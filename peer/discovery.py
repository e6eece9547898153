"""How a peer meets others: the noticeboard, whom its acquaintances know, and the addresses it remembers.

One task, a child of the node's; whatever it learns goes to the round machine as a received status.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from peer.address_book import AddressBook
from peer.clock import awake_or_asleep_s
from peer.fetch import Asker
from peer.network import Network
from swarm.address import worth_dialling
from swarm.dht.records import prefixes_to_read
from swarm.errors import BarnraiseError, NetworkError, RemoteError, StateError
from swarm.events import Event, PeerMisbehaved
from swarm.identity import PeerId
from swarm.messages import GetPeers, KnownStatus, Peers, PeerStatus, open_as
from swarm.round.participant import Participant
from swarm.schema import line

log = logging.getLogger(__name__)

DISCOVERY_EVERY_S: Final = 15.0
FIRST_DISCOVERY_S: Final = 1.0
ASK_TIMEOUT_S: Final = 5.0
_ASKED_AT_ONCE: Final = 8
MAX_PAGES_ASKED: Final = 16  # of one peer: 1,024 statuses
_DIALLED_AT_ONCE: Final = 16

Received = Callable[[PeerId, Any, bytes, float], None]


class Discovery:
    """Finds peers; `received` takes each status found, `tell` sends a peer our own, `happened` an event."""

    def __init__(
        self,
        participant: Participant,
        network: Network,
        asker: Asker,
        book: AddressBook,
        doors: tuple[Received, Callable[[PeerId, PeerStatus], None], Callable[[Event], None]],
    ) -> None:
        self._participant = participant
        self._network = network
        self._asker = asker
        self._book = book
        self._received, self._tell, self._happened = doors
        self._chance = random.Random()  # where to look first: peers spread over the keys by themselves

    async def run(self) -> None:
        """Meets peers until it is cancelled, often at first."""
        wait_s = FIRST_DISCOVERY_S
        await self._meet(tuple(self._network.transport.known))
        while True:
            await self._look_at_board()
            if not self._participant.presence.fresh(awake_or_asleep_s()):
                await self._find_anybody()
            await self._note_addresses()
            await asyncio.sleep(wait_s)
            wait_s = min(DISCOVERY_EVERY_S, 2 * wait_s)

    async def _look_at_board(self) -> None:
        """Our status onto the noticeboard, the others' from it."""
        status = self._participant.status()
        sealed = self._asker.seal(status)
        try:
            await self._network.board.publish(status.peer, sealed)
            first, others = prefixes_to_read(self._chance)
            for prefixes in ((first,), others):
                for record in await self._network.board.read(prefixes):
                    self._received(record.status.peer, record.status, record.sealed, record.age_s)
                if not self._participant.looks_for_peers():
                    break
        except (NetworkError, OSError) as error:
            log.debug("the noticeboard: %s", error)
        except BarnraiseError as error:  # ours, and no reason to end: members talk to each other without it
            log.warning("the noticeboard: %s", error)

    async def _find_anybody(self) -> None:
        """We hear nobody: asks those we reached, who may have been starting still, and dials every address we remember; tells
        whoever answers that we are here."""
        await self._meet(tuple(self._network.transport.known))
        with contextlib.suppress(NetworkError, RemoteError):
            await self._meet(await self._network.connect_all(worth_dialling(self._book.addresses())[:_DIALLED_AT_ONCE]))

    async def _meet(self, peers: Sequence[PeerId]) -> None:
        """Asks peers whom they know, and tells all of them of us."""
        places = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def ask(peer: PeerId) -> None:
            async with places:
                await self._ask(peer)

        await asyncio.gather(*(ask(peer) for peer in peers))
        own = self._participant.status()
        for one in dict.fromkeys((*self._participant.acquaintances(), *peers)):
            self._tell(one, own)

    async def _ask(self, peer: PeerId) -> None:
        """Whom that peer knows: page by page, until we have heard of enough."""
        offset = 0
        for _ in range(MAX_PAGES_ASKED):
            try:
                answer = await self._asker.ask(peer, GetPeers(offset), timeout_s=ASK_TIMEOUT_S)
            except (NetworkError, RemoteError) as error:
                log.debug("%s was asked for peers: %s", peer, error)
                return
            if not isinstance(answer, Peers):
                return
            await self._take_page(peer, answer.known)
            offset += len(answer.known)
            if not answer.known or offset >= answer.total or not self._participant.looks_for_peers():
                return

    async def _take_page(self, peer: PeerId, page: Sequence[KnownStatus]) -> None:
        for known, status in zip(page, await asyncio.to_thread(self._open_all, page), strict=True):
            if isinstance(status, PeerStatus):
                self._received(status.peer, status, known.sealed, known.age_s)
            else:
                self._happened(PeerMisbehaved(peer, line(f"passed on a status: {status}")))

    def _open_all(self, page: Sequence[KnownStatus]) -> list[PeerStatus | RemoteError]:
        """In a thread: a page of statuses has 64 signatures to be checked."""
        opened: list[PeerStatus | RemoteError] = []
        for known in page:
            try:
                opened.append(open_as(PeerStatus, known.sealed, run=self._asker.run))
            except RemoteError as error:
                opened.append(error)
        return opened

    async def _note_addresses(self) -> None:
        heard = sorted(self._participant.presence.roll.all(), key=lambda one: one.at_s, reverse=True)
        try:
            await asyncio.to_thread(self._book.note, [one.status for one in heard])
        except StateError as error:
            log.warning("the address book: %s", error)  # without it a peer goes on, and comes back by its invite
