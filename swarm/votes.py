"""Votes: everyone signs where it stands, and the votes of a majority of the voters prove a head.

    vote = Ed25519 over H("vote", run, version, head, state digest)

A vote travels in every status. The commit behind a head carries the votes of a majority for that head, outside the hashed
list: who takes over and issues the same list reaches the same head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from swarm.chain import MAX_ROSTER, ChainState
from swarm.digest import Digest, digest_of
from swarm.errors import RemoteError
from swarm.identity import SIGNATURE_BYTES, PeerId
from swarm.schema import U63, MaxLen

VOTE_BYTES: Final = SIGNATURE_BYTES
ALL_VOTES: Final = 64  # voters up to which a commit carries every vote there is; of more, those of a majority

Vote = Annotated[bytes, MaxLen(VOTE_BYTES)]


@dataclass(frozen=True, slots=True)
class Stand:
    """Where a peer stands: what it votes for."""

    version: U63
    head: Digest
    state_digest: Digest


IsVote = Callable[[PeerId, bytes, Stand], bool]
"""Whether these bytes are that peer's vote for where it stands."""


@dataclass(frozen=True, slots=True)
class Votes:
    """Votes for one head by its voters."""

    state_digest: Digest  # that they all have there
    voted: Annotated[
        bytes, MaxLen(MAX_ROSTER // 8)
    ]  # a bit for each of the head's voters, sorted: the lowest bit first
    signatures: Annotated[tuple[Vote, ...], MaxLen(MAX_ROSTER)]  # of those whose bit is set, in that order


def to_sign(run: Digest, stand: Stand) -> bytes:
    """The bytes that a vote signs."""
    return digest_of("vote", run.raw, stand.version.to_bytes(8, "big"), stand.head.raw, stand.state_digest.raw).raw


def issue_to_sign(run: Digest, view: int, head: Digest) -> bytes:
    """The bytes that a leader signs for the commit that leads to that head."""
    return digest_of("issue", run.raw, view.to_bytes(8, "big"), head.raw).raw


def stand_at(chain: ChainState, state_digest: Digest) -> Stand:
    """What a vote for that head says."""
    return Stand(chain.version, chain.head, state_digest)


def gather(chain: ChainState, state_digest: Digest, votes: Mapping[PeerId, bytes], num_needed: int) -> Votes:
    """These votes for `chain` as a commit carries them. Of more than ALL_VOTES voters the first `num_needed`, in the order
    of `votes`."""
    voters = chain.voters
    chosen = frozenset(list(votes)[: num_needed if len(voters) > ALL_VOTES else len(voters)])
    bits = sum(1 << place for place, peer in enumerate(voters) if peer in chosen)
    signatures = tuple(votes[peer] for peer in voters if peer in chosen)
    return Votes(state_digest, bits.to_bytes((len(voters) + 7) // 8, "little"), signatures)


def voted_by(chain: ChainState, votes: Votes | None) -> frozenset[PeerId]:
    """Who of the voters of `chain` voted, as a commit says that was checked."""
    if votes is None:
        return frozenset()
    bits = int.from_bytes(votes.voted, "little")
    return frozenset(peer for place, peer in enumerate(chain.voters) if bits >> place & 1)


def check_votes(chain: ChainState, votes: Votes | None, is_vote: IsVote) -> frozenset[PeerId]:
    """Who of the voters of `chain` voted for it; raises RemoteError if one of the votes is none."""
    if votes is None:
        return frozenset()
    voters = chain.voters
    bits = int.from_bytes(votes.voted, "little")
    if len(votes.voted) != (len(voters) + 7) // 8 or bits >> len(voters):
        raise RemoteError(f"its votes have {len(votes.voted)} bytes of bits for {len(voters)} voters")
    said = [peer for place, peer in enumerate(voters) if bits >> place & 1]
    if len(said) != len(votes.signatures):
        raise RemoteError(f"it carries {len(votes.signatures)} votes and names {len(said)} voters")
    stand = stand_at(chain, votes.state_digest)
    for peer, vote in zip(said, votes.signatures, strict=True):
        if not is_vote(peer, vote, stand):
            raise RemoteError(f"its vote of {peer} for version {chain.version} is not signed by it")
    return frozenset(said)
