"""Donors of logs and states in memory, and a run of the catch-up machine that asks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarm.chain import ChainState, apply
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Commit, GetLog, GetState, Log, StateRecord
from swarm.round.catch_up import (
    Ask,
    CatchUpRequest,
    FetchBlobs,
    Outcome,
    Question,
    Wanted,
    catch_up,
)
from tests.unit.message_examples import keypair
from tests.unit.small_swarm import LEASE, LEASE_SIZE, commit_on, log_of, open_sealed, state_at

KEYS = sorted((keypair(number) for number in range(2, 7)), key=lambda key: key.peer_id)
OURS, THEIRS = KEYS[3:], KEYS[:3]  # two stay on our side of a split, three on the other


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
    machine = catch_up(request, open_sealed, LEASE_SIZE)
    questions: list[Question] = []
    answer: Any = None
    while True:
        try:
            question = machine.send(answer)
        except StopIteration as end:
            return Asked(end.value, questions)
        questions.append(question)
        if isinstance(question, Ask):
            answer = {peer: donors[peer].answer(question.message) for peer in question.peers if peer in donors}
        else:
            answer = fetch(question.wanted)


A, B, C = (key.peer_id for key in THEIRS)


def donor_of(chains: Sequence[ChainState], commits: Sequence[Commit], kept: int = 16, **changes: Any) -> Donor:
    """A peer at the last of these, whose log holds the last `kept` commits."""
    first = max(0, len(commits) - kept)
    return Donor(chains[first:], commits[first:], state_at(chains[-1], []), **changes)


def newest_first(chains: Sequence[ChainState]) -> tuple[ChainState, ...]:
    return tuple(reversed(chains))[:3]


@dataclass
class Split:
    """Five peers, split after two versions: our branch is `ours`, the better one `theirs`."""

    ours: list[ChainState]
    theirs: list[ChainState]
    commits: list[Commit]  # of the better one, from its start

    @classmethod
    def after(cls, our_rounds: int, their_rounds: int) -> Split:
        common, commits = log_of(2, KEYS, [])
        ours, _ = log_of(our_rounds, OURS, [], common[-1], salt=b"ours")
        theirs, more = log_of(their_rounds, THEIRS, [], common[-1], salt=b"theirs")
        return cls([*common, *ours[1:]], [*common, *theirs[1:]], [*commits, *more])

    def go_on(self, commit: Commit | None = None) -> None:
        """One more commit on the better branch."""
        commit = commit or commit_on(self.theirs[-1], THEIRS, [], salt=b"on")
        self.commits.append(commit)
        self.theirs.append(apply(self.theirs[-1], commit.commit, LEASE))

    def donor(self, **changes: Any) -> Donor:
        return donor_of(self.theirs, self.commits, **changes)

    def request(self, **changes: Any) -> CatchUpRequest:
        return CatchUpRequest((A,), newest_first(self.ours), **changes)
