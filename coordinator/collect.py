"""The collector: reaches a swarm from any of its addresses, learns the other peers from any one, and keeps up with them.

    run -> one nursery -> _knock      dials the invite's addresses and the address book until a peer is there
                       -> _follow     one task for each peer that is asked directly: status, events, pause, again
                       -> _survey     the rest of a large swarm, page by page from one peer at a time

A peer that cannot be dialled, behind NAT, answers by one hop over one that we are connected to (`coordinator/ask.py`).
A frozen or lying peer delays nobody: each has its own task; peers that failed the last time share a lane of their own, so
that they cannot hold the places of healthy ones. What a peer says is verified (signature, run, author) before it is
believed, and the newest beat wins. Whoever sends wrong bytes is asked more and more rarely.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from coordinator.archive import Archive, ToldEvent
from coordinator.ask import TIMEOUT_S, Asker, Way
from coordinator.view import MAX_PEERS, Happened, Seen, Trouble
from swarm.address import parse_address, worth_dialling
from swarm.digest import Digest, digest_of
from swarm.errors import MalformedBytes, NetworkError, Refusal, RemoteError, Unreachable
from swarm.identity import Keypair, PeerId
from swarm.messages import (
    MAX_EVENTS_PAGE,
    MAX_PEERS_PAGE,
    Events,
    GetEvents,
    GetPeers,
    Peers,
    PeerStatus,
    open_as,
)
from swarm.net.transport import Transport

POLL_S: Final = 1.0
MAX_DIRECT: Final = 64  # peers asked directly; of others we hear through these
PEERS_A_SECOND: Final = 24  # asked directly, so that 64 peers are each asked every 2.7 s
HOPS_A_SECOND: Final = 4  # asked by a hop, two questions each: a fifth of what one third passes on
MAX_AT_ONCE: Final = 8
RETRY_S: Final = (1.0, 1.0, 2.0, 3.0)  # pauses after failures in a row, then LATER_S: back in view within 5 s at first
LATER_S: Final = 4.0
GIVEN_UP_S: Final = 30.0  # the pause after so many failures that a peer is hardly coming back
GIVEN_UP_AFTER: Final = 20
FORGOTTEN_AFTER: Final = 60  # failures: the peer leaves the direct ones, until somebody tells of a new beat
PENALTY_S: Final = 5.0  # after wrong bytes, doubled with each further time
MAX_PENALTY_S: Final = 300.0
MAX_EVENT_PAGES: Final = 8  # in one poll
MAX_KNOCKS: Final = 64  # addresses of the book tried in one go
GIVE_UP_AFTER_KNOCKS: Final = 3
SURVEY_S: Final = 5.0
NOTE_REACHED_S: Final = 60.0  # the address book is told that an address still works so often
STORE_STATUS_S: Final = 5.0  # the archive is told of a peer's status so often
_MIN_CHECKED: Final = 128  # sealed statuses whose signatures were verified lately; about 10 kB each in memory
_CHECKED_PER_PEER: Final = 2  # the newest is told again by everyone, the one before by those who lag

Item = Seen | Happened | Trouble


@dataclass(slots=True)
class _Target:
    """A peer that is asked directly. `failures` counts in a row; `since` is the number of its last event we have."""

    peer: PeerId
    way: Way
    dialled: tuple[PeerId, ...] = ()  # by it, as its status says: they are connected to it
    failures: int = 0
    num_bad: int = 0
    since: int = 0
    incarnation: int | None = None
    polled: bool = False
    noted_at_s: float = -math.inf  # when the archive was told the last time that it was reached
    wake: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True, slots=True)
class _Heard:
    """The last beat of a peer that we know, and when the archive was given a status of it."""

    beat: int
    stored_at_s: float


_NEVER: Final = _Heard(-1, -math.inf)


class Collector:
    """Keeps `on_item` and the archive told of a swarm. `run` ends only when it is cancelled."""

    def __init__(
        self,
        transport: Transport,
        run: Digest,
        archive: Archive,
        on_item: Callable[[Item], None],
        wall_s: Callable[[], float],
        keypair: Keypair,
    ) -> None:
        """`wall_s` tells unix seconds; `keypair` signs our questions."""
        self._transport = transport
        self._run = run
        self._archive = archive
        self._on_item = on_item
        self._wall_s = wall_s
        self._asker = Asker(transport, keypair, run, wall_s)
        self._targets: dict[PeerId, _Target] = {}
        self._heard: OrderedDict[PeerId, _Heard] = OrderedDict()  # those heard of last at the end
        self._checked: OrderedDict[bytes, PeerStatus] = OrderedDict()
        self._healthy = trio.CapacityLimiter(MAX_AT_ONCE)
        self._doubtful = trio.CapacityLimiter(MAX_AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self._total = 0  # peers that the swarm has, as told last
        self._polled = trio.Event()  # replaced after each poll
        self.reached = trio.Event()  # set once a first peer has answered
        self.gave_up = trio.Event()  # set when the first dials were all in vain; they go on all the same
        self.tried: dict[str, str] = {}  # address -> why it was of no use

    async def run(self, addresses: Iterable[str]) -> None:
        """Collects until it is cancelled, beginning at `addresses` and at the archive's address book."""
        self._replay()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._knock, tuple(addresses))
            nursery.start_soon(self._survey)

    async def settled(self) -> None:
        """Returns once every peer known was asked, or failed to answer, at least once."""
        await self.reached.wait()
        while not all(target.polled for target in self._targets.values()):
            await self._polled.wait()

    def _replay(self) -> None:
        """Tells of what the archive remembers."""
        for seen_at_s, sealed in reversed(self._archive.statuses()):
            try:
                status: PeerStatus = open_as(PeerStatus, sealed, run=self._run)
            except RemoteError:
                continue  # of an older form of the protocol
            self._on_item(Seen(status, seen_at_s, direct=False))
        for told in self._archive.events(2000):
            self._happened(told)

    def _happened(self, told: ToldEvent) -> None:
        """Nothing happens later than now, whatever the clock says of whoever tells it."""
        self._on_item(Happened(told.source, min(told.at_unix_s, self._wall_s()), told.event))

    async def _knock(self, addresses: tuple[str, ...]) -> None:
        """Dials addresses, all at once and again, until somebody answered; and whenever nobody does any more."""
        pause_s, rounds = 1.0, 0
        while True:
            if all(target.failures for target in self._targets.values()):
                rounds += 1
                book = worth_dialling([*addresses, *self._archive.address_book()[:MAX_KNOCKS]])
                async with trio.open_nursery() as nursery:
                    for address in book:
                        nursery.start_soon(self._knock_at, address)
                if rounds == GIVE_UP_AFTER_KNOCKS and not self.reached.is_set():
                    self.gave_up.set()
                pause_s = min(LATER_S, pause_s * 1.5)
            await trio.sleep(pause_s)

    async def _knock_at(self, address: str) -> None:
        async with self._doubtful:
            try:
                peer = await self._transport.connect(address, timeout_s=TIMEOUT_S)
            except (NetworkError, MalformedBytes) as error:
                self._tried(address, str(error))
                return
        self._follow_soon(peer, [address])

    def _follow_soon(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Asks that peer directly from now on, unless there are enough; known ones learn the addresses and wake."""
        target = self._targets.get(peer)
        if target is None:
            if len(self._targets) >= MAX_DIRECT or peer == self._transport.peer_id or self._nursery is None:
                return
            target = self._targets[peer] = _Target(peer, Way(peer))
            self._nursery.start_soon(self._follow, target)
        way = target.way
        way.addresses = dict.fromkeys([*way.addresses, *addresses][:MAX_DIRECT])
        target.wake.set()

    async def _follow(self, target: _Target) -> None:
        """Asks one peer, again and again, until it is given up."""
        while target.failures < FORGOTTEN_AFTER:
            target.wake = trio.Event()
            async with self._doubtful if target.failures or target.num_bad else self._healthy:
                pause_s = await self._poll(target)
            target.polled = True
            self._polled.set()
            self._polled = trio.Event()
            with trio.move_on_after(pause_s):
                if target.failures:
                    await target.wake.wait()  # somebody told of a new beat: it is back
                else:
                    await trio.sleep_forever()
        del self._targets[target.peer]

    async def _poll(self, target: _Target) -> float:
        """Asks for the peer's statuses and events; returns the seconds until it should be asked again."""
        try:
            await self._ask_status(target)
            await self._ask_events(target)
        except Refusal as error:
            self._trouble(target, f"refused: {error}", bad=False)
        except NetworkError as error:
            self._trouble(target, str(error), bad=False)
            target.failures += 1
            target.way.dial_due_s = 0.0
            if target.failures >= GIVEN_UP_AFTER:
                return GIVEN_UP_S
            return RETRY_S[target.failures - 1] if target.failures <= len(RETRY_S) else LATER_S
        except RemoteError as error:
            target.num_bad += 1
            self._trouble(target, str(error), bad=True)
            return float(min(MAX_PENALTY_S, PENALTY_S * 2 ** min(10, target.num_bad - 1)))
        target.failures, target.num_bad = 0, max(0, target.num_bad - 1)
        if target.way.through is None:
            return max(POLL_S, len(self._targets) / PEERS_A_SECOND)
        return max(POLL_S, sum(one.way.through is not None for one in self._targets.values()) / HOPS_A_SECOND)

    def _trouble(self, target: _Target, reason: str, *, bad: bool) -> None:
        for address in target.way.addresses:
            self._tried(address, reason)
        self._on_item(Trouble(target.peer, self._wall_s(), reason, bad))

    def _tried(self, address: str, reason: str) -> None:
        """For people whom nobody answers: of the addresses tried first."""
        if address in self.tried or len(self.tried) < MAX_KNOCKS:
            self.tried[address] = reason

    async def _ask(self, target: _Target, message: object, kind: type[Any]) -> Any:
        """The answer, signed by that peer, by whatever way."""
        return await self._asker.ask(target.way, message, kind, lambda: self._thirds(target))

    def _thirds(self, target: _Target) -> list[PeerId]:
        """Who may pass a question on, those first who have dialled it; of one that did not answer lately one each time."""
        seated = (one for one in self._targets.values() if one.polled and not one.failures and not one.num_bad)
        found = [one.peer for one in seated if one.way.through is None and one is not target]
        found.sort(key=lambda peer: peer not in target.dialled)
        if target.failures and found:
            return [found[target.failures % len(found)]]
        return found

    async def _ask_status(self, target: _Target) -> None:
        peers: Peers = await self._ask(target, GetPeers(0), Peers)
        self._total = max(peers.total, len(peers.known))
        known = list(peers.known)
        own = self._verified(known[0].sealed) if known else None
        if own is not None and own.peer == target.peer:
            if own.incarnation != target.incarnation:
                target.incarnation, target.since = (
                    own.incarnation,
                    0,
                )  # it counts its events anew; the archive knows them
            self._take(own, known.pop(0).sealed, direct=True, through=target.way.through)
        elif target.peer in self._heard:  # a relay has no status, neither here nor anywhere
            raise MalformedBytes(f"{target.peer} did not tell its own status first")
        if not self.reached.is_set():
            self.reached.set()
        self._archive_reached(target)
        for one in known:
            self._take(self._verified(one.sealed), one.sealed, direct=False, age_s=one.age_s)

    def _archive_reached(self, target: _Target) -> None:
        """The address book learns of an address that works, once in a while."""
        now_s, worked = self._wall_s(), list(target.way.addresses)[:1]
        if worked and target.way.through is None and (target.failures or now_s - target.noted_at_s >= NOTE_REACHED_S):
            target.noted_at_s = now_s
            self._archive.note_addresses(target.peer, worked, now_s, reached=True)

    def _verified(self, sealed: bytes) -> PeerStatus:
        """The status in sealed bytes; the many that are told again and again are verified once."""
        key = digest_of("sealed-status", sealed).raw[:16]
        if (known := self._checked.get(key)) is not None:
            self._checked.move_to_end(key)
            return known
        status: PeerStatus = open_as(PeerStatus, sealed, run=self._run)
        self._checked[key] = status
        while len(self._checked) > _MIN_CHECKED + _CHECKED_PER_PEER * len(self._heard):
            self._checked.popitem(last=False)
        return status

    def _take(
        self, status: PeerStatus, sealed: bytes, *, direct: bool, through: PeerId | None = None, age_s: float = 0.0
    ) -> None:
        """Tells of a status that was said `age_s` ago, unless a newer one is known; keeps it, and its author's addresses."""
        if status.peer == self._transport.peer_id:
            return
        known = self._heard.get(status.peer, _NEVER)
        if status.beat < known.beat or (status.beat == known.beat and not direct):
            return
        now_s = self._wall_s()
        said_at_s = now_s - age_s
        self._on_item(Seen(status, said_at_s, direct, through))
        if status.beat == known.beat:
            return
        is_stored = now_s - known.stored_at_s < STORE_STATUS_S
        self._note(status.peer, _Heard(status.beat, known.stored_at_s if is_stored else now_s))
        addresses = _addresses_of(status)
        self._follow_soon(status.peer, addresses)
        if status.peer in self._targets:
            self._targets[status.peer].dialled = status.dialled
        if not is_stored:
            self._archive.put_status(status.peer, status.beat, sealed, said_at_s)
            self._archive.note_addresses(status.peer, addresses, now_s)

    def _note(self, peer: PeerId, heard: _Heard) -> None:
        """Who was heard of, for as many as the view shows; those that are asked directly stay."""
        self._heard[peer] = heard
        self._heard.move_to_end(peer)
        if len(self._heard) > MAX_PEERS:
            del self._heard[next(one for one in self._heard if one not in self._targets)]

    async def _ask_events(self, target: _Target) -> None:
        for _ in range(MAX_EVENT_PAGES):
            try:
                page: Events = await self._ask(target, GetEvents(target.since), Events)
            except Unreachable:
                if target.way.through is None:
                    raise
                return  # it has just told its status by a hop: the page is too long for one, or that third is busy
            first = page.next - len(page.events) + 1
            told = [(first + index, raw) for index, raw in enumerate(page.events)]
            for event in self._archive.add_events(target.peer, told):
                self._happened(event)
            target.since = page.next
            if len(page.events) < MAX_EVENTS_PAGE:
                return

    async def _survey(self) -> None:
        """Asks for the pages behind the first, in swarms that have them, of one healthy peer after the other."""
        while True:
            await trio.sleep(SURVEY_S)
            seated = (one for one in self._targets.values() if not one.failures and not one.num_bad)
            healthy = [target for target in seated if target.way.through is None]
            for number, offset in enumerate(range(MAX_PEERS_PAGE, min(self._total, 4096), MAX_PEERS_PAGE)):
                if not healthy:
                    break
                target = healthy[(number + int(trio.current_time())) % len(healthy)]
                try:
                    async with self._healthy:
                        peers: Peers = await self._ask(target, GetPeers(offset), Peers)
                    for known in peers.known:
                        self._take(self._verified(known.sealed), known.sealed, direct=False, age_s=known.age_s)
                except (NetworkError, Refusal):
                    continue  # its own task finds out why
                except RemoteError as error:
                    target.num_bad += 1
                    self._trouble(target, str(error), bad=True)


def _addresses_of(status: PeerStatus) -> list[str]:
    """The addresses that a peer tells of itself, as far as they can be read and name that peer."""
    found = []
    for text in status.addresses:
        try:
            address = parse_address(text)
        except MalformedBytes:
            continue
        if address.peer == status.peer:
            found.append(str(address))
    return found
