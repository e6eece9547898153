"""A swarm in one process and one thread: the product's own peers on a virtual clock, without sockets.

Each `Member` is a whole peer as the product builds it: round machine, replica with its files on disk, inner trainer,
trainer, handoff, server, catcher. Two things stand in for the rest: `Member` does at once what the network side does in
tasks, and `Group` carries every message as sealed bytes. Nothing happens by chance: mail arrives in the order it was
sent, or in one that descends from a seed.

With every head that anyone reaches the group checks the law of the run: equal heads have equal state digests.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from peer import handoff as work
from peer.blob_store import BlobStore
from peer.catch_up import Catcher
from peer.checkpoints import Checkpoints
from peer.fetch import Asker, Fetcher
from peer.handoff import Handoff, Report
from peer.inner import make_inner_optimizer
from peer.model import build_model, genesis_digest, initial_parameters, layout_of
from peer.replica import Replica
from peer.saved import Generations, SavedState
from peer.serve import Server
from peer.step import InnerTrainer, StepResult
from peer.trainer import Trainer
from swarm import chain as chains
from swarm.allreduce.codec import make_codec
from swarm.allreduce.layout import flatten
from swarm.allreduce.shared import RunMath, check_contribution, decode_unit, genesis_state, record_digest
from swarm.chain import Entry
from swarm.config import DataConfig, InnerConfig, ModelConfig, RoundConfig, RunConfig
from swarm.digest import Digest, digest_of
from swarm.errors import NetworkError, RemoteError, StateError, Unreachable
from swarm.events import Event
from swarm.identity import Keypair, PeerId
from swarm.lease import window_of_slot
from swarm.messages import Commit, Contribution, open_as, seal_message
from swarm.round import own
from swarm.round.facts import (
    BlobFailed,
    BlobStored,
    CatchUp,
    CatchUpEnded,
    CutDone,
    Effect,
    Fact,
    Fetch,
    Figures,
    Happened,
    HeadReached,
    Measured,
    MoveTo,
    Received,
    RequestCut,
    Send,
    Tick,
    Unreached,
)
from swarm.round.participant import Participant

RUN = digest_of("test-run")
SWEEP_S = 0.1  # virtual time of one pass over all members
MAX_DELAY_S = 0.5  # of mail whose order descends from a seed
MAX_SWEEPS = 4000

_Result = TypeVar("_Result")


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


class _AtOnce:
    """What `Handoff` needs of an event loop: reports are delivered where they are made, unless the peer dies there."""

    def __init__(self, before: Callable[[Report], None]) -> None:
        self._before = before

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, deliver: Callable[[Report], None], report: Report) -> None:
        self._before(report)
        deliver(report)


class _Wire:
    """A transport that hands requests to the other member's server."""

    def __init__(self, group: Group, me: PeerId) -> None:
        self._group = group
        self._me = me

    async def request(self, peer: PeerId, payload: bytes, *, timeout_s: float) -> bytes:
        other = self._group.by_id(peer)
        if other is None:
            raise Unreachable(f"{peer} is down")
        return await other.server.handle(self._me, payload)


@dataclass(frozen=True, slots=True)
class Place:
    """What stays of a peer when its process dies."""

    number: int
    keypair: Keypair
    folder: Path
    config: RunConfig  # the run's, or with another batch


