"""Every message of the protocol: one frozen dataclass each, its limits in its annotations, its purpose in one table.

A message travels as a sealed envelope whose purpose is its name in `PURPOSES`. One-way messages are acknowledged by an
empty answer; a request is answered by one reply, or by `Refused` with a reason.

    member -> leader      PeerStatus (the heartbeat), Holding, Contribution, Goodbye
    leader -> member      LeaderBrief, RoundOpened (genesis only), CutHint, Commit, NewView
    member -> member      Contribution
    anyone -> who stands at a barred head             HeadBarred
    anyone -> who is connected to the receiver        Forward, around a message that goes no other way
    anyone -> a peer      GetPeers, GetManifest, GetBlob, GetChunk, GetLog, GetState,
                           GetStatus, GetCheckpoint, GetEvents
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from swarm import wire
from swarm.chain import MAX_ENTRIES, MAX_ROSTER, ChainState, CommitList
from swarm.digest import Digest, digest_of
from swarm.envelope import Envelope, open_envelope, seal
from swarm.errors import BadSignature, MalformedBytes
from swarm.identity import Keypair, PeerId
from swarm.schema import U32, U63, Line, MaxLen, Name, from_value, to_value
from swarm.status import HOLDING_NAMED as HOLDING_NAMED
from swarm.status import MAX_ADDRESSES as MAX_ADDRESSES
from swarm.status import MAX_DIALLED as MAX_DIALLED
from swarm.status import MAX_LOST as MAX_LOST
from swarm.status import MAX_SEALED_BYTES as MAX_SEALED_BYTES
from swarm.status import Activity as Activity
from swarm.status import Answer as Answer
from swarm.status import Loss, Rate, SealedContribution
from swarm.status import PeerStatus as PeerStatus
from swarm.status import Sealed as Sealed
from swarm.status import TimeSplit as TimeSplit
from swarm.votes import Stand, Vote, Votes, issue_to_sign, to_sign

MAX_LEAVES: Final = 30_000  # chunk digests in one frame: a blob of 29 GiB
MAX_PEERS_PAGE: Final = 64
MAX_HELD: Final = 256  # blobs that a `holding` names
MAX_LOG_COMMITS: Final = 16
MAX_EVENTS_PAGE: Final = 256
MAX_FORWARDED_BYTES: Final = 64 << 10  # one message that a third peer passes on: a commit of 64 members fits
FORWARDED_PAGE_BYTES: Final = MAX_FORWARDED_BYTES // 2  # of an answer in pages, when it goes back by one hop
MAX_UNITS: Final = 1024


@dataclass(frozen=True, slots=True)
class Contribution:
    """An encoded pseudo-gradient, announced by its author before anyone may read it. Immutable."""

    author: PeerId
    incarnation: U63
    seq: U63
    root: Digest  # of the blob
    num_bytes: U63
    first_unit: U32
    end_unit: U32
    tokens: U63
    steps: U32
    since_version: U63  # its steps were done at this version and later
    version: U63  # the version of the anchor it was cut at
    head: Digest  # and its head


@dataclass(frozen=True, slots=True)
class LeaderBrief:
    """What a leader answers to a heartbeat: where it stands, and why no commit has come yet."""

    view: U63
    version: U63
    head: Digest
    tokens: U63
    state_digest: Digest
    reason: Line
    beat: U63  # of its last heartbeat: the member's next status names it
    is_alone: bool = False  # it hears no majority: it can commit only after the isolation time


@dataclass(frozen=True, slots=True)
class RoundOpened:
    """Genesis has no roster: its leader says who starts, which also decides the first leases."""

    view: U63
    head: Digest
    members: Annotated[tuple[PeerId, ...], MaxLen(MAX_ROSTER)]


@dataclass(frozen=True, slots=True)
class CutHint:
    """Cut at the next inner-step boundary."""

    view: U63
    head: Digest
    reason: Line


@dataclass(frozen=True, slots=True)
class Holding:
    """The sender holds these contributions of the round at `head` whole."""

    head: Digest
    incarnation: U63  # of the process that holds them
    roots: Annotated[tuple[Digest, ...], MaxLen(MAX_HELD)]


@dataclass(frozen=True, slots=True)
class Holders:
    """Who held a contribution when it was listed."""

    peers: Annotated[tuple[PeerId, ...], MaxLen(64)]


@dataclass(frozen=True, slots=True)
class Commit:
    """The next commit on `parent`, with each entry's sealed announcement and holders, in the order of its entries."""

    view: U63
    parent: Digest
    commit: CommitList
    announcements: Annotated[tuple[SealedContribution, ...], MaxLen(MAX_ENTRIES)]
    holders: Annotated[tuple[Holders, ...], MaxLen(MAX_ENTRIES)]
    reason: Line
    evidence: Annotated[tuple[Sealed, ...], MaxLen(MAX_ROSTER)] = ()  # statuses that report the barred heads lost
    votes: Votes | None = None  # for `parent`; None where nobody voted
    issued: Vote = b""  # its leader's signature of its view and the head it leads to, for who finds it in a log


