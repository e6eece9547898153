"""A small public server that trains nothing: peers behind NAT meet there, it passes their messages on and holds their blobs.

It knows the run's manifest, is a node of the DHT, forwards by one hop (`swarm.net.forward`), and fetches the contributions
that authors announce to it, so that others can fetch them here. It holds no state, leads nothing and has no vote.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from peer.address_book import AddressBook
from peer.blob_store import BlobStore
from peer.clock import awake_or_asleep_s
from peer.commands import peer_command
from peer.fetch import Asker, Fetcher
from peer.forwarding import Forwarding
from peer.home import Home, open_default_home, open_home
from peer.network import Network, NetworkConfig
from peer.own_addresses import announced
from peer.screen import Screen
from peer.serve import Server
from swarm.address import worth_dialling
from swarm.digest import Digest
from swarm.errors import NetworkError, RemoteError, StateError
from swarm.identity import Keypair, PeerId
from swarm.invite import MAX_ADDRESSES as MAX_INVITED
from swarm.invite import Invite
from swarm.manifest import Manifest
from swarm.messages import Contribution, Goodbye, KnownStatus, PeerStatus
from swarm.round.roll import Roll
from swarm.streams import ending_signals

log = logging.getLogger(__name__)

SHARE_OF_ONE: Final = 4  # an author's blobs take at most such a part of the room
BOARD_EVERY_S: Final = 15.0
SAY_EVERY_S: Final = 60.0
FETCHED_AT_ONCE: Final = 8
_PINS: Final = "relay"


class Relay:
    """What it knows and holds. Lives in one event loop."""

    def __init__(self, network: Network, asker: Asker, server: Server, store: BlobStore, max_bytes: int) -> None:
        self.num_held = 0
        self._network = network
        self._store = store
        self._fetcher = Fetcher(asker, store)
        self._max_bytes = max_bytes
        self._roll = Roll(SAY_EVERY_S)
        self._held: OrderedDict[Digest, Contribution] = OrderedDict()  # the oldest first
        self._fetching: set[Digest] = set()
        self._places = asyncio.Semaphore(FETCHED_AT_ONCE)
        self._tasks: asyncio.TaskGroup
        server.connect(self._take, self._statuses)

    @property
    def held_bytes(self) -> int:
        return sum(one.num_bytes for one in self._held.values())

    @property
    def num_peers(self) -> int:
        """Peers that were heard of lately."""
        return len(self._roll.fresh(awake_or_asleep_s(), SAY_EVERY_S))

    async def run(self) -> None:
        """Serves until it is cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                await self._read_board()
                self._roll.forget_silent(awake_or_asleep_s())
                await asyncio.sleep(BOARD_EVERY_S)

    async def _read_board(self) -> None:
        with contextlib.suppress(NetworkError, OSError):
            for record in await self._network.board.read():
                self._roll.hear(record.status, record.sealed, awake_or_asleep_s(), record.age_s)

    def _statuses(self) -> list[KnownStatus]:
        now_s = awake_or_asleep_s()
        return [KnownStatus(one.sealed, max(0.0, now_s - one.at_s)) for one in self._roll.all() if not one.left]

    def _take(self, sender: PeerId, message: Any, sealed: bytes) -> None:
        match message:
            case PeerStatus():
                self._roll.hear(message, sealed, awake_or_asleep_s())
            case Goodbye(_, incarnation):
                self._roll.leave(sender, incarnation)
            case Contribution(author=author, root=root) if author == sender and not self._has(root):
                self._fetching.add(root)
                self._pin()  # before it is here: else whoever collects in between takes it away
                self._tasks.create_task(self._hold(message))
            case _:
                pass  # a relay takes no part in rounds

    def _has(self, root: Digest) -> bool:
        """Whether that blob is here, or on its way. Its author goes on naming it: a fetch that failed is tried again."""
        return root in self._fetching or (root in self._held and self._store.has(root))

    async def _hold(self, contribution: Contribution) -> None:
        """Fetches the blob from its author, over the connection that it has opened."""
        try:
            if contribution.num_bytes > self._max_bytes // SHARE_OF_ONE:
                return
            async with self._places:
                await self._fetcher.fetch(contribution.root, (contribution.author,), contribution.num_bytes)
        except (NetworkError, RemoteError, StateError) as error:
            log.info("a contribution of %s was not fetched: %s", contribution.author, error)
            return
        else:
            self._held[contribution.root] = contribution
        finally:
            self._fetching.discard(contribution.root)
        self._make_room(contribution.author)
        self.num_held += 1
        self._pin()
        await asyncio.to_thread(self._store.collect)

    def _pin(self) -> None:
        self._store.pin(_PINS, {*self._held, *self._fetching})

    def _make_room(self, author: PeerId) -> None:
        """Drops what is oldest: of an author that has more than its share, else of all."""
        own = [root for root, one in self._held.items() if one.author == author]
        while own and sum(self._held[root].num_bytes for root in own) > self._max_bytes // SHARE_OF_ONE:
            del self._held[own.pop(0)]
        while self.held_bytes > self._max_bytes:
            self._held.popitem(last=False)


