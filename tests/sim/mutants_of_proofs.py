"""Deliberate bugs of what moves a peer: each lets a forger, or a branch without a majority, win."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import swarm.chain as chain_module
import swarm.round.catch_up as catch_up_module
import swarm.round.passage as passage_module
from swarm.chain import ChainState, is_majority
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.round.fork import Decision, Ours, Sides, Theirs, Verdict
from swarm.round.joining import Found, Reports
from swarm.round.root import Root, root_at


def heads_prove_themselves() -> None:
    """A majority of a head's own voters is enough."""

    def root_after(root: Root, parent: ChainState, voted: frozenset[PeerId], child: ChainState) -> Root:
        if not root.voters:
            return root_at(child)
        return root_at(parent) if is_majority(len(voted), len(parent.voters)) else root

    catch_up_module.root_after = passage_module.root_after = root_after


def the_larger_head_wins() -> None:
    """Whoever says that it has more tokens."""

    def follow(ours: Ours, theirs: Theirs, stands: Mapping[PeerId, Digest], silent: Collection[PeerId]) -> Decision:
        verdict = Verdict.MOVE if theirs.tip.key > ours.tip.key else Verdict.STAY
        return Decision(verdict, len(theirs.chains), "larger")

    catch_up_module.follow = follow


def what_lies_behind_a_root_is_taken_too() -> None:
    """A log whose beginning is proved is followed to its end."""
    real = catch_up_module.follow

    def follow(ours: Ours, theirs: Theirs, stands: Mapping[PeerId, Digest], silent: Collection[PeerId]) -> Decision:
        decision = real(ours, theirs, stands, silent)
        return Decision(Verdict.MOVE, len(theirs.chains), "") if decision.sure else decision

    catch_up_module.follow = follow


def everybody_vouches_for_a_state() -> None:
    """The state that most report, whoever they are."""

    def of_voters(me: PeerId, own: ChainState, root: Root, stands: Mapping[PeerId, Digest], reports: Reports) -> Found:
        elsewhere = reports.without((own.head, *own.recent, *own.barred))
        best = elsewhere.best_first()
        return elsewhere.found(best[:1]) if best else Found(reason="nobody has another state")

    catch_up_module.of_voters = of_voters


def a_newcomer_takes_the_largest_state() -> None:
    """However few report it."""

    def of_strangers(own: ChainState | None, reports: Reports, introducers: Any = frozenset()) -> Found:
        begun = reports.begun()
        best = max(begun.best_first(), key=lambda one: begun.record(one).chain.key, default=None)
        return Found(reason="nobody has a state") if best is None else begun.found([best])

    catch_up_module.of_strangers = of_strangers


def anybody_contributes() -> None:
    """Work of peers that never were members is listed, and whole crowds are admitted."""
    chain_module._check_members = lambda state, commit, authors: None
    ChainState.may_author = lambda self, peer: True  # type: ignore[method-assign]
    chain_module.max_admitted = lambda num_voters: 1 << 20


def nobody_is_asked() -> None:
    """Voters of whom nothing is known count as silent."""
    import swarm.round.fork as fork_module

    real = fork_module.count
    fork_module.count = lambda sides, *, is_larger: real(replace(sides, unknown=frozenset()), is_larger=is_larger)
    assert Sides is fork_module.Sides


def votes_do_not_count() -> None:
    """A commit that says that a majority is behind its parent is believed."""
    import swarm.round.commits as commits_module

    commits_module._check_votes = lambda chain, commit, is_vote: None
