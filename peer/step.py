"""One inner step of a peer: micro-batches, loss, gradient norm, guards, and what to do when memory runs out.

A step is a transaction: either the optimizer moved the parameters once by the gradient of the whole batch, or nothing
moved and `StepResult.applied` is False. Running out of memory is met before the optimizer is called: the gradients are
dropped, the micro-batch halved and the same batch begun again, so that nothing is counted twice.

B = windows of a batch, L = sequence length, V = vocabulary. A window is L + 1 tokens; its loss has L.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional

from peer.inner import InnerOptimizer
from swarm.errors import ConfigError, LocalError, StateError
from swarm.words import counted

MAX_NON_FINITE_STEPS: Final = 8  # in a row; one bad batch is a hiccup, eight are a run that has diverged

# Of the memory that is free on a CPU machine: other peers and programs live there too, and nothing tells us in time.
_CPU_MEMORY_SHARE: Final = 0.5


_Result = TypeVar("_Result")


class TrainingDiverged(StateError):
    """Too many steps in a row had a loss or gradient that is not a number: this peer's own weights have run away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """How a step computes. Parameters and optimizer keep their own dtype in any case."""

    bf16: bool = False  # forward and backward under bf16 autocast; the loss itself stays in fp32
    checkpointing: bool = (
        False  # activations are computed again in the backward pass: a third more time, far less memory
    )

    @classmethod
    def for_device(cls, device: torch.device, *, checkpointing: bool = False) -> tuple[Precision, str]:
        """Returns what suits the device, and why, for people."""
        if device.type != "cuda":
            return cls(), "fp32: bf16 and activation checkpointing are for GPUs"
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return cls(checkpointing=checkpointing), "fp32: this GPU has no bf16"
        return cls(bf16=True, checkpointing=checkpointing), "bf16 autocast on this GPU"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one inner step did."""

    loss: float  # mean per token over the batch, before the step; may be non-finite when not applied
    num_tokens: int  # that the parameters learned from: 0 when not applied
    grad_norm: float  # global 2-norm before clipping
    applied: bool
    seconds: float


class InnerTrainer:
    """A model with its inner optimizer on one device. Not thread-safe: the trainer's thread owns it.

    `model(ids)` must return an object with `logits` of shape (B, L, V), as transformers' causal models do.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: InnerOptimizer,
        device: torch.device,
        *,
        clip_norm: float = 0.0,  # 0: off
        micro_batch: int = 1,  # windows in one forward pass
        precision: Precision | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.device = device
        self.clip_norm = clip_norm
        self.micro_batch = micro_batch
        self.precision = precision or Precision()
        self.num_applied = 0
        self.num_skipped = 0
        self._skipped_in_a_row = 0
        if device.type != "cuda" and self.precision != Precision():
            raise LocalError(f"{self.precision} on {device}: bf16 and checkpointing are for CUDA only")
        if self.precision.checkpointing:
            hugging_face: Any = model
            hugging_face.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def step(
        self,
        windows: np.ndarray,  # int64 (B, L + 1)
        learning_rate: float,
    ) -> StepResult:
        """Takes one inner step on the batch and returns what it did.

        Raises TrainingDiverged at the 8th step in a row without finite numbers, ConfigError when one window alone does
        not fit into memory. `micro_batch` is smaller afterwards when memory ran out on the way.
        """
        started = time.perf_counter()
        tokens_BL1 = self._on_device(windows)
        loss, grad_norm = self._backing_off(len(windows), lambda: self._accumulate(tokens_BL1))
        applied = math.isfinite(loss) and math.isfinite(grad_norm)
        if applied:
            self.optimizer.step(learning_rate)
        self.optimizer.zero_grad()
        self._count(applied, loss, grad_norm)
        return StepResult(
            loss=loss,
            num_tokens=windows.shape[0] * (windows.shape[1] - 1) if applied else 0,
            grad_norm=grad_norm,
            applied=applied,
            seconds=time.perf_counter() - started,
        )

    def evaluate(
        self,
        windows: np.ndarray,  # int64 (B, L + 1)
    ) -> float:
        """Returns the mean loss per token. Nothing changes.

        In the parameters' own precision: whoever loads a checkpoint and computes the loss again gets the same number, and
        bf16 would already differ in the third digit.
        """
        tokens_BL1 = self._on_device(windows)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return self._backing_off(len(windows), lambda: self._mean_loss(tokens_BL1))
        finally:
            self.model.train(was_training)

    def fits(
        self,
        windows: np.ndarray,  # int64 (B, L + 1)
    ) -> bool:
        """Returns whether these windows go through one forward and backward pass. Leaves no gradients."""
        self.model.train()
        try:
            self._backward(self._on_device(windows), windows.shape[0] * (windows.shape[1] - 1))
            fitted = True
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            fitted = False
        self._free()  # outside the handler: the error's frames held on to the activations
        return fitted

    def _on_device(self, windows: np.ndarray) -> Tensor:
        if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
            raise LocalError(f"windows of shape {windows.shape}: (B, L + 1) with B, L >= 1 are needed")
        return torch.from_numpy(np.ascontiguousarray(windows, dtype=np.int64)).to(self.device)

    def _micro_batches(self, tokens_BL1: Tensor) -> Iterator[Tensor]:
        for start in range(0, tokens_BL1.shape[0], self.micro_batch):
            yield tokens_BL1[start : start + self.micro_batch]

    def _accumulate(self, tokens_BL1: Tensor) -> tuple[float, float]:
        """Leaves the (clipped) gradient of the batch's mean loss in the parameters; returns loss and gradient norm."""
        self.model.train()
        self.optimizer.zero_grad()
        num_targets = tokens_BL1.shape[0] * (tokens_BL1.shape[1] - 1)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro_BL1 in self._micro_batches(tokens_BL1):
            loss += self._backward(micro_BL1, num_targets)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        loss_value, norm_value = torch.stack((loss, norm.double())).tolist()  # the step's only wait for the device
        if self.clip_norm > 0 and math.isfinite(norm_value):
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_norm, norm)
        return loss_value, norm_value

    def _backward(self, micro_BL1: Tensor, num_targets: int) -> Tensor:
        # Divided by the whole batch's targets: parts of unequal size then add up to exactly the batch's mean.
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision.bf16):
            logits_BLV = self.model(micro_BL1[:, :-1], use_cache=False).logits
        loss = _sum_loss(logits_BLV, micro_BL1[:, 1:]) / num_targets
        torch.autograd.backward(loss)
        return loss.detach().double()

    def _mean_loss(self, tokens_BL1: Tensor) -> float:
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro_BL1 in self._micro_batches(tokens_BL1):
            loss += _sum_loss(self.model(micro_BL1[:, :-1], use_cache=False).logits, micro_BL1[:, 1:]).double()
        return loss.item() / (tokens_BL1.shape[0] * (tokens_BL1.shape[1] - 1))

    def _backing_off(self, num_windows: int, attempt: Callable[[], _Result]) -> _Result:
        """Returns the attempt's result; after running out of memory, of another one with half the micro-batch."""
        while True:
            try:
                return attempt()
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                size = min(self.micro_batch, num_windows)
                if size == 1:
                    self._free()
                    raise ConfigError(_too_big(self.model, self.device)) from error
            # Outside the handler: the error's frames held on to the activations.
            self.micro_batch = size // 2
            self._free()

    def _free(self) -> None:
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _count(self, applied: bool, loss: float, grad_norm: float) -> None:
        if applied:
            self.num_applied += 1
            self._skipped_in_a_row = 0
            return
        self.num_skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_NON_FINITE_STEPS:
            raise TrainingDiverged(
                f"{self._skipped_in_a_row} inner steps in a row without finite numbers (last loss {loss}, gradient norm "
                f"{grad_norm}; at most {MAX_NON_FINITE_STEPS - 1} are passed over): this peer's own progress has run away. "
                "Join again with an empty --home, from the swarm's state; if that does not help, the run needs a lower "
                "learning rate or a longer warm-up"
            )