@dataclass(frozen=True, slots=True)
class HeadBarred:
    """The receiver's head is barred on the sender's chain: a majority could not get its blobs."""

    head: Digest


@dataclass(frozen=True, slots=True)
class NewView:
    """A new leader asks everyone for a status, which names this beat of the leader's."""

    view: U63
    head: Digest
    beat: U63


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender leaves now; nobody should wait for it."""

    reason: Line
    incarnation: U63  # of the process that ends: one that has started since is not meant


@dataclass(frozen=True, slots=True)
class Forward:
    """A message for a peer that the author cannot reach, to be passed on once by whoever is connected to both."""

    to: PeerId
    number: U63  # rises with every forward of its author's; each counts once
    sealed: Annotated[bytes, MaxLen(MAX_FORWARDED_BYTES)]  # a message of the author's own


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a request that cannot be served."""

    reason: Line


@dataclass(frozen=True, slots=True)
class GetPeers:
    """Asks for the statuses a peer knows, a page at a time, its own first."""

    offset: U32 = 0


@dataclass(frozen=True, slots=True)
class KnownStatus:
    """A status that a peer has heard, and how long ago: nobody is here for having been heard of by somebody else."""

    sealed: Sealed
    age_s: Rate


@dataclass(frozen=True, slots=True)
class Peers:
    """Sealed statuses, the answering peer's own first."""

    total: U32
    known: Annotated[tuple[KnownStatus, ...], MaxLen(MAX_PEERS_PAGE)]


@dataclass(frozen=True, slots=True)
class GetManifest:
    """Asks for the manifest of the run."""


@dataclass(frozen=True, slots=True)
class ManifestBytes:
    """The manifest; its digest must be the run id."""

    manifest: Annotated[bytes, MaxLen(64 << 10)]


@dataclass(frozen=True, slots=True)
class GetBlob:
    """Asks whether a blob is held, and for its chunks' digests."""

    root: Digest


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob's length and chunk digests; they must hash to its root."""

    num_bytes: U63
    leaves: Annotated[tuple[Digest, ...], MaxLen(MAX_LEAVES)]


@dataclass(frozen=True, slots=True)
class GetChunk:
    """Asks for one chunk of a blob."""

    root: Digest
    index: U32


@dataclass(frozen=True, slots=True)
class Chunk:
    """The bytes of a chunk; checked against its leaf."""

    data: Annotated[bytes, MaxLen(1 << 20)]


@dataclass(frozen=True, slots=True)
class GetLog:
    """Asks for the commits behind the newest of these heads, the asker's own, newest first."""

    heads: Annotated[tuple[Digest, ...], MaxLen(8)]


@dataclass(frozen=True, slots=True)
class Log:
    """Commits from `base` on, oldest first; each one's parent is the head before it."""

    base: Digest
    commits: Annotated[tuple[Commit, ...], MaxLen(MAX_LOG_COMMITS)]


@dataclass(frozen=True, slots=True)
class GetStatus:
    """Asks a peer where it stands: its answer is its status."""


@dataclass(frozen=True, slots=True)
class GetState:
    """Asks for the newest whole state."""


@dataclass(frozen=True, slots=True)
class UnitState:
    """One unit's anchor and outer state, as one blob."""

    root: Digest
    num_bytes: U63


@dataclass(frozen=True, slots=True)
class StateRecord:
    """A version's whole shared state: the chain's, and a blob per unit. Its digest is the state digest of `PeerStatus`."""

    chain: ChainState
    units: Annotated[tuple[UnitState, ...], MaxLen(MAX_UNITS)]


def record_digest(record: StateRecord) -> Digest:
    """The state digest: it covers parameters, outer state, tokens, cursor, listed numbers and roster."""
    return digest_of("state", wire.encode(to_value(record)))


