"""Coming to the swarm's state: by the commit log where another peer's reaches one of our heads, else by a snapshot.

    log reaches one of our last heads --> Move: HEAD, forks of one or two commits undone in passing
    it does not ------------------------> Adopt: the snapshot; what our branch alone lists is given up, and declared

A pure machine in the form of a generator: it yields questions, is sent their answers, and returns what to do. The shell
asks, fetches and checks bytes; verifying the signatures of a long log is work, so it may run in a thread of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from swarm.chain import ChainState, apply, left_tokens
from swarm.digest import Digest
from swarm.errors import RemoteError
from swarm.identity import PeerId
from swarm.lease import LeaseSize
from swarm.messages import Commit, GetLog, GetState, Log, StateRecord, UnitState, record_digest
from swarm.round.commits import Listed, OpenSealed, check_commit

ASKED_FOR_STATE: Final = 5  # peers whose logs are asked for, and whose state records are compared
MAX_PAGES: Final = 4  # of a log that are followed at once
_ROOM_BYTES: Final = 1 << 20  # that a listed blob may have beyond the bytes of a whole state: its header


@dataclass(frozen=True, slots=True)
class Wanted:
    """One blob to fetch."""

    root: Digest
    holders: tuple[PeerId, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask these peers, all at once; answered by what each said, or why it said nothing."""

    peers: tuple[PeerId, ...]
    message: GetLog | GetState


