"""Blobs on disk, by digest: contributions, units of the shared state, private tensors, checkpoint files.

Both threads use it: files appear whole (written aside, then renamed) and never change, so there is nothing to lock but the
small index of chunk digests and the pins. What nobody pins is removed by `collect`; so whoever fetches or needs a blob pins
it first, then looks whether it is here. Names: the digest in hex; behind it ".part" while it is being written or gathered.
Pins are in memory, except those of downloads: a file tells the next process what this one was about to use.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from peer.disk import disk_errors, make_folder, sweep, sync, write_whole
from peer.partials import MAX_PARTIAL_AGE_S, Partials
from swarm import wire
from swarm.digest import CHUNK_BYTES, DIGEST_BYTES, Digest, chunk_length, leaf_digest, num_chunks, root_of_leaves
from swarm.errors import MalformedBytes, StateError
from swarm.messages import BlobInfo
from swarm.schema import U63, MaxLen, from_value, to_value

_INDEXED: Final = 4096  # blobs whose chunk digests are kept in memory: 32 bytes a MiB
_PARTIAL: Final = ".part"
_GONE: Final = ".gone"
_LASTING: Final = "downloads.pins"
_MAX_LASTING_BYTES: Final = 4 << 20
_MAX_LASTING: Final = 1 << 16  # owners, or blobs of one


@dataclass(frozen=True, slots=True)
class _Pin:
    """What one owner needs; until when, by the store's clock, or for good."""

    roots: frozenset[Digest]
    until_s: float | None = None
    lasting_since: int | None = None  # unix seconds; the next process takes it up again


@dataclass(frozen=True, slots=True)
class _LastingPin:
    """A pin as it is on disk."""

    owner: Annotated[str, MaxLen(200)]
    since: U63
    roots: Annotated[tuple[Digest, ...], MaxLen(_MAX_LASTING)]


@dataclass(frozen=True, slots=True)
class _LastingPins:
    """The file of pins."""

    pins: Annotated[tuple[_LastingPin, ...], MaxLen(_MAX_LASTING)]


