"""The checkpoints a peer keeps: which versions, where, and their records.

Versions 0, 1, 2, 4 ... 512 and every `every`-th. A record is equal on every honest peer but for the evaluation, which each
adds by its own measurement.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from peer.blob_store import BlobStore, disk_errors
from peer.checkpoint import write_checkpoint
from peer.handoff import Kept
from peer.replica import Version
from swarm import wire
from swarm.allreduce.layout import ModelLayout
from swarm.config import RunConfig
from swarm.digest import Digest
from swarm.errors import MalformedBytes
from swarm.messages import CheckpointFile, CheckpointRecord, Evaluation
from swarm.schema import from_value, to_value

DENSE_UNTIL: Final = 512  # powers of two up to here are kept: early training is where interpretability research looks
_RECORD: Final = "record.bin"


def is_checkpoint_version(version: int, every: int) -> bool:
    """Whether the schedule keeps that version."""
    is_power_of_two = version & (version - 1) == 0  # 0 counts too
    return (is_power_of_two and version <= DENSE_UNTIL) or version % every == 0


class Checkpoints:
    """The checkpoint folders of one peer, each beside its record."""

    def __init__(
        self, folder: Path, run: Digest, config: RunConfig, layout: ModelLayout, tokenizer_json: bytes | None
    ) -> None:
        self._folder = folder
        self._run = run
        self._config = config
        self._layout = layout
        self._tokenizer_json = tokenizer_json

    def is_due(self, version: int) -> bool:
        """Whether that version is to be kept and is not there yet."""
        due = is_checkpoint_version(version, self._config.checkpoint.every)
        return due and not (self._of(version) / _RECORD).exists()

    def keep(self, version: Version, loss: float) -> Kept | None:
        """Writes the checkpoint of a version, removes the oldest beyond the number that is kept; None in fp64 tests."""
        chain = version.state.chain
        target = self._of(chain.version)
        shutil.rmtree(target, ignore_errors=True)  # without a record: a writer was killed
        files = write_checkpoint(
            target / "files", self._config, self._layout, version.state.anchor_N.float(), self._tokenizer_json
        )
        record = CheckpointRecord(
            run=self._run,
            version=chain.version,
            tokens=chain.tokens,
            cursor=chain.cursor,
            head=chain.head,
            state_digest=version.digest,
            contributors=tuple(numbers.author for numbers in chain.listed),
            files=tuple(CheckpointFile(file.name, file.num_bytes, file.digest) for file in files),
            evaluation=Evaluation(loss, tuple(range(self._config.data.eval_windows))),
        )
        path = target / _RECORD
        with disk_errors(path):
            partial = path.with_suffix(".part")
            partial.write_bytes(wire.encode(to_value(record)))
            partial.replace(path)
        self._prune()
        return _kept(target, record)

    def load(self, store: BlobStore) -> tuple[Kept, ...]:
        """Those on disk from before, oldest first; their files are served again."""
        found = []
        for target in sorted(self._folder.glob("v*")):
            try:
                record = from_value(CheckpointRecord, wire.decode((target / _RECORD).read_bytes()))
            except (OSError, MalformedBytes):
                continue  # half written or damaged: `keep` makes it again when its version comes, nobody is served it
            found.append(_kept(target, record))
        for kept in found:
            serve(store, kept)
        return tuple(found)

    def _prune(self) -> None:
        # Version 0 and the newest stay; what is dropped can be had from peers who keep more, or replayed.
        folders = sorted(self._folder.glob("v*"))
        for old in folders[1 : max(1, len(folders) - self._config.checkpoint.keep)]:
            shutil.rmtree(old, ignore_errors=True)

    def _of(self, version: int) -> Path:
        return self._folder / f"v{version:09d}"


def serve(store: BlobStore, kept: Kept) -> None:
    """Lets the store serve a checkpoint's files."""
    for root, path in kept.files:
        store.serve_file(root, Path(path))


def _kept(target: Path, record: CheckpointRecord) -> Kept:
    return Kept(record, tuple((file.root, str(target / "files" / file.name)) for file in record.files))
