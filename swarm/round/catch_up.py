"""How a peer comes to the swarm's state: by the commit log where another peer's reaches one of our heads, else by a snapshot.

    log reaches one of our last heads --> Move: HEAD, forks of one or two commits undone in passing
    it does not ------------------------> Adopt: the snapshot; what our branch alone lists is given up, and declared

A member goes where the voters of its root stand (`fork.py`). Who knows none of those that are there, a newcomer above all,
takes what more than half of those that it asks report.

A pure machine in the form of a generator: it yields questions, is sent their answers, and returns what to do. The shell
asks, fetches and checks bytes; verifying the signatures of a long log is work, so it may run in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from swarm.chain import ChainState, apply, leader_of, left_tokens
from swarm.digest import Digest
from swarm.errors import RemoteError
from swarm.identity import PeerId
from swarm.lease import LeaseSize
from swarm.messages import Commit, GetLog, GetState, GetStatus, Log, PeerStatus, StateRecord, UnitState
from swarm.round.commits import Listed, Verifier, check_commit
from swarm.round.fork import Ours, Theirs, Verdict, follow
from swarm.round.joining import Found, Reports, of_other_state, of_strangers, of_voters
from swarm.round.root import Root, root_after, root_at
from swarm.votes import voted_by

ASKED_FOR_LOG: Final = 5  # peers whose logs are asked for, one after the other
ASKED_FOR_STATE: Final = 8  # peers whose state records are compared
ASKED_TO_VOTE: Final = 256  # voters that are asked where they stand
MAX_PAGES: Final = 4  # of a log that are followed at once
STAND_TIMEOUT_S: Final = 3.0  # in which a voter says where it stands: one that is frozen holds up nobody for long
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
    message: GetLog | GetState | GetStatus
    timeout_s: float | None = None  # None: as long as a state may take


@dataclass(frozen=True, slots=True)
class FetchBlobs:
    """Fetch all of these; answered by "" or the reason why one could not be had."""

    wanted: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """From `base`, one of our heads, through these commits; their blobs are here."""

    base: Digest
    commits: tuple[Commit, ...]
    roots: tuple[Root, ...]  # of the heads behind them
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """To this snapshot, whose blobs are here."""

    record: StateRecord
    root: Root  # of its head
    keep_progress: bool
    num_bytes: int
    left_tokens: int = 0  # that our chain lists and this one does not
    by_strangers: bool = False  # none of those who vouch for it is known to us


@dataclass(frozen=True, slots=True)
class Failed:
    """Nobody could bring us to the swarm's state now; it is tried again when the need is seen again."""

    reason: str
    is_refused: bool = False  # what we were led to is not to be followed, whether it can be had or not


Question = Ask | FetchBlobs
Answer = Mapping[PeerId, object] | str | None
Outcome = Move | Adopt | Failed
CatchUpMachine = Generator[Question, Answer, Outcome]


@dataclass(frozen=True, slots=True)
class CatchUpRequest:
    """Where we are, what we know, and whom to ask."""

    me: PeerId
    peers: tuple[PeerId, ...]  # best first
    chains: tuple[ChainState, ...]  # that we can go back to, newest first
    roots: tuple[Root, ...]  # of each of them
    stands: Mapping[PeerId, Digest] = field(default_factory=dict)  # heads of voters, in words that are fresh
    views: tuple[int, int] | None = None  # the lowest and the highest in which somebody may lead us on from our head
    is_among_strangers: bool = False  # none of the voters that we know, but us, has been here for long
    introducers: frozenset[PeerId] = frozenset()  # who invited us: where any answers, one has to vouch for where we go
    units: tuple[UnitState, ...] = ()  # of our own state; all states of a run have as many, of these lengths
    whole: bool = False  # take a snapshot in any case, and give our own progress up: our state is wrong, it seems
    digest: Digest | None = None  # of our own state; where it may be wrong, it is one of those that are compared
    refused: frozenset[Digest] = frozenset()  # digests of states that could not be used before

    @property
    def ours(self) -> Ours:
        return Ours(self.chains, self.roots)


