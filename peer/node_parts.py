"""The collaborators of a node, made by whoever starts the peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peer.address_book import AddressBook
from peer.blob_store import BlobStore
from peer.fetch import Asker, Fetcher
from peer.handoff import Handoff
from peer.network import Network
from peer.reach import Reach
from peer.routes import Routes
from peer.serve import Server
from swarm.events import Event
from swarm.identity import PeerId
from swarm.lease import LeaseSize
from swarm.messages import Contribution
from swarm.round.commits import Verifier
from swarm.round.participant import Participant

CheckBlob = Callable[[Contribution, bytes], None]
"""Raises RemoteError for the blob of a contribution that does not decode."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """The collaborators of a node, made by whoever starts the peer."""

    participant: Participant
    network: Network
    server: Server
    store: BlobStore
    asker: Asker  # over `routes`
    routes: Routes
    reach: Reach
    fetcher: Fetcher  # over connections alone
    handoff: Handoff
    book: AddressBook
    check_blob: CheckBlob
    verifier: Verifier
    record_event: Callable[[float, Event], None]
    lease: LeaseSize
    introducers: frozenset[PeerId] = frozenset()  # who invited us, if we are new
