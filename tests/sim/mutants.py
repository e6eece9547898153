"""Deliberate bugs of the protocol, each put into the product by itself: the simulator must find every one.

    python -m tests.sim.mutants [--only NAME] [--seeds 2000] [--markdown FILE]

A mutant replaces a function of the product in the processes that play the schedules, and there alone. It is found when any
law breaks; a schedule that breaks without any mutant is no finding and is left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import peer.replica as replica_module
import peer.trainer as trainer_module
import swarm.allreduce.shared as shared_module
import swarm.chain as chain_module
import swarm.round.catch_up as catch_up_module
import swarm.round.choose as choose_module
import swarm.round.leader as leader_module
import swarm.round.presence as presence_module
from peer.replica import Replica
from swarm.allreduce.ledger import Moved, cut, withdraw
from swarm.chain import ChainState
from swarm.round.answers import Answers
from swarm.round.docket import Waiting
from swarm.round.facts import CutDone
from swarm.round.passage import Passage
from swarm.round.presence import Presence
from swarm.round.roll import Roll
from swarm.round.turn import Turn, Views
from tests.sim import mutants_of_proofs as proofs
from tests.sim.disk import Written
from tests.sim.scenario import make, play
from tests.sim.wires import seal

MAX_SEEDS = 2000


@dataclass(frozen=True)
class Mutant:
    """One bug: what it does, and the function that puts it in."""

    name: str
    install: Callable[[], None]


@dataclass(frozen=True)
class Found:
    """A mutant, the schedules it took to find it, and the law that did; no law: it was not found."""

    name: str
    seeds: int
    law: str
    seconds: float


# ---------------------------------------------------------------- moving


def _apply_before_whole() -> None:
    Passage.num_missing = property(lambda self: 0)  # type: ignore[assignment, method-assign]


def _changed_move(change: Callable[[Moved, Any, Any, Any], Moved]) -> None:
    real = replica_module.move_head

    def move_head(ledger: Any, old: Any, new: Any, theta_N: Any, base: Any = None) -> Moved:
        return change(real(ledger, old, new, theta_N, base), ledger, old, new)

    replica_module.move_head = move_head


def _forget_residual_on_undo() -> None:
    def change(moved: Moved, ledger: Any, old: Any, new: Any) -> Moved:
        residual_N = moved.ledger.residual_N
        for seq in moved.undone:
            if seq in ledger.listed:
                residual_N = residual_N - (ledger.listed[seq].before_N - ledger.listed[seq].after_N)
        return replace(moved, ledger=replace(moved.ledger, residual_N=residual_N))

    _changed_move(change)


def _keep_residual_and_delta() -> None:
    def change(moved: Moved, ledger: Any, old: Any, new: Any) -> Moved:
        residual_N = moved.ledger.residual_N
        for seq in moved.listed:
            record = ledger.pending.get(seq) or ledger.withdrawn[seq]
            residual_N = residual_N + record.before_N
        return replace(moved, ledger=replace(moved.ledger, residual_N=residual_N))

    _changed_move(change)


def _lose_work_of_the_left_out() -> None:
    def change(moved: Moved, ledger: Any, old: Any, new: Any) -> Moved:
        if moved.listed or new.chain.version != old.chain.version + 1:
            return moved
        return replace(moved, theta_N=new.anchor_N)

    _changed_move(change)


def _re_encode_pending() -> None:
    real = Replica._move

    def move(self: Replica, *given: Any, **named: Any) -> Moved:
        moved = real(self, *given, **named)
        for seq in list(self._ledger.pending):
            alone = replace(self._ledger, pending={})
            state, made = self.present.state, self.contributions[seq][0]
            anew, blob = cut(self.math, alone, state, moved.theta_N, seq, (made.tokens, made.steps))
            told = replace(made, root=self.store.put(blob), version=state.chain.version)
            self.contributions[seq] = (told, seal(made.author, told))
            self._ledger = replace(self._ledger, pending={**self._ledger.pending, **anew.pending})
        return replace(moved, ledger=self._ledger)

    Replica._move = move  # type: ignore[method-assign]


def _drop_pending_after_one_version() -> None:
    real = Replica._move

    def move(self: Replica, *given: Any, **named: Any) -> Moved:
        moved = real(self, *given, **named)
        for seq in list(self._ledger.pending):
            if self.contributions[seq][0].version < self.present.state.chain.version:
                self._ledger = withdraw(self._ledger, seq)
        return replace(moved, ledger=self._ledger)

    Replica._move = move  # type: ignore[method-assign]


# ---------------------------------------------------------------- arithmetic


def _sum_in_arrival_order() -> None:
    real, chance = shared_module.weighted_mean, random.Random("arrival")

    def weighted_mean(decoded: Any, tokens: Any, dtype: Any) -> Any:
        pairs = list(zip(decoded, tokens, strict=True))
        chance.shuffle(pairs)
        return real([one for one, _ in pairs], [weight for _, weight in pairs], dtype)

    shared_module.weighted_mean = weighted_mean


def _unweighted_mean() -> None:
    real = shared_module.weighted_mean
    shared_module.weighted_mean = lambda decoded, tokens, dtype: real(decoded, [1] * len(tokens), dtype)


def _count_many_rounds_in_full() -> None:
    shared_module.contribution_scale = lambda steps, round_steps: 1.0


# ---------------------------------------------------------------- training


def _train_ahead_without_end() -> None:
    def why_waiting(self: Any) -> str:
        return "" if self._replica.leases.remaining >= self._config.inner.batch_windows else "no lease"

    trainer_module.Trainer._why_waiting = why_waiting  # type: ignore[method-assign]


# ---------------------------------------------------------------- the disk


def _announce_before_write() -> None:
    real = trainer_module.Trainer._cut

    def announces(self: Any) -> None:
        real(self)
        out = self._handoff.out
        place = next(place for place, one in enumerate(out) if isinstance(one, CutDone))
        if place and isinstance(out[place - 1], Written):
            out[place - 1], out[place] = out[place], out[place - 1]

    trainer_module.Trainer._cut = announces  # type: ignore[method-assign]


def _no_write_at_cut() -> None:
    real = trainer_module.Trainer._cut

    def forgets(self: Any) -> None:
        save, self._save = self._save, lambda *given: None
        try:
            real(self)
        finally:
            self._save = save

    trainer_module.Trainer._cut = forgets  # type: ignore[method-assign]


def _forget_pending_at_restart() -> None:
    real = Replica.restore

    def restore(self: Replica, saved: Any) -> Any:
        kept = tuple(cut for cut in saved.cuts if cut.standing != 0)
        return real(self, replace(saved, cuts=kept))

    Replica.restore = restore  # type: ignore[method-assign]


def _reuse_numbers() -> None:
    Replica.skip_numbers = lambda self, generations: None  # type: ignore[method-assign]


# ---------------------------------------------------------------- committing


def _list_twice() -> None:
    ChainState.has_listed = lambda self, author, seq: False  # type: ignore[method-assign]


def _list_what_nobody_holds() -> None:
    Waiting.is_held = lambda self, members: True  # type: ignore[method-assign]


def _uncapped_tokens() -> None:
    real = choose_module._entry
    choose_module._entry = lambda contribution, view: replace(real(contribution, view), tokens=contribution.tokens)


def _no_isolation() -> None:
    real = leader_module.choose_list
    leader_module.choose_list = lambda view, deadlines, *more: real(view, replace(deadlines, isolation_s=0.0), *more)


# ---------------------------------------------------------------- leading and ranking


def _accept_any_view() -> None:
    Views.accepts = lambda self, sender, view, roster: True  # type: ignore[method-assign]


def _never_change_view() -> None:
    Turn.pass_on = lambda self, out: None  # type: ignore[method-assign]


def _take_the_lower_head() -> None:
    ChainState.key = property(lambda self: (-self.tokens, -self.version, self.head.raw))  # type: ignore[assignment, method-assign]
    presence_module.key_of = lambda status: (-status.tokens, -status.version, status.head.raw)


def _ignore_barred() -> None:
    real = chain_module.apply

    def apply(state: ChainState, commit: Any, lease_windows: int) -> ChainState:
        return replace(real(state, commit, lease_windows), barred=state.barred)

    chain_module.apply = catch_up_module.apply = apply


# ---------------------------------------------------------------- dialability, hops, answers, pauses


def _everybody_is_dialable() -> None:
    Roll.attested = property(lambda self: frozenset(self._heard))  # type: ignore[assignment, method-assign]


def _dialable_for_ever() -> None:
    chain_module.DIALABLE_COMMITS = 100  # type: ignore[misc]


def _leaders_in_order_of_ids() -> None:
    ChainState.order = property(lambda self: self.roster)  # type: ignore[assignment, method-assign]


def _silent_leaders_lose_nothing() -> None:
    Presence.given_up = property(lambda self: frozenset())  # type: ignore[assignment, method-assign]


def _no_hop() -> None:
    Presence.forwarders = lambda self, to: ()  # type: ignore[method-assign]


def _hearing_is_an_answer() -> None:
    Answers.has = lambda self, member, now_s: True  # type: ignore[method-assign]


def _old_words_are_new() -> None:
    real = Roll.hear

    def hear(self: Roll, status: Any, sealed: bytes, now_s: float, age_s: float | None = None) -> bool:
        return real(self, status, sealed, now_s, None if age_s is None else 0.0)

    Roll.hear = hear  # type: ignore[method-assign]


def _a_pause_is_silence() -> None:
    Turn.resume = lambda self, gap_s: None  # type: ignore[method-assign]


def _an_author_says_since_when() -> None:
    ChainState.entered_at = lambda self, peer: 0  # type: ignore[method-assign]


def _never_catch_up() -> None:
    Passage.look_ahead = lambda self, now_s: None  # type: ignore[method-assign]


MUTANTS = (
    Mutant("a commit is applied before all its blobs are here", _apply_before_whole),
    Mutant("an undo forgets the residual", _forget_residual_on_undo),
    Mutant("the residual is kept as well as the difference", _keep_residual_and_delta),
    Mutant("who was left out loses its progress", _lose_work_of_the_left_out),
    Mutant("a pending contribution is encoded again", _re_encode_pending),
    Mutant("a pending contribution is dropped after one version", _drop_pending_after_one_version),
    Mutant("contributions are summed in the order they came", _sum_in_arrival_order),
    Mutant("the mean forgets the tokens", _unweighted_mean),
    Mutant("a contribution of many rounds counts in full", _count_many_rounds_in_full),
    Mutant("a peer trains on beside what waits for a commit", _train_ahead_without_end),
    Mutant("a cut is announced before it is on disk", _announce_before_write),
    Mutant("a cut is not written at all", _no_write_at_cut),
    Mutant("a restart forgets what was pending", _forget_pending_at_restart),
    Mutant("a restart from the older generation uses numbers again", _reuse_numbers),
    Mutant("what is listed is not remembered", _list_twice),
    Mutant("what nobody holds is listed", _list_what_nobody_holds),
    Mutant("tokens are not capped by the leases", _uncapped_tokens),
    Mutant("a minority commits at once", _no_isolation),
    Mutant("any view is accepted from anyone", _accept_any_view),
    Mutant("a view never changes", _never_change_view),
    Mutant("the lower head wins", _take_the_lower_head),
    Mutant("barred heads are ignored", _ignore_barred),
    Mutant("a better head is not looked for", _never_catch_up),
    Mutant("everybody counts as dialable", _everybody_is_dialable),
    Mutant("who was dialable once is so for ever", _dialable_for_ever),
    Mutant("leaders take turns in the order of ids alone", _leaders_in_order_of_ids),
    Mutant("a leader that was silent in its turn loses nothing", _silent_leaders_lose_nothing),
    Mutant("nothing is passed on by one hop", _no_hop),
    Mutant("who is heard of counts as answering", _hearing_is_an_answer),
    Mutant("what others heard some time ago counts as new", _old_words_are_new),
    Mutant("a pause counts as silence of the others", _a_pause_is_silence),
    Mutant("an author's word alone says since when it worked", _an_author_says_since_when),
    Mutant("heads are proved by their own voters", proofs.heads_prove_themselves),
    Mutant("of two branches the larger head wins", proofs.the_larger_head_wins),
    Mutant("what lies behind a root in a log is taken too", proofs.what_lies_behind_a_root_is_taken_too),
    Mutant("everybody vouches for a state", proofs.everybody_vouches_for_a_state),
    Mutant("a newcomer takes the largest state", proofs.a_newcomer_takes_the_largest_state),
    Mutant("anybody contributes, and crowds are admitted", proofs.anybody_contributes),
    Mutant("voters of whom nothing is known are not asked", proofs.nobody_is_asked),
    Mutant("votes are not looked at", proofs.votes_do_not_count),
)


# ---------------------------------------------------------------- the hunt


def _hunt(mutant: Mutant, seeds: list[int], take: Any, found: Any) -> None:
    """In a process of its own: plays schedules with the mutant in, until one breaks."""
    torch.set_num_threads(1)
    mutant.install()
    while not found.value:
        with take.get_lock():
            place = take.value
            take.value += 1
        if place >= len(seeds):
            return
        law = play(make(seeds[place])).law
        with found.get_lock():
            if law and not found.value:
                found.value = f"{place}\t{law}".encode()


def _broken_by(mutant: Mutant, seeds: list[int], jobs: int) -> tuple[int, str] | None:
    """The place of a schedule that breaks, and the law."""
    context = multiprocessing.get_context("fork")
    found, take = context.Array("c", 512), context.Value("i", 0)
    workers = [context.Process(target=_hunt, args=(mutant, seeds, take, found)) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if not found.value:
        return None
    place, law = found.value.decode().split("\t")
    return int(place), law


def hunt(mutant: Mutant, first: int, count: int, jobs: int) -> Found:
    """Plays schedules with the mutant until a law breaks that holds without it."""
    began_s, played, seeds = time.monotonic(), 0, list(range(first, first + count))
    while (broken := _broken_by(mutant, seeds, jobs)) is not None:
        place, law = broken
        played += place + 1
        if not play(make(seeds[place])).law:
            return Found(mutant.name, played, law, time.monotonic() - began_s)
        seeds = seeds[place + 1 :]
    return Found(mutant.name, count, "", time.monotonic() - began_s)


def markdown(all_found: list[Found]) -> str:
    lines = ["| bug put in | schedules until it was found | law that found it |", "| --- | --- | --- |"]
    lines += [f"| {one.name} | {one.seeds if one.law else '-'} | {one.law or 'not found'} |" for one in all_found]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants")
    parser.add_argument("--seeds", type=int, default=MAX_SEEDS, help="schedules to try at most, each")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--only", help="mutants whose name has this in it")
    parser.add_argument("--markdown", type=Path, help="write the table here too")
    options = parser.parse_args()
    all_found = []
    for mutant in MUTANTS:
        if options.only and options.only not in mutant.name:
            continue
        one = hunt(mutant, options.first, options.seeds, options.jobs)
        all_found.append(one)
        told = f"{one.seeds} schedules [{one.law}]" if one.law else f"NOT FOUND in {one.seeds} schedules"
        print(f"{one.name:<60} {told} {one.seconds:.0f} s", flush=True)
    missed = [one for one in all_found if not one.law]
    if options.markdown is not None:
        options.markdown.write_text(markdown(all_found))
    print(f"{len(all_found)} mutants, {len(all_found) - len(missed)} found")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
