"""A peer's life as its disk sees it: rounds of one that has no network and no model, only a real home and replica."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from peer.address_book import AddressBook
from peer.blob_store import BlobStore
from peer.checkpoints import Checkpoints
from peer.home import Home, open_home
from peer.model import layout_of, meta_model
from peer.replica import Replica
from peer.saved import Generations
from peer.tokenizer_file import byte_tokenizer_file
from swarm.allreduce.codec import make_codec
from swarm.allreduce.ledger import Ledger, cut, joined
from swarm.allreduce.shared import RunMath, genesis_state
from swarm.chain import CommitList, Entry, apply
from swarm.config import CheckpointConfig, DataConfig, InnerConfig, ModelConfig, RoundConfig, RunConfig
from swarm.digest import Digest, blob_digest, leaves_of
from swarm.identity import Keypair, PeerId
from swarm.messages import BlobInfo, Commit, Contribution, Holders, PeerStatus, seal_message
from swarm.round.root import root_after
from tests.unit.message_examples import RUN, example_of, keypair

CONFIG = RunConfig(
    model=ModelConfig(vocab_size=8, hidden_size=4, num_layers=2, num_heads=1, intermediate_size=4, max_positions=4),
    data=DataConfig(sequence_length=4, eval_windows=1),
    inner=InnerConfig(batch_windows=1),
    round=RoundConfig(local_steps=4),
    checkpoint=CheckpointConfig(every=3, keep=2),
)
OTHER = keypair(2)


def math_of_run() -> RunMath:
    return RunMath.of(CONFIG, layout_of(meta_model(CONFIG.model)), make_codec(CONFIG.codec))


@dataclass(frozen=True, slots=True)
class Saved:
    """`save` has returned."""

    generation: int
    next_seq: int


@dataclass(frozen=True, slots=True)
class Announced:
    """A contribution may have left the machine."""

    contribution: Contribution
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Settled:
    """That contribution need not be remembered any more: nothing that is reachable by an undo lists or lacks it."""

    seq: int


@dataclass(frozen=True, slots=True)
class Known:
    """The identity has been used."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A checkpoint was offered to others."""

    version: int


class Life:
    """One peer, with another one whose contributions it gets. `mark` hears what was done."""

    def __init__(self, folder: Path, run_math: RunMath, mark: Callable[[object], None] = lambda what: None) -> None:
        self.math = run_math
        self.mark = mark
        self.home = open_home(folder)
        self.key = self.home.keypair()
        self.mark(Known(self.key.peer_id))
        self.home.keep_listen(("/ip4/127.0.0.1/tcp/4001",))
        self.book = AddressBook(self.home.book)
        self.store = BlobStore(self.home.blobs)
        self.replica = Replica(run_math, self.key.peer_id, RUN, self.store, Generations(self.home.state))
        self.checkpoints = checkpoints_in(self.home, run_math)
        self.other: Ledger
        self.theta_N = torch.linspace(-1, 1, run_math.layout.numel)
        self._steps = 0
        self._settled: set[int] = set()

    def begin(self) -> None:
        state = genesis_state(self.math, RUN, self.theta_N)
        self.replica.begin(state)
        self.other = joined(OTHER.peer_id, state)
        self.save()

    def train(self) -> None:
        self._steps += 1
        self.theta_N = self.theta_N + torch.sin(torch.arange(self.math.layout.numel) * float(self._steps)) / 8
        self.replica.work.tokens += 100
        self.replica.work.steps += 2

    def save(self) -> None:
        optimizer = b"moments %d" % self._steps * 5 if self._steps else None
        self.replica.save(self.theta_N, optimizer)
        newest = self.replica.generations.kept()[0]
        self.mark(Saved(newest.generation, newest.next_seq))

    def cut(self) -> Entry:
        chain = self.replica.present.state.chain
        seq, root, num_bytes, work = self.replica.cut(self.theta_N)
        one = contribution_of(self.key, seq, root, num_bytes, self.replica)
        one = replace(one, tokens=work.tokens, steps=work.steps, since_version=min(work.since_version, chain.version))
        sealed = seal_message(self.key, RUN, one)
        self.replica.announced(one, sealed)
        self.save()
        self.mark(Announced(one, sealed))
        return entry_of(one)

    def receive(self, seq: int) -> Entry:
        """A contribution of the other peer, by way of a download."""
        state = self.replica.present.state
        theta_N = state.anchor_N - torch.cos(torch.arange(self.math.layout.numel) * float(seq)) / 16
        _, blob = cut(self.math, self.other, state, theta_N, seq, (100, 2))
        root = blob_digest(blob)
        self.store.pin("network", [root])
        self.store.partial_path(root).write_bytes(blob)
        self.store.adopt_partial(root, BlobInfo(len(blob), leaves_of(blob)))
        return entry_of(contribution_of(OTHER, seq, root, len(blob), self.replica))

    def move(self, *entries: Entry, base: Digest | None = None) -> Commit:
        """HEAD to a commit of these entries, saved; its checkpoint if one is due."""
        parent = base or self.replica.present.state.chain.head
        listed = tuple(sorted(entries, key=lambda one: (one.author, one.seq)))
        present = {one.author for one in listed}
        admitted = tuple(sorted({self.key.peer_id, OTHER.peer_id} - present))
        commit = Commit(0, parent, CommitList(listed, admitted), (b"",) * len(listed), (Holders(()),) * len(listed), "")
        place = self.replica.heads.index(parent)
        chain, root = self.replica.chains[place], self.replica.roots[place]
        child = apply(chain, commit.commit, CONFIG.lease_windows)
        root = root_after(root, chain, frozenset(chain.voters), child)  # as if all of them had voted for it
        moved = self.replica.apply(parent, (commit,), (root,), self.theta_N)
        self.theta_N = moved.theta_N
        for seq in range(1, self.replica.next_seq):
            if seq not in self.replica.contributions and seq not in self._settled:
                self._settled.add(seq)
                self.mark(Settled(seq))
        self.save()
        version = self.replica.present.state.chain.version
        if self.checkpoints.is_due(version):
            self.checkpoints.keep(self.replica.present, 2.0)
            self.mark(KeptVersion(version))
        return commit

    def hear(self, port: int) -> None:
        status: PeerStatus = replace(example_of(PeerStatus), peer=OTHER.peer_id)
        self.book.note([replace(status, addresses=(f"/ip4/10.0.0.1/tcp/{port}/p2p/{OTHER.peer_id.base58}",))])


def contribution_of(author: Keypair, seq: int, root: Digest, num_bytes: int, replica: Replica) -> Contribution:
    chain = replica.present.state.chain
    return Contribution(
        author=author.peer_id,
        incarnation=1,
        seq=seq,
        root=root,
        num_bytes=num_bytes,
        first_unit=0,
        end_unit=len(replica.math.layout.units),
        tokens=100,
        steps=2,
        since_version=chain.version,
        version=chain.version,
        head=chain.head,
    )


def entry_of(one: Contribution) -> Entry:
    return Entry(one.author, one.seq, one.incarnation, one.root, one.first_unit, one.end_unit, one.tokens, one.steps)


def checkpoints_in(home: Home, run_math: RunMath) -> Checkpoints:
    return Checkpoints(home.checkpoints, RUN, CONFIG, run_math.layout, byte_tokenizer_file())
