"""A peer's copy of the run: the last shared states, its own ledger and the commit log, in memory and on disk.

Belongs to the trainer's thread. Every change is a transaction: computed aside, written to disk, then made the present
state; whoever hears of it hears of something that is on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from peer import fault_point
from peer.blob_store import BlobStore
from peer.saved import Generations, SavedCut, SavedState
from swarm import chain as chains
from swarm import wire
from swarm.allreduce.codec import bytes_of, vector_from
from swarm.allreduce.ledger import (
    UNDO_DEPTH,
    CutRecord,
    Ledger,
    Moved,
    cut,
    joined,
    move_head,
    residual_after,
    withdraw,
)
from swarm.allreduce.shared import RunMath, SharedState, after_commit, from_snapshot, snapshot
from swarm.chain import MAX_AGE_VERSIONS, ChainState
from swarm.digest import Digest
from swarm.errors import RemoteError, StateError
from swarm.identity import PeerId
from swarm.lease import Lease, LeaseQueue, leases
from swarm.messages import Commit, Contribution, StateRecord, open_as, record_digest
from swarm.round.commits import roots_of
from swarm.round.root import Root, root_at

KEPT_STATES: Final = 3  # the present version and the two that an undo may go back to
KEPT_LOG_BYTES: Final = 16 << 30  # of contributions; at 8 bits, 8 members of a 1.4 B model fill 11 GiB a commit
KEPT_COMMITS: Final = 16  # for whoever missed a few rounds


_Private = tuple[Tensor, Ledger, dict[int, tuple[Contribution, bytes]]]  # theta, ledger, contributions


@dataclass(slots=True)
class Work:
    """What was done since the last cut."""

    tokens: int = 0
    steps: int = 0
    since_version: int = 0


@dataclass(frozen=True, slots=True)
class Version:
    """A shared state with its record."""

    state: SharedState
    record: StateRecord
    root: Root

    @property
    def digest(self) -> Digest:
        return record_digest(self.record)


class Replica:
    """States, ledger, log and counters of one peer."""

    def __init__(self, math: RunMath, author: PeerId, run: Digest, store: BlobStore, generations: Generations) -> None:
        self.math = math
        self.author = author
        self.run = run
        self.store = store
        self.leases = LeaseQueue()
        self.work = Work()
        self.incarnation = 0
        self.next_seq = 1
        self.view = 0
        self.log: tuple[Commit, ...] = ()
        self.contributions: dict[int, tuple[Contribution, bytes]] = {}  # ours that are not forgotten, with signed bytes
        self.generations = generations
        self._generation = 0
        self._versions: list[Version] = []  # the present one last
        self._ledger: Ledger
        self._roots: dict[int, Digest] = {}  # of the blobs of our cuts that the ledger has a record of
        self._digests: dict[int, tuple[Tensor, Digest]] = {}  # tensors that are on disk already, by id

    # ---------------------------------------------------------------- reading

    @property
    def present(self) -> Version:
        return self._versions[-1]

    @property
    def heads(self) -> tuple[Digest, ...]:
        """Heads that we can go back to, newest first."""
        return tuple(version.state.chain.head for version in reversed(self._versions))

    @property
    def chains(self) -> tuple[ChainState, ...]:
        """The chain states of those heads, newest first."""
        return tuple(version.state.chain for version in reversed(self._versions))

    @property
    def roots(self) -> tuple[Root, ...]:
        """The root of each of them."""
        return tuple(version.root for version in reversed(self._versions))

    @property
    def pending(self) -> tuple[int, ...]:
        return tuple(sorted(self._ledger.pending))

    @property
    def unlisted_tokens(self) -> int:
        """Tokens of work that no commit has listed: of the pending contributions, and since the last cut."""
        return self.work.tokens + sum(record.tokens for record in self._ledger.pending.values())

    @property
    def pending_steps(self) -> int:
        """Inner steps of the pending contributions."""
        return sum(record.steps for record in self._ledger.pending.values())

    def version_of(self, head: Digest) -> Version | None:
        return next((version for version in self._versions if version.state.chain.head == head), None)

    # ---------------------------------------------------------------- beginning

    def begin(self, state: SharedState) -> None:
        """Starts without a past, from version 0 or from a snapshot."""
        self._versions = [self._versioned(state, root_at(state.chain))]
        self._ledger = joined(self.author, state)
        self.next_seq = max(self.next_seq, state.chain.highest_seq(self.author) + 1)
        self.work = Work(since_version=state.chain.version)
        self.lease(state.chain.roster)  # a member that lost its past

    def begin_from(self, record: StateRecord) -> None:
        """Starts without a past from a snapshot whose blobs are in the store. Raises MalformedBytes or StateError."""
        self.begin(self._version_on_disk(record, root_at(record.chain)).state)

    def restore(self, saved: SavedState) -> Tensor:
        """Takes a saved generation up again; returns theta. Raises StateError or MalformedBytes, changing nothing."""
        self._check_run(saved)
        versions = [self._version_on_disk(*one) for one in zip(saved.states, saved.roots, strict=True)]
        return self._take_up(saved, versions, self._private_on_disk(saved, versions[-1]))

    def salvage(self, saved: SavedState) -> tuple[Tensor, str]:
        """Takes up what is whole of a damaged generation: the present version, those before it as far back as they are
        whole, and our private part if all of it is. Returns theta, and what was wrong with the private part: then the
        residual is zero, theta the anchor, and the contributions that wait are forgotten; their numbers are not used again.

        Raises StateError or MalformedBytes when the present version itself is damaged; then nothing has changed.
        """
        self._check_run(saved)
        versions = [self._version_on_disk(saved.states[-1], saved.roots[-1])]
        with suppress(StateError, RemoteError):
            for one in reversed(tuple(zip(saved.states[:-1], saved.roots[:-1], strict=True))):
                versions.insert(0, self._version_on_disk(*one))
        try:
            return self._take_up(saved, versions, self._private_on_disk(saved, versions[-1])), ""
        except (StateError, RemoteError) as error:
            fault = str(error)
        state = versions[-1].state
        theta_N = self._take_up(saved, versions, (state.anchor_N, joined(self.author, state), {}))
        self.work = Work(since_version=state.chain.version)
        return theta_N, fault

    def _check_run(self, saved: SavedState) -> None:
        if saved.run != self.run:
            raise StateError(f"it belongs to run {saved.run}, not {self.run}")

    def _version_on_disk(self, record: StateRecord, root: Root) -> Version:
        blobs = [self.store.read(unit.root, check=True) for unit in record.units]
        return Version(from_snapshot(self.math, record, blobs), record, root)

    def _private_on_disk(self, saved: SavedState, present: Version) -> _Private:
        theta_N = present.state.anchor_N if saved.theta is None else self._vector(saved.theta)
        residual_N = self._vector(saved.residual)
        parts: tuple[dict[int, CutRecord], ...] = ({}, {}, {})
        for one in saved.cuts:
            delta_N, before_N = self._vector(one.delta), self._vector(one.before)
            after_N = residual_after(self.math, before_N, delta_N, self.store.read(one.blob, check=True))
            record = CutRecord(delta_N, before_N, after_N, one.tokens, one.steps, one.listed_at)
            parts[one.standing][one.seq] = record
        contributions = {
            one.seq: (open_as(Contribution, one.sealed, run=self.run), one.sealed) for one in saved.cuts if one.sealed
        }
        return theta_N, Ledger(self.author, residual_N, *parts), contributions

    def _take_up(self, saved: SavedState, versions: list[Version], private: _Private) -> Tensor:
        queue = LeaseQueue.from_value(wire.decode(saved.leases))
        theta_N, self._ledger, self.contributions = private
        self._roots = {cut.seq: cut.blob for cut in saved.cuts}
        self._versions = versions
        self.leases = queue
        self.work = Work(saved.tokens_since_cut, saved.steps_since_cut, saved.since_version)
        self.incarnation, self.next_seq, self.view = saved.incarnation, saved.next_seq, saved.view
        self.log = saved.log
        self._generation = saved.generation
        return theta_N

    def skip_numbers(self, generations: int) -> None:
        """After a fall-back over so many generations: each may have announced a number that this one has no record of.

        A number used twice would let a commit list the one blob and settle the other's record.
        """
        self.next_seq += generations

    def start_over(self, generations: Generations, last_generation: int) -> None:
        """Saves from now on among these, as if after `last_generation`, the last that a damaged state had: as no number
        was ever as high as the generation it was saved with, those from there on are unused."""
        self.generations = generations
        self._generation = last_generation
        self.next_seq = max(self.next_seq, last_generation + 1)

    # ---------------------------------------------------------------- the operations

    def lease(self, members: Sequence[PeerId]) -> None:
        """Takes the slots that the present head hands us as one of these."""
        cursor = self.present.state.chain.cursor
        self.leases.begin_round(cursor, self._lease_from(cursor, members))

    def lease_anew(self, members: Sequence[PeerId]) -> None:
        """Takes the slots of the present head once more: what was learned from them is lost, and nothing leads on."""
        self.leases = LeaseQueue()
        self.lease(members)

    def lease_ahead(self, members: Sequence[PeerId]) -> None:
        """Takes the slots that the next head will hand us if these are its members."""
        ahead = self._lease_from(self.present.state.chain.cursor + self.math.lease_windows * len(members), members)
        if ahead is not None:
            self.leases.add(ahead)

    def _lease_from(self, cursor: int, members: Sequence[PeerId]) -> Lease | None:
        return leases(cursor, members, self.math.lease_windows).get(self.author)

    def cut(self, theta_N: Tensor) -> tuple[int, Digest, int, Work]:
        """CUT: encodes the work since the last cut once and stores its blob; returns number, root, bytes, and the work.

        The caller seals the announcement, gives it to `announced`, and saves, before anybody hears of it.
        """
        seq, work = self.next_seq, self.work
        self._ledger, blob = cut(self.math, self._ledger, self.present.state, theta_N, seq, (work.tokens, work.steps))
        self.next_seq += 1
        self.work = Work(since_version=self.present.state.chain.version)
        self._roots[seq] = self.store.put(blob)
        return seq, self._roots[seq], len(blob), work

    def announced(self, contribution: Contribution, sealed: bytes) -> None:
        """The signed announcement of a cut."""
        self.contributions[contribution.seq] = (contribution, sealed)

    def apply(self, base: Digest, commits: Sequence[Commit], roots: Sequence[Root], theta_N: Tensor) -> Moved:
        """HEAD: from `base`, the present head or one we can go back to, through `commits`; `roots` belong to the heads behind
        them. Raises StateError for an unknown base, InvalidList or MalformedBytes for a commit that cannot be applied; then
        nothing has changed."""
        found = self.version_of(base)
        if found is None:
            raise StateError(f"head {base} is not among the last {KEPT_STATES} versions")
        kept = self._versions[: self._versions.index(found) + 1]
        for commit, root in zip(commits, roots, strict=True):
            state = after_commit(self.math, kept[-1].state, commit.commit, self.store.open_checked)
            kept.append(self._versioned(state, root))
        log = (*self._log_until(base), *commits)
        return self._move(kept[-KEPT_STATES:], log[-KEPT_COMMITS:], theta_N, found.state.chain)

    def adopt(self, record: StateRecord, root: Root, theta_N: Tensor, *, keep_progress: bool) -> Moved:
        """HEAD to a snapshot whose blobs are in the store. `keep_progress=False`: our own state was wrong, so the work on
        top of it is given up too."""
        blobs = [self.store.read(unit.root, check=True) for unit in record.units]
        version = Version(from_snapshot(self.math, record, blobs), record, root)
        if keep_progress:
            return self._move([version], (), theta_N)
        # From the new state to itself: measured from the old one, what was wrong with it would count as our progress.
        self._ledger, self._versions = joined(self.author, version.state), [version]
        self.work = Work(since_version=version.state.chain.version)
        self.leases = LeaseQueue()
        return self._move([version], (), version.state.anchor_N)

    def _move(
        self, versions: list[Version], log: tuple[Commit, ...], theta_N: Tensor, base: ChainState | None = None
    ) -> Moved:
        new = versions[-1].state
        moved = move_head(self._ledger, self.present.state, new, theta_N, base)
        self._take_back_withdrawn(moved.listed)
        ledger = moved.ledger
        for seq in list(ledger.pending):
            announced = self.contributions.get(seq)
            if announced is None or abs(announced[0].version - new.chain.version) > MAX_AGE_VERSIONS:
                # No commit can list it any more, or not for long, when we left a longer chain for a shorter one; its work
                # goes into the next cut.
                ledger = withdraw(ledger, seq)
                record = moved.ledger.pending[seq]
                self.work.tokens += record.tokens
                self.work.steps += record.steps
                if announced is not None:  # the leases of all the rounds it spans cap its weight
                    self.work.since_version = min(self.work.since_version, announced[0].since_version)
        self._versions, self._ledger, self.log = versions, ledger, self._affordable(log)
        self.next_seq = max(self.next_seq, new.chain.highest_seq(self.author) + 1)
        if not self.work.steps or self.work.since_version > new.chain.version:
            self.work.since_version = new.chain.version
        remembered = {*ledger.pending, *ledger.listed, *ledger.withdrawn}
        self.contributions = {seq: one for seq, one in self.contributions.items() if seq in remembered}
        self._roots = {seq: root for seq, root in self._roots.items() if seq in remembered}
        return moved

    def _affordable(self, log: tuple[Commit, ...]) -> tuple[Commit, ...]:
        """The newest commits of a log, as many as the disk is to hold the blobs of, and always those of an undo."""
        sizes = [self.store.size(roots_of(commit.commit)) for commit in log]
        first = 0
        while first < len(log) - UNDO_DEPTH and sum(sizes[first:]) > KEPT_LOG_BYTES:
            first += 1
        return log[first:]

    def _take_back_withdrawn(self, listed: Sequence[int]) -> None:
        """A withdrawn contribution that is listed after all took its tokens with it: they leave the coming cut, unless that
        was made already, when the next number was given."""
        for seq in listed:
            record = self._ledger.withdrawn.get(seq)
            if record is not None and seq == self.next_seq - 1:
                self.work.tokens -= record.tokens
                self.work.steps -= record.steps

    def _log_until(self, head: Digest) -> tuple[Commit, ...]:
        """The commits that lead to `head`; none if the log does not reach it."""
        for place, commit in enumerate(self.log):
            if commit.parent == head:
                return self.log[:place]
        reaches = self.log and chains.head_after(self.log[-1].parent, self.log[-1].commit) == head
        return self.log if reaches else ()

    # ---------------------------------------------------------------- the disk

    def save(self, theta_N: Tensor, optimizer: bytes | None) -> None:
        """Writes a generation and removes blobs that no kept one names. Raises StateError; then the last one stands."""
        ledger = self._ledger
        self._generation = max(self._generation + 1, self.next_seq)  # what `start_over` relies on
        saved = SavedState(
            generation=self._generation,
            run=self.run,
            incarnation=self.incarnation,
            next_seq=self.next_seq,
            view=self.view,
            states=tuple(version.record for version in self._versions),
            roots=tuple(version.root for version in self._versions),
            log=self.log,
            theta=None if _same_bits(theta_N, self.present.state.anchor_N) else self._on_disk(theta_N),
            residual=self._on_disk(ledger.residual_N),
            cuts=tuple(
                self._saved_cut(seq, standing, record)
                for standing, records in enumerate((ledger.pending, ledger.listed, ledger.withdrawn))
                for seq, record in sorted(records.items())
            ),
            optimizer=None if optimizer is None else self.store.put(optimizer),
            leases=wire.encode(self.leases.to_value()),
            tokens_since_cut=self.work.tokens,
            steps_since_cut=self.work.steps,
            since_version=self.work.since_version,
        )
        # Both the generation before and this one need their blobs until the older one is gone.
        self.store.pin("coming generation", saved.blobs())
        fault_point.reached("save-blobs")
        self.generations.write(saved)
        fault_point.reached("save-done")
        self.pin_generations()
        self._forget_digests(saved)

    def pin_generations(self) -> None:
        """Pins what the kept generations name, and collects the rest."""
        roots = {root for generation in self.generations.kept() for root in generation.blobs()}
        self.store.pin("generations", roots)
        self.store.pin("coming generation", ())
        self.store.collect()

    def _saved_cut(self, seq: int, standing: int, record: CutRecord) -> SavedCut:
        return SavedCut(
            seq=seq,
            standing=standing,
            blob=self._roots[seq],
            delta=self._on_disk(record.delta_N),
            before=self._on_disk(record.before_N),
            tokens=record.tokens,
            steps=record.steps,
            listed_at=record.listed_at,
            sealed=self.contributions[seq][1] if seq in self.contributions else b"",
        )

    def _on_disk(self, vector_N: Tensor) -> Digest:
        """The blob of a vector; one that was written before is not written again."""
        known = self._digests.get(id(vector_N))
        if known is not None and known[0] is vector_N:
            return known[1]
        root = self.store.put(bytes_of(vector_N))
        self._digests[id(vector_N)] = (vector_N, root)
        return root

    def _forget_digests(self, saved: SavedState) -> None:
        needed = saved.blobs()
        self._digests = {key: known for key, known in self._digests.items() if known[1] in needed}

    def _versioned(self, state: SharedState, root: Root) -> Version:
        record, blobs = snapshot(self.math, state)
        for blob in blobs:
            self.store.put(blob)
        return Version(state, record, root)

    def _vector(self, root: Digest) -> Tensor:
        vector_N = vector_from(self.store.read(root, check=True), self.math.dtype)
        self._digests[id(vector_N)] = (vector_N, root)
        return vector_N


def _same_bits(one_N: Tensor, other_N: Tensor) -> bool:
    return torch.equal(one_N.view(torch.uint8), other_N.view(torch.uint8))  # 0.0 equals -0.0, and is not the same
