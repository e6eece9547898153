"""The books: every inner update and every token of every peer, kept beside the product and compared with it.

For each peer, at its head h, with e its residual, theta its parameters, A_h the anchor and beta the decay of the residual:

    -(sum of inner updates) = sum of own d that h lists + e + (A_h - theta) + (1 - beta) * sum of their e0   + given up
    tokens done             = tokens of own numbers that h lists + pending + since the last cut              + columns

`given up` and the columns change by declared losses alone, and each must have its reason: a record that is gone, a state that
was wrong. A generation on disk carries the account it was written with: what a crash takes back is taken back here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peer.replica import Replica
from swarm.allreduce.codec import read_contribution
from swarm.allreduce.ledger import UNDO_DEPTH, Ledger
from swarm.chain import ChainState
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Contribution

if TYPE_CHECKING:
    from tests.sim.life import Life

Vector = np.ndarray[Any, np.dtype[np.float64]]
TOLERANCES = {"fp64": 1e-11, "fp32": 1e-5}  # of the magnitudes summed up so far; each HEAD rounds twice

LEFT_FORK = "listed on a branch that was left, its record gone"
RECOVERED = "listed after all, its record gone"
TWICE = "withdrawn, and listed after all"
WRONG_STATE = "given up with a wrong state"


class LawBroken(AssertionError):
    """What was promised does not hold; `law` is its short name."""

    def __init__(self, law: str, text: str) -> None:
        super().__init__(f"[{law}] {text}")
        self.law = law


@dataclass(frozen=True)
class Account:
    """What one peer has done, as far as its memory or its disk knows."""

    updates_N: Vector  # sum of its inner updates
    given_up_N: Vector
    magnitude: float = 1.0  # sum of the absolute values of all that went in
    done: int = 0  # tokens
    columns: tuple[tuple[str, int], ...] = ()
    seqs: frozenset[int] = frozenset()  # numbers it cut
    gone: frozenset[int] = frozenset()  # those it left on a branch, their records gone

    @classmethod
    def empty(cls, size: int) -> Account:
        return cls(np.zeros(size), np.zeros(size))

    def stepped(self, update_N: Vector, tokens: int) -> Account:
        return replace(
            self,
            updates_N=self.updates_N + update_N,
            magnitude=self.magnitude + float(np.abs(update_N).max()),
            done=self.done + tokens,
        )

    def booked(self, changes: dict[str, int]) -> Account:
        columns = dict(self.columns)
        for name, amount in changes.items():
            columns[name] = columns.get(name, 0) + amount
        return replace(self, columns=tuple(sorted((name, amount) for name, amount in columns.items() if amount)))


@dataclass(frozen=True)
class CutFacts:
    """One contribution as it was cut."""

    contribution: Contribution
    decoded_N: Vector  # d: what its blob says
    before_N: Vector  # e0


@dataclass(frozen=True)
class Before:
    """A peer before a turn of its trainer."""

    chain: ChainState
    ledger: Ledger
    gives_up: bool  # its state was found to be wrong


@dataclass
class Books:
    """All contributions ever cut in one world."""

    beta: float
    tolerance: float
    cuts: dict[PeerId, dict[int, CutFacts]] = field(default_factory=dict)
    told: set[Digest] = field(default_factory=set)  # contributions that left their author's trainer
    checked: dict[Digest, bool] = field(default_factory=dict)  # blobs that somebody decoded, and whether they did
    columns: Counter[str] = field(default_factory=Counter)  # of all peers, for the report

    def note_cut(self, replica: Replica, made: Contribution) -> None:
        """A contribution as its author signs it. The number of one that died before it was told may be used again."""
        own = self.cuts.setdefault(made.author, {})
        if made.seq in own and own[made.seq].contribution.root in self.told:
            raise LawBroken("a number means one blob", f"number {made.seq} of {made.author} is cut again")
        before_N = _vector(replica._ledger.pending[made.seq].before_N)
        own[made.seq] = CutFacts(made, _decoded(replica, made.root), before_N)

    def made(self, author: PeerId, seq: int) -> Contribution | None:
        """What was cut under a number. A peer that went back to an older disk may do the same work again: the very same
        blob has two numbers then."""
        own = self.cuts.get(author, {})
        return own[seq].contribution if seq in own else None

    def tell(self, said: Contribution) -> None:
        """A contribution is announced: one number of an author means one blob, for ever."""
        if self.made(said.author, said.seq) != said:
            raise LawBroken("a number means one blob", f"number {said.seq} of {said.author} is announced otherwise")
        self.told.add(said.root)

    def check(self, life: Life, before: Before | None) -> None:
        """Both identities at a peer, after its trainer did something; `before=None`: it did a step or a cut."""
        account = life.account
        if before is not None and (before.gives_up or before.chain is not life.replica.present.state.chain):
            account = self._declare(life, before)
        gap_N, left = self._gaps(life, account)
        worst = float(np.abs(gap_N - account.given_up_N).max())
        if worst > self.tolerance * account.magnitude:
            raise LawBroken("conservation", f"{life.peer.name} is off by {worst:.3g} of {account.magnitude:.3g}")
        if left != sum(amount for _, amount in account.columns):
            raise LawBroken("tokens", f"{life.peer.name} misses {left} tokens, declared {account.columns}")
        life.account = account

    def _gaps(self, life: Life, account: Account) -> tuple[Vector, int]:
        """What is missing from both sides of the equations."""
        replica, own = life.replica, self.cuts.get(life.peer.id, {})
        state, ledger = replica.present.state, replica._ledger
        listed = life.world.laws.known[state.chain.head].listed
        present_N = _vector(ledger.residual_N) + _vector(state.anchor_N) - life.theta_N()
        tokens = replica.work.tokens + sum(record.tokens for record in ledger.pending.values())
        for seq, cut in own.items():
            if (life.peer.id, seq) in listed:
                present_N = present_N + cut.decoded_N + (1.0 - self.beta) * cut.before_N
                tokens += cut.contribution.tokens
        return -account.updates_N - present_N, account.done - tokens

    def _declare(self, life: Life, before: Before) -> Account:
        """The account after a move: losses that have a reason are written down."""
        old, new, author = before.chain, life.replica.present.state.chain, life.peer.id
        own, account = self.cuts.get(author, {}), life.account
        known = life.world.laws.known
        was = {seq for who, seq in known[old.head].listed if who == author}
        will = {seq for who, seq in known[new.head].listed if who == author}
        newly, undone = sorted(will - was), sorted(was - will)
        waited = {**before.ledger.pending, **before.ledger.withdrawn}
        unknown = [seq for seq in newly if seq not in waited]
        lost = [seq for seq in undone if seq not in before.ledger.listed]
        twice = [seq for seq in newly if seq in before.ledger.withdrawn]
        for seq in (*unknown, *lost):
            if seq in account.seqs - account.gone and own[seq].contribution.version >= old.version - UNDO_DEPTH:
                raise LawBroken("records are kept", f"{life.peer.name} has no record of its number {seq}")
        changes = {
            RECOVERED: -sum(own[seq].contribution.tokens for seq in unknown),
            LEFT_FORK: sum(own[seq].contribution.tokens for seq in lost),
        }
        gone = account.seqs if before.gives_up else set(lost)
        account = replace(account.booked(changes), gone=account.gone | gone)
        if before.gives_up or twice:
            _, left = self._gaps(life, account)
            missing = left - sum(amount for _, amount in account.columns)
            # What was withdrawn went into the next cut; it leaves that again, unless it was made already.
            if before.gives_up or -sum(own[seq].contribution.tokens for seq in twice) <= missing <= 0:
                changes[WRONG_STATE if before.gives_up else TWICE] = missing
                account = account.booked({WRONG_STATE if before.gives_up else TWICE: missing})
        self.columns.update({name: abs(amount) for name, amount in changes.items() if amount})
        if unknown or lost or before.gives_up:
            gap_N, _ = self._gaps(life, account)
            account = replace(account, given_up_N=gap_N, magnitude=account.magnitude + float(np.abs(gap_N).max()))
        return account


def _decoded(replica: Replica, root: Digest) -> Vector:
    """What the codec makes of a blob, whatever its author's ledger says of it."""
    math, blob = replica.math, replica.store.read(root, check=True)
    places = read_contribution(blob, math.codec, 0, len(math.layout.units))
    parts = [
        math.codec.decode(blob[one.offset : one.offset + one.num_bytes], unit.numel)
        for unit, one in zip(math.layout.units, places, strict=True)
    ]
    return np.concatenate([_vector(one) for one in parts])


def _vector(tensor_N: Any) -> Vector:
    return np.asarray(tensor_N.numpy(), dtype=np.float64)
