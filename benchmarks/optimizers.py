"""What 8-bit optimizer state saves, and what it costs in loss.

    python benchmarks/optimizers.py [--steps 200] [--seeds 3] [--device cpu] [--preset tiny] [--json FILE]

Two tables: measured bytes of optimizer state per parameter, and held-out loss after the same tokens. Within one seed all
optimizers start from the same parameters and see the same windows in the same order. Medians over the seeds, with the least
and the greatest.

Settings: a preset's learning rate (warm-up over the first tenth, cosine to a tenth), weight decay and betas for AdamW. Lion's
update has entries of size 1 whatever the gradient, so it gets a lower learning rate and as much more decay; papers advise a
factor of 3 to 10 (Chen et al. 2023, section 5), for runs of a few hundred small batches half was best. Learning rate and
betas of Lion were swept on seed 0, which is therefore not among the seeds here: its usual second beta, 0.99, costs 6 % of
loss at this length, AdamW's 0.95 nothing. `lion` with fp32 state shows what 8 bits cost Lion, apart from what
Lion itself does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from peer.data.embedded import build_embedded_blob, parse_embedded_blob
from peer.device import choose_device, describe_device
from peer.inner import make_inner_optimizer
from peer.learning_rate import learning_rate
from peer.model import build_model, initial_parameters, layout_of
from peer.step import InnerTrainer, Precision, choose_micro_batch
from swarm.allreduce.layout import unflatten_into
from swarm.config import InnerConfig, RunConfig
from swarm.errors import ConfigError
from swarm.presets import preset_config

KINDS = ("adamw", "adamw8bit", "lion", "lion8bit")
REFERENCE = "adamw"
LION_FACTOR = 2.0  # learning rate divided, decay multiplied
HELDOUT_WINDOWS = 128


@dataclass(frozen=True, slots=True)
class StateSize:
    preset: str
    kind: str
    num_parameters: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class Training:
    kind: str
    seed: int
    tokens: int
    loss: float
    seconds: float


def inner_config(run: RunConfig, kind: str, total_tokens: int) -> InnerConfig:
    """The inner section for one of KINDS; the schedule is stretched over `total_tokens`."""
    peak, decay = run.inner.learning_rate, run.inner.weight_decay
    if kind.startswith("lion"):
        peak, decay = peak / LION_FACTOR, decay * LION_FACTOR
    changes = {
        "optimizer": "lion8bit" if kind == "lion" else kind,
        "learning_rate": peak,
        "final_learning_rate": peak / 10,
        "weight_decay": decay,
        "warmup_tokens": total_tokens // 10,
        "decay_tokens": total_tokens,
    }
    return InnerConfig.model_validate(run.inner.model_dump() | changes)


def make_trainer(run: RunConfig, inner: InnerConfig, kind: str, seed: int, device: torch.device) -> InnerTrainer:
    model: nn.Module = build_model(run.model, device=device)
    layout = layout_of(model)
    unflatten_into(layout, initial_parameters(run.model, seed, layout), dict(model.named_parameters()))
    optimizer = make_inner_optimizer(
        inner, model.named_parameters(), device=device, kind="lion" if kind == "lion" else None
    )
    precision, _ = Precision.for_device(device)
    return InnerTrainer(model, optimizer, device, clip_norm=inner.clip_norm, precision=precision)


def measure_state(preset: str, device: torch.device) -> list[StateSize]:
    run = preset_config(preset)
    sizes = []
    for kind in KINDS:
        trainer = make_trainer(run, inner_config(run, kind, 1000), kind, 0, device)
        num_parameters = sum(p.numel() for p in trainer.model.parameters())
        sizes.append(StateSize(preset, kind, num_parameters, trainer.optimizer.state_bytes()))
    return sizes


def train(run: RunConfig, kind: str, seed: int, steps: int, device: torch.device) -> Training:
    text = parse_embedded_blob(build_embedded_blob())
    window = run.data.sequence_length + 1
    train_tokens = np.frombuffer(text.train, dtype=np.uint8)
    heldout = np.frombuffer(text.heldout, dtype=np.uint8)
    heldout_starts = np.linspace(0, len(heldout) - window, HELDOUT_WINDOWS).astype(np.int64)
    chance = np.random.default_rng(seed)
    batch_tokens = run.inner.batch_windows * run.data.sequence_length
    inner = inner_config(run, kind, steps * batch_tokens)
    trainer = make_trainer(run, inner, kind, seed, device)
    trainer.micro_batch, _ = choose_micro_batch(
        trainer, run.data.sequence_length, run.model.vocab_size, run.inner.batch_windows
    )
    started = time.perf_counter()
    for step in range(steps):
        starts = chance.integers(0, len(train_tokens) - window, run.inner.batch_windows)
        result = trainer.step(_windows(train_tokens, starts, window), learning_rate(inner, (step + 1) * batch_tokens))
        if not result.applied:
            raise SystemExit(f"{kind}, seed {seed}, step {step}: loss {result.loss}, gradient norm {result.grad_norm}")
    seconds = time.perf_counter() - started
    loss = trainer.evaluate(_windows(heldout, heldout_starts, window))
    return Training(kind, seed, steps * batch_tokens, loss, seconds)


def _windows(tokens: np.ndarray, starts: np.ndarray, window: int) -> np.ndarray:
    gathered: np.ndarray = tokens[starts[:, None] + np.arange(window)].astype(np.int64)
    return gathered


def state_table(sizes: Sequence[StateSize]) -> Table:
    table = Table("preset", "optimizer", "parameters", "state bytes", "bytes/parameter", "of adamw")
    reference = {size.preset: size.state_bytes for size in sizes if size.kind == REFERENCE}
    for size in sizes:
        table.add_row(
            size.preset,
            size.kind,
            f"{size.num_parameters:,}",
            f"{size.state_bytes:,}",
            f"{size.state_bytes / size.num_parameters:.2f}",
            f"{size.state_bytes / reference[size.preset]:.3f}",
        )
    return table


def loss_table(trainings: Sequence[Training]) -> Table:
    table = Table("optimizer", "loss", "least .. greatest", "ratio to adamw", "least .. greatest", "tokens/s")
    for column in table.columns:
        column.no_wrap = True
    reference = {training.seed: training.loss for training in trainings if training.kind == REFERENCE}
    for kind in KINDS:
        own = [training for training in trainings if training.kind == kind]
        losses = [training.loss for training in own]
        ratios = [training.loss / reference[training.seed] for training in own]
        table.add_row(
            kind,
            f"{statistics.median(losses):.4f}",
            f"{min(losses):.4f} .. {max(losses):.4f}",
            f"{statistics.median(ratios):.4f}",
            f"{min(ratios):.4f} .. {max(ratios):.4f}",
            f"{statistics.median(training.tokens / training.seconds for training in own):,.0f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Optimizer state: bytes and loss, 8-bit against fp32.")
    parser.add_argument("--preset", default="tiny", help="model and batch to train with (default: tiny)")
    parser.add_argument("--steps", type=int, default=200, help="inner steps of each training (default: 200)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each optimizer (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    options = parser.parse_args()
    try:
        device, _ = choose_device(options.device)
        run = preset_config(options.preset)
    except ConfigError as error:
        parser.error(str(error))
    console = Console(width=max(Console().width, 100))  # a pipe has 80 columns, too few for the tables
    console.print(f"{describe_device(device)}, torch {torch.__version__}")
    sizes = [size for preset in dict.fromkeys((options.preset, "small")) for size in measure_state(preset, device)]
    console.print(state_table(sizes))
    trainings = []
    for seed in range(1, options.seeds + 1):
        for kind in KINDS:
            trainings.append(train(run, kind, seed, options.steps, device))
            console.print(f"seed {seed}, {kind}: loss {trainings[-1].loss:.4f} in {trainings[-1].seconds:.1f} s")
    console.print(f"{options.preset}, {trainings[0].tokens:,} tokens each, {options.seeds} seeds: held-out loss")
    console.print(loss_table(trainings))
    if options.json:
        figures = {"device": str(device), "state": [asdict(s) for s in sizes], "loss": [asdict(t) for t in trainings]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