class Member:
    """One process of a peer. `turn` is one pass of its trainer; everything else answers to the group."""

    def __init__(self, group: Group, place: Place) -> None:
        self.group, self.place = group, place
        self.id = place.keypair.peer_id
        self.dies_at: Callable[[Member, SavedState | Report], bool] | None = None
        self.events: list[Event] = []
        self.reports: list[Report] = []
        config, dtype = place.config, group.dtype
        model = build_model(config.model, dtype=dtype)
        layout = layout_of(model)
        math = RunMath.of(config, layout, make_codec(config.codec), dtype)
        device = torch.device("cpu")
        optimizer = make_inner_optimizer(config.inner, model.named_parameters(), device=device)
        self.inner = WatchedTrainer(model, optimizer, device, clip_norm=config.inner.clip_norm, micro_batch=2)
        self.inner.watch()
        self.store = QuickStore(place.folder / "blobs")
        self.inner.updates_N += group.saved_updates.get(place.number, 0.0)
        generations = WatchedGenerations(place.folder / "state", self._before, self._saved)
        self.replica = Replica(math, self.id, RUN, self.store, generations)
        theta_N, saved_optimizer = self._begin(config)
        self.text = TinyText(config.data, config.model.vocab_size, lambda: self.version)
        self.handoff = Handoff()
        kind = Checkpoints if group.checkpoints else NoCheckpoints
        checkpoints = kind(place.folder / "checkpoints", RUN, config, layout, None)
        self.trainer = Trainer(
            config,
            self.replica,
            self.inner,
            self.text,  # type: ignore[arg-type]
            self.handoff,
            self.seal,
            checkpoints,  # type: ignore[arg-type]
        )
        self.trainer.load(theta_N, saved_optimizer)
        self._asker = Asker(_Wire(group, self.id), place.keypair, RUN)  # type: ignore[arg-type]
        self._fetcher = Fetcher(self._asker, self.store)
        self._catcher = Catcher(self._asker, self._fetcher, _open_contribution, config.lease_windows)
        self.server = Server(place.keypair, RUN, b"", self.store)
        self.server.state, self.server.log = self.replica.present.record, self.replica.log
        self.server.connect(lambda sender, message, raw: self.post(Received(sender, message, raw)), list)
        self.participant = self._make_participant(config)
        self._pinned: dict[Digest, None] = {}
        self._progress = work.Progress()
        self._opened: tuple[PeerId, ...] = ()
        self._saved_view = self.participant.view
        self.handoff.listen(_AtOnce(self._before), self._reported)  # type: ignore[arg-type]

    def _begin(self, config: RunConfig) -> tuple[Tensor, bytes | None]:
        """From disk if there is something, else from version 0."""
        optimizer: list[bytes | None] = [None]

        def restore(saved: SavedState) -> Tensor:
            theta_N = self.replica.restore(saved)
            optimizer[0] = None if saved.optimizer is None else self.store.read(saved.optimizer, check=True)
            return theta_N

        theta_N = self.replica.generations.load(restore, lambda line: None)
        if theta_N is None:
            parameters_N = initial_parameters(config.model, config.seed, self.replica.math.layout)
            state = genesis_state(self.replica.math, RUN, parameters_N)
            assert state.chain == chains.genesis(RUN, genesis_digest(parameters_N))
            self.replica.begin(state)
            theta_N = state.anchor_N
        self.replica.incarnation += 1
        self.replica.save(theta_N, optimizer[0])
        return theta_N, optimizer[0]

    def _make_participant(self, config: RunConfig) -> Participant:
        me = own.Self(self.id, f"member-{self.place.number}", "cpu", self.replica.incarnation)
        present = self.replica.present
        digest = record_digest(present.record)
        participant = Participant(me, config, present.state.chain, digest, _open_contribution, self.replica.view)
        for seq in self.replica.pending:
            participant.restore(*self.replica.contributions[seq])
        return participant

    # ---------------------------------------------------------------- reading

    @property
    def version(self) -> int:
        return self.replica.present.state.chain.version

    @property
    def head(self) -> Digest:
        return self.replica.present.state.chain.head

    @property
    def digest(self) -> Digest:
        return self.replica.present.digest

    @property
    def anchor_N(self) -> Tensor:
        return self.replica.present.state.anchor_N

    @property
    def theta_N(self) -> Tensor:
        return flatten(self.replica.math.layout, dict(self.inner.model.named_parameters()), self.group.dtype)

    @property
    def residual_N(self) -> Tensor:
        return self.replica._ledger.residual_N

    def imbalance(self) -> float:
        """How far the work is from conserved, relative to all work: 0 in exact arithmetic.

        -(sum of inner updates) = sum of own listed contributions as sent + residual + (anchor - theta), without decay.
        Steps that a death took are no work: no saved state ever held them.
        """
        math = self.replica.math
        listed_N = torch.zeros_like(self.inner.updates_N)
        for entry in self.group.entries_of(self.head):
            if entry.author == self.id:
                blob = self.store.read(entry.root)
                for unit in math.layout.units:
                    listed_N[math.layout.slice_of(unit.index)] += decode_unit(math, entry, blob, unit.index).double()
        open_N = self.residual_N.double() + (self.anchor_N.double() - self.theta_N.double())
        return float((self.inner.updates_N + listed_N + open_N).norm() / self.inner.updates_N.norm())

    # ---------------------------------------------------------------- the node's work

    def turn(self) -> None:
        self.trainer.turn(0.0)

    def tick(self) -> None:
        self._measure()
        self.post(Tick())

    def post(self, fact: Fact) -> None:
        """One step of the machine, and its effects."""
        for effect in self.participant.step(fact, self.group.now_s):
            self._perform(effect)
        if self.participant.view != self._saved_view:
            self._saved_view = self.participant.view
            self.handoff.give(work.SetView(self._saved_view))
        if self.participant.opened != self._opened:
            self._opened = self.participant.opened
            if self._opened:
                self.handoff.give(work.OpenRound(self._opened))

    def seal(self, message: object) -> bytes:
        return seal_message(self.place.keypair, RUN, message)

    def _before(self, what: SavedState | Report) -> None:
        if self.dies_at is not None and self.dies_at(self, what):
            raise Killed

    def _saved(self) -> None:
        self.group.saved_updates[self.place.number] = self.inner.updates_N.clone()

    def _reported(self, report: Report) -> None:
        self.reports.append(report)
        match report:
            case work.Progress():
                self._progress = report
            case CutDone():
                self._pin(report.contribution.root)
                self._measure()
                self.post(report)
            case work.Moved():
                self.server.state, self.server.log = report.record, report.log
                self._pin(*(entry.root for commit in report.log for entry in commit.commit.entries))
                self.group.note(self, report)
                self._measure()
                self.post(HeadReached(report.record.chain, record_digest(report.record), report.still_pending))
            case work.MoveFailed(reason):
                self.post(CatchUpEnded(reason))

    def _measure(self) -> None:
        progress = self._progress
        self.post(Measured(Figures(progress.tokens_since_cut, progress.steps_since_cut)))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, message, sealed):
                self.group.send(self, to, message, self.seal(message) if sealed is None else sealed)
            case RequestCut(reason):
                self.handoff.give(work.CutNow(reason))
            case Fetch(contribution, holders):
                self.group.later(self, lambda: self._fetch(contribution, holders))
            case MoveTo(commit):
                for one in self.group.commits_to_apply(self, commit):
                    self.handoff.give(work.ApplyCommits(one.parent, (one,)))
            case CatchUp(peers, whole):
                self.group.later(self, lambda: self._catch_up(peers, whole))
            case Happened(event):
                self.events.append(event)

    def _fetch(self, contribution: Contribution, holders: tuple[PeerId, ...]) -> None:
        root = contribution.root
        self._pin(root)
        if self.group.withheld(self, contribution):
            self.post(BlobFailed(root, "withheld by the test"))
            return
        try:
            self.group.run(self._fetcher.fetch(root, holders, contribution.num_bytes))
            check_contribution(self.replica.math, _as_entry(contribution), self.store.read(root))
        except (NetworkError, RemoteError, StateError) as error:
            self.post(BlobFailed(root, str(error)))
        else:
            self.post(BlobStored(root))

    def _catch_up(self, peers: tuple[PeerId, ...], whole: bool) -> None:
        others = [heard.status.peer for heard in self.participant.presence.fresh(self.group.now_s)]
        asked = tuple(dict.fromkeys([*peers, *others]))
        try:
            target = self.group.run(self._catcher.find(asked, self.replica.chains, whole=whole))
        except (NetworkError, RemoteError, StateError) as error:
            self.post(CatchUpEnded(str(error)))
            return
        order = target.order
        if isinstance(order, work.AdoptState):
            self._pin(*(unit.root for unit in order.record.units))
        else:
            self._pin(*(entry.root for commit in order.commits for entry in commit.commit.entries))
        self.handoff.give(order)

    def _pin(self, *roots: Digest) -> None:
        self._pinned.update(dict.fromkeys(roots))
        self.store.pin("network", self._pinned)


