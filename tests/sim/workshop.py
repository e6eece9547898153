"""The product's own trainer and replica, with a model of 8 numbers in 2 units: every sum is a real one, in fp64.

Only what a GPU, a text and a thread would do is replaced: an inner step adds a known vector, and the handoff between the
threads is a list that the life plays out in its order. Pure functions of bytes are remembered between peers.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import peer.replica as replica_module
import peer.trainer as trainer_module
import swarm.allreduce.shared as shared_module
from peer.handoff import AdoptState, ApplyCommits, Order, Report
from peer.replica import Replica
from peer.saved import SavedState
from peer.step import StepResult
from peer.trainer import Trainer
from swarm.allreduce.codec import Codec, make_codec, read_contribution
from swarm.allreduce.layout import build_layout
from swarm.allreduce.shared import RunMath, SharedState, check_contribution, genesis_state
from swarm.chain import Entry
from swarm.config import RunConfig
from swarm.digest import Digest
from swarm.errors import RemoteError
from swarm.messages import Contribution
from tests.sim.books import Account, Before, Books, Vector
from tests.sim.disk import Disk, DiskBlobs, DiskGenerations, Written
from tests.sim.wires import RUN, seal, unseal

if TYPE_CHECKING:
    from tests.sim.life import Life

LAYOUT = build_layout([[("first", (4,))], [("second", (4,))]])
NUM_UPDATES = 1021
_CHANCE = random.Random("inner updates")
UPDATES = [np.array([_CHANCE.gauss(0.0, 0.1) for _ in range(LAYOUT.numel)]) for _ in range(NUM_UPDATES)]
_TENSORS = {dtype: [torch.from_numpy(one).to(dtype) for one in UPDATES] for dtype in (torch.float32, torch.float64)}
_read_contribution = lru_cache(maxsize=1 << 12)(read_contribution)


class RememberingCodec:
    """A codec that decodes the same bytes once."""

    def __init__(self, codec: Codec) -> None:
        self.name = codec.name
        self.encode = codec.encode
        self.decode = lru_cache(maxsize=1 << 12)(codec.decode)


@lru_cache(maxsize=64)
def _codec(name: str, block_size: int) -> RememberingCodec:
    return RememberingCodec(make_codec(RunConfig().codec.model_copy(update={"name": name, "block_size": block_size})))


def precision_of(config: RunConfig) -> str:
    """The numbers that a run computes in: its name tells. fp64 shows what is lost, fp32 who sums in another order."""
    return config.name.rsplit(" ", 1)[-1]


def math_of(config: RunConfig) -> RunMath:
    dtype = {"fp64": torch.float64, "fp32": torch.float32}[precision_of(config)]
    return RunMath.of(config, LAYOUT, _codec(config.codec.name, config.codec.block_size), dtype)


def genesis_of(math: RunMath) -> SharedState:
    return genesis_state(math, RUN, torch.linspace(-1.0, 1.0, LAYOUT.numel, dtype=torch.float64))


def entry_of(one: Contribution) -> Entry:
    return Entry(one.author, one.seq, one.incarnation, one.root, one.first_unit, one.end_unit, one.tokens, one.steps)


@contextmanager
def borrowed(now_s: float) -> Iterator[None]:
    """While the product's trainer works: its clock is the world's, signatures are stubs, and bytes are parsed once."""
    clock, trainer_module.time = trainer_module.time, _Clock(now_s)  # type: ignore[assignment]
    reader, shared_module.read_contribution = shared_module.read_contribution, _read_contribution
    opener, replica_module.open_as = replica_module.open_as, _open_as
    try:
        yield
    finally:
        trainer_module.time, shared_module.read_contribution = clock, reader  # type: ignore[assignment]
        replica_module.open_as = opener


def _open_as(kind: type[Any], raw: bytes, *, run: Digest | None) -> Any:
    message = unseal(raw)[1]
    assert isinstance(message, kind) and run == RUN
    return message


class _Clock:
    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def monotonic(self) -> float:
        return self._now_s


class _Model:
    def __init__(self, dtype: torch.dtype) -> None:
        self.parts = [(unit.tensors[0].name, torch.zeros(unit.numel, dtype=dtype)) for unit in LAYOUT.units]

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return self.parts


class _Optimizer:
    def state_tensors(self) -> dict[str, Tensor]:
        return {}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        raise AssertionError("nothing was saved")


class _Inner:
    """An inner step adds one of a thousand vectors; which one follows from the peer and its steps so far."""

    def __init__(self, life: Life, tokens_per_window: int, dtype: torch.dtype) -> None:
        self.model = _Model(dtype)
        self._tensors = _TENSORS[dtype]
        self.optimizer = _Optimizer()
        self._life = life
        self._tokens = tokens_per_window
        self._turn = life.peer.number * 101 + life.number * 17
        self._stride = 1 + 7 * life.peer.number + 3 * life.number  # no two lives repeat each other's steps

    def step(self, windows: Sequence[int], learning_rate: float) -> StepResult:
        self._life.world.laws.check_inner(self._life, windows)
        self._turn += self._stride
        place = self._turn % NUM_UPDATES
        first_U, second_U = (tensor_U for _, tensor_U in self.model.parts)
        first_U += self._tensors[place][:4]
        second_U += self._tensors[place][4:]
        tokens = self._tokens * len(windows)
        self._life.account = self._life.account.stepped(UPDATES[place], tokens)
        return StepResult(loss=1.0, num_tokens=tokens, grad_norm=1.0, applied=True, seconds=0.0)

    def evaluate(self, windows: object) -> float:
        return 1.0

    def theta_N(self) -> Vector:
        return np.concatenate([tensor_U.numpy() for _, tensor_U in self.model.parts]).astype(np.float64)


class _Windows:
    def train(self, slots: Sequence[int]) -> Sequence[int]:
        return slots

    def heldout(self, indices: object) -> tuple[()]:
        return ()


class _Checkpoints:
    def is_due(self, version: int) -> bool:
        return False


class _Handoff:
    """Orders in, and what comes out of a turn, in its order: writes and reports."""

    def __init__(self) -> None:
        self.orders: deque[Order] = deque()
        self.out: deque[Report | Written] = deque()

    def next_order(self, wait_s: float) -> Order | None:
        return self.orders.popleft() if self.orders else None

    def report(self, report: Report) -> None:
        self.out.append(report)


class Workshop:
    """One life's trainer at work."""

    def __init__(self, life: Life, config: RunConfig, math: RunMath, books: Books) -> None:
        self._life = life
        self._books = books
        self.handoff = _Handoff()
        disk = life.peer.disk
        self.store = DiskBlobs(disk)
        generations = DiskGenerations(disk, self._write)
        self.replica = Replica(math, life.peer.id, RUN, self.store, generations)  # type: ignore[arg-type]
        self.inner = _Inner(life, config.data.sequence_length, math.dtype)
        self._config, self._math = config, math
        self.trainer: Trainer

    def begin(self, disk: Disk, genesis: SharedState, passed_over: int, incarnation: int) -> None:
        """From a generation on disk, or from version 0; as `peer.start` does it."""
        replica, life = self.replica, self._life
        if disk.generations:
            written = disk.generations[passed_over]
            with borrowed(0.0):
                theta_N = replica.restore(written.saved)
            replica.skip_numbers(passed_over)
            life.account = written.account
        else:
            life.account = Account.empty(LAYOUT.numel)
            replica.begin(genesis)
            theta_N = genesis.anchor_N
            replica.save(theta_N, None)
        replica.incarnation = max(replica.incarnation + 1, incarnation)
        self.trainer = Trainer(
            self._config,
            replica,
            self.inner,  # type: ignore[arg-type]
            _Windows(),  # type: ignore[arg-type]
            self.handoff,  # type: ignore[arg-type]
            self._sign,
            _Checkpoints(),  # type: ignore[arg-type]
        )
        self.trainer.load(theta_N, None)
        self.trainer.begin()
        self._books.check(life, None)

    def turn(self, now_s: float) -> None:
        """One pass of the training loop, and its laws. Raises StateError where the product's process would end."""
        replica, orders = self.replica, self.handoff.orders
        order = orders[0] if orders else None
        moves = isinstance(order, ApplyCommits | AdoptState)
        gives_up = isinstance(order, AdoptState) and not order.keep_progress
        before = Before(replica.present.state.chain, replica._ledger, gives_up)
        with borrowed(now_s):
            self.trainer.turn(0.0)
        if moves:
            self._life.world.laws.check_state(self._life)
        if moves or replica._ledger is not before.ledger:
            self._books.check(self._life, before)
            account, out = self._life.account, self.handoff.out
            self.handoff.out = deque(replace(one, account=account) if type(one) is Written else one for one in out)

    def may_step(self, now_s: float) -> bool:
        with borrowed(now_s):
            return self.trainer._may_step()

    def waits_for(self, now_s: float) -> str:
        with borrowed(now_s):
            return self.trainer.waits_for

    def checks(self, contribution: Contribution, blob: bytes) -> bool:
        """Whether a blob decodes, as the product checks what it fetched; asked once of each in a world."""
        checked = self._books.checked
        if contribution.root not in checked:
            checked[contribution.root] = self._decodes(contribution, blob)
        return checked[contribution.root]

    def _decodes(self, one: Contribution, blob: bytes) -> bool:
        try:
            check_contribution(self._math, entry_of(one), blob)
        except RemoteError:
            return False
        return True

    def _sign(self, made: Contribution) -> bytes:
        self._books.note_cut(self.replica, made)
        self._life.account = replace(self._life.account, seqs=self._life.account.seqs | {made.seq})
        return seal(made.author, made)

    def _write(self, saved: SavedState) -> None:
        self.handoff.out.append(Written(saved, self._life.account))
