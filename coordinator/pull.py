"""Pulling a checkpoint: from whoever holds it, verified chunk by chunk, resumed after a break, and put in place whole.

Peers that hold the newest version (or the one asked for) are asked for its record. Records of honest peers are equal but
for the evaluation; where they differ, the group that most peers back is taken. Then each file is fetched as a blob from
all of that group at once (`swarm/blobs.py` decides which chunk is asked of whom), into `NAME.part`; chunks that are there
from an earlier try are kept if their digests are right. Only when all files are complete are they renamed to their names.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import trio

from coordinator.ask import opened
from coordinator.clean import clean
from coordinator.groups import first_of
from swarm.blobs import Ask, BlobFetch
from swarm.digest import CHUNK_BYTES, Digest
from swarm.errors import ConfigError, MalformedBytes, NetworkError, RemoteError, StateError, Unreachable
from swarm.holders import Holders
from swarm.identity import Keypair, PeerId
from swarm.messages import CheckpointRecord, GetBlob, GetCheckpoint, seal_message
from swarm.net.transport import Transport

RECORD_NAME: Final = "barnraise-record.json"
SUFFIXES: Final = frozenset({".json", ".safetensors", ".txt", ".model"})  # none that anything would execute
MAX_BYTES: Final = 1 << 42
RECORD_TIMEOUT_S: Final = 5.0
INFO_TIMEOUT_S: Final = 10.0
CHUNK_TIMEOUT_S: Final = 30.0  # 1 MiB, four at once, at 1.2 Mbit/s
MAX_FILES_AT_ONCE: Final = 2
_TICK_S: Final = 0.25
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

Progress = Callable[[int, int, str], None]  # bytes had, bytes in all, what is under way


@dataclass(frozen=True, slots=True)
class Offer:
    """A record that one peer gave, with the sealed bytes that prove it."""

    holder: PeerId
    record: CheckpointRecord
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Pulled:
    """What was pulled."""

    directory: Path
    record: CheckpointRecord  # with one evaluation, if any holder had one
    holders: tuple[PeerId, ...]
    loss_spread: tuple[float, float] | None  # lowest and highest loss that holders measured
    num_bytes: int  # of all files
    fetched_bytes: int  # of them, over the network this time
    wrong_chunks: dict[PeerId, int]


class _Asker:
    """Signed questions, opened answers."""

    def __init__(self, transport: Transport, keypair: Keypair, run: Digest) -> None:
        self._transport, self._keypair, self._run = transport, keypair, run

    async def ask(self, to: PeerId, message: object, timeout_s: float) -> tuple[Any, bytes]:
        """The answer and its sealed bytes. Raises NetworkError or RemoteError."""
        sealed = seal_message(self._keypair, self._run, message)
        raw = await self._transport.request(to, sealed, timeout_s=timeout_s)
        return opened(raw, to, self._run), raw


async def pull(
    transport: Transport,
    keypair: Keypair,
    run: Digest,
    peers: Iterable[PeerId],
    out_dir: Path,
    *,
    version: int | None = None,
    on_progress: Progress = lambda had, total, what: None,
) -> Pulled:
    """Fetches a checkpoint from `peers` (reached before) into `out_dir`.

    Raises Unreachable when nobody has it or all holders fail on the way, MalformedBytes for a record that cannot be
    trusted with a disk, ConfigError for an `out_dir` that holds something else, StateError when the disk is full.
    """
    asker = _Asker(transport, keypair, run)
    offers, refusals = await _ask_offers(asker, run, tuple(peers), version)
    if not offers:
        what = "a checkpoint" if version is None else f"a checkpoint of version {version}"
        raise Unreachable(f"no peer of {len(refusals)} offers {what}; " + "; ".join(sorted(set(refusals.values()))[:3]))
    chosen = choose(offers)
    record = chosen[0].record
    check_files(record)
    _prepare_directory(out_dir, record)
    job = _Download(asker, tuple(offer.holder for offer in chosen), out_dir, record, on_progress)
    try:
        await job.run()
        losses = [offer.record.evaluation.loss for offer in chosen if offer.record.evaluation is not None]
        evaluated = next((offer for offer in chosen if offer.record.evaluation is not None), chosen[0])
        spread = (min(losses), max(losses)) if losses else None
        job.put_in_place(_record_json(evaluated, chosen, spread))
    except (OSError, ExceptionGroup) as error:
        if (broken := first_of(OSError, error)) is None:
            raise
        raise StateError(f"{out_dir}: {broken.strerror or broken}; make room or choose another directory") from None
    return Pulled(
        out_dir, evaluated.record, job.holders, spread, job.total_bytes, job.fetched_bytes, dict(job.wrong_chunks)
    )


async def _ask_offers(
    asker: _Asker, run: Digest, peers: tuple[PeerId, ...], version: int | None
) -> tuple[list[Offer], dict[PeerId, str]]:
    """What each peer offers, in their order, and why the others do not."""
    found: dict[PeerId, Offer] = {}
    refusals: dict[PeerId, str] = {}

    async def ask(peer: PeerId, wanted: int | None) -> None:
        try:
            record, sealed = await asker.ask(peer, GetCheckpoint(wanted), RECORD_TIMEOUT_S)
            if not isinstance(record, CheckpointRecord) or record.run != run:
                raise MalformedBytes(f"{peer} answered with something other than a checkpoint of this run")
            if wanted is not None and record.version != wanted:
                raise MalformedBytes(f"{peer} answered with version {record.version} where {wanted} was asked for")
            found[peer] = Offer(peer, record, sealed)
        except (NetworkError, RemoteError) as error:
            refusals[peer] = str(error)

    async def ask_all(wanted: int | None, whom: Iterable[PeerId]) -> None:
        async with trio.open_nursery() as nursery:
            for peer in whom:
                nursery.start_soon(ask, peer, wanted)

    await ask_all(version, peers)
    if version is None and found:
        # Peers that went on since hold the others' newest version too: ask them for it, to have more donors.
        newest = max(offer.record.version for offer in found.values())
        await ask_all(newest, [peer for peer, offer in found.items() if offer.record.version != newest])
    return [found[peer] for peer in peers if peer in found], refusals


def choose(offers: list[Offer]) -> list[Offer]:
    """The offers of the checkpoint to take: the newest version that two share, or else the newest; of one version, the
    record that most peers back."""
    groups: dict[CheckpointRecord, list[Offer]] = defaultdict(list)
    for offer in offers:
        groups[replace(offer.record, evaluation=None)].append(offer)
    return max(groups.values(), key=lambda group: (len(group) > 1, group[0].record.version, len(group)))


def check_files(record: CheckpointRecord) -> None:
    """Returns if the record's file names and sizes may touch a disk; raises MalformedBytes."""
    names = [file.name for file in record.files]
    folded = [name.casefold() for name in names]
    if not names or len(set(folded)) != len(names):
        raise MalformedBytes("the checkpoint names no files, or one of them twice")
    for name in names:
        plain = bool(name) and not name.startswith((".", "-")) and set(name) <= _LETTERS
        if not plain or Path(name).suffix not in SUFFIXES or name.casefold() == RECORD_NAME:
            raise MalformedBytes(f"the checkpoint has a file named {clean(name)!r}, which is not a plain known name")
    total = sum(file.num_bytes for file in record.files)
    if total > MAX_BYTES:
        raise MalformedBytes(f"the checkpoint has {total} bytes, more than {MAX_BYTES}")