@dataclass(frozen=True, slots=True)
class GetCheckpoint:
    """Asks for the record of a kept checkpoint; None: the newest."""

    version: U63 | None


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One file of a checkpoint; a blob under its root."""

    name: Name
    num_bytes: U63
    root: Digest


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The mean loss per token of a version's anchor on held-out windows, by index."""

    loss: Loss
    windows: Annotated[tuple[U63, ...], MaxLen(4096)]


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A kept checkpoint. All but `evaluation` is equal on every honest peer."""

    run: Digest  # the manifest's digest
    version: U63
    tokens: U63
    cursor: U63
    head: Digest
    state_digest: Digest
    contributors: Annotated[tuple[PeerId, ...], MaxLen(MAX_ROSTER)]
    files: Annotated[tuple[CheckpointFile, ...], MaxLen(MAX_UNITS + 16)]
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True)
class GetEvents:
    """Asks for the events behind number `since`."""

    since: U63


@dataclass(frozen=True, slots=True)
class Events:
    """Events as canonical wire bytes (`swarm/events.py`), oldest first, and the number to ask from next."""

    next: U63
    events: Annotated[tuple[Sealed, ...], MaxLen(MAX_EVENTS_PAGE)]


PURPOSES: Final[dict[str, type[Any]]] = {
    "status": PeerStatus,
    "contribution": Contribution,
    "brief": LeaderBrief,
    "opened": RoundOpened,
    "cut": CutHint,
    "holding": Holding,
    "commit": Commit,
    "view": NewView,
    "barred": HeadBarred,
    "goodbye": Goodbye,
    "forward": Forward,
    "refused": Refused,
    "get-peers": GetPeers,
    "peers": Peers,
    "get-manifest": GetManifest,
    "manifest": ManifestBytes,
    "get-blob": GetBlob,
    "blob": BlobInfo,
    "get-chunk": GetChunk,
    "chunk": Chunk,
    "get-log": GetLog,
    "log": Log,
    "get-status": GetStatus,
    "get-state": GetState,
    "state": StateRecord,
    "get-checkpoint": GetCheckpoint,
    "checkpoint": CheckpointRecord,
    "get-events": GetEvents,
    "events": Events,
}
_NAMES: Final = {kind: purpose for purpose, kind in PURPOSES.items()}


def seal_message(keypair: Keypair, run: Digest, message: object) -> bytes:
    """The signed bytes of a message."""
    return seal(keypair, run, _NAMES[type(message)], to_value(message))


def open_message(raw: bytes, *, run: Digest | None) -> tuple[PeerId, Any]:
    """The author and the message of signed bytes; raises MalformedBytes or BadSignature.

    A status or contribution must be signed by the peer it speaks of.
    """
    envelope = open_envelope(raw, run=run)
    return envelope.author, message_of(envelope)


def sign_vote(keypair: Keypair, run: Digest, stand: Stand) -> bytes:
    """This peer's vote for where it stands."""
    return keypair.sign(to_sign(run, stand))


def is_vote(run: Digest, peer: PeerId, vote: bytes, stand: Stand) -> bool:
    """Whether these bytes are that peer's vote for where it stands."""
    try:
        peer.verify(vote, to_sign(run, stand))
    except BadSignature:
        return False
    return True


def sign_issue(keypair: Keypair, run: Digest, view: int, head: Digest) -> bytes:
    """This leader's signature of a commit of its own."""
    return keypair.sign(issue_to_sign(run, view, head))


def is_issue(run: Digest, leader: PeerId, signature: bytes, view: int, head: Digest) -> bool:
    """Whether that leader issued, in that view, the commit that leads to this head."""
    try:
        leader.verify(signature, issue_to_sign(run, view, head))
    except BadSignature:
        return False
    return True


def message_of(envelope: Envelope) -> Any:
    """The message in an opened envelope; raises MalformedBytes or BadSignature."""
    kind = PURPOSES.get(envelope.purpose)
    if kind is None:
        raise MalformedBytes(f"unknown purpose {envelope.purpose!r}")
    message = from_value(kind, envelope.body)
    speaks_of = getattr(message, "author", None) or getattr(message, "peer", None)
    if speaks_of is not None and speaks_of != envelope.author:
        raise BadSignature(f"{envelope.author} signed a {envelope.purpose} of {speaks_of}")
    return message


def open_as(kind: type[Any], raw: bytes, *, run: Digest | None) -> Any:
    """The message of that kind in signed bytes; raises MalformedBytes for any other kind, or BadSignature."""
    _, message = open_message(raw, run=run)
    if not isinstance(message, kind):
        raise MalformedBytes(f"a {_NAMES[kind]} is due, not a {_NAMES[type(message)]}")
    return message