class Group:
    """Members by number, sorted by peer id, and the mail between them. A context manager: it owns an event loop."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        num_members: int,
        *,
        batches: Sequence[
            int
        ] = (),  # windows of a step by member, where they differ; each divides config.lease_windows
        dtype: torch.dtype = torch.float32,
        arrival_seed: int | None = None,  # None: mail arrives in the order it was sent
        checkpoints: bool = False,
    ) -> None:
        self.config, self.dtype, self.checkpoints = config, dtype, checkpoints
        self.now_s = 0.0
        self.states: dict[Digest, Digest] = {}  # head -> state digest
        self.commits: dict[Digest, Commit] = {}  # head -> the commit that led to it
        self.saved_updates: dict[int, Tensor] = {}  # by member: the inner updates that its saved state holds
        self.deaths: list[int] = []
        # What a test may bend: contributions that a member cannot fetch, the bytes of a message on its way, and what a
        # member's trainer is told to apply when its machine wants it to apply a commit.
        self.withheld: Callable[[Member, Contribution], bool] = lambda fetcher, contribution: False
        self.rewrite: Callable[[Member, Member, Any, bytes], bytes] = lambda sender, to, message, raw: raw
        self.commits_to_apply: Callable[[Member, Commit], list[Commit]] = lambda member, commit: [commit]
        self._arrival = None if arrival_seed is None else random.Random(arrival_seed)
        self._mail: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._loop = asyncio.new_event_loop()
        keypairs = sorted((Keypair.from_seed(bytes([7 + n] * 32)) for n in range(num_members)), key=lambda k: k.peer_id)
        own_configs = [with_batch(config, batch) for batch in batches] or [config] * num_members
        self.places = [
            Place(number, keypair, folder / f"member-{number}", own_config)
            for number, (keypair, own_config) in enumerate(zip(keypairs, own_configs, strict=True))
        ]
        self._members: dict[int, Member] = {}
        for place in self.places:
            self.start(place.number)  # introduces it to those before it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._loop.shutdown_default_executor())
        self._loop.close()

    # ---------------------------------------------------------------- life

    def start(self, number: int) -> Member:
        """Starts the process of a member, from what its folder holds."""
        member = Member(self, self.places[number])
        for other in self.members:
            for one, to in ((member, other), (other, member)):
                self.send(one, to.id, None, one.seal(one.participant.status()))
        self._members[number] = member
        member.trainer.begin()
        return member

    def kill(self, number: int) -> None:
        """Ends a member's process where it is."""
        del self._members[number]

    def __getitem__(self, number: int) -> Member:
        return self._members[number]

    @property
    def members(self) -> list[Member]:
        return list(self._members.values())

    def by_id(self, peer: PeerId) -> Member | None:
        return next((member for member in self.members if member.id == peer), None)

    # ---------------------------------------------------------------- running

    def sweep(self) -> None:
        """Mail that is due, one pass of each trainer, one tick. A member that dies in it starts again from its disk."""
        self._deliver()
        for member in self.members:
            with suppress(Killed):
                member.turn()
                continue
            self.deaths.append(member.place.number)
            self.kill(member.place.number)
            self.start(member.place.number)
        self.now_s += SWEEP_S
        for member in self.members:
            member.tick()

    def run_until(self, reached: Callable[[], bool]) -> None:
        for _ in range(MAX_SWEEPS):
            if reached():
                return
            self.sweep()
        waits = [(member.version, member.participant.waits_for) for member in self.members]
        raise AssertionError(f"not reached after {self.now_s:.0f} s of virtual time: {waits}")

    def run_to(self, version: int) -> None:
        """Until everyone has reached that version; those ahead may be further."""
        self.run_until(lambda: all(member.version >= version for member in self.members))

    def settle(self, version: int) -> None:
        """Until everyone stands at one head of at least that version."""
        self.run_until(
            lambda: len({member.head for member in self.members}) == 1 and self.members[0].version >= version
        )

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        return self._loop.run_until_complete(coroutine)

    # ---------------------------------------------------------------- mail

    def send(self, sender: Member, to: PeerId, message: object, raw: bytes) -> None:
        def arrive() -> None:
            receiver = self.by_id(to)
            if receiver is None:
                sender.post(Unreached(to))
                return
            _at_once(receiver.server.handle(sender.id, self.rewrite(sender, receiver, message, raw)))

        self._put(arrive)

    def later(self, member: Member, then: Callable[[], None]) -> None:
        """Runs `then` with the mail, if the member's process is still there."""
        self._put(lambda: then() if member in self.members else None)

    def _put(self, deliver: Callable[[], None]) -> None:
        delay_s = 0.0 if self._arrival is None else self._arrival.uniform(0.0, MAX_DELAY_S)
        heapq.heappush(self._mail, (self.now_s + delay_s, next(self._numbers), deliver))

    def _deliver(self) -> None:
        while self._mail and self._mail[0][0] <= self.now_s:
            heapq.heappop(self._mail)[2]()

    # ---------------------------------------------------------------- laws

    def note(self, member: Member, moved: work.Moved) -> None:
        """A member reached a head: equal heads have equal digests."""
        head, digest = moved.record.chain.head, record_digest(moved.record)
        assert self.states.setdefault(head, digest) == digest, (
            f"member {member.place.number} differs at version {moved.record.chain.version}"
        )
        for commit in moved.log:
            self.commits[chains.head_after(commit.parent, commit.commit)] = commit

    def chain_to(self, head: Digest) -> list[Commit]:
        """The commits that lead to a head, oldest first."""
        found: list[Commit] = []
        while head in self.commits:
            found.append(self.commits[head])
            head = found[-1].parent
        return found[::-1]

    def entries_of(self, head: Digest) -> list[Entry]:
        """Everything that the chain up to a head lists."""
        return [entry for commit in self.chain_to(head) for entry in commit.commit.entries]

    def digests_to(self, head: Digest) -> list[Digest]:
        """The state digests of versions 1, 2 ... up to a head."""
        heads = [chains.head_after(commit.parent, commit.commit) for commit in self.chain_to(head)]
        return [self.states[one] for one in heads]


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


def _open_contribution(sealed: bytes) -> Contribution:
    contribution: Contribution = open_as(Contribution, sealed, run=RUN)
    return contribution


def _at_once(coroutine: Coroutine[Any, Any, bytes]) -> None:
    """Runs a coroutine that has nothing to wait for: a one-way message at its server."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("a one-way message made its server wait")


def _as_entry(contribution: Contribution) -> Entry:
    shared = ("author", "seq", "incarnation", "root", "first_unit", "end_unit", "tokens", "steps")
    return Entry(**{name: getattr(contribution, name) for name in shared})