def _prepare_directory(out_dir: Path, record: CheckpointRecord) -> None:
    """Makes the directory; refuses one with files that are neither of this checkpoint nor of an earlier try at it."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out_dir} cannot be made: {error.strerror or error}; choose another directory") from None
    ours = {file.name for file in record.files} | {f"{file.name}.part" for file in record.files} | {RECORD_NAME}
    strange = sorted(path.name for path in out_dir.iterdir() if path.name not in ours)
    if strange:
        raise ConfigError(f"{out_dir} holds other files ({clean(strange[0], 60)}); choose an empty directory")
    if (out_dir / RECORD_NAME).exists() and _head_in(out_dir / RECORD_NAME) != record.head.hex():
        raise ConfigError(f"{out_dir} holds another checkpoint; choose an empty directory for version {record.version}")


def _head_in(path: Path) -> object:
    """The head that a record file names; None if it cannot be read."""
    try:
        return json.loads(path.read_text())["head"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open_part(directory: Path, name: str) -> BinaryIO:
    """The growing file, with what an earlier try has left; a file that is in place already is checked like a leftover."""
    part = directory / f"{name}.part"
    if (directory / name).exists() and not part.exists():
        os.replace(directory / name, part)
    return open(part, "r+b" if part.exists() else "w+b")


class _Download:
    """The files of one checkpoint on their way."""

    def __init__(
        self, asker: _Asker, holders: tuple[PeerId, ...], out_dir: Path, record: CheckpointRecord, on_progress: Progress
    ) -> None:
        self.holders = holders
        self.total_bytes = sum(file.num_bytes for file in record.files)
        self.fetched_bytes = 0
        self.wrong_chunks: Counter[PeerId] = Counter()
        self._asker = asker
        self._out_dir = out_dir
        self._record = record
        self._on_progress = on_progress
        self._had_bytes = 0
        self._files = trio.CapacityLimiter(MAX_FILES_AT_ONCE)
        self._known = Holders()  # of all files: who lied about one is asked for no other

    async def run(self) -> None:
        """Brings every file to `NAME.part`, complete."""
        failures: list[str] = []

        async def one(index: int) -> None:
            file = self._record.files[index]
            async with self._files:
                if failures:
                    return
                # Each file begins with another holder, so that all of them are busy from the start.
                turned = (*self.holders[index % len(self.holders) :], *self.holders[: index % len(self.holders)])
                fetch = BlobFetch(file.root, turned, num_bytes=file.num_bytes, known=self._known)
                with _open_part(self._out_dir, file.name) as target:
                    reason = await self._fetch(fetch, target, file.name)
                    target.truncate(file.num_bytes)
                    target.flush()
                    await trio.to_thread.run_sync(os.fsync, target.fileno())
                self.wrong_chunks.update(fetch.wrong)
                if reason:
                    failures.append(f"{file.name}: {reason}")

        async with trio.open_nursery() as nursery:
            for index in range(len(self._record.files)):
                nursery.start_soon(one, index)
        if failures:
            raise Unreachable(f"{failures[0]}; what has come is kept, pull again to go on")

    async def _fetch(self, fetch: BlobFetch, target: BinaryIO, name: str) -> str | None:
        """Drives one blob's machine to its end; returns why it failed, or None."""
        send, receive = trio.open_memory_channel[tuple[Ask, object]](64)
        under_way: list[Ask] = []

        async def perform(ask: Ask) -> None:
            timeout_s = INFO_TIMEOUT_S if isinstance(ask.message, GetBlob) else CHUNK_TIMEOUT_S
            try:
                answer: object = (await self._asker.ask(ask.to, ask.message, timeout_s))[0]
            except (NetworkError, RemoteError) as error:
                answer = error
            await send.send((ask, answer))

        async with trio.open_nursery() as nursery:
            while not fetch.done and fetch.failed_reason is None:
                for ask in fetch.next_requests(trio.current_time()):
                    under_way.append(ask)
                    nursery.start_soon(perform, ask)
                came: tuple[Ask, object] | None = None
                with trio.move_on_after(_TICK_S):
                    came = await receive.receive()
                if came is not None:
                    under_way.remove(came[0])
                    await self._take(fetch, target, *came)
                    self._on_progress(self._had_bytes, self.total_bytes, name)
            nursery.cancel_scope.cancel()
        for ask in under_way:  # else the other files would go on waiting for room at that holder
            fetch.on_cancelled(ask)
        return fetch.failed_reason

    async def _take(self, fetch: BlobFetch, target: BinaryIO, ask: Ask, answer: object) -> None:
        """Hands one answer to the machine, and verified bytes to the file."""
        had_digests = fetch.num_chunks is not None
        data = fetch.take(ask, answer, trio.current_time())
        if data is not None:
            target.seek(ask.piece * CHUNK_BYTES)
            target.write(data)
            self._had_bytes += len(data)
            self.fetched_bytes += len(data)
        elif fetch.num_chunks is not None and not had_digests:
            await self._resume(fetch, target)

    async def _resume(self, fetch: BlobFetch, target: BinaryIO) -> None:
        """Takes the chunks that an earlier try has left, as far as their digests are right; a chunk at a time in a thread,
        as a large file takes seconds."""
        target.truncate(fetch.num_bytes)
        target.seek(0)

        def check(index: int) -> int | None:
            data = target.read(CHUNK_BYTES)
            return (len(data) if fetch.on_local(index, data) else 0) if data else None

        for index in range(fetch.num_chunks or 0):
            num_bytes = await trio.to_thread.run_sync(check, index)
            if num_bytes is None:
                return
            self._had_bytes += num_bytes

    def put_in_place(self, record_json: str) -> None:
        """Renames the complete files to their names; the record comes last and says that the rest is there."""
        for file in self._record.files:
            os.replace(self._out_dir / f"{file.name}.part", self._out_dir / file.name)
        part = self._out_dir / f"{RECORD_NAME}.part"
        part.write_text(record_json)
        os.replace(part, self._out_dir / RECORD_NAME)


def _record_json(evaluated: Offer, chosen: list[Offer], spread: tuple[float, float] | None) -> str:
    record = evaluated.record
    evaluation = record.evaluation
    value = {
        "run": record.run.hex(),
        "version": record.version,
        "tokens": record.tokens,
        "cursor": record.cursor,
        "head": record.head.hex(),
        "state_digest": record.state_digest.hex(),
        "contributors": [peer.base58 for peer in record.contributors],
        "files": [{"name": file.name, "num_bytes": file.num_bytes, "root": file.root.hex()} for file in record.files],
        "evaluation": evaluation and {"heldout_loss": evaluation.loss, "windows": list(evaluation.windows)},
        "heldout_loss_spread": spread and list(spread),
        "evaluated_by": evaluated.holder.base58 if evaluation else None,
        "holders": [offer.holder.base58 for offer in chosen],
        "sealed_records_hex": {offer.holder.base58: offer.sealed.hex() for offer in chosen},
    }
    return json.dumps(value, indent=2) + "\n"
