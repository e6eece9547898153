"""What a forger makes: a branch of commits that keep the chain's rules, signed with the keys that it has, or a bare state.

It has its own key, those of ids that it invents, and what everybody can hear: the votes of honest peers for a head where they
stood. It has not their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from swarm.chain import ChainState, CommitList, Entry, apply, head_after
from swarm.digest import Digest, digest_of
from swarm.errors import RemoteError
from swarm.identity import PeerId
from swarm.messages import (
    Commit,
    Contribution,
    GetLog,
    GetState,
    Holders,
    Log,
    PeerStatus,
    StateRecord,
    record_digest,
)
from swarm.round.docket import weights
from swarm.votes import Votes, gather, stand_at
from tests.sim.faults import Lie
from tests.sim.wires import issue, seal, vote

if TYPE_CHECKING:
    from tests.sim.life import Life
    from tests.sim.world import World

FORGED_COMMITS = 6
FORGED_TOKENS = 1 << 40


def invented(peer: PeerId, count: int) -> tuple[PeerId, ...]:
    """Ids whose keys a liar has."""
    return tuple(PeerId(digest_of("invented", peer.raw, bytes([number])).raw) for number in range(count))


@dataclass(frozen=True)
class Forgery:
    """A branch from `base` on, and the state that it claims to lead to."""

    author: PeerId
    ids: tuple[PeerId, ...]
    base: ChainState
    commits: tuple[Commit, ...]
    record: StateRecord

    @property
    def heads(self) -> frozenset[Digest]:
        """What was forged: no honest peer ever stands there."""
        chain = self.record.chain
        return frozenset((chain.head, *chain.recent)) - {self.base.head, *self.base.recent}

    def answer(self, question: object) -> Any:
        """What the forger answers, as its server would; None: no answer."""
        match question:
            case GetState():
                return self.record
            case GetLog(heads) if self.commits and self.base.head in heads:
                return Log(self.base.head, self.commits)
        return None

    def status(self, said: PeerStatus, author: PeerId) -> PeerStatus:
        """The status of a peer that claims to stand there."""
        chain, digest = self.record.chain, record_digest(self.record)
        return replace(
            said,
            peer=author,
            head=chain.head,
            version=chain.version,
            tokens=chain.tokens,
            state_digest=digest,
            vote=vote(author, stand_at(chain, digest)),
            pending=None,
            holding=(),
        )


def forge(world: World, life: Life, lie: Lie, num_ids: int) -> Forgery:
    """A forgery on the head where a peer stands."""
    ids, base = invented(life.peer.id, num_ids), life.machine.chain
    if lie is Lie.SNAPSHOT:
        chain = replace(
            base,
            head=digest_of("forged", base.head.raw),
            version=base.version + FORGED_COMMITS,
            tokens=base.tokens + FORGED_TOKENS,
            roster=tuple(sorted((life.peer.id, *ids))),
            entered=(1,) * (1 + num_ids),
            dialable=bytes([3]) * (1 + num_ids),
            voting=bytes([3]) * (1 + num_ids),
            recent=(base.head, *base.recent)[:8],
            departed=(),
        )
        return Forgery(life.peer.id, ids, base, (), replace(life.record, chain=chain))
    authors = ids if lie is Lie.LOG else (life.peer.id, *ids)
    return _branch(world, life, authors, ids)


def _branch(world: World, life: Life, authors: Sequence[PeerId], ids: tuple[PeerId, ...]) -> Forgery:
    base = chain = life.machine.chain
    commits: list[Commit] = []
    for turn in range(FORGED_COMMITS):
        first = turn == 0
        listing = authors[:1] if first else authors
        made = [_contribution(world, life, author, chain, turn) for author in sorted(listing)]
        due = weights(made, chain, world.config.lease_tokens)
        entries = tuple(sorted(_entry(one, tokens) for one, tokens in zip(made, due, strict=True)))
        admitted = tuple(sorted(set(authors) - set(listing))) if first else ()
        chosen = CommitList(entries, admitted, minority=first)
        votes = _heard_votes(world, life) if first else _own_votes(chain, authors)
        commit = Commit(
            view=0,
            parent=chain.head,
            commit=chosen,
            announcements=tuple(seal(one.author, one) for one in made),
            holders=tuple(Holders((life.peer.id,)) for _ in made),
            reason="forged",
            votes=votes,
            issued=issue(life.peer.id, 0, head_after(chain.head, chosen)),
        )
        try:
            chain = apply(chain, chosen, world.config.lease_windows)
        except RemoteError:
            break  # what came so far is a branch too
        commits.append(commit)
    return Forgery(life.peer.id, ids, base, tuple(commits), replace(life.record, chain=chain))


def _contribution(world: World, life: Life, author: PeerId, chain: ChainState, turn: int) -> Contribution:
    own = life.replica._roots.values()  # a blob that is there: what it lists can be had from it
    root = next(iter(own), digest_of("forged blob", author.raw, bytes([turn])))
    seq = chain.highest_seq(author) + 1
    tokens, since = 1 << 30, max(0, chain.version - 2)
    return Contribution(
        author, 1, seq, root, 900, 0, len(life.record.units), tokens, 4, since, chain.version, chain.head
    )


def _entry(one: Contribution, tokens: int) -> Entry:
    return Entry(one.author, one.seq, one.incarnation, one.root, one.first_unit, one.end_unit, tokens, one.steps)


def _heard_votes(world: World, life: Life) -> Votes | None:
    """The votes of everybody who stands where the forger does: they lie in statuses that all may hear."""
    here = [other.machine for other in world.lives() if other.machine.stand == life.machine.stand]
    chain, voters = life.machine.chain, set(life.machine.chain.voters)
    votes = {one.me.peer: vote(one.me.peer, one.stand) for one in here if one.me.peer in voters}
    return gather(chain, life.machine.state_digest, votes, len(votes)) if votes else None


def _own_votes(chain: ChainState, authors: Sequence[PeerId]) -> Votes:
    digest = digest_of("forged state", chain.head.raw)
    voters = set(chain.voters)
    votes = {peer: vote(peer, stand_at(chain, digest)) for peer in authors if peer in voters}
    return gather(chain, digest, votes, len(votes))
