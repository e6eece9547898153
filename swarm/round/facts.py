"""What goes into the round machine and what comes out of it.

The shell turns streams, the trainer and the clock into facts, hands each to `Participant.step`, and carries out the
effects in their order. Messages in `Received` have been opened: signature, run, author and ranges hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swarm.chain import ChainState
from swarm.digest import Digest
from swarm.events import Event
from swarm.identity import PeerId
from swarm.messages import Commit, Contribution, TimeSplit
from swarm.round.root import Root


@dataclass(frozen=True, slots=True)
class Received:
    """A one-way message from a peer; `sealed` are its signed bytes, to be passed on."""

    sender: PeerId
    message: Any
    sealed: bytes = b""
    age_s: float | None = None  # of a status that somebody else had heard: how long ago. None: its author sent it now


@dataclass(frozen=True, slots=True)
class Resumed:
    """This process did not run for `gap_s`: it was stopped, or its machine slept."""

    gap_s: float


@dataclass(frozen=True, slots=True)
class Unreached:
    """A message to that peer was not delivered."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Figures:
    """What the trainer and the network say of this process; copied into its status."""

    tokens_since_cut: int = 0
    steps_since_cut: int = 0
    tokens_per_s: float = 0.0
    up_bytes: int = 0
    down_bytes: int = 0
    up_bytes_per_s: float = 0.0
    down_bytes_per_s: float = 0.0
    train_loss: float | None = None
    heldout_loss: float | None = None
    heldout_version: int = 0
    checkpoint_version: int | None = None
    addresses: tuple[str, ...] = ()
    time: TimeSplit = field(default_factory=TimeSplit)
    waits_for: str = ""
    dialled: tuple[PeerId, ...] = ()  # who answered a fresh dial of ours lately


@dataclass(frozen=True, slots=True)
class Measured:
    """New figures."""

    figures: Figures


@dataclass(frozen=True, slots=True)
class CutDone:
    """The trainer has cut: the contribution is encoded and on disk."""

    contribution: Contribution
    sealed: bytes


@dataclass(frozen=True, slots=True)
class BlobStored:
    """A contribution's blob is here whole, checked and decodable."""

    root: Digest


@dataclass(frozen=True, slots=True)
class BlobFailed:
    """A contribution's blob could not be had from anyone named, or does not decode."""

    root: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class HeadReached:
    """The trainer holds the state of this head, on disk, with this state digest and root. A participant begins with one."""

    chain: ChainState
    state_digest: Digest
    root: Root
    still_pending: tuple[int, ...] = ()  # own numbers that this head does not list


@dataclass(frozen=True, slots=True)
class WayFound:
    """The way from this head of ours to a better one is clear: what is needed for it is being fetched."""

    head: Digest


@dataclass(frozen=True, slots=True)
class CatchUpEnded:
    """No way to a better head was found, or what it needs could not be had; the reason says why."""

    reason: str
    is_refused: bool = False  # what we were led to is not to be followed; it may well be there


@dataclass(frozen=True, slots=True)
class MoveFailed:
    """The trainer could not move to the next head, for a fault of this peer's own, its disk's say."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Fact = (
    Received
    | Resumed
    | Unreached
    | Measured
    | CutDone
    | BlobStored
    | BlobFailed
    | HeadReached
    | WayFound
    | CatchUpEnded
    | MoveFailed
    | Tick
)


@dataclass(frozen=True, slots=True)
class Send:
    """Deliver a message; failure comes back as `Unreached`."""

    to: PeerId
    message: Any
    sealed: bytes | None = None  # bytes that somebody else signed, passed on as they are


@dataclass(frozen=True, slots=True)
class RequestCut:
    """Ask the trainer to cut at the next inner-step boundary."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch the blob of a contribution from any of these holders; ends in BlobStored or BlobFailed."""

    contribution: Contribution
    holders: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class MoveTo:
    """Have the trainer apply this commit on the present head; all its blobs are here. Ends in HeadReached."""

    commit: Commit
    root: Root  # of the head behind it


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Look for the way to the state of one of these peers, by the log or a snapshot, while the round goes on; once there is
    one (WayFound), go it. Ends in HeadReached, CatchUpEnded or MoveFailed."""

    peers: tuple[PeerId, ...]
    whole: bool  # take a snapshot even where the log would do: our state differs
    reason: str


@dataclass(frozen=True, slots=True)
class Happened:
    """An event for the log, the file and the dashboard."""

    event: Event


Effect = Send | RequestCut | Fetch | MoveTo | CatchUp | Happened