def run_relay(
    manifest: Manifest, screen: Screen, *, home: Path | None, listen: str, announce: tuple[str, ...], max_bytes: int
) -> None:
    """Runs a relay until SIGINT or SIGTERM. Raises BarnraiseError."""
    own = open_home(home) if home else open_default_home(manifest.run_id, "relay")
    try:
        own.keep_manifest(manifest)
        asyncio.run(
            _run(
                manifest,
                screen,
                own,
                NetworkConfig(
                    listen=(listen,),
                    announce=announced(announce, own.keypair().peer_id, local=False),
                    bootstrap=worth_dialling(AddressBook(own.book).addresses()),
                    must_reach=False,
                    local=False,
                ),
                max_bytes,
            )
        )
    finally:
        own.release()


async def _run(manifest: Manifest, screen: Screen, home: Home, config: NetworkConfig, max_bytes: int) -> None:
    keypair, stop = home.keypair(), asyncio.Event()
    for number in ending_signals():
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Network(keypair, manifest.run_id, config) as network:
        store = BlobStore(home.blobs)
        asker = Asker(network.transport, keypair, manifest.run_id)
        forwarding = Forwarding(network.transport, manifest.run_id)
        server = Server(keypair, manifest.run_id, manifest.to_bytes(), store, forwarding=forwarding)
        relay = Relay(network, asker, server, store, max_bytes)
        network.transport.serve(server.handle)
        _introduce(screen, manifest, keypair, network)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(relay.run())
            said = tasks.create_task(_tell(screen, relay, forwarding))
            await stop.wait()
            running.cancel()
            said.cancel()
    screen.say(f"left: {relay.num_held} blobs were held, {forwarding.num_passed_on} messages passed on")


def _introduce(screen: Screen, manifest: Manifest, keypair: Keypair, network: Network) -> None:
    invite = Invite(manifest.run_id, network.addresses[:MAX_INVITED])
    screen.say(f"Barnraise relay: run {manifest.config.name} ({manifest.run_id})", style="bold")
    screen.fact("relay", keypair.peer_id.base58)
    screen.fact("listens at", ", ".join(address.split("/p2p/")[0] for address in network.addresses))
    screen.say("To join this run over it:")
    screen.say(f"  {peer_command('--join', invite.encode())}")


async def _tell(screen: Screen, relay: Relay, forwarding: Forwarding) -> None:
    while True:
        await asyncio.sleep(SAY_EVERY_S)
        screen.say(
            f"{relay.num_peers} peers heard of, {forwarding.num_passed_on} messages passed on, "
            f"{relay.held_bytes / 1e6:,.1f} MB of contributions held"
        )