def catch_up(request: CatchUpRequest, verifier: Verifier, lease: LeaseSize) -> CatchUpMachine:
    """Asks and fetches until it is clear what to do. Never raises for what a peer sends."""
    faults: list[Failed] = []
    ties: list[_Tie] = []
    found: Found | None = None
    if request.is_among_strangers and not request.whole:
        answer = yield Ask(_to_ask(request), GetState())
        found = of_strangers(request.chains[0], _reports(request, answer), request.introducers)
        if found.reason:
            return Failed(found.reason, is_refused=True)
    donors = request.peers if found is None else found.vouching
    for peer in () if request.whole else donors[:ASKED_FOR_LOG]:
        outcome = yield from _by_log(request, peer, verifier, lease, found)
        if isinstance(outcome, _Tie):
            ties.append(outcome)
            continue
        if not isinstance(outcome, Failed):
            return outcome
        faults.append(Failed(f"{peer}: {outcome.reason}", outcome.is_refused))
    for tie in sorted(ties, key=lambda one: one.log.chains[-1].key, reverse=True):
        outcome = yield from _fetched(request, tie.log)
        if not isinstance(outcome, Failed):
            return outcome
        faults.append(outcome)
    outcome = yield from _by_snapshot(request, found)
    if isinstance(outcome, Failed):
        faults.append(outcome)
        return Failed("; ".join(one.reason for one in faults), any(one.is_refused for one in faults))
    return outcome


# ---------------------------------------------------------------- the log


@dataclass(frozen=True, slots=True)
class _Followed:
    """What a peer's log says, checked."""

    base: ChainState
    chains: tuple[ChainState, ...]
    commits: tuple[Commit, ...]
    roots: tuple[Root, ...]
    wanted: tuple[tuple[Wanted, ...], ...]  # of each commit

    def theirs(self, request: CatchUpRequest, verifier: Verifier) -> Theirs:
        """The branch, for who decides whether to follow it."""
        root = self.roots[-1] if self.roots else request.roots[request.chains.index(self.base)]
        if not self.commits:
            return Theirs(self.base, self.chains, frozenset(), root)
        first = self.commits[0]
        own, views = request.chains[0], request.views
        is_led = False
        if self.base.head == own.head and not first.commit.minority and views and views[0] <= first.view <= views[1]:
            leader = leader_of(first.view, own.order)
            is_led = leader is not None and verifier.is_issue(leader, first.issued, first.view, self.chains[0].head)
        return Theirs(self.base, self.chains, frozenset(first.commit.barred), root, is_led)

    def up_to(self, depth: int) -> _Followed:
        """Its first commits alone."""
        return _Followed(self.base, self.chains[:depth], self.commits[:depth], self.roots[:depth], self.wanted[:depth])


@dataclass(frozen=True, slots=True)
class _Tie:
    """A branch that is followed only if there is none that more voters follow."""

    log: _Followed


def _by_log(
    request: CatchUpRequest, peer: PeerId, verifier: Verifier, lease: LeaseSize, found: Found | None
) -> Generator[Question, Answer, Outcome | _Tie]:
    log = yield from _read_log(request, peer, verifier, lease)
    if isinstance(log, Failed):
        return log
    if found is not None:
        depth = next((place + 1 for place, chain in enumerate(log.chains) if chain.head in found.heads), 0)
        if not depth:
            return Failed("its log does not lead where most of those asked stand", is_refused=True)
        return (yield from _fetched(request, log.up_to(depth)))
    decision = follow(request.ours, log.theirs(request, verifier), request.stands, ())
    if decision.verdict is Verdict.ASK:
        stands, silent = yield from _ask_where_they_stand(request, decision.voters)
        log = yield from _read_log(request, peer, verifier, lease)  # once more: they may have gone on meanwhile
        if isinstance(log, Failed):
            return log
        decision = follow(request.ours, log.theirs(request, verifier), stands, silent)
    if decision.verdict is Verdict.ASK and decision.sure:  # others vote by now than those who were asked
        return (yield from _fetched(request, log.up_to(decision.sure)))
    if decision.verdict is Verdict.TIE:
        return _Tie(log)
    if decision.verdict is not Verdict.MOVE:
        return Failed(decision.reason, is_refused=bool(log.commits))
    return (yield from _fetched(request, log.up_to(decision.depth)))


def _fetched(request: CatchUpRequest, log: _Followed) -> CatchUpMachine:
    """Fetches what a log lists."""
    most = sum(unit.num_bytes for unit in request.units) + _ROOM_BYTES
    wanted = tuple(one for commit in log.wanted for one in commit)
    longest = max((one.num_bytes for one in wanted), default=0)
    if request.units and longest > most:  # it would only fill the disk
        return Failed(f"its log lists a blob of {longest} bytes where at most {most} are due")
    fault = yield FetchBlobs(wanted)
    if fault:
        return Failed(str(fault))
    return Move(log.base.head, log.commits, log.roots, sum(one.num_bytes for one in wanted))


