"""One peer of a swarm in memory: everything that the product builds, and the network side's work done at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from peer import handoff as work
from peer.catch_up import Catcher
from peer.checkpoints import Checkpoints
from peer.fetch import Asker, Fetcher
from peer.handoff import Handoff, Report
from peer.inner import make_inner_optimizer
from peer.model import build_model, genesis_digest, initial_parameters, layout_of
from peer.replica import Replica
from peer.saved import SavedState
from peer.serve import Server
from peer.tokenizer_file import byte_tokenizer_file
from peer.trainer import Trainer
from swarm import chain as chains
from swarm.allreduce.codec import make_codec
from swarm.allreduce.layout import flatten
from swarm.allreduce.shared import OpenedContribution, RunMath, check_contribution, genesis_state
from swarm.chain import Entry
from swarm.config import RunConfig
from swarm.digest import Digest, digest_of
from swarm.errors import NetworkError, RemoteError, StateError, Unreachable
from swarm.events import Event
from swarm.identity import Keypair, PeerId
from swarm.messages import Contribution, record_digest, seal_message
from swarm.round import own
from swarm.round.catch_up import CatchUpRequest
from swarm.round.commits import Seals, roots_of
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
    MoveFailed,
    MoveTo,
    Received,
    RequestCut,
    Send,
    Tick,
    WayFound,
)
from swarm.round.participant import Participant
from tests.equivalence.stand_ins import (
    Killed,
    NoCheckpoints,
    QuickStore,
    TinyText,
    WatchedGenerations,
    WatchedTrainer,
)

if TYPE_CHECKING:
    from tests.equivalence.group import Group

RUN = digest_of("test-run")


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
        if other is None or self._group.are_apart(self._me, peer):
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
        # The run's arithmetic is the same for all, whatever batch a member has of its own.
        math = RunMath.of(group.config, layout, make_codec(config.codec), dtype)
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
        checkpoints = kind(place.folder / "checkpoints", RUN, config, layout, byte_tokenizer_file())
        self.trainer = Trainer(
            config,
            self.replica,
            self.inner,
            self.text,  # type: ignore[arg-type]
            self.handoff,
            self.seal,
            checkpoints,
        )
        self.trainer.load(theta_N, load_safetensors(saved_optimizer) if saved_optimizer else {})
        self._seals = Seals.of(place.keypair, RUN)
        self._asker = Asker(_Wire(group, self.id), place.keypair, RUN)  # type: ignore[arg-type]
        self._fetcher = Fetcher(self._asker, self.store)
        self._catcher = Catcher(self._asker, self._fetcher, self._seals.verifier, config.lease)
        self.server = Server(place.keypair, RUN, b"", self.store)
        self.server.state, self.server.log = self.replica.present.record, self.replica.log
        self.participant = self._make_participant(config)
        self.server.connect(
            lambda sender, message, raw: self.post(Received(sender, message, raw)), list, self.participant.status
        )
        self._pinned: dict[Digest, None] = {}
        self.left_tokens = 0  # of branches that were left, declared
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
        start = HeadReached(present.state.chain, record_digest(present.record), present.root)
        participant = Participant(me, config, start, self._seals, self.replica.view)
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
                blob = next(one.store for one in self.group.members if one.store.has(entry.root)).read(entry.root)
                opened = OpenedContribution(math, entry, blob)
                for unit in math.layout.units:
                    listed_N[math.layout.slice_of(unit.index)] += opened.unit(unit.index).double()
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
                self._pin(*(root for commit in report.log for root in roots_of(commit.commit)))
                self.group.note(self, report)
                self._measure()
                digest = record_digest(report.record)
                self.post(HeadReached(report.record.chain, digest, report.roots[0], report.still_pending))
            case work.MoveFailed():
                self.post(MoveFailed())

    def _measure(self) -> None:
        progress = self._progress
        figures = Figures(progress.tokens_since_cut, progress.steps_since_cut, waits_for=progress.waits_for)
        self.post(Measured(figures))

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(to, message, sealed):
                self.group.send(self, to, message, self.seal(message) if sealed is None else sealed)
            case RequestCut(reason):
                self.handoff.give(work.CutNow(reason))
            case Fetch(contribution, holders):
                self.group.later(self, lambda: self._fetch(contribution, holders))
            case MoveTo(commit, root):
                for one in self.group.commits_to_apply(self, commit):
                    self.handoff.give(work.ApplyCommits(one.parent, (one,), (root,)))
            case CatchUp():
                self.group.later(self, lambda: self._catch_up(effect))
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
            check_contribution(self.replica.math, as_entry(contribution), self.store.read(root))
        except (NetworkError, RemoteError, StateError) as error:
            self.post(BlobFailed(root, str(error)))
        else:
            self.post(BlobStored(root))

    def _catch_up(self, wish: CatchUp) -> None:
        others = [heard.status.peer for heard in self.participant.presence.fresh(self.group.now_s)]
        head = self.head

        def begins() -> bool:
            self.post(WayFound(head))
            return self.participant.is_moving_on

        request = CatchUpRequest(
            me=self.id,
            peers=tuple(dict.fromkeys([*wish.peers, *others])),
            chains=self.replica.chains,
            roots=self.replica.roots,
            stands=self.participant.turn.stands(),
            views=self.participant.turn.acceptable_views,
            is_among_strangers=self.participant.turn.is_among_strangers,
            units=self.replica.present.record.units,
            whole=wish.whole,
            digest=self.participant.state_digest,
        )
        try:
            target = self.group.run(self._catcher.find(request, begins))
        except (NetworkError, RemoteError, StateError) as error:
            self.post(CatchUpEnded(str(error), is_refused=getattr(error, "is_refused", False)))
            return
        order, self.left_tokens = target.order, self.left_tokens + target.left_tokens
        if isinstance(order, work.ApplyCommits):
            self._pin(*(root for commit in order.commits for root in roots_of(commit.commit)))
        else:
            self._pin(*(unit.root for unit in order.record.units))
        self.handoff.give(order)

    def _pin(self, *roots: Digest) -> None:
        self._pinned.update(dict.fromkeys(roots))
        self.store.pin("network", self._pinned)


def as_entry(contribution: Contribution) -> Entry:
    shared = ("author", "seq", "incarnation", "root", "first_unit", "end_unit", "tokens", "steps")
    return Entry(**{name: getattr(contribution, name) for name in shared})
