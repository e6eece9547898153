"""The training loop of a peer: inner steps, cuts, heads. Runs in the main thread; everything blocking here is torch or disk.

One pass of the loop: carry out an order, or take an inner step, or cut, or wait. A step boundary is the only place where
anything else happens, so a cut sees whole steps and a head never lands inside one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from peer import fault_point
from peer.checkpoints import Checkpoints
from peer.data.windows import Windows
from peer.handoff import (
    AdoptState,
    ApplyCommits,
    CheckpointSkipped,
    CutNow,
    Evaluation,
    Handoff,
    Moved,
    MoveFailed,
    OpenRound,
    Order,
    Progress,
    Report,
    SetView,
    StepDropped,
    Stop,
    TrainerEnded,
)
from peer.learning_rate import learning_rate, swarm_tokens_now
from peer.moments import fit_moments
from peer.replica import Replica
from peer.step import InnerTrainer
from swarm.allreduce import ledger
from swarm.allreduce.layout import flatten, unflatten_into
from swarm.allreduce.mean import MAX_ROUNDS
from swarm.config import RunConfig
from swarm.errors import LocalError, RemoteError, StateError
from swarm.identity import PeerId
from swarm.messages import Contribution, TimeSplit
from swarm.round.facts import CutDone

IDLE_WAIT_S: Final = 0.2  # how long the trainer sleeps at most when there is nothing to do
_RATE_STEPS: Final = 20  # inner steps that tokens per second are averaged over

Sign = Callable[[Contribution], bytes]


@dataclass(slots=True)
class _Clocks:
    """Where this round's time went, and when things happened, in seconds."""

    split: TimeSplit
    cut_at_s: float = 0.0

    def spend(self, on: str, seconds: float) -> None:
        self.split = replace(self.split, **{on: getattr(self.split, on) + seconds})