def choose_micro_batch(
    trainer: InnerTrainer,
    sequence_length: int,
    vocab_size: int,
    limit: int,  # windows; more are never wanted
    *,
    free_bytes: int | None = None,  # on a CPU; None: what psutil reports as available
) -> tuple[int, str]:
    """Returns the windows to take in one forward pass, from 1 to `limit`, and why, for people.

    On a GPU by trial: doubled until memory runs out or `limit` is reached. On a CPU, where running out of memory ends the
    process, by counting what one window keeps for its backward pass. The model and the optimizer stay as they are.
    Raises ConfigError when one window does not fit.
    """
    if trainer.device.type == "cpu":
        available = psutil.virtual_memory().available if free_bytes is None else free_bytes
        return _micro_batch_by_estimate(trainer, sequence_length, vocab_size, limit, available)
    return micro_batch_by_trial(trainer, sequence_length, vocab_size, limit)


def micro_batch_by_trial(trainer: InnerTrainer, sequence_length: int, vocab_size: int, limit: int) -> tuple[int, str]:
    """Returns the largest of 1, 2, 4 ... `limit` windows that fit, and why. Raises ConfigError when one does not."""
    fitting, trial = 0, 1
    while fitting < limit:
        if not trainer.fits(_made_up_windows(trial, sequence_length, vocab_size)):
            if fitting == 0:
                raise ConfigError(_too_big(trainer.model, trainer.device))
            return (
                fitting,
                f"{counted(fitting, 'window')} at once: {trial} did not fit into the memory of {trainer.device}",
            )
        fitting, trial = trial, min(2 * trial, limit)
    return fitting, f"{counted(fitting, 'window')} at once: the whole batch fits"


