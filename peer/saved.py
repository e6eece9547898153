"""What a peer writes down: one small generation file that names blobs, replaced atomically, the one before it kept.

A generation is written at each cut, before the blob's digest is announced, and at each head. Its blobs are on disk before
it is; a generation whose bytes or blobs are damaged is passed over for the one before, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

from blake3 import blake3

from peer.disk import disk_errors, make_folder, sweep, write_whole
from swarm import wire
from swarm.digest import Digest
from swarm.errors import LocalError, MalformedBytes, RemoteError, StateError
from swarm.messages import Commit, Sealed, StateRecord
from swarm.round.commits import roots_of
from swarm.round.root import Root
from swarm.schema import U32, U63, MaxLen, Range, from_value, to_value

KEPT_GENERATIONS: Final = 2
MAX_GENERATION_BYTES: Final = 64 << 20  # records, rosters and a commit log of a large run
MAX_GENERATION_VALUES: Final = 1 << 23  # 8 states of 4096 authors with 32 holes each, and 64 full commits: 2.5 million
_MAGIC: Final = b"brnstate1"
_CHECK_BYTES: Final = 32
_PARTIAL: Final = ".part"
_SUFFIX: Final = ".state"
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True, slots=True)
class SavedCut:
    """One contribution of ours with its tensors, as blobs."""

    seq: U63
    standing: Annotated[int, Range(0, 2)]  # 0 pending, 1 listed, 2 withdrawn
    blob: Digest  # what was sent; with the two vectors it gives the residual behind the cut
    delta: Digest
    before: Digest
    tokens: U63
    steps: U32
    listed_at: U63
    sealed: Sealed  # the announcement


@dataclass(frozen=True, slots=True)
class SavedState:
    """Everything a peer needs to go on where it stopped."""

    generation: U63
    run: Digest
    incarnation: U63
    next_seq: U63
    view: U63
    states: Annotated[tuple[StateRecord, ...], MaxLen(8)]  # the last versions, the present one last
    roots: Annotated[tuple[Root, ...], MaxLen(8)]  # of each of them
    log: Annotated[tuple[Commit, ...], MaxLen(64)]
    theta: Digest | None  # None: the anchor of the present version
    residual: Digest
    cuts: Annotated[tuple[SavedCut, ...], MaxLen(64)]
    optimizer: Digest | None
    leases: Annotated[bytes, MaxLen(1 << 20)]
    tokens_since_cut: U63
    steps_since_cut: U32
    since_version: U63

    @property
    def unlisted_tokens(self) -> int:
        """Of work that no chain may ever hold if this is lost: since the last cut, and of what waits for a commit."""
        return self.tokens_since_cut + sum(cut.tokens for cut in self.cuts if cut.standing == 0)

    def blobs(self) -> set[Digest]:
        """All that must not be removed while this generation is kept."""
        found = {root for root in (self.theta, self.residual, self.optimizer) if root is not None}
        found |= {unit.root for state in self.states for unit in state.units}
        found |= {root for cut in self.cuts for root in (cut.blob, cut.delta, cut.before)}
        found |= {root for commit in self.log for root in roots_of(commit.commit)}
        return found


class NothingWhole(StateError):
    """There are generations, and none can be taken up."""


def last_generation(folder: Path) -> int:
    """The highest generation that a folder has a file of, by its name alone; 0 when there is none."""
    return max((int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal()), default=0)


class Generations:
    """The generation files of one peer, newest first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_folder(folder)
        sweep(folder, f"*{_PARTIAL}")

    def write(self, state: SavedState) -> None:
        """Replaces the oldest kept generation by this one; it is on disk when this returns.

        Raises StateError, or LocalError for a state beyond its own limits; either way the generation before stands.
        """
        body = wire.encode(to_value(state))
        try:
            _parse(body)
        except MalformedBytes as error:
            raise LocalError(f"generation {state.generation} could not be read again: {error}") from None
        path = self._folder / f"{state.generation:012d}{_SUFFIX}"
        write_whole(path, _MAGIC + blake3(body).digest() + body, path.with_suffix(_PARTIAL))
        with disk_errors(path):
            for old in self._paths()[KEPT_GENERATIONS:]:
                old.unlink(missing_ok=True)

    def exist(self) -> bool:
        return bool(self._paths())

    def load(self, restore: Callable[[SavedState], _Loaded], report: Callable[[str], None]) -> _Loaded | None:
        """What `restore` makes of the newest generation that is whole; None when there is none at all.

        `restore` raises StateError or RemoteError when blobs are missing or damaged; then the generation before is
        tried, and `report` gets a line. Raises NothingWhole when there are generations and none is.
        """
        faults: list[str] = []
        for path in self._paths():
            if faults:
                report(f"state file {faults[-1]}; falling back to {path.name}, the one before it")
            try:
                return restore(self._read(path))
            except (StateError, RemoteError) as error:
                faults.append(f"{path.name} is damaged: {error}")
        if faults:
            raise NothingWhole(f"{self._folder}: no state file is whole ({'; '.join(faults)})")
        return None

    def kept(self) -> list[SavedState]:
        """All generations that are whole. Raises StateError where the disk does not answer: what their blobs are is not
        known then, and none may be collected."""
        found = []
        for path in self._paths():
            try:
                found.append(self._read(path))
            except MalformedBytes:
                continue  # `load` reports it
        return found

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob(f"*{_SUFFIX}"), reverse=True)

    def _read(self, path: Path) -> SavedState:
        with disk_errors(path):
            raw = path.read_bytes()
        head = len(_MAGIC) + _CHECK_BYTES
        if not raw.startswith(_MAGIC) or len(raw) < head:
            raise MalformedBytes("not a state file")
        body = raw[head:]
        if blake3(body).digest() != raw[len(_MAGIC) : head]:
            raise MalformedBytes("its checksum does not fit its bytes")
        return _parse(body)


def _parse(body: bytes) -> SavedState:
    value = wire.decode(body, max_bytes=MAX_GENERATION_BYTES, max_values=MAX_GENERATION_VALUES)
    return from_value(SavedState, value)
