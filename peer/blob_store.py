"""Blobs on disk, by digest: contributions, units of the shared state, private tensors, checkpoint files.

Both threads use it: files appear whole (written aside, then renamed) and never change, so there is nothing to lock but the
small index of chunk digests and the pins. What nobody pins is removed by `collect`; so whoever fetches or needs a blob pins
it first, then looks whether it is here. Names: the digest in hex; behind it ".part" while it is being written or gathered.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from peer.disk import disk_errors, make_folder, sweep, sync, write_whole
from swarm.digest import CHUNK_BYTES, DIGEST_BYTES, Digest, chunk_length, leaf_digest, num_chunks, root_of_leaves
from swarm.errors import StateError
from swarm.messages import BlobInfo

_INDEXED: Final = 4096  # blobs whose chunk digests are kept in memory: 32 bytes a MiB
_PARTIAL: Final = ".part"
_GONE: Final = ".gone"


class BlobStore:
    """Blobs in one folder, and files elsewhere that are served as blobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._infos: dict[Digest, BlobInfo] = {}
        self._elsewhere: dict[Digest, Path] = {}
        self._pins: dict[str, frozenset[Digest]] = {}
        make_folder(folder)
        sweep(folder, f"*{_PARTIAL}", f"*{_GONE}")  # of a process that was killed; the home's lock keeps others out

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
        return self._path(root).with_suffix(_PARTIAL)

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
        path = self._locate(root)
        if path is None:
            raise StateError(f"blob {root} is not in {self._folder}")
        with disk_errors(path):
            blob = path.read_bytes()
        if check:
            info = _info_of(blob)
            if root_of_leaves(info.num_bytes, info.leaves) != root:
                self._drop_damaged(root, path)
                raise StateError(f"the bytes of blob {root} are not the ones that were written")
        return blob

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

    def pin(self, owner: str, roots: Iterable[Digest]) -> None:
        """From now on `owner` needs exactly these."""
        with self._lock:
            self._pins[owner] = frozenset(roots)

    def collect(self) -> int:
        """Removes every blob that nobody pins, and nothing else; returns how many. Raises StateError."""
        with self._lock:
            self._elsewhere = {root: path for root, path in self._elsewhere.items() if path.exists()}
        removed = 0
        with disk_errors(self._folder / "*"):
            for path in list(self._folder.iterdir()):
                root = _root_named(path.name)
                if root is not None and self._set_aside_unless_pinned(root, path):
                    path.with_name(path.name + _GONE).unlink(missing_ok=True)
                    removed += 1
        return removed

    def _set_aside_unless_pinned(self, root: Digest, path: Path) -> bool:
        # Under the lock, so that a pin comes before or after; only a rename, as the network's loop waits for that lock.
        with self._lock:
            if any(root in roots for roots in self._pins.values()):
                return False
            self._infos.pop(root, None)
            path.replace(path.with_name(path.name + _GONE))
            return True

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


def _info_of_file(path: Path) -> BlobInfo:
    leaves, num_bytes = [], 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            num_bytes += len(chunk)
            leaves.append(leaf_digest(chunk))
    return BlobInfo(num_bytes, tuple(leaves) or (leaf_digest(b""),))