class BlobStore:
    """Blobs in one folder, and files elsewhere that are served as blobs."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._folder = folder
        self._lock = threading.Lock()
        self._infos: dict[Digest, BlobInfo] = {}
        self._elsewhere: dict[Digest, Path] = {}
        self._pins: dict[str, _Pin] = {}
        self.partials = Partials(folder)
        make_folder(folder)
        sweep(folder, f"*{_GONE}")  # of a process that was killed; the home's lock keeps others out
        self.partials.clear_drafts()
        self.partials.sweep()
        self._pins.update(self._lasting_pins())

    def put(self, parts: bytes | Sequence[bytes], *, durable: bool = True) -> Digest:
        """Stores a blob and returns its name; `durable`: it outlives a power cut once this returns.

        One that is there already is compared, and written anew when the disk changed it.
        """
        blob = parts if isinstance(parts, bytes) else b"".join(parts)
        info = _info_of(blob)
        root = root_of_leaves(info.num_bytes, info.leaves)
        path = self._path(root)
        if not _holds(path, blob):
            partial = path.with_name(f"{path.name}.{threading.get_ident()}{_PARTIAL}")
            write_whole(path, blob, partial, durable=durable)
        elif durable:  # whoever wrote it may not have been told to, or have been killed before its name was synced
            with disk_errors(path):
                sync(path)
                sync(self._folder)
        self._remember(root, info)
        return root

    def partial_path(self, root: Digest) -> Path:
        """Where a download of this blob is gathered."""
        return self.partials.path(root)

    def adopt_partial(self, root: Digest, info: BlobInfo) -> None:
        """Makes a finished download, every chunk of which was checked, a blob; it outlives a power cut then."""
        with disk_errors(self._path(root)):
            sync(self.partial_path(root))
            self.partial_path(root).replace(self._path(root))
            sync(self._folder)
        self._remember(root, info)

    def serve_file(self, root: Digest, path: Path) -> None:
        """Serves a file outside the folder under its name; gone when the file is."""
        with self._lock:
            self._elsewhere[root] = path

    def has(self, root: Digest) -> bool:
        return self._locate(root) is not None

    def read(self, root: Digest, *, check: bool = False) -> bytes:
        """The whole blob. Raises StateError when it is not here, or, with `check`, when its bytes have changed.

        A blob of ours that was found changed is removed, so that it is written or fetched anew.
        """
        path = self._found(root)
        with disk_errors(path):
            blob = path.read_bytes()
        if check:
            self._compare(root, path, _info_of(blob))
        return blob

    def open_checked(self, root: Digest) -> BlobFile:
        """A blob to be read in parts, its bytes checked once. Raises StateError as `read` does."""
        path = self._found(root)
        with disk_errors(path):
            opened = BlobFile(path)
            info = opened.info()
        self._compare(root, path, info)
        return opened

    def _found(self, root: Digest) -> Path:
        path = self._locate(root)
        if path is None:
            raise StateError(f"blob {root} is not in {self._folder}")
        return path

    def _compare(self, root: Digest, path: Path, info: BlobInfo) -> None:
        """Raises StateError, and drops the file, when what is in it is not that blob."""
        if root_of_leaves(info.num_bytes, info.leaves) != root:
            self._drop_damaged(root, path)
            raise StateError(f"the bytes of blob {root} are not the ones that were written")

    def info(self, root: Digest) -> BlobInfo | None:
        """Length and chunk digests; None when the blob is not here."""
        with self._lock:
            known = self._infos.get(root)
        path = self._locate(root)
        if path is None:
            return None
        if known is None:
            try:
                known = _info_of_file(path)
            except OSError:
                return None
            if root_of_leaves(known.num_bytes, known.leaves) != root:
                self._drop_damaged(root, path)
                return None
            self._remember(root, known)
        return known

    def chunk(self, root: Digest, index: int) -> bytes | None:
        """One chunk; None when it is not here."""
        info, path = self.info(root), self._locate(root)
        if info is None or path is None or index >= num_chunks(info.num_bytes):
            return None
        try:
            with open(path, "rb") as file:
                file.seek(index * CHUNK_BYTES)
                return file.read(chunk_length(info.num_bytes, index))
        except OSError:
            return None

    def pin(self, owner: str, roots: Iterable[Digest], *, until_s: float | None = None, lasting: bool = False) -> None:
        """From now on `owner` needs exactly these; `until_s`: no longer than that, by the store's clock.

        `lasting`: so that what was downloaded for one purpose is still there when a restarted peer comes back to it, the
        next process keeps them too, for some hours. Such a pin is written to disk. Raises StateError.
        """
        pin = _Pin(frozenset(roots), until_s, int(time.time()) if lasting else None)
        with self._lock:
            was = self._pins.get(owner)
            self._pins[owner] = pin
        if lasting or (was is not None and was.lasting_since is not None):
            self._write_lasting()

    def pinned(self, owner: str) -> frozenset[Digest]:
        """What `owner` needs now."""
        with self._lock:
            pin = self._pins.get(owner)
        return pin.roots if pin is not None else frozenset()

    def size(self, roots: Iterable[Digest]) -> int:
        """The bytes of those of these blobs that are here."""
        paths = (self._locate(root) for root in roots)
        return sum(path.stat().st_size for path in paths if path is not None)

    def has_space(self, num_bytes: int) -> bool:
        """Whether the disk has that much room left."""
        about = os.statvfs(self._folder)
        return about.f_bavail * about.f_frsize >= num_bytes

    def collect(self) -> int:
        """Removes every blob that nobody pins, whole or in parts; returns how many whole ones. Raises StateError."""
        with self._lock:
            self._elsewhere = {root: path for root, path in self._elsewhere.items() if path.exists()}
            now_s = self.clock()
            ended = [owner for owner, pin in self._pins.items() if pin.until_s is not None and pin.until_s <= now_s]
            for owner in ended:
                del self._pins[owner]
            pinned = frozenset().union(*(pin.roots for pin in self._pins.values()))
        self.partials.sweep(pinned)
        removed = 0
        with disk_errors(self._folder / "*"):
            for path in list(self._folder.iterdir()):
                root = _root_named(path.name)
                gone = path.with_name(path.name + _GONE)
                if root is not None and self._move_unless_pinned(root, path, gone):
                    gone.unlink(missing_ok=True)
                    removed += 1
        return removed

    def set_aside(self, folder: Path) -> None:
        """Moves every blob that nobody pins to another folder of the same disk. Raises StateError."""
        make_folder(folder)
        with disk_errors(self._folder / "*"):
            for path in list(self._folder.iterdir()):
                root = _root_named(path.name)
                if root is not None:
                    self._move_unless_pinned(root, path, folder / path.name)
            sync(folder)

    def _move_unless_pinned(self, root: Digest, path: Path, target: Path) -> bool:
        # Under the lock, so that a pin comes before or after; only a rename, as the network's loop waits for that lock.
        with self._lock:
            if any(root in pin.roots for pin in self._pins.values()):
                return False
            self._infos.pop(root, None)
            path.replace(target)
            return True

    def _write_lasting(self) -> None:
        with self._lock:
            pins = tuple(
                _LastingPin(owner, pin.lasting_since, tuple(sorted(pin.roots)))
                for owner, pin in sorted(self._pins.items())
                if pin.lasting_since is not None and pin.roots
            )
        path = self._folder / _LASTING
        content = wire.encode(to_value(_LastingPins(pins)))
        # Not synced: after a power cut a download begins anew, that is all.
        write_whole(path, content, path.with_name(_LASTING + _PARTIAL), durable=False)

    def _lasting_pins(self) -> dict[str, _Pin]:
        """Those of the process before, as far as they are young and readable."""
        try:
            raw = (self._folder / _LASTING).read_bytes()
            pins: _LastingPins = from_value(_LastingPins, wire.decode(raw, max_bytes=_MAX_LASTING_BYTES))
        except (OSError, MalformedBytes):
            return {}
        found = {}
        for one in pins.pins:
            left_s = one.since + MAX_PARTIAL_AGE_S - time.time()
            if 0 < left_s <= MAX_PARTIAL_AGE_S:
                found[one.owner] = _Pin(frozenset(one.roots), self.clock() + left_s, one.since)
        return found

    def _drop_damaged(self, root: Digest, path: Path) -> None:
        with self._lock:
            self._infos.pop(root, None)
            self._elsewhere.pop(root, None)
        if path == self._path(root):
            path.unlink(missing_ok=True)

    def _path(self, root: Digest) -> Path:
        return self._folder / root.hex()

    def _locate(self, root: Digest) -> Path | None:
        path = self._path(root)
        if path.exists():
            return path
        with self._lock:
            elsewhere = self._elsewhere.get(root)
        return elsewhere if elsewhere is not None and elsewhere.exists() else None

    def _remember(self, root: Digest, info: BlobInfo) -> None:
        with self._lock:
            self._infos[root] = info
            while len(self._infos) > _INDEXED:
                del self._infos[next(iter(self._infos))]


def _holds(path: Path, blob: bytes) -> bool:
    """Whether those very bytes are at `path`, read a chunk at a time."""
    view = memoryview(blob)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != len(blob):
                return False
            starts = range(0, len(blob), CHUNK_BYTES)
            return all(file.read(CHUNK_BYTES) == view[start : start + CHUNK_BYTES] for start in starts)
    except OSError:
        return False


def _root_named(name: str) -> Digest | None:
    """The blob that a file is; None for a file that is not ours, or not whole."""
    try:
        return Digest.from_hex(name) if len(name) == 2 * DIGEST_BYTES else None
    except ValueError:
        return None


def _info_of(blob: bytes) -> BlobInfo:
    view = memoryview(blob)
    starts = range(0, max(1, len(blob)), CHUNK_BYTES)
    return BlobInfo(len(blob), tuple(leaf_digest(view[start : start + CHUNK_BYTES]) for start in starts))


class BlobFile:
    """A blob's file, of which parts are read. It stays readable when its name is gone; closed with the last reference."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by `close`, or as it is let go
        self._num_bytes = os.fstat(self._file.fileno()).st_size

    def __len__(self) -> int:
        return self._num_bytes

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._num_bytes)
        with disk_errors(self._path):
            return os.pread(self._file.fileno(), max(0, stop - start), start)

    def info(self) -> BlobInfo:
        """Length and chunk digests of what is in the file. Raises OSError."""
        starts = range(0, self._num_bytes, CHUNK_BYTES)
        chunks = (os.pread(self._file.fileno(), CHUNK_BYTES, start) for start in starts)
        return BlobInfo(self._num_bytes, tuple(map(leaf_digest, chunks)) or (leaf_digest(b""),))

    def close(self) -> None:
        self._file.close()


def _info_of_file(path: Path) -> BlobInfo:
    with contextlib.closing(BlobFile(path)) as opened:
        return opened.info()
