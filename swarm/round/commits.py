"""What a member checks before it accepts a commit: the chain's rules, and that every author announced what is listed; and
what it tells of it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarm import chain as chains
from swarm.chain import ChainState, Entry, leader_of
from swarm.errors import RemoteError
from swarm.events import RoundCommitted
from swarm.identity import PeerId
from swarm.messages import Commit, Contribution
from swarm.round.docket import may_be_listed
from swarm.round.facts import HeadReached

OpenContribution = Callable[[bytes], Contribution]
"""Opens and verifies a sealed contribution; raises RemoteError."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a commit: what its author announced, the signed bytes, and who held it when it was listed."""

    contribution: Contribution
    sealed: bytes
    holders: tuple[PeerId, ...]


def check_commit(chain: ChainState, commit: Commit, open_contribution: OpenContribution) -> tuple[Listed, ...]:
    """What a commit on `chain` lists, in its order; raises RemoteError naming the rule that it breaks."""
    if commit.parent != chain.head:
        raise RemoteError(f"its parent {commit.parent} is not {chain.head}")
    chains.check_list(chain, commit.commit)
    entries = commit.commit.entries
    if not len(entries) == len(commit.announcements) == len(commit.holders):
        raise RemoteError("entries, announcements and holders of a commit are not as many")
    return tuple(
        Listed(_announced(entry, open_contribution(sealed), chain), sealed, holders.peers)
        for entry, sealed, holders in zip(entries, commit.announcements, commit.holders, strict=True)
    )


def committed(commit: Commit, old: ChainState, reached: HeadReached, duration_s: float) -> RoundCommitted:
    """The event of a move from `old` by this commit."""
    listed = tuple(sorted({entry.author for entry in commit.commit.entries}))
    return RoundCommitted(
        version=reached.chain.version,
        head=reached.chain.head,
        state_digest=reached.state_digest,
        tokens=commit.commit.tokens,
        tokens_in_all=reached.chain.tokens,
        leader=leader_of(commit.view, old.roster) or min(listed),
        view=commit.view,
        listed=listed,
        left_out=tuple(peer for peer in old.roster if peer not in listed),
        minority=commit.commit.minority,
        duration_s=duration_s,
        reason=commit.reason,
    )


def _announced(entry: Entry, contribution: Contribution, chain: ChainState) -> Contribution:
    said = (contribution.author, contribution.seq, contribution.incarnation, contribution.root, contribution.steps)
    units = (contribution.first_unit, contribution.end_unit)
    if said != (entry.author, entry.seq, entry.incarnation, entry.root, entry.steps):
        raise RemoteError(f"the entry of {entry.author} is not what it announced")
    if units != (entry.first_unit, entry.end_unit) or entry.tokens > contribution.tokens:
        raise RemoteError(f"the entry of {entry.author} has other units or more tokens than it announced")
    if not may_be_listed(contribution, chain):
        raise RemoteError(f"number {entry.seq} of {entry.author} may not be listed at version {chain.version + 1}")
    return contribution
