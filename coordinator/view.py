"""What a monitor knows of a swarm, as one immutable value: a fold over statuses and events. No clock, no I/O.

    fold(view, Seen | Happened | Trouble) -> view

Statuses and events come from peers that may be wrong, or lie: a number for the whole swarm is taken from where most agree
(the median, or the value of most peers), and remote text is cleaned here, at the door. Peers tell the same round, each for
itself; rounds are told apart by head. Rows and totals for a moment are derived in `coordinator/summary.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Final, TypeVar, assert_never

from coordinator.clean import clean
from coordinator.throughput import tokens_per_s
from swarm.digest import Digest
from swarm.events import (
    CaughtUp,
    CheckpointKept,
    CheckpointSkipped,
    CutMade,
    DaemonRestarted,
    Evaluated,
    Event,
    HeadsBarred,
    LossJumped,
    PeerJoined,
    PeerLeft,
    PeerMisbehaved,
    PeerStarted,
    RoundCommitted,
    RoundSkipped,
    StateDiffered,
    StepNotApplied,
    Undone,
    ViewChanged,
    WorkDropped,
)
from swarm.identity import PeerId
from swarm.messages import Activity, PeerStatus
from swarm.words import counted, so_often

LIVE_S: Final = 4.0  # a peer that we ask every second and that was silent for so long counts as gone: right within 5 s
LIVE_HEARSAY_S: Final = 15.0  # one that we only hear of through others
MAX_PEERS: Final = 4096  # those not seen for longest are forgotten
MAX_ROUNDS: Final = 128
MAX_NOTES: Final = 64
MAX_POINTS: Final = 600
MAX_TELLERS: Final = 256  # of one thing; what so many say is not said better by more
SAME_NOTE_S: Final = 60.0  # the same news from several peers within this time is one line
NEWEST: Final = 16
_Key = TypeVar("_Key", int, Digest)
TAKES_PART: Final = frozenset({Activity.TRAINING, Activity.PENDING, Activity.WAITING, Activity.LEAVING})


@dataclass(frozen=True, slots=True)
class Seen:
    """A verified status, said at `at_s`. `direct`: the peer itself answered us, just now."""

    status: PeerStatus
    at_s: float  # unix seconds of our clock
    direct: bool
    through: PeerId | None = None  # who passed on its answer, where no connection to it can be had


@dataclass(frozen=True, slots=True)
class Happened:
    """An event that a peer told."""

    source: PeerId
    at_s: float  # unix seconds of that peer's clock, not later than ours
    event: Event


@dataclass(frozen=True, slots=True)
class Trouble:
    """What we noticed about a peer ourselves. `bad`: it sent wrong bytes, rather than nothing."""

    peer: PeerId
    at_s: float
    reason: str
    bad: bool


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """The newest status of a peer, its texts cleaned, and how we came by it."""

    status: PeerStatus
    seen_at_s: float
    direct: bool
    trouble: str = ""  # why it did not answer the last time; "" when it did
    num_bad: int = 0  # times it sent wrong bytes
    vouched: bool = False  # it did not answer us, yet others have told of a newer beat since: alive, not reachable
    through: PeerId | None = None  # who passed on its last answer
    left_at_s: float | None = None  # when it said goodbye, as others tell

    @property
    def has_left(self) -> bool:
        """Whether it said goodbye."""
        return self.left_at_s is not None or self.status.activity is Activity.LEAVING

    def is_live(self, now_s: float) -> bool:
        """Whether the peer counts as there."""
        if self.has_left:
            return False
        if self.direct:  # by a hop we ask more rarely
            is_rare = self.through is not None and not self.trouble
            return now_s - self.seen_at_s <= (LIVE_HEARSAY_S if is_rare else LIVE_S)
        if self.trouble and not self.vouched:
            return False  # what others told of it may be its last words
        return now_s - self.seen_at_s <= LIVE_HEARSAY_S


@dataclass(frozen=True, slots=True)
class RoundSeen:
    """A commit, as the peers that applied it tell it; `digests` is one state if nobody errs."""

    event: RoundCommitted  # as first told, its text cleaned
    at_s: float
    digests: Mapping[PeerId, Digest]  # what each teller's state became


@dataclass(frozen=True, slots=True)
class Note:
    """A line of news."""

    at_s: float
    text: str
    tellers: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class SwarmView:
    """All that a monitor shows. Immutable; `fold` makes the next one."""

    run: Digest
    peers: Mapping[PeerId, PeerSeen] = field(default_factory=dict)
    rounds: Mapping[Digest, RoundSeen] = field(default_factory=dict)  # by head, in the order heard of
    heldout: Mapping[int, Mapping[PeerId, float]] = field(default_factory=dict)  # by version, by teller
    train: Mapping[int, Mapping[PeerId, float]] = field(default_factory=dict)
    throughput: tuple[tuple[float, float], ...] = ()  # (unix seconds, the swarm's tokens/s), oldest first
    notes: tuple[Note, ...] = ()  # oldest first


def fold(view: SwarmView, item: Seen | Happened | Trouble) -> SwarmView:
    """The view after one more thing was learned."""
    match item:
        case Seen():
            return _fold_seen(view, item)
        case Happened():
            return _fold_event(view, item)
        case Trouble():
            return _fold_trouble(view, item)
    assert_never(item)


def live_peers(view: SwarmView, now_s: float) -> list[PeerSeen]:
    """The peers that count as there."""
    return [peer for peer in view.peers.values() if peer.is_live(now_s)]


def middle(values: Mapping[int, Mapping[PeerId, float]]) -> tuple[tuple[int, float], ...]:
    """(version, median of what was told) for each version, ascending."""
    return tuple((version, median(values[version].values())) for version in sorted(values))


def _fold_seen(view: SwarmView, item: Seen) -> SwarmView:
    status = item.status
    known = view.peers.get(status.peer)
    if known is None:
        peer = PeerSeen(_cleaned(status), item.at_s, item.direct, through=item.through)
    elif status.beat < known.status.beat or (status.beat == known.status.beat and not item.direct):
        return view
    else:
        peer = _newer(known, item)
    view = _with_peer(view, peer)
    if status.heldout_loss is not None:
        view = replace(view, heldout=_told(view.heldout, status.heldout_version, status.peer, status.heldout_loss))
    if status.train_loss is not None:
        view = replace(view, train=_told(view.train, status.version, status.peer, status.train_loss))
    return _with_throughput(view, item.at_s)


def _newer(known: PeerSeen, item: Seen) -> PeerSeen:
    """The same peer with a status that is not older than the known one."""
    status = _cleaned(item.status)
    seen_at_s = max(item.at_s, known.seen_at_s)
    if item.direct:
        return PeerSeen(status, seen_at_s, True, "", known.num_bad, through=item.through)
    left_at_s = known.left_at_s  # words of the time before a goodbye may come late
    if left_at_s is not None and (
        status.incarnation > known.status.incarnation or item.at_s > left_at_s + LIVE_HEARSAY_S
    ):
        left_at_s = None
    if known.direct and item.at_s - known.seen_at_s <= LIVE_S and left_at_s == known.left_at_s:
        return replace(known, status=status)  # news of the time before we asked it last is no sign of life
    known = replace(known, status=status, seen_at_s=seen_at_s, direct=False, through=None, left_at_s=left_at_s)
    return replace(known, vouched=bool(known.trouble))


def _cleaned(status: PeerStatus) -> PeerStatus:
    return replace(
        status,
        name=clean(status.name, 32),
        device=clean(status.device, 64),
        waits_for=clean(status.waits_for, 200),
        addresses=tuple(clean(address, 200) for address in status.addresses),
    )


def _with_peer(view: SwarmView, peer: PeerSeen) -> SwarmView:
    peers = {**view.peers, peer.status.peer: peer}
    if len(peers) > MAX_PEERS:
        del peers[min(peers, key=lambda one: peers[one].seen_at_s)]
    return replace(view, peers=peers)


def _told(
    values: Mapping[int, Mapping[PeerId, float]], version: int, teller: PeerId, value: float
) -> Mapping[int, Mapping[PeerId, float]]:
    """`values` with what one peer tells of a version."""
    told = values.get(version, {})
    if told.get(teller) == value or (len(told) >= MAX_TELLERS and teller not in told):
        return values
    found = {**values, version: {**told, teller: value}}
    if len(found) > MAX_POINTS:
        del found[_least_told(found)]
    return found


def _least_told(found: Mapping[_Key, Mapping[PeerId, object]]) -> _Key:
    """The key to forget: told by the fewest, then the oldest, but none of the newest, which others may still tell.

    A liar who invents versions or heads so pushes out its own inventions.
    """
    return min(list(found)[:-NEWEST], key=lambda key: len(found[key]))


def _with_throughput(view: SwarmView, now_s: float) -> SwarmView:
    """One more point each second, at most."""
    if view.throughput and now_s - view.throughput[-1][0] < 1.0:
        return view
    total = tokens_per_s(live_peers(view, now_s), view.rounds.values())
    return replace(view, throughput=(*view.throughput, (now_s, total))[-MAX_POINTS:])


def _fold_trouble(view: SwarmView, item: Trouble) -> SwarmView:
    reason = clean(item.reason, 200)
    known = view.peers.get(item.peer)
    if known is not None:
        view = _with_peer(view, replace(known, trouble=reason, num_bad=known.num_bad + item.bad))
    if not item.bad:
        return view
    return _with_note(view, item.at_s, f"{_name(view, item.peer)} sent wrong bytes: {reason}", item.peer)


def _name(view: SwarmView, peer: PeerId) -> str:
    known = view.peers.get(peer)
    return f"{known.status.name} ({peer})" if known and known.status.name else str(peer)


def said_here(view: SwarmView, at_s: float, text: str) -> SwarmView:
    """A line of news that nobody told: from this machine."""
    return _with_note(view, at_s, clean(text, 200), None)


def _with_note(view: SwarmView, at_s: float, text: str, teller: PeerId | None) -> SwarmView:
    """One more line of news, unless it is in the list already, told by another peer a moment ago."""
    tellers = frozenset(() if teller is None else (teller,))
    text = text.rstrip(": ")
    for index, note in enumerate(view.notes):
        if note.text == text and abs(note.at_s - at_s) <= SAME_NOTE_S:
            merged = replace(note, tellers=note.tellers if len(note.tellers) >= MAX_TELLERS else note.tellers | tellers)
            return replace(view, notes=(*view.notes[:index], merged, *view.notes[index + 1 :]))
    notes = sorted((*view.notes, Note(at_s, text, tellers)), key=lambda note: note.at_s)
    return replace(view, notes=tuple(notes[-MAX_NOTES:]))


def _fold_event(view: SwarmView, item: Happened) -> SwarmView:
    event = item.event
    if isinstance(event, RoundCommitted):
        return _fold_round(view, item, event)
    if isinstance(event, Evaluated):
        return replace(view, heldout=_told(view.heldout, event.version, item.source, event.loss))
    if isinstance(event, PeerLeft):
        view = _fold_goodbye(view, event.peer, item.at_s)
    text = _news(view, item.source, event)
    return view if text is None else _with_note(view, item.at_s, text, item.source)


def _fold_goodbye(view: SwarmView, peer: PeerId, at_s: float) -> SwarmView:
    """Somebody tells that a peer said goodbye; unless it was seen since, it is out of the table. An answer of its brings it
    back, so that a liar gains nothing."""
    known = view.peers.get(peer)
    if known is None or at_s < known.seen_at_s - LIVE_S:
        return view
    return _with_peer(view, replace(known, left_at_s=max(at_s, known.seen_at_s)))


def _fold_round(view: SwarmView, item: Happened, event: RoundCommitted) -> SwarmView:
    rounds = dict(view.rounds)
    known = rounds.get(event.head)
    if known is None:
        cleaned = replace(event, reason=clean(event.reason, 200))
        rounds[event.head] = RoundSeen(cleaned, item.at_s, {item.source: event.state_digest})
        if len(rounds) > MAX_ROUNDS:
            del rounds[_least_told({head: one.digests for head, one in rounds.items()})]
    elif len(known.digests) < MAX_TELLERS or item.source in known.digests:
        rounds[event.head] = replace(known, digests={**known.digests, item.source: event.state_digest})
    return replace(view, rounds=rounds)


def _news(view: SwarmView, source: PeerId, event: Event) -> str | None:
    """The line that an event is worth; None for what the tables show anyway."""
    subject = _name(view, getattr(event, "peer", source))
    reason = clean(getattr(event, "reason", ""), 200)
    match event:
        case RoundCommitted() | Evaluated() | CutMade():
            return None
        case PeerStarted():
            return f"{subject} started at version {event.version}"
        case PeerJoined():
            return f"{subject} joined"
        case PeerLeft():
            return f"{subject} left: {reason}"
        case CaughtUp():
            return f"{subject} caught up to version {event.version} by {clean(event.how, 16)} in {event.seconds:.1f} s"
        case RoundSkipped():
            return f"round at version {event.version} skipped: {reason}"
        case Undone():
            return f"{subject} undid {event.depth} of its commits at version {event.version}: {reason}"
        case HeadsBarred():
            return f"barred: {counted(len(event.heads), 'head')} that lost their blobs, at version {event.version}"
        case ViewChanged():
            return f"view {event.view}, led by {_name(view, event.leader)}: {reason}"
        case LossJumped():
            return (
                f"held-out loss jumped to {event.loss:.3f} at version {event.version}, from {event.before:.3f} before"
            )
        case CheckpointKept():
            return f"checkpoint of version {event.version} kept"
        case CheckpointSkipped():
            return f"{subject} kept no checkpoint of version {event.version}: {reason}"
        case StateDiffered():
            return f"{subject} met another state at version {event.version}: {event.others}, its own {event.own}"
        case PeerMisbehaved():
            return f"{subject} sent something wrong{so_often(event.times)}: {reason}"
        case DaemonRestarted():
            return f"{subject} restarted its network daemon: {reason}"
        case StepNotApplied():
            return f"{subject} dropped a step: {reason}"
        case WorkDropped():
            return f"{subject} lost {counted(event.tokens, 'token')} of work: {reason}"
    assert_never(event)
