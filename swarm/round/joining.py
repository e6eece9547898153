"""Which of the states that others report to take: on the word of voters that we know, or, where we know none of those who
are there, of more than half of those who answer.

Who is a commit or two ahead vouches for the head it came from: rounds go on while one asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from swarm.chain import ChainState, is_majority
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import StateRecord, record_digest
from swarm.round.fork import Sides, Verdict, count
from swarm.round.root import Root

_NOTHING = "nobody has a state that ranks above ours"


@dataclass(frozen=True, slots=True)
class Found:
    """States to go to, the best first, each with those who have it; or the reason why there is none."""

    states: tuple[tuple[StateRecord, tuple[PeerId, ...]], ...] = ()
    vouching: tuple[PeerId, ...] = ()  # who stands at one of them, or came from there
    is_proved: bool = True  # a majority of the voters of our root vouches; or we have no better knowledge than this
    reason: str = ""

    @property
    def heads(self) -> frozenset[Digest]:
        return frozenset(record.chain.head for record, _ in self.states)

    def candidates(self, refused: Set[Digest]) -> list[tuple[StateRecord, tuple[PeerId, ...]]]:
        """Those that could not be used before come last: the fault may have been ours."""
        return sorted(self.states, key=lambda one: record_digest(one[0]) in refused)


class Reports:
    """The states that some peers report."""

    def __init__(self, records: Mapping[PeerId, StateRecord]) -> None:
        self._records = records
        self._digests = {peer: record_digest(record) for peer, record in records.items()}

    def __len__(self) -> int:
        return len(self._records)

    def of(self, peers: Collection[PeerId]) -> Reports:
        """What these report."""
        return Reports({peer: record for peer, record in self._records.items() if peer in peers})

    def without(self, heads: Collection[Digest], digest: Digest | None = None) -> Reports:
        """Those of other heads, and of another state."""
        return Reports(
            {
                peer: record
                for peer, record in self._records.items()
                if record.chain.head not in heads and self._digests[peer] != digest
            }
        )

    def begun(self) -> Reports:
        """Those of a version above 0, at which everybody begins."""
        return Reports({peer: record for peer, record in self._records.items() if record.chain.version})

    @property
    def peers(self) -> Set[PeerId]:
        return self._records.keys()

    def count_of(self, digest: Digest) -> int:
        return sum(one == digest for one in self._digests.values())

    def chain_of(self, peer: PeerId) -> ChainState:
        return self._records[peer].chain

    def vouching_for(self, digest: Digest) -> tuple[PeerId, ...]:
        """Who has that state, or came from its head."""
        head = next(self._records[peer].chain.head for peer, one in self._digests.items() if one == digest)
        return tuple(
            peer
            for peer, record in self._records.items()
            if self._digests[peer] == digest or head in record.chain.recent
        )

    def best_first(self) -> Sequence[Digest]:
        """Most vouched for first, among equals the highest."""
        records = {one: self._records[peer] for peer, one in self._digests.items()}
        return sorted(records, key=lambda one: (len(self.vouching_for(one)), records[one].chain.key), reverse=True)

    def record(self, digest: Digest) -> StateRecord:
        return next(self._records[peer] for peer, one in self._digests.items() if one == digest)

    def found(self, digests: Sequence[Digest]) -> Found:
        states = tuple(
            (self.record(digest), tuple(peer for peer, one in self._digests.items() if one == digest))
            for digest in digests
        )
        vouching = dict.fromkeys(peer for digest in digests for peer in self.vouching_for(digest))
        return Found(states, tuple(vouching))


def of_strangers(own: ChainState | None, reports: Reports, introducers: Set[PeerId] = frozenset()) -> Found:
    """Where more than half of those who answered stand; of those who invited us one is among them, if any answered. Who has
    made versions alone goes to several that stand together, or to one with more."""
    asked_us = introducers & reports.peers
    reports = reports.begun()
    if not len(reports):
        return Found(reason="nobody has a state")
    for digest in reports.best_first():
        vouching, chain = reports.vouching_for(digest), reports.record(digest).chain
        if 2 * len(vouching) <= len(reports) or (asked_us and asked_us.isdisjoint(vouching)):
            continue
        if own is not None and chain.head in (own.head, *own.recent, *own.barred):
            return Found(reason=_NOTHING)
        if own is not None and own.version and len(vouching) < 2 and chain.key <= own.key:
            return Found(reason=_NOTHING)
        return reports.found([digest])
    return Found(reason=f"no state is that of most of the {len(reports)} who answered")


def of_voters(me: PeerId, own: ChainState, root: Root, stands: Mapping[PeerId, Digest], reports: Reports) -> Found:
    """The state that most voters of our root vouch for: if more do than stand with us, or as many and it ranks higher."""
    passed = (own.head, *own.recent)
    voters = frozenset(root.voters)
    stood = {peer: head for peer, head in stands.items() if peer not in reports.peers}
    stood |= {peer: reports.chain_of(peer).head for peer in reports.peers}
    ours = frozenset(peer for peer, head in stood.items() if head in passed) & voters | ({me} & voters)
    elsewhere = reports.without((*passed, *own.barred))
    if not len(elsewhere):
        return Found(reason=_NOTHING)
    theirs = {digest: voters & frozenset(elsewhere.vouching_for(digest)) for digest in elsewhere.best_first()}
    most = max(map(len, theirs.values()))
    best = sorted(
        (digest for digest in theirs if len(theirs[digest]) == most),
        key=lambda digest: elsewhere.record(digest).chain.key,
        reverse=True,
    )
    is_larger = elsewhere.record(best[0]).chain.key > own.key
    if count(Sides(theirs[best[0]], ours, frozenset()), is_larger=is_larger) in (Verdict.MOVE, Verdict.TIE):
        return replace(elsewhere.found(best), is_proved=is_majority(most, len(voters)))
    return Found(reason=f"{_NOTHING}; {len(ours)} of {len(voters)} voters stand with us, {most} there")


def of_other_state(own: ChainState, root: Root, digest: Digest | None, reports: Reports) -> Found:
    """For one whose state differs from the others' at the same head: the state of most voters that it knows."""
    voters = {*own.voters, *root.voters}
    reports = reports.of(voters) if voters else reports
    others = reports.without(own.barred, digest)
    if not len(others):
        return Found(reason="nobody has another state than ours")
    most = Counter(others.count_of(one) for one in others.best_first())
    if digest is not None and reports.count_of(digest) + 1 > max(most):
        return Found(reason="most of those who answered have the state that we have")
    found = others.found(sorted(others.best_first(), key=lambda one: others.count_of(one), reverse=True))
    return replace(found, is_proved=False)