class Trainer:
    """Owns model, optimizer and replica; `run` returns when it was told to stop, with everything saved."""

    def __init__(
        self,
        config: RunConfig,
        replica: Replica,
        inner: InnerTrainer,
        windows: Windows,
        handoff: Handoff,
        sign: Sign,
        checkpoints: Checkpoints,
    ) -> None:
        self._config = config
        self._replica = replica
        self._inner = inner
        self._windows = windows
        self._handoff = handoff
        self._sign = sign
        self._checkpoints = checkpoints
        self._parameters = dict(inner.model.named_parameters())
        self._clocks = _Clocks(TimeSplit())
        self._members: tuple[PeerId, ...] = replica.present.state.chain.roster
        self._cut_hinted = False
        self._unsaved_steps = 0
        self.last_version: int | None = None  # behind it nothing more is trained
        self._recent: list[tuple[float, int]] = []  # end and tokens of the last inner steps
        self._progress = Progress()

    # ---------------------------------------------------------------- beginning

    def load(self, theta_N: Tensor, moments: Mapping[str, Tensor]) -> str:
        """Puts parameters, and the optimizer's saved moments if there are any, in place; returns a note about them."""
        self._set_theta(theta_N)
        if not moments:
            return ""
        fitted, note = fit_moments(moments, self._inner.optimizer)
        if fitted is not None:
            self._inner.optimizer.load_state_tensors(fitted)
        return note

    def run(self) -> str:
        """Trains until an order to stop; returns its reason."""
        self.begin()
        while (stop := self.turn(IDLE_WAIT_S)) is None:
            pass
        if self._unsaved_steps:  # a second copy of what is on disk would only push out the generation before it
            self._save()
        self._handoff.report(TrainerEnded(stop.reason))
        return stop.reason

    def begin(self) -> None:
        """What the version it starts from brings: its evaluation and checkpoint. Before the first turn."""
        replica = self._replica
        if not (replica.pending or replica.work.steps) and replica.leases.remaining < self._config.inner.batch_windows:
            replica.lease_anew(self._members)  # a disk that was damaged keeps leases longer than the work done on them
        self._reach_version()

    def turn(self, wait_s: float) -> Stop | None:
        """One pass of the loop: an order, a cut, an inner step, or a wait of at most `wait_s`; returns an order to stop."""
        step_due = self._may_step()
        order = self._handoff.next_order(0.0 if step_due or self._must_cut() else wait_s)
        if isinstance(order, Stop):
            return order
        if order is not None:
            self._carry_out(order)
        elif self._must_cut():
            self._cut()
        elif step_due:
            self._step()
        else:
            self._clocks.spend("wait_s", wait_s)
            self._report()
        return None

    def _carry_out(self, order: Order) -> None:
        match order:
            case OpenRound(members):
                self._open(members)
            case CutNow():
                self._cut_hinted = not self._replica.pending
            case SetView(view):
                self._replica.view = view
            case ApplyCommits(base, commits, roots, caught_up):
                self._move(lambda theta_N: self._replica.apply(base, commits, roots, theta_N), caught_up)
            case AdoptState(record, root, keep):
                self._move(
                    lambda theta_N: self._replica.adopt(record, root, theta_N, keep_progress=keep),
                    True,
                    gives_up=not keep,
                )
            case Stop():
                raise LocalError("a stop is handled by `turn`")

    # ---------------------------------------------------------------- inner steps

    def _open(self, members: tuple[PeerId, ...]) -> None:
        """These start: at genesis, or in place of a roster of which nobody is left."""
        if members != self._members:
            self._members = members
            self._replica.lease(members)

    @property
    def waits_for(self) -> str:
        """What keeps us from training on, where we would; "" while nothing does."""
        return self._why_waiting() if self._may_train() else ""

    def _may_step(self) -> bool:
        """Whether an inner step is due now."""
        return self._may_train() and not self._why_waiting()

    def _may_train(self) -> bool:
        """Whether we train at this head: as a member, if this round's cut has not been made, or training goes on underneath,
        or the exchange took so long that waiting for it would be a waste."""
        if self._replica.author not in self._members or self._must_cut():
            return False
        if self.last_version is not None and self._replica.present.state.chain.version >= self.last_version:
            return False
        if not self._replica.pending:
            return True
        late = time.monotonic() - self._clocks.cut_at_s > self._config.round.exchange_deadline_s
        return self._config.round.overlap or late

    def _why_waiting(self) -> str:
        """What training waits for; "" while an inner step may be taken.

        What a commit has not listed yet is at most MAX_ROUNDS rounds' worth of steps, of which at most one is done while a
        contribution is pending: handed in at once, more than that would throw the model back.
        """
        replica, round_steps = self._replica, self._config.round_steps
        steps = replica.work.steps
        if replica.pending and steps >= min(round_steps, MAX_ROUNDS * round_steps - replica.pending_steps):
            ahead = "one round" if steps == round_steps else f"{steps} steps"
            seq, since = replica.pending[0], replica.contributions[replica.pending[0]][0].version
            return f"waiting for a commit: trained {ahead} ahead, contribution {seq} is pending since version {since}"
        if replica.leases.remaining < self._config.inner.batch_windows:
            version = replica.present.state.chain.version
            return f"waiting for a commit: the lease of version {version} is used up, {steps} steps since the last cut"
        return ""

    def _must_cut(self) -> bool:
        if self._replica.pending or not self._replica.work.steps:
            return False
        full = 0 < self._config.round.local_steps <= self._replica.work.steps
        is_large = len(self._members) > self._config.round.max_listed  # its leader says whose turn it is
        return self._cut_hinted or (full and not is_large)

    def _step(self) -> None:
        work, chain = self._replica.work, self._replica.present.state.chain
        slots = self._replica.leases.take(self._config.inner.batch_windows)
        fault_point.reached("training")
        own = work.tokens + len(slots) * self._config.data.sequence_length
        rate = learning_rate(self._config.inner, swarm_tokens_now(chain.tokens, own, chain.entries))
        result = self._inner.step(self._windows.train(slots), rate)
        self._clocks.spend("compute_s", result.seconds)
        if result.applied:
            work.tokens += result.num_tokens
            work.steps += 1
            self._unsaved_steps += 1
        else:
            self._handoff.report(StepDropped(f"loss {result.loss}, gradient norm {result.grad_norm}: not applied"))
        self._recent = [*self._recent, (time.monotonic(), result.num_tokens)][-_RATE_STEPS:]
        self._progress = replace(self._progress, train_loss=result.loss if result.applied else None)
        self._report()

    # ---------------------------------------------------------------- cuts and heads

    def _cut(self) -> None:
        """CUT: encoded, signed and on disk before the network hears of it."""
        started = time.monotonic()
        chain = self._replica.present.state.chain
        theta_N = self._theta()
        seq, root, num_bytes, work = self._replica.cut(theta_N)
        fault_point.reached("cut-encoded")
        contribution = Contribution(
            author=self._replica.author,
            incarnation=self._replica.incarnation,
            seq=seq,
            root=root,
            num_bytes=num_bytes,
            first_unit=0,
            end_unit=len(self._replica.math.layout.units),
            tokens=work.tokens,
            steps=work.steps,
            since_version=work.since_version,
            version=chain.version,
            head=chain.head,
        )
        sealed = self._sign(contribution)
        self._replica.announced(contribution, sealed)
        self._replica.lease_ahead(self._members)
        self._save(theta_N)
        fault_point.reached("cut-saved")
        self._cut_hinted = False
        self._clocks.cut_at_s = time.monotonic()
        self._clocks.spend("encode_s", self._clocks.cut_at_s - started)
        self._handoff.report(CutDone(contribution, sealed))
        self._report()

    def _move(self, move: Callable[[Tensor], ledger.Moved], caught_up: bool, *, gives_up: bool = False) -> None:
        """HEAD, whatever the reason: on disk before the network hears of it. `gives_up`: our own work goes with it."""
        started = time.monotonic()
        dropped = self._replica.unlisted_tokens if gives_up else 0
        try:
            moved = move(self._theta())
        except (RemoteError, StateError) as error:
            self._handoff.report(MoveFailed(str(error)))
            return
        fault_point.reached("head-computed")
        self._set_theta(moved.theta_N)
        self._members = self._replica.present.state.chain.roster
        # A hint that came in the middle of the very first step still stands: a slow card would otherwise never cut.
        self._cut_hinted = self._cut_hinted and self._replica.work.steps > 0
        self._replica.lease(self._members)
        self._save(moved.theta_N)
        fault_point.reached("head-saved")
        if self._clocks.cut_at_s:
            self._clocks.spend("exchange_s", max(0.0, started - self._clocks.cut_at_s))
        self._clocks.spend("apply_s", time.monotonic() - started)
        self._handoff.report(
            Moved(
                record=self._replica.present.record,
                chains=self._replica.chains,
                roots=self._replica.roots,
                log=self._replica.log,
                still_pending=self._replica.pending,
                undone=len(moved.undone),
                dropped_tokens=dropped,
                caught_up=caught_up,
            )
        )
        self._reach_version()
        self._report()
        self._clocks = _Clocks(TimeSplit(), self._clocks.cut_at_s)

    def _reach_version(self) -> None:
        """What a version brings besides training: its evaluation, and its checkpoint."""
        chain = self._replica.present.state.chain
        keeps = self._checkpoints.is_due(chain.version)
        if not keeps and not self._evaluates(chain.version):
            return
        loss = self._evaluate_anchor()
        self._progress = replace(self._progress, heldout_loss=loss, heldout_version=chain.version)
        self._handoff.report(Evaluation(chain.version, loss))
        if keeps:
            self._handoff.report(self._kept(loss))

    def _kept(self, loss: float) -> Report:
        """The checkpoint of this version. It is for others: where the disk has no room for it, training goes on without."""
        try:
            return self._checkpoints.keep(self._replica.present, loss)
        except StateError as error:
            return CheckpointSkipped(self._replica.present.state.chain.version, str(error))

    def _evaluates(self, version: int) -> bool:
        """The members take turns: one evaluates each version."""
        return bool(self._members) and self._members[version % len(self._members)] == self._replica.author

    def _evaluate_anchor(self) -> float:
        theta_N = self._theta()
        anchor_N = self._replica.present.state.anchor_N
        is_anchor = torch.equal(theta_N, anchor_N)
        if not is_anchor:
            self._set_theta(anchor_N)
        loss = self._inner.evaluate(self._windows.heldout(range(self._config.data.eval_windows)))
        if not is_anchor:
            self._set_theta(theta_N)
        return loss

    # ---------------------------------------------------------------- small change

    def _theta(self) -> Tensor:
        return flatten(self._replica.math.layout, self._parameters, self._replica.math.dtype)

    def _set_theta(self, theta_N: Tensor) -> None:
        unflatten_into(self._replica.math.layout, theta_N, self._parameters)

    def _save(self, theta_N: Tensor | None = None) -> None:
        state = self._inner.optimizer.state_tensors()
        optimizer = save_safetensors({name: one.contiguous() for name, one in state.items()}) if state else None
        self._replica.save(self._theta() if theta_N is None else theta_N, optimizer)
        self._unsaved_steps = 0

    def _report(self) -> None:
        work = self._replica.work
        self._progress = replace(
            self._progress,
            tokens_since_cut=work.tokens,
            steps_since_cut=work.steps,
            tokens_per_s=self._tokens_per_s(),
            time=self._clocks.split,
            waits_for=self.waits_for,
        )
        self._handoff.report(self._progress)

    def _tokens_per_s(self) -> float:
        if len(self._recent) < 2:
            return 0.0
        elapsed_s = time.monotonic() - self._recent[0][0]
        return sum(tokens for _, tokens in self._recent[1:]) / elapsed_s if elapsed_s > 0 else 0.0