@dataclass(frozen=True, slots=True)
class FetchBlobs:
    """Fetch all of these; answered by "" or the reason why one could not be had."""

    wanted: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """From `base`, one of our heads, through these commits; their blobs are here."""

    base: Digest
    commits: tuple[Commit, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """To this snapshot, whose blobs are here."""

    record: StateRecord
    keep_progress: bool
    num_bytes: int
    left_tokens: int = 0  # that our chain lists and this one does not


@dataclass(frozen=True, slots=True)
class Failed:
    """Nobody could bring us to the swarm's state now; it is tried again when the need is seen again."""

    reason: str


Question = Ask | FetchBlobs
Answer = Mapping[PeerId, object] | str | None
Outcome = Move | Adopt | Failed
CatchUpMachine = Generator[Question, Answer, Outcome]


@dataclass(frozen=True, slots=True)
class CatchUpRequest:
    """Where we are, and whom to ask."""

    peers: tuple[PeerId, ...]  # best first
    chains: tuple[ChainState, ...]  # that we can go back to, newest first
    units: tuple[UnitState, ...] = ()  # of our own state; all states of a run have as many, of these lengths
    whole: bool = False  # take a snapshot in any case, and give our own progress up: our state is wrong, it seems
    digest: Digest | None = None  # of our own state; where it may be wrong, it is one of those that are compared
    refused: Set[Digest] = frozenset()  # digests of states that could not be used before


def catch_up(request: CatchUpRequest, open_sealed: OpenSealed, lease: LeaseSize) -> CatchUpMachine:
    """Asks and fetches until it is clear what to do. Never raises for what a peer sends."""
    faults: list[str] = []
    for peer in () if request.whole else request.peers[:ASKED_FOR_STATE]:
        outcome = yield from _by_log(request, peer, open_sealed, lease)
        if not isinstance(outcome, Failed):
            return outcome
        faults.append(f"{peer}: {outcome.reason}")
    outcome = yield from _by_snapshot(request)
    return Failed("; ".join([*faults, outcome.reason])) if isinstance(outcome, Failed) else outcome


# ---------------------------------------------------------------- the log


def _by_log(request: CatchUpRequest, peer: PeerId, open_sealed: OpenSealed, lease: LeaseSize) -> CatchUpMachine:
    own = request.chains[0]
    bases = {chain.head: chain for chain in request.chains}
    heads = tuple(bases)
    chain: ChainState | None = None
    base = own.head
    commits: list[Commit] = []
    wanted: list[Wanted] = []
    for _ in range(MAX_PAGES):
        answer = yield Ask((peer,), GetLog(heads))
        log = answer.get(peer) if isinstance(answer, Mapping) else None
        if not isinstance(log, Log) or log.base not in heads:
            if commits:
                break  # what came so far is good
            return Failed(str(log or "no answer") if not isinstance(log, Log) else "its log starts elsewhere")
        if chain is None:
            base, chain = log.base, bases[log.base]
        try:
            for commit in log.commits:
                listed = check_commit(chain, commit, open_sealed, lease.tokens)
                wanted += _needed(peer, listed)
                chain = apply(chain, commit.commit, lease.windows)
                commits.append(commit)
        except RemoteError as error:
            return Failed(str(error))
        if not log.commits:
            break
        heads = (chain.head,)
    assert chain is not None
    refusal = _refusal(own, chain)
    if refusal is not None:
        return refusal
    most = sum(unit.num_bytes for unit in request.units) + _ROOM_BYTES
    longest = max((one.num_bytes for one in wanted), default=0)
    if request.units and longest > most:  # it would only fill the disk
        return Failed(f"its log lists a blob of {longest} bytes where at most {most} are due")
    fault = yield FetchBlobs(tuple(wanted))
    return Failed(str(fault)) if fault else Move(base, tuple(commits), sum(one.num_bytes for one in wanted))


def _needed(peer: PeerId, listed: Sequence[Listed]) -> list[Wanted]:
    """The blobs of one commit of that peer's log."""
    return [
        Wanted(one.contribution.root, tuple(dict.fromkeys((peer, *one.holders))), one.contribution.num_bytes)
        for one in listed
    ]


def _refusal(own: ChainState, chain: ChainState) -> Failed | None:
    """Why not to go where a log leads; None to go there."""
    if chain.head in own.barred:
        return Failed(f"its log leads to head {chain.head}, which is barred")
    if not chain.ranks_above(own):
        return Failed(f"its log leads to version {chain.version}, which is no better than ours")
    return None


# ---------------------------------------------------------------- a snapshot


def _by_snapshot(request: CatchUpRequest) -> CatchUpMachine:
    own, keep_progress = request.chains[0], not request.whole
    answer = yield Ask(tuple(dict.fromkeys(request.peers[:ASKED_FOR_STATE])), GetState())
    answers = answer if isinstance(answer, Mapping) else {}
    lengths = [unit.num_bytes for unit in request.units]
    usable = {
        peer: one
        for peer, one in answers.items()
        if isinstance(one, StateRecord)
        and (not keep_progress or one.chain.key > own.key)
        and one.chain.head not in own.barred
        and (not lengths or [unit.num_bytes for unit in one.units] == lengths)
    }
    if not usable:
        return Failed("nobody has a state that ranks above ours")
    digests = {peer: record_digest(one) for peer, one in usable.items()}
    # Of states that could not be used before, only if there is no other: the fault may have been ours.
    usable = {peer: one for peer, one in usable.items() if digests[peer] not in request.refused} or usable
    if request.whole and request.digest is not None:
        others = {peer: one for peer, one in usable.items() if digests[peer] != request.digest}
        votes = Counter(digests[peer] for peer in others)
        if len(usable) - len(others) + 1 > max(votes.values(), default=0):
            return Failed("most of those who answered have the state that we have")
        usable = others
    faults = []
    for record, holders in by_votes(usable):
        num_bytes = sum(unit.num_bytes for unit in record.units)
        fault = yield FetchBlobs(tuple(Wanted(unit.root, holders, unit.num_bytes) for unit in record.units))
        if fault:
            faults.append(f"version {record.chain.version}: {fault}")
            continue
        return Adopt(record, keep_progress, num_bytes, left_tokens(own, record.chain))
    return Failed("; ".join(faults))


def by_votes(reported: Mapping[PeerId, StateRecord]) -> Sequence[tuple[StateRecord, tuple[PeerId, ...]]]:
    """The states that these peers report, each with those who do: most reported first, among equals the highest."""
    digests = {peer: record_digest(record) for peer, record in reported.items()}
    votes = Counter(digests.values())
    records = {digests[peer]: record for peer, record in reported.items()}
    best = sorted(records, key=lambda digest: (votes[digest], records[digest].chain.key), reverse=True)
    return [(records[one], tuple(peer for peer, digest in digests.items() if digest == one)) for one in best]
