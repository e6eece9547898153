"""What a member checks before it accepts a commit: the chain's rules, and that every author announced what is listed; and
what it tells of it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from swarm import chain as chains
from swarm.chain import ChainState, CommitList, Entry, is_majority, leader_of
from swarm.digest import Digest
from swarm.errors import RemoteError
from swarm.events import MAX_LEFT_OUT_NAMED, MAX_LISTED_NAMED, RoundCommitted
from swarm.identity import Keypair, PeerId
from swarm.messages import (
    Commit,
    Contribution,
    PeerStatus,
    is_issue,
    is_vote,
    open_message,
    seal_message,
    sign_issue,
    sign_vote,
)
from swarm.round.docket import may_be_listed, weights
from swarm.round.facts import HeadReached
from swarm.votes import IsVote, Stand, check_votes

_Kind = TypeVar("_Kind")

OpenSealed = Callable[[bytes], object]
"""The message in signed bytes of this run, verified; raises RemoteError."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a commit: what its author announced, the signed bytes, and who held it when it was listed."""

    contribution: Contribution
    sealed: bytes
    holders: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Verifier:
    """What others have signed, opened and checked."""

    open_sealed: OpenSealed
    is_vote: IsVote
    is_issue: Callable[[PeerId, bytes, int, Digest], bool]


@dataclass(frozen=True, slots=True)
class Seals:
    """Signing and verifying as pure functions: the same message has the same signature."""

    verifier: Verifier
    seal: Callable[[object], bytes]
    vote: Callable[[Stand], bytes]
    issue: Callable[[int, Digest], bytes]

    @classmethod
    def of(cls, keypair: Keypair, run: Digest) -> Seals:
        verifier = Verifier(lambda raw: open_message(raw, run=run)[1], partial(is_vote, run), partial(is_issue, run))
        seal, vote, issue = (partial(one, keypair, run) for one in (seal_message, sign_vote, sign_issue))
        return cls(verifier, seal, vote, issue)


def open_as(kind: type[_Kind], raw: bytes, open_sealed: OpenSealed) -> _Kind:
    """The message of that kind in signed bytes; raises RemoteError."""
    message = open_sealed(raw)
    if not isinstance(message, kind):
        raise RemoteError(f"a {kind.__name__} is due, not a {type(message).__name__}")
    return message


def check_commit(chain: ChainState, commit: Commit, verifier: Verifier, lease_tokens: int) -> tuple[Listed, ...]:
    """The contributions that a commit on `chain` lists, in its order; raises RemoteError naming the rule that it breaks."""
    open_sealed = verifier.open_sealed
    if commit.parent != chain.head:
        raise RemoteError(f"its parent {commit.parent} is not {chain.head}")
    chains.check_list(chain, commit.commit)
    _check_votes(chain, commit, verifier.is_vote)
    _check_evidence(chain, commit, open_sealed)
    entries = commit.commit.entries
    if not len(entries) == len(commit.announcements) == len(commit.holders):
        raise RemoteError("entries, announcements and holders of a commit are not as many")
    announced = [open_as(Contribution, sealed, open_sealed) for sealed in commit.announcements]
    due = weights(announced, chain, lease_tokens)
    for entry, contribution, tokens in zip(entries, announced, due, strict=True):
        _check_entry(entry, contribution, tokens, chain)
    return tuple(
        Listed(contribution, sealed, holders.peers)
        for contribution, sealed, holders in zip(announced, commit.announcements, commit.holders, strict=True)
    )


def roots_of(commit: CommitList) -> tuple[Digest, ...]:
    """The blobs that are needed to move by this commit."""
    return tuple(entry.root for entry in commit.entries)


def _check_votes(chain: ChainState, commit: Commit, is_vote: IsVote) -> None:
    """A commit has a majority of the voters behind its parent, in their own words, or says that it has not. At genesis nobody
    has a vote."""
    voted, voters = check_votes(chain, commit.votes, is_vote), chain.voters
    if voters and not commit.commit.minority and not is_majority(len(voted), len(voters)):
        raise RemoteError(f"{len(voted)} of {len(voters)} voters are behind its parent, which is no majority")


def _check_evidence(chain: ChainState, commit: Commit, open_sealed: OpenSealed) -> None:
    """A head is barred by a majority alone: of the voters, each in its own words, at the parent. Whoever stands at a barred
    head leaves it although it ranks higher, so one peer's word must not do."""
    for head in commit.commit.barred:
        witnesses = set()
        for sealed in commit.evidence:
            status = open_as(PeerStatus, sealed, open_sealed)
            if status.head == chain.head and head in status.lost:
                witnesses.add(status.peer)
        if not is_majority(len(witnesses & set(chain.voters)), len(chain.voters)):
            raise RemoteError(f"head {head} is barred by {len(witnesses)} peers, which is no majority")


def committed(commit: Commit, old: ChainState, reached: HeadReached, duration_s: float) -> RoundCommitted:
    """The event of a move from `old` by this commit."""
    authors = {entry.author for entry in commit.commit.entries}
    listed = tuple(sorted(authors))
    left_out = tuple(peer for peer in old.roster if peer not in authors)
    return RoundCommitted(
        version=reached.chain.version,
        head=reached.chain.head,
        state_digest=reached.state_digest,
        tokens=commit.commit.tokens,
        tokens_in_all=reached.chain.tokens,
        leader=leader_of(commit.view, old.order) or min(listed),
        view=commit.view,
        listed=listed[:MAX_LISTED_NAMED],
        left_out=left_out[:MAX_LEFT_OUT_NAMED],
        minority=commit.commit.minority,
        duration_s=duration_s,
        reason=commit.reason,
        more_listed=len(listed[MAX_LISTED_NAMED:]),
        more_left_out=len(left_out[MAX_LEFT_OUT_NAMED:]),
    )


def _check_entry(entry: Entry, contribution: Contribution, due: int, chain: ChainState) -> None:
    said = (contribution.author, contribution.seq, contribution.incarnation, contribution.root, contribution.steps)
    units = (contribution.first_unit, contribution.end_unit)
    if said != (entry.author, entry.seq, entry.incarnation, entry.root, entry.steps):
        raise RemoteError(f"the entry of {entry.author} is not what it announced")
    if units != (entry.first_unit, entry.end_unit):
        raise RemoteError(f"the entry of {entry.author} has other units than it announced")
    if entry.tokens != due:
        raise RemoteError(f"the entry of {entry.author} weighs {entry.tokens} tokens where {due} are due")
    if not may_be_listed(contribution, chain):
        raise RemoteError(f"number {entry.seq} of {entry.author} may not be listed at version {chain.version + 1}")
