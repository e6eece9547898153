"""What a peer says of itself in every heartbeat: where it stands, what it does and has, and whom it hears and reaches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from swarm.address import MAX_ADDRESS_BYTES
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.schema import U32, U63, MaxLen, Name, Range
from swarm.votes import Vote

MAX_ADDRESSES: Final = 8  # of one peer
MAX_SEALED_BYTES: Final = 4096  # a sealed status or contribution inside another message
MAX_PENDING_BYTES: Final = 384  # a sealed contribution: all its fields have a size of their own
MAX_WAITS_BYTES: Final = 160  # what a peer waits for, in words
HOLDING_NAMED: Final = 32  # blobs that a status names, of those that wait for a commit
MAX_LOST: Final = 4  # heads that a status says are out of reach
MAX_DIALLED: Final = 8  # peers that a status says its author has dialled

Rate = Annotated[float, Range(0.0, 1e15)]
Loss = Annotated[float, Range(0.0, 1e6)]
AddressText = Annotated[str, MaxLen(MAX_ADDRESS_BYTES)]
Sealed = Annotated[bytes, MaxLen(MAX_SEALED_BYTES)]
SealedContribution = Annotated[bytes, MaxLen(MAX_PENDING_BYTES)]


class Activity(StrEnum):
    """What a peer is doing."""

    WAITING = "waiting"  # in step with the chain, not in the roster yet
    TRAINING = "training"
    PENDING = "pending"  # has cut; its contribution waits for a commit
    SYNCING = "syncing"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Where a peer's time went since its last commit, in seconds."""

    compute_s: Rate = 0.0
    encode_s: Rate = 0.0
    exchange_s: Rate = 0.0
    apply_s: Rate = 0.0
    wait_s: Rate = 0.0
    upload_s: Rate = 0.0  # in which blobs were sent; of the seconds above, not beside them
    download_s: Rate = 0.0  # in which blobs were received


@dataclass(frozen=True, slots=True)
class Answer:
    """The last word of a leader that its author heard: proof that the leader's messages arrive."""

    leader: PeerId
    beat: U63  # of the leader's status at the time


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """The heartbeat: all that others need to know of a peer. Sent to the leader, and to the DHT for discovery."""

    peer: PeerId
    beat: U63  # rises with every status of this peer, across restarts
    name: Name
    device: Name
    activity: Activity
    incarnation: U63
    view: U63
    version: U63
    head: Digest
    tokens: U63  # of the chain at `head`
    state_digest: Digest  # equal for equal heads
    tokens_since_cut: U63
    steps_since_cut: U32
    tokens_per_s: Rate
    up_bytes: U63  # since the process started
    down_bytes: U63
    up_bytes_per_s: Rate
    down_bytes_per_s: Rate
    train_loss: Loss | None
    heldout_loss: Loss | None  # of the anchor of `heldout_version`
    heldout_version: U63
    checkpoint_version: U63 | None  # the newest one it can serve
    waits_for: Annotated[str, MaxLen(MAX_WAITS_BYTES)]  # "" when it waits for nothing
    addresses: Annotated[tuple[AddressText, ...], MaxLen(MAX_ADDRESSES)]
    pending: SealedContribution | None  # its sealed Contribution
    holding: Annotated[tuple[Digest, ...], MaxLen(HOLDING_NAMED)]  # roots of contributions it holds whole
    time: TimeSplit
    lost: Annotated[tuple[Digest, ...], MaxLen(MAX_LOST)] = ()  # heads whose blobs nobody gave it
    dialled: Annotated[tuple[PeerId, ...], MaxLen(MAX_DIALLED)] = ()  # who answered a fresh dial of its own lately
    answer: Answer | None = None
    vote: Vote = b""  # for (version, head, state digest); see `swarm/votes.py`