def _read_log(
    request: CatchUpRequest, peer: PeerId, verifier: Verifier, lease: LeaseSize
) -> Generator[Question, Answer, _Followed | Failed]:
    """A peer's log from one of our heads on, every commit checked; what came before one that is wrong counts for nothing."""
    bases = {chain.head: chain for chain in request.chains}
    heads = tuple(bases)
    base: ChainState | None = None
    chains: list[ChainState] = []
    commits: list[Commit] = []
    roots: list[Root] = []
    wanted: list[tuple[Wanted, ...]] = []
    for _ in range(MAX_PAGES):
        answer = yield Ask((peer,), GetLog(heads))
        log = answer.get(peer) if isinstance(answer, Mapping) else None
        if not isinstance(log, Log) or log.base not in heads:
            if commits:
                break  # what came so far is good
            return Failed(str(log or "no answer") if not isinstance(log, Log) else "its log starts elsewhere")
        if base is None:
            base = bases[log.base]
        try:
            for commit in log.commits:
                parent = chains[-1] if chains else base
                root = roots[-1] if roots else request.roots[request.chains.index(base)]
                wanted.append(_needed(peer, check_commit(parent, commit, verifier, lease.tokens)))
                child = apply(parent, commit.commit, lease.windows)
                roots.append(root_after(root, parent, voted_by(parent, commit.votes), child))
                chains.append(child)
                commits.append(commit)
        except RemoteError as error:
            return Failed(str(error))
        if not log.commits:
            break
        heads = (chains[-1].head,)
    assert base is not None
    return _Followed(base, tuple(chains), tuple(commits), tuple(roots), tuple(wanted))


def _needed(peer: PeerId, listed: Sequence[Listed]) -> tuple[Wanted, ...]:
    """The blobs of one commit of that peer's log."""
    return tuple(
        Wanted(one.contribution.root, tuple(dict.fromkeys((peer, *one.holders))), one.contribution.num_bytes)
        for one in listed
    )


def _ask_where_they_stand(
    request: CatchUpRequest, voters: Sequence[PeerId]
) -> Generator[Question, Answer, tuple[dict[PeerId, Digest], frozenset[PeerId]]]:
    """Where these voters stand now, as they say themselves, and who of them was asked and is silent. Who is known
    to stand on our side or theirs is asked again: it may have moved."""
    asked = tuple(one for one in voters if one != request.me)[:ASKED_TO_VOTE]
    answer = yield Ask(asked, GetStatus(), STAND_TIMEOUT_S)
    stands = dict(request.stands)
    for voter, status in answer.items() if isinstance(answer, Mapping) else ():
        if isinstance(status, PeerStatus) and status.peer == voter:
            stands[voter] = status.head
    return stands, frozenset(asked) - stands.keys()


# ---------------------------------------------------------------- a snapshot


def _to_ask(request: CatchUpRequest) -> tuple[PeerId, ...]:
    """Whom to ask for a state: who invited us first, then the best."""
    return tuple(dict.fromkeys((*sorted(request.introducers), *request.peers)))[:ASKED_FOR_STATE]


def _reports(request: CatchUpRequest, answer: Answer) -> Reports:
    """Those who told of a state that can be one of this run."""
    lengths = [unit.num_bytes for unit in request.units]
    answers = answer if isinstance(answer, Mapping) else {}
    return Reports(
        {
            peer: one
            for peer, one in answers.items()
            if isinstance(one, StateRecord) and (not lengths or [unit.num_bytes for unit in one.units] == lengths)
        }
    )


def _by_snapshot(request: CatchUpRequest, found: Found | None) -> CatchUpMachine:
    if found is None:
        voters = [peer for peer in request.roots[0].voters if peer != request.me]
        asked = tuple(dict.fromkeys((*request.peers[:1], *voters, *request.peers)))[:ASKED_FOR_STATE]
        answer = yield Ask(asked, GetState())
        reports, own, root = _reports(request, answer), request.chains[0], request.roots[0]
        if request.whole:
            found = of_other_state(own, root, request.digest, reports)
        else:
            found = of_voters(request.me, own, root, request.stands, reports)
    if found.reason:
        return Failed(found.reason, is_refused=True)
    faults = []
    for record, holders in found.candidates(request.refused):
        fault = yield FetchBlobs(tuple(Wanted(unit.root, holders, unit.num_bytes) for unit in record.units))
        if fault:
            faults.append(f"version {record.chain.version}: {fault}")
            continue
        num_bytes = sum(unit.num_bytes for unit in record.units)
        left = left_tokens(request.chains[0], record.chain)
        is_here = record.chain.head == request.chains[0].head
        root = root_at(record.chain) if found.is_proved and not is_here else request.roots[0]
        return Adopt(record, root, not request.whole, num_bytes, left, request.is_among_strangers)
    return Failed("; ".join(faults))
