"""Donors of logs and states in memory, and a run of the catch-up machine that asks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarm.chain import ChainState
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Commit, GetLog, GetState, GetStatus, Log, StateRecord
from swarm.round.catch_up import (
    Ask,
    CatchUpRequest,
    FetchBlobs,
    Outcome,
    Question,
    Wanted,
    catch_up,
)
from swarm.round.root import Root
from tests.unit.message_examples import keypair
from tests.unit.small_swarm import LEASE_SIZE, VERIFIER, log_of, roots_along, state_at, status_at

KEYS = sorted((keypair(number) for number in range(2, 7)), key=lambda key: key.peer_id)
OURS, THEIRS = KEYS[3:], KEYS[:3]  # two stay on our side of a split, three on the other
A, B, C, D, ME = (key.peer_id for key in KEYS)
NEWCOMER = keypair(30).peer_id


@dataclass
class Donor:
    """One peer that answers: its chain from where its log begins, its state, and how many commits fit in a page."""

    chains: Sequence[ChainState] = ()
    commits: Sequence[Commit] = ()
    state: StateRecord | None = None
    page: int = 16
    answers: dict[type, Any] = field(default_factory=dict)  # said whatever is asked

    def answer(self, message: GetLog | GetState) -> object:
        if type(message) in self.answers:
            return self.answers[type(message)]
        if isinstance(message, GetState):
            return self.state or "no state yet"
        heads = [chain.head for chain in self.chains]
        for head in message.heads:
            if head in heads:
                place = heads.index(head)
                return Log(head, tuple(self.commits[place : place + self.page]))
        return "none of these heads is in the log any more"

    def stand(self, me: PeerId) -> object:
        """Its answer to GetStatus."""
        chain = self.chains[-1] if self.chains else self.state and self.state.chain
        return self.answers.get(GetStatus, status_at(me, chain) if chain else "it has just begun")


@dataclass
class Asked:
    """What one run of the machine asked and fetched, and how it ended."""

    outcome: Outcome
    questions: list[Question]

    @property
    def fetched(self) -> list[Digest]:
        return [one.root for question in self.questions if isinstance(question, FetchBlobs) for one in question.wanted]

    @property
    def asked(self) -> list[tuple[str, tuple[PeerId, ...]]]:
        return [(type(one.message).__name__, one.peers) for one in self.questions if isinstance(one, Ask)]


Fetch = Callable[[tuple[Wanted, ...]], str]


def run(request: CatchUpRequest, donors: dict[PeerId, Donor], fetch: Fetch = lambda wanted: "") -> Asked:
    machine = catch_up(request, VERIFIER, LEASE_SIZE)
    questions: list[Question] = []
    answer: Any = None
    while True:
        try:
            question = machine.send(answer)
        except StopIteration as end:
            return Asked(end.value, questions)
        questions.append(question)
        if isinstance(question, Ask):
            answer = {peer: _answer(donors[peer], peer, question) for peer in question.peers if peer in donors}
        else:
            answer = fetch(question.wanted)


def _answer(donor: Donor, me: PeerId, question: Ask) -> object:
    message = question.message
    return donor.stand(me) if isinstance(message, GetStatus) else donor.answer(message)


def donor_of(chains: Sequence[ChainState], commits: Sequence[Commit], kept: int = 16, **changes: Any) -> Donor:
    """A peer at the last of these, whose log holds the last `kept` commits."""
    first = max(0, len(commits) - kept)
    return Donor(chains[first:], commits[first:], state_at(chains[-1], []), **changes)


def newest_first(chains: Sequence[ChainState]) -> tuple[ChainState, ...]:
    return tuple(reversed(chains))[:3]


def request_of(
    peers: tuple[PeerId, ...],
    chains: Sequence[ChainState],
    commits: Sequence[Commit],
    me: PeerId = ME,
    stands: dict[PeerId, ChainState] | None = None,
    **changes: Any,
) -> CatchUpRequest:
    """Of a peer at the last of these heads, with these commits between them, that can go back to the two before. `stands`:
    where it knows others to stand."""
    known = {peer: chain.head for peer, chain in (stands or {}).items()} | {me: chains[-1].head}
    roots = tuple(reversed(roots_along(chains, commits[: len(chains) - 1])))[:3]
    return CatchUpRequest(me, peers, newest_first(chains), roots, known, **changes)


@dataclass
class Split:
    """Five peers, split after two versions: we are on the side of the two, the others are three."""

    ours: list[ChainState]
    theirs: list[ChainState]
    commits: list[Commit]  # of theirs, from the start
    our_commits: list[Commit]

    @classmethod
    def after(cls, our_rounds: int, their_rounds: int) -> Split:
        common, commits = log_of(2, KEYS, [])
        ours, our_commits = log_of(our_rounds, OURS, [], common[-1], salt=b"ours")
        theirs, more = log_of(their_rounds, THEIRS, [], common[-1], salt=b"theirs")
        return cls([*common, *ours[1:]], [*common, *theirs[1:]], [*commits, *more], [*commits, *our_commits])

    def donor(self, **changes: Any) -> Donor:
        return donor_of(self.theirs, self.commits, **changes)

    def our_donor(self, **changes: Any) -> Donor:
        return donor_of(self.ours, self.our_commits, **changes)

    def request(self, **changes: Any) -> CatchUpRequest:
        return request_of((A,), self.ours, self.our_commits, **changes)

    def turned(self) -> Split:
        """Seen by one of the three."""
        return Split(self.theirs, self.ours, self.our_commits, self.commits)

    def their_roots(self) -> tuple[Root, ...]:
        return roots_along(self.theirs, self.commits)
