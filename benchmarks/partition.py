"""What a swarm that was split loses, by what is done with the smaller branch when it heals.

    python -m benchmarks.partition [--seeds 3] [--rounds 1 2 3 5 20] [--json FILE]

Five peers train a small language model on bytes (an MLP that sees twelve of them) of the embedded text; after a while they
are split 3|2 for k rounds and then heal. Cuts, commits and the outer step are the product's own code
(`swarm/allreduce`), the inner optimizer too; there is no network. Held-out loss just after healing, and six rounds later:

    merge         the anchors are averaged by tokens, past the outer optimizer: what the product is to do once it can
    drop          what the product does: the two adopt the state of the three; what they had listed is lost
    contribution  as a warning: the two hand in all their progress since the split as one contribution
    never split   all five in one swarm all the time: the same text, the same number of tokens

Within one seed all start from the same parameters and see the same bytes in the same order.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from peer.data.embedded import build_embedded_blob, parse_embedded_blob
from peer.inner import InnerOptimizer, make_inner_optimizer
from swarm.allreduce.codec import make_codec, pack_contribution
from swarm.allreduce.layout import ModelLayout, build_layout, flatten, unflatten_into
from swarm.allreduce.ledger import Ledger, cut, joined, move_head
from swarm.allreduce.shared import RunMath, SharedState, after_commit, genesis_state
from swarm.chain import CommitList, Entry, left_tokens
from swarm.config import CodecConfig, InnerConfig, OuterConfig
from swarm.digest import Digest, blob_digest, digest_of
from swarm.identity import PeerId

PEERS = tuple(PeerId(bytes([number]) * 32) for number in range(1, 6))
WINNERS, LOSERS = (0, 1, 2), (3, 4)
ROUNDS_AFTER = 6
WAYS = ("merge", "drop", "contribution")
CONTEXT, WIDTH, HIDDEN = 12, 16, 128


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained, and for how long before the split."""

    rounds_before: int = 20
    local_steps: int = 10
    batch: int = 32
    learning_rate: float = 2e-3
    heldout: int = 8192

    @property
    def tokens(self) -> int:
        """Of one peer's round."""
        return self.local_steps * self.batch


@dataclass(frozen=True, slots=True)
class Outcome:
    """Held-out losses of one seed and one length of the split."""

    seed: int
    rounds: int
    winners: float  # before healing
    losers: float
    never: tuple[float, float]  # at the same time, and ROUNDS_AFTER rounds later
    after: dict[str, tuple[float, float]]  # by way: just after healing, and ROUNDS_AFTER rounds later


class ByteModel(nn.Module):
    """The next byte from CONTEXT bytes: embedding, one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.hidden = nn.Linear(CONTEXT * WIDTH, HIDDEN)
        self.out = nn.Linear(HIDDEN, 256)

    def forward(self, context_BC: Tensor) -> Tensor:
        out: Tensor = self.out(functional.gelu(self.hidden(self.embedding(context_BC).flatten(1))))
        return out


@dataclass(slots=True)
class Text:
    """Training bytes, and fixed held-out places."""

    train: np.ndarray
    heldout: Tensor  # (places, CONTEXT + 1)

    @classmethod
    def embedded(cls, places: int) -> Text:
        text = parse_embedded_blob(build_embedded_blob())
        train, heldout = (np.frombuffer(raw, dtype=np.uint8) for raw in (text.train, text.heldout))
        starts = np.linspace(0, len(heldout) - CONTEXT - 1, places).astype(np.int64)
        return cls(train, _windows(heldout, starts))


@dataclass(slots=True)
class Peer:
    """One peer's private side."""

    number: int
    model: ByteModel
    optimizer: InnerOptimizer
    chance: np.random.Generator
    ledger: Ledger
    seq: int = 0

    def theta(self, layout: ModelLayout) -> Tensor:
        return flatten(layout, dict(self.model.named_parameters()))

    def set_theta(self, layout: ModelLayout, theta_N: Tensor) -> None:
        unflatten_into(layout, theta_N, dict(self.model.named_parameters()))


@dataclass(slots=True)
class Side:
    """Some peers and the state that they share."""

    state: SharedState
    peers: list[Peer]
    blobs: dict[Digest, bytes] = field(default_factory=dict)

    def fork(self, numbers: Sequence[int]) -> Side:
        """These peers, going on by themselves from here."""
        return Side(self.state, copy.deepcopy([peer for peer in self.peers if peer.number in numbers]))