def _micro_batch_by_estimate(
    trainer: InnerTrainer, sequence_length: int, vocab_size: int, limit: int, available: int
) -> tuple[int, str]:
    window_bytes = _bytes_of_one_window(trainer, sequence_length, vocab_size)
    gradient_bytes = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    budget = int(_CPU_MEMORY_SHARE * available) - gradient_bytes
    fitting = max(1, min(limit, budget // window_bytes))
    mib = 2**20
    return fitting, (
        f"{fitting} of {limit} windows at once: about {window_bytes / mib:.0f} MiB each, {budget / mib:,.0f} MiB may be used"
    )


def _bytes_of_one_window(trainer: InnerTrainer, sequence_length: int, vocab_size: int) -> int:
    """Returns what a window keeps for its backward pass, plus the logits and their gradients while those are made."""
    own = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens_1L1 = torch.from_numpy(_made_up_windows(1, sequence_length, vocab_size))
    trainer.model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits_1LV = trainer.model(tokens_1L1[:, :-1], use_cache=False).logits
        loss = _sum_loss(logits_1LV, tokens_1L1[:, 1:])
    logits_bytes = int(logits_1LV.numel() * logits_1LV.element_size())
    del loss  # and with it the graph; no gradients were made
    return sum(kept.values()) + 3 * logits_bytes


def _made_up_windows(num_windows: int, sequence_length: int, vocab_size: int) -> np.ndarray:
    return np.arange(num_windows * (sequence_length + 1), dtype=np.int64).reshape(num_windows, -1) % vocab_size


def _sum_loss(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Returns the summed cross-entropy, in fp32, or in fp64 for a model in fp64."""
    logits_NV = logits_BLV.reshape(-1, logits_BLV.shape[-1])
    if logits_NV.dtype != torch.float64:
        logits_NV = logits_NV.float()
    return functional.cross_entropy(logits_NV, targets_BL.reshape(-1), reduction="sum")


def _is_out_of_memory(error: BaseException) -> bool:
    # torch has no type of its own for a CPU allocation that failed, nor for a GPU library that lacks its workspace.
    by_text = any(mark in str(error) for mark in ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED"))
    return by_text or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _too_big(model: nn.Module, device: torch.device) -> str:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return (
        f"one window alone does not fit into the memory of {device} with this model of {millions:.0f} million parameters: "
        "close other programs that use it, or join a run with a smaller model or shorter windows"
    )
