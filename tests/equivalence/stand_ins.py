"""A tiny run, and the few parts that stand in for a peer's own: text, disk, and what watches them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peer.blob_store import BlobStore
from peer.checkpoints import Checkpoints
from peer.model import layout_of
from peer.saved import Generations, SavedState
from peer.step import InnerTrainer, StepResult
from swarm.allreduce.layout import flatten
from swarm.config import DataConfig, InnerConfig, ModelConfig, RoundConfig, RunConfig
from swarm.digest import Digest
from swarm.lease import window_of_slot


def tiny_config(family: Any = "gpt_neox", **sections: Any) -> RunConfig:
    """A run of about 20 thousand parameters; rounds are cut by step counts, and deadlines are far away."""
    model = ModelConfig(
        family=family,
        vocab_size=64,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        max_positions=32,
        rotary_fraction=0.25,
    )
    data = DataConfig(sequence_length=16, num_windows=4096, num_heldout_windows=8, eval_windows=4, seed=3)
    return RunConfig(**{"model": model, "data": data, "round": tiny_round(local_steps=2), "seed": 11, **sections})


def tiny_round(**changes: Any) -> RoundConfig:
    times = {"train_deadline_s": 3600.0, "exchange_deadline_s": 3600.0, "heartbeat_s": 1.0, "leader_timeout_s": 10.0}
    return RoundConfig(**{**times, **changes})


class Killed(BaseException):
    """The process of a member died here. Not an `Exception`: nothing in the product may catch it."""


class TinyText:
    """Windows of random tokens; notes every slot that was taken, with the version it was taken at."""

    def __init__(self, data: DataConfig, vocab_size: int, version: Callable[[], int]) -> None:
        self._data = data
        self._version = version
        self._train, self._heldout = tiny_windows(data, vocab_size)
        self.taken: list[tuple[int, tuple[int, ...]]] = []

    def train(self, slots: Sequence[int]) -> np.ndarray:
        self.taken.append((self._version(), tuple(slots)))
        return self._train[[window_of_slot(slot, self._data.num_windows, self._data.seed) for slot in slots]]

    def heldout(self, indices: Sequence[int]) -> np.ndarray:
        return self._heldout[list(indices)]


def tiny_windows(data: DataConfig, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(num_windows, L + 1) training and (num_heldout_windows, L + 1) held-out tokens, the same for everyone."""
    chance = np.random.Generator(np.random.Philox(key=data.seed))
    length = data.sequence_length + 1
    train = chance.integers(0, vocab_size, (data.num_windows, length))
    return train, chance.integers(0, vocab_size, (data.num_heldout_windows, length))


class WatchedTrainer(InnerTrainer):
    """Adds up what the inner steps did to theta, for the identity of `Member.imbalance`."""

    updates_N: Tensor  # fp64

    def step(self, windows: np.ndarray, learning_rate: float) -> StepResult:
        before_N = self._flat()
        result = super().step(windows, learning_rate)
        self.updates_N += self._flat() - before_N
        return result

    def watch(self) -> None:
        self._layout = layout_of(self.model)
        self.updates_N = torch.zeros(self._layout.numel, dtype=torch.float64)

    def _flat(self) -> Tensor:
        return flatten(self._layout, dict(self.model.named_parameters()), torch.float64)


class QuickStore(BlobStore):
    """Does not wait for the disk: these tests kill peers, not machines."""

    def put(self, parts: bytes | Sequence[bytes], *, durable: bool = True) -> Digest:
        return super().put(parts, durable=False)


class WatchedGenerations(Generations):
    """Tells before each write, where the peer may die, and after it."""

    def __init__(self, folder: Path, before: Callable[[SavedState], None], after: Callable[[], None]) -> None:
        super().__init__(folder)
        self._before, self._after = before, after

    def write(self, state: SavedState) -> None:
        self._before(state)
        super().write(state)
        self._after()


class NoCheckpoints(Checkpoints):
    """For runs that are not about checkpoints."""

    def is_due(self, version: int) -> bool:
        return False


def with_batch(config: RunConfig, batch: int) -> RunConfig:
    """The same run with another batch in this peer's steps; its leases stay as large as everyone's."""
    steps, rest = divmod(config.lease_windows, batch)
    assert not rest, f"a lease of {config.lease_windows} windows is not a whole number of batches of {batch}"
    inner = InnerConfig(**{**config.inner.model_dump(), "batch_windows": batch})
    a_round = config.round.model_copy(update={"lease_steps": steps})
    return config.model_copy(update={"inner": inner, "round": a_round})


def relative_difference(one_N: Tensor, other_N: Tensor) -> float:
    """|one - other| / |other| in fp64."""
    return float((one_N.double() - other_N.double()).norm() / other_N.double().norm())