def _listing(*entries: Entry) -> CommitList:
    """A commit of these, after which all five are members still, wherever they are."""
    authors = {entry.author for entry in entries}
    return CommitList(tuple(sorted(entries)), tuple(peer for peer in PEERS if peer not in authors))


class Experiment:
    """One seed."""

    def __init__(self, text: Text, setting: Setting, seed: int) -> None:
        self._text, self._setting, self._seed = text, setting, seed
        torch.manual_seed(seed)
        model = ByteModel()
        shapes = [(name, tuple(one.shape)) for name, one in model.named_parameters()]
        self.layout = build_layout([shapes[:1], shapes[1:]])
        self.math = RunMath(
            self.layout, make_codec(CodecConfig()), OuterConfig(optimizer="nesterov"), error_decay=1.0, lease_windows=1
        )
        self._inner = InnerConfig(optimizer="adamw", learning_rate=setting.learning_rate, weight_decay=0.01)
        start_N = flatten(self.layout, dict(model.named_parameters()))
        state = genesis_state(self.math, digest_of("benchmark", b"partition"), start_N)
        peers = []
        for number, name in enumerate(PEERS):
            own = copy.deepcopy(model)
            optimizer = make_inner_optimizer(self._inner, own.named_parameters(), device=torch.device("cpu"))
            chance = np.random.default_rng([seed, number])
            peers.append(Peer(number, own, optimizer, chance, joined(name, state)))
        self.start = Side(state, peers)

    def run(self, lengths: Sequence[int]) -> list[Outcome]:
        """Splits of these lengths, all at the same time of the same training."""
        for _ in range(self._setting.rounds_before):
            self.round(self.start)
        whole = self.start.fork(range(len(PEERS)))
        never = [self.loss(whole.state)]
        for _ in range(max(lengths) + ROUNDS_AFTER):
            self.round(whole)
            never.append(self.loss(whole.state))
        winners, losers = self.start.fork(WINNERS), self.start.fork(LOSERS)
        outcomes = []
        for rounds in range(1, max(lengths) + 1):
            self.round(winners)
            self.round(losers)
            if rounds in lengths:
                after = {way: self.heal(winners, losers, way) for way in WAYS}
                before = (self.loss(winners.state), self.loss(losers.state))
                at_once, later = never[rounds], never[rounds + ROUNDS_AFTER]
                outcomes.append(Outcome(self._seed, rounds, *before, (at_once, later), after))
        return outcomes

    def heal(self, winners: Side, losers: Side, way: str) -> tuple[float, float]:
        """Losses just after healing that way, and ROUNDS_AFTER rounds later; both sides stay as they are."""
        side, others = winners.fork(WINNERS), losers.fork(LOSERS)
        if way == "merge":
            self._merge(side, others)
        else:
            if way == "contribution":
                self._hand_in(side, losers, others.peers[0])
            for peer in others.peers:
                peer.ledger = joined(PEERS[peer.number], side.state)
                peer.set_theta(self.layout, side.state.anchor_N)
        side.peers += others.peers
        at_once = self.loss(side.state)
        for _ in range(ROUNDS_AFTER):
            self.round(side)
        return at_once, self.loss(side.state)

    def round(self, side: Side) -> None:
        """Everyone's inner steps and cut, one commit that lists them all."""
        entries = []
        for peer in side.peers:
            self._train(peer)
            peer.seq += 1
            work = (self._setting.tokens, self._setting.local_steps)
            theta_N = peer.theta(self.layout)
            peer.ledger, blob = cut(self.math, peer.ledger, side.state, theta_N, peer.seq, work)
            entries.append(self._entry(side, peer, blob, self._setting.tokens))
        self._move(side, _listing(*entries))

    def loss(self, state: SharedState) -> float:
        """Held-out loss of an anchor, nats a byte."""
        model = ByteModel()
        unflatten_into(self.layout, state.anchor_N, dict(model.named_parameters()))
        with torch.no_grad():
            logits_BV = model(self._text.heldout[:, :-1])
            return functional.cross_entropy(logits_BV, self._text.heldout[:, -1]).item()

    def _merge(self, side: Side, others: Side) -> None:
        """A' = A_W + s * (A_L - A_W), the outer optimizer's state as it was; what each did on top of its anchor stays."""
        won, lost = side.state, others.state
        only_lost, only_won = left_tokens(lost.chain, won.chain), left_tokens(won.chain, lost.chain)
        share = only_lost / (only_lost + only_won)
        merged = replace(won, anchor_N=won.anchor_N + share * (lost.anchor_N - won.anchor_N))
        for peers, state in ((side.peers, won), (others.peers, lost)):
            for peer in peers:
                progress_N = peer.theta(self.layout) - state.anchor_N
                peer.ledger = replace(joined(PEERS[peer.number], merged), residual_N=peer.ledger.residual_N)
                peer.set_theta(self.layout, merged.anchor_N + progress_N)
        side.state = merged

    def _hand_in(self, side: Side, losers: Side, author: Peer) -> None:
        """All progress since the split, as one contribution with all its tokens, through the outer optimizer."""
        progress_N = self.start.state.anchor_N - losers.state.anchor_N
        parts = (progress_N[self.layout.slice_of(unit.index)] for unit in self.layout.units)
        blob = pack_contribution(self.math.codec, 0, [self.math.codec.encode(one) for one in parts])
        author.seq += 1
        tokens = losers.state.chain.tokens - self.start.state.chain.tokens
        self._move(side, _listing(self._entry(side, author, blob, tokens)))

    def _entry(self, side: Side, peer: Peer, blob: bytes, tokens: int) -> Entry:
        root = blob_digest(blob)
        side.blobs[root] = blob
        return Entry(
            PEERS[peer.number], peer.seq, 1, root, 0, len(self.layout.units), tokens, self._setting.local_steps
        )

    def _move(self, side: Side, commit: CommitList) -> None:
        old = side.state
        side.state = after_commit(self.math, old, commit, side.blobs.__getitem__)
        for peer in side.peers:
            moved = move_head(peer.ledger, old, side.state, peer.theta(self.layout))
            peer.ledger = moved.ledger
            peer.set_theta(self.layout, moved.theta_N)
        side.blobs.clear()

    def _train(self, peer: Peer) -> None:
        setting = self._setting
        for _ in range(setting.local_steps):
            starts = peer.chance.integers(0, len(self._text.train) - CONTEXT - 1, setting.batch)
            tokens_BC1 = _windows(self._text.train, starts)
            loss = functional.cross_entropy(peer.model(tokens_BC1[:, :-1]), tokens_BC1[:, -1])
            peer.optimizer.zero_grad()
            loss.backward()
            peer.optimizer.step(setting.learning_rate)


