"""What happened, as typed records without prose: tests assert on them, `--json-events` writes them, a monitor folds them.

Logs are for people and may change at will; these are an interface.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Final

from swarm import wire
from swarm.chain import MAX_BARRED
from swarm.digest import Digest
from swarm.errors import MalformedBytes
from swarm.identity import PeerId
from swarm.schema import U32, U63, Line, MaxLen, Name, from_value, to_value

MAX_LISTED_NAMED: Final = 64  # in one event, which travels whole in a message of MAX_SEALED_BYTES
MAX_LEFT_OUT_NAMED: Final = 16


@dataclass(frozen=True, slots=True)
class PeerStarted:
    """A peer process is up and in the network."""

    peer: PeerId
    name: Name
    device: Name
    version: U63  # of the state it came with


@dataclass(frozen=True, slots=True)
class CutMade:
    """A pseudo-gradient was encoded and written to disk."""

    peer: PeerId
    version: U63
    seq: U63
    tokens: U63
    steps: U32
    num_bytes: U63


@dataclass(frozen=True, slots=True)
class RoundCommitted:
    """A peer moved to a new head by a commit."""

    version: U63
    head: Digest
    state_digest: Digest
    tokens: U63  # of this commit
    tokens_in_all: U63
    leader: PeerId
    view: U63
    listed: Annotated[tuple[PeerId, ...], MaxLen(MAX_LISTED_NAMED)]  # the first
    left_out: Annotated[tuple[PeerId, ...], MaxLen(MAX_LEFT_OUT_NAMED)]  # members of the roster before that are not
    minority: bool
    duration_s: float  # since the head before
    reason: Line
    more_listed: U32 = 0  # that are not named
    more_left_out: U32 = 0

    @property
    def num_listed(self) -> int:
        """Authors that are listed."""
        return len(self.listed) + self.more_listed

    @property
    def num_left_out(self) -> int:
        """Members that are not."""
        return len(self.left_out) + self.more_left_out


@dataclass(frozen=True, slots=True)
class RoundSkipped:
    """A round ended without a commit; nothing changed."""

    version: U63
    reason: Line


@dataclass(frozen=True, slots=True)
class Undone:
    """A peer left a fork that lost: `depth` commits were undone."""

    version: U63
    depth: U32
    reason: Line


@dataclass(frozen=True, slots=True)
class HeadsBarred:
    """A majority could not get the blobs of these heads: the round was listed anew on their parent."""

    version: U63
    heads: Annotated[tuple[Digest, ...], MaxLen(MAX_BARRED)]


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """A member turned to another leader."""

    view: U63
    leader: PeerId
    reason: Line


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """A peer came to the swarm's state by the commit log or by a snapshot."""

    peer: PeerId
    version: U63
    how: Name  # "log" or "snapshot"; and whether strangers vouched for it
    num_bytes: U63
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The held-out loss of a version's anchor."""

    version: U63
    loss: float


@dataclass(frozen=True, slots=True)
class LossJumped:
    """The held-out loss of a version's anchor is far above that of the versions before it."""

    version: U63
    loss: float
    before: float  # mean of the last losses known of earlier versions


@dataclass(frozen=True, slots=True)
class CheckpointKept:
    """A checkpoint was written and can be pulled."""

    version: U63
    num_bytes: U63


@dataclass(frozen=True, slots=True)
class StateDiffered:
    """At an equal head a peer's state digest differs from somebody else's; most are right, and the others take theirs."""

    version: U63
    own: Digest
    others: Digest


@dataclass(frozen=True, slots=True)
class PeerMisbehaved:
    """A peer sent something wrong, which was refused."""

    peer: PeerId
    reason: Line  # of the last time
    times: U32 = 1  # that this happened since the event before


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """A peer said goodbye."""

    peer: PeerId
    reason: Line


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A peer is here that was not before, or had left: its own words came, not older than the silence that counts."""

    peer: PeerId
    name: Name


@dataclass(frozen=True, slots=True)
class DaemonRestarted:
    """The network daemon died and was started again."""

    peer: PeerId
    reason: Line


@dataclass(frozen=True, slots=True)
class CheckpointSkipped:
    """A checkpoint that was due was not kept: its disk has no room for it. Training goes on."""

    peer: PeerId
    version: U63
    reason: Line


@dataclass(frozen=True, slots=True)
class StepNotApplied:
    """An inner step gave a loss or gradient that is not finite and was dropped."""

    peer: PeerId
    reason: Line


@dataclass(frozen=True, slots=True)
class WorkDropped:
    """A declared loss: inner steps or a residual that no chain will hold."""

    peer: PeerId
    tokens: U63
    reason: Line


Event = (
    PeerStarted
    | CutMade
    | RoundCommitted
    | RoundSkipped
    | Undone
    | HeadsBarred
    | ViewChanged
    | CaughtUp
    | Evaluated
    | LossJumped
    | CheckpointKept
    | CheckpointSkipped
    | StateDiffered
    | PeerMisbehaved
    | PeerLeft
    | PeerJoined
    | DaemonRestarted
    | StepNotApplied
    | WorkDropped
)
KINDS: Final[dict[str, type[Any]]] = {kind.__name__: kind for kind in Event.__args__}


def event_bytes(at_unix_s: float, event: Event) -> bytes:
    """The wire form of an event with the wall-clock second at which it happened."""
    return wire.encode([at_unix_s, type(event).__name__, to_value(event)])


def read_event(raw: bytes) -> tuple[float, Event]:
    """Reads what `event_bytes` wrote; raises MalformedBytes."""
    value = wire.decode(raw)
    match value:
        case [float(at_unix_s), str(kind), fields] if math.isfinite(at_unix_s) and kind in KINDS:
            event: Event = from_value(KINDS[kind], fields)
            return at_unix_s, event
        case _:
            raise MalformedBytes("an event is its time, its kind and its fields")


def event_json(at_unix_s: float, event: Event) -> dict[str, Any]:
    """The event as plain JSON values: digests in hex, peers in libp2p's form."""

    def plain(value: Any) -> Any:
        if isinstance(value, Digest):
            return value.hex()
        if isinstance(value, PeerId):
            return value.base58
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        return value

    fields = {field.name: plain(getattr(event, field.name)) for field in dataclasses.fields(event)}
    return {"event": type(event).__name__, "at_unix_s": round(at_unix_s, 3), **fields}
