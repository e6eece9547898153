"""Invites of a peer: with the addresses of members whom somebody has dialled, its own among them if somebody did."""

from __future__ import annotations

from peer.address_book import Known
from swarm.address import Scope, parse_address
from swarm.digest import Digest
from swarm.errors import ConfigError
from swarm.identity import PeerId
from swarm.invite import Invite, choose_addresses


def invitation(run: Digest, me: PeerId, known: Known) -> tuple[Invite, str]:
    """The invite, and what to say of it, "" if it is good for everybody. Raises ConfigError when no address is known."""
    is_local = all(parse_address(one).scope is Scope.MACHINE for one in known.own)  # whoever is here can dial them
    members = {me: list(known.own)}
    for address in known.addresses:
        members.setdefault(parse_address(address).peer, []).append(address)
    dialable = known.dialable | ({me} if is_local else set())
    chosen, note = choose_addresses(
        [addresses for peer, addresses in members.items() if peer in dialable],
        [addresses for peer, addresses in members.items() if peer not in dialable],
    )
    if not chosen:
        raise ConfigError("no address of a peer of this run is known here; start the peer first")
    return Invite(run, chosen), note
