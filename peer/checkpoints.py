"""The checkpoints a peer keeps: which versions, where, and their records.

Versions 0, 1, 2, 4 ... 512 and every `every`-th. A record is equal on every honest peer but for the evaluation, which each
adds by its own measurement.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from peer.blob_store import BlobStore
from peer.checkpoint import write_checkpoint
from peer.disk import write_whole
from peer.handoff import Kept
from peer.replica import Version
from peer.tokenizer_file import TokenizerFile
from swarm import wire
from swarm.allreduce.layout import ModelLayout
from swarm.config import RunConfig
from swarm.digest import Digest
from swarm.errors import MalformedBytes, StateError
from swarm.messages import CheckpointRecord, Evaluation
from swarm.schema import from_value, to_value

MAX_ROOM: Final = 1 << 60
DENSE_UNTIL: Final = 512  # powers of two up to here are kept: early training is where interpretability research looks
_RECORD: Final = "record.bin"
_FOLDER: Final = re.compile(r"v[0-9]{9}")
_MAX_LOSS: Final = 1e6  # of an `Evaluation`; a model that has diverged is kept without one


def is_checkpoint_version(version: int, every: int) -> bool:
    """Whether the schedule keeps that version."""
    is_power_of_two = version & (version - 1) == 0  # 0 counts too
    return (is_power_of_two and version <= DENSE_UNTIL) or version % every == 0


class Checkpoints:
    """The checkpoint folders of one peer, each beside its record."""

    def __init__(
        self, folder: Path, run: Digest, config: RunConfig, layout: ModelLayout, tokenizer: TokenizerFile
    ) -> None:
        self.room: Callable[[], int] = lambda: MAX_ROOM  # bytes that may still be written
        self.keeps_first = True  # version 0; who joins a run that is under way has no use for it
        self._folder = folder
        self._run = run
        self._config = config
        self._layout = layout
        self._tokenizer = tokenizer

    def is_due(self, version: int) -> bool:
        """Whether that version is to be kept and is not there yet."""
        due = is_checkpoint_version(version, self._config.checkpoint.every) and (version > 0 or self.keeps_first)
        return due and not (self._of(version) / _RECORD).exists()

    def keep(self, version: Version, loss: float) -> Kept:
        """Writes the checkpoint of a version; removes the oldest beyond the number that is kept. Raises StateError."""
        chain = version.state.chain
        target = self._of(chain.version)
        shutil.rmtree(target, ignore_errors=True)  # without a record: a writer was killed
        needed, room = 4 * self._layout.numel, self.room()
        if needed > room:
            raise StateError(
                f"it takes {needed / 1e6:,.0f} MB, and {max(0, room) / 1e6:,.0f} MB are left for this peer"
            )
        try:
            files = write_checkpoint(
                target / "files", self._config, self._layout, version.state.anchor_N.float(), self._tokenizer
            )
        except StateError:
            shutil.rmtree(target, ignore_errors=True)  # half a checkpoint on a full disk would keep it full
            raise
        record = CheckpointRecord(
            run=self._run,
            version=chain.version,
            tokens=chain.tokens,
            cursor=chain.cursor,
            head=chain.head,
            state_digest=version.digest,
            contributors=tuple(numbers.author for numbers in chain.listed),
            files=files,
            evaluation=_evaluation(loss, self._config.data.eval_windows),
        )
        # The name of this folder was synced with its first file, so the record is the last thing that was missing.
        path = target / _RECORD
        write_whole(path, wire.encode(to_value(record)), path.with_suffix(".part"))
        self._prune()
        return _kept(target, record)

    def load(self, store: BlobStore) -> tuple[Kept, ...]:
        """Those on disk from before, oldest first; their files are served again."""
        found = []
        for target in self._folders():
            record: CheckpointRecord | None
            try:
                record = from_value(CheckpointRecord, wire.decode((target / _RECORD).read_bytes()))
            except OSError:
                continue  # half written: nobody is served it, and `keep` makes it again should its version come
            except MalformedBytes:
                record = None
            if record is None or not _is_whole(target, record):
                (target / _RECORD).unlink(missing_ok=True)  # damaged or half removed: from now on as if half written
                continue
            found.append(_kept(target, record))
        for kept in found:
            serve(store, kept)
        return tuple(found)

    def _prune(self) -> None:
        # Version 0 and the newest stay; what is dropped can be had from peers who keep more, or replayed.
        whole = [target for target in self._folders() if (target / _RECORD).exists() and target != self._of(0)]
        kept = {self._of(0), *whole[-self._config.checkpoint.keep :]}
        for old in self._folders():
            if old not in kept:
                with suppress(OSError):
                    (old / _RECORD).unlink()  # first, so that whoever is killed here leaves no record without its files
                shutil.rmtree(old, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """Those of versions, oldest first, half-written ones included."""
        return sorted(target for target in self._folder.glob("v*") if _FOLDER.fullmatch(target.name))

    def _of(self, version: int) -> Path:
        return self._folder / f"v{version:09d}"


def serve(store: BlobStore, kept: Kept) -> None:
    """Lets the store serve a checkpoint's files."""
    for root, path in kept.files:
        store.serve_file(root, Path(path))


def _evaluation(loss: float, num_windows: int) -> Evaluation | None:
    return Evaluation(loss, tuple(range(num_windows))) if math.isfinite(loss) and 0 <= loss <= _MAX_LOSS else None


def _is_whole(target: Path, record: CheckpointRecord) -> bool:
    """Whether its files are there in their lengths; their bytes are checked when they are asked for."""
    try:
        return all((target / "files" / file.name).stat().st_size == file.num_bytes for file in record.files)
    except OSError:
        return False


def _kept(target: Path, record: CheckpointRecord) -> Kept:
    return Kept(record, tuple((file.root, str(target / "files" / file.name)) for file in record.files))
