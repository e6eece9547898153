"""A fresh invite from what a monitor remembers: those whom it, or another peer, has dialled, seen last first."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Final

from coordinator.archive import Archive
from coordinator.home import Home
from swarm.errors import ConfigError, RemoteError
from swarm.events import PeerLeft
from swarm.invite import Invite, choose_addresses
from swarm.messages import PeerStatus, open_as

MAX_GOODBYES: Final = 1000
RECENT_S: Final = 120.0  # before the newest word that is remembered: who was silent for longer is not in an invite


def invitation(home: Home) -> tuple[Invite, str]:
    """The invite, and what to say of it, "" if it is good for everybody. Raises ConfigError when no address is known."""
    with closing(Archive(home.history, home.run)) as archive:
        heard = archive.statuses()
        since_s = heard[0][0] - RECENT_S if heard else 0.0
        reached = archive.reached(since_s)
        told = [(one.event, one.at_unix_s) for one in archive.events(MAX_GOODBYES, kind=PeerLeft.__name__)]
    goodbyes = {event.peer: at_s for event, at_s in told if isinstance(event, PeerLeft)}
    statuses: list[tuple[PeerStatus, float]] = []
    for seen_at_s, sealed in heard:
        if seen_at_s < since_s:
            break
        try:
            status: PeerStatus = open_as(PeerStatus, sealed, run=home.run)
        except RemoteError:
            continue  # of an older form of the protocol
        statuses.append((status, seen_at_s))
    attested = {peer for status, _ in statuses for peer in status.dialled if peer != status.peer}
    dialable, others = [], [list(home.addresses)]
    for status, seen_at_s in statuses:
        ours = reached.pop(status.peer, [])
        if goodbyes.get(status.peer, -math.inf) >= seen_at_s:
            continue
        if status.peer in attested:
            dialable.append(list(status.addresses))
        elif worked := [address for address in ours if address in status.addresses]:
            dialable.append(worked)
        else:
            others.append(ours or list(status.addresses))
    dialable += reached.values()  # relays, which have no status
    chosen, note = choose_addresses(dialable, others)
    if not chosen:
        raise ConfigError("no address of a peer is known; watch the run first: barnraise monitor INVITE")
    return Invite(home.run, chosen), note
