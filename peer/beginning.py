"""How a peer comes to its state: from disk, from what a damaged disk still holds, from the swarm, or from the seed.

In this order, each only when the one before gave nothing:

1. the newest generation that is whole, private part included (else the one before it, which costs one save);
2. of the newest whose present version is whole, that version: what was ours alone is given up, and that is declared;
3. the swarm's state, as a newcomer with the same key: what is damaged is moved aside, and no number is used again;
4. version 0, for who never had a state.

A peer that lost its state never goes on from version 0: alone it would offer the run a second beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from peer.home import Home
from peer.learning_rate import learning_rate, swarm_tokens_now
from peer.model import genesis_digest, initial_parameters
from peer.replica import Replica
from peer.saved import Generations, NothingWhole, SavedState, last_generation
from peer.screen import Screen
from swarm.allreduce.shared import genesis_state
from swarm.config import RunConfig
from swarm.errors import NetworkError, StateError
from swarm.events import WorkDropped
from swarm.messages import StateRecord

_ASKED: Final = 4  # times that the swarm is asked for its state before a damaged peer gives up
_ASK_AGAIN_S: Final = 2.0  # peers that lost their power together are not back at once

FetchState = Callable[[], StateRecord]
"""The swarm's state, its blobs in the store; raises NetworkError when nobody has one."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What training goes on from; `losses` are declared."""

    theta_N: Tensor
    optimizer: bytes | None
    losses: tuple[WorkDropped, ...] = ()
    how: str = ""  # for people; empty for who had no past


def begin(replica: Replica, home: Home, config: RunConfig, fetch: FetchState, screen: Screen) -> Begun:
    """Puts the replica at a state that is on disk. Raises StateError when ours is lost and nobody can give one."""
    try:
        begun = _whole(replica, screen) or _anew(replica, home, config, fetch, screen)
    except NothingWhole as fault:
        begun = _salvaged(replica, screen) or _joined_again(replica, home, fetch, screen, fault)
    replica.incarnation = home.next_incarnation(replica.incarnation)
    if begun.how:
        chain = replica.present.state.chain
        rate = learning_rate(config.inner, swarm_tokens_now(chain.tokens, replica.work.tokens, chain.entries))
        where = f"version {chain.version}, {chain.tokens:,} tokens, text from slot {chain.cursor:,}"
        screen.fact(begun.how, f"{where}, learning rate {rate:.6g}, head {chain.head}")
    return begun


# ---------------------------------------------------------------- from disk


def _whole(replica: Replica, screen: Screen) -> Begun | None:
    def restore(saved: SavedState) -> Begun:
        theta_N = replica.restore(saved)
        return Begun(theta_N, None if saved.optimizer is None else replica.store.read(saved.optimizer, check=True))

    return _newest(replica, restore, screen)


def _salvaged(replica: Replica, screen: Screen) -> Begun | None:
    """None when the shared state is damaged too."""

    def salvage(saved: SavedState) -> Begun:
        theta_N, fault = replica.salvage(saved)
        optimizer = None
        if saved.optimizer is not None:
            try:
                optimizer = replica.store.read(saved.optimizer, check=True)
            except StateError:
                screen.say("the optimizer's state is damaged: it begins anew", style="yellow")
        if not fault:
            return Begun(theta_N, optimizer)
        lost = WorkDropped(replica.author, saved.unlisted_tokens, "the disk damaged what was this peer's alone")
        screen.say(
            f"generation {saved.generation}: the shared state is whole, what was this peer's alone is not ({fault}): "
            f"its residual and {lost.tokens:,} tokens of work that no commit had listed are given up",
            style="yellow",
        )
        return Begun(theta_N, optimizer, (lost,))

    try:
        return _newest(replica, salvage, screen)
    except NothingWhole:
        return None


def _newest(replica: Replica, take_up: Callable[[SavedState], Begun], screen: Screen) -> Begun | None:
    passed_over: list[str] = []
    begun = replica.generations.load(take_up, passed_over.append)
    for line in passed_over:
        screen.say(line, style="yellow")
    if begun is None:
        return None
    replica.skip_numbers(len(passed_over))
    return replace(begun, how="resumes")


# ---------------------------------------------------------------- without a state of ours


def _anew(replica: Replica, home: Home, config: RunConfig, fetch: FetchState, screen: Screen) -> Begun:
    """For who has no generation: from version 0, or, where a damaged state was moved aside just before, from the swarm."""
    if home.set_aside:
        return _joined_again(replica, home, fetch, screen, StateError(f"{home.set_aside[-1]} holds a damaged state"))
    parameters_N = initial_parameters(config.model, config.seed, replica.math.layout)
    if genesis_digest(parameters_N).hex() == config.genesis_digest:
        replica.begin(genesis_state(replica.math, replica.run, parameters_N))
    else:
        screen.say("this machine's random numbers give another version 0; fetching the swarm's state")
        replica.begin_from(fetch())
    return _saved(replica)


def _joined_again(replica: Replica, home: Home, fetch: FetchState, screen: Screen, fault: StateError) -> Begun:
    """As a newcomer with the same key. The swarm is asked first: while nobody answers, everything stays where it is."""
    screen.say(f"{fault}; asking the swarm for its state", style="yellow")
    record = _asked(fetch, fault)
    if not _are_whole(replica, record):
        record = _asked(fetch, fault)
    replica.begin_from(record)
    tokens = 0
    if replica.generations.exist():
        with suppress(StateError):
            tokens = next((saved.unlisted_tokens for saved in replica.generations.kept()), 0)
        home.set_state_aside()
    aside = home.set_aside[-1]
    replica.store.set_aside(aside / home.blobs.name)
    screen.say(f"what is damaged is kept in {aside}; remove it when nobody needs it any more", style="yellow")
    last = max(last_generation(folder / home.state.name) for folder in home.set_aside)
    replica.start_over(Generations(home.state), last)
    lost = WorkDropped(replica.author, tokens, "the disk damaged this peer's state")
    return replace(_saved(replica), losses=(lost,), how="joins again")


def _are_whole(replica: Replica, record: StateRecord) -> bool:
    """Whether the fetched blobs are the right ones. One that was on the damaged disk under the same name was not fetched; it
    is removed here, so that the next fetch brings it."""
    whole = True
    for unit in record.units:
        try:
            replica.store.read(unit.root, check=True)
        except StateError:
            whole = False
    return whole


def _asked(fetch: FetchState, fault: StateError) -> StateRecord:
    for left in reversed(range(_ASKED)):
        try:
            return fetch()
        except NetworkError as error:
            if not left:
                raise StateError(
                    f"{fault}; and nobody gives this peer the run's state ({error}): start it again while others run, or "
                    "name one who does with --join"
                ) from None
        time.sleep(_ASK_AGAIN_S)
    raise AssertionError


def _saved(replica: Replica) -> Begun:
    theta_N = replica.present.state.anchor_N
    replica.save(theta_N, None)
    return Begun(theta_N, None)