def _windows(text: np.ndarray, starts: np.ndarray) -> Tensor:
    return torch.from_numpy(text[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int64))


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """Medians over the seeds (least .. greatest of the first column of each pair is left to the JSON)."""
    table = Table("k", "the three", "the two", "merge", "drop", "contribution", "never split", "merge / never split")
    for column in table.columns:
        column.no_wrap = True
    for rounds in sorted({one.rounds for one in outcomes}):
        own = [one for one in outcomes if one.rounds == rounds]
        pairs = [*([one.after[way] for one in own] for way in WAYS), [one.never for one in own]]
        ratios = [one.after["merge"][0] / one.never[0] for one in own]
        table.add_row(
            str(rounds),
            f"{statistics.median(one.winners for one in own):.3f}",
            f"{statistics.median(one.losers for one in own):.3f}",
            *(
                " -> ".join(f"{statistics.median(pair[place] for pair in some):.3f}" for place in (0, 1))
                for some in pairs
            ),
            f"{statistics.median(ratios):.4f} ({min(ratios):.4f} .. {max(ratios):.4f})",
        )
    return table


def main() -> None:
    setting = Setting()
    parser = argparse.ArgumentParser(description="What becomes of the loss when a split swarm heals.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings (default: 3)")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 3, 5, 20], help="lengths of the split")
    parser.add_argument(
        "--before", type=int, default=setting.rounds_before, help="rounds before the split (default: 20)"
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = replace(setting, rounds_before=options.before)
    text = Text.embedded(setting.heldout)
    console = Console(width=max(Console().width, 130))  # a pipe has 80 columns, too few for the table
    outcomes: list[Outcome] = []
    for seed in range(1, options.seeds + 1):
        began = time.perf_counter()
        outcomes += Experiment(text, setting, seed).run(options.rounds)
        console.print(f"seed {seed}: {time.perf_counter() - began:.0f} s")
        if options.json:
            figures = {"setting": asdict(setting), "outcomes": [asdict(one) for one in outcomes]}
            options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    console.print(
        f"held-out loss, nats a byte: just after healing -> {ROUNDS_AFTER} rounds later; {options.seeds} seeds"
    )
    console.print(table_of(outcomes))


if __name__ == "__main__":
    main()
