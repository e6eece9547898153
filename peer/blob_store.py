"""Blobs on disk, by digest: contributions, units of the shared state, private tensors, checkpoint files.

Both threads use it: files appear whole (written aside, then renamed) and never change, so there is nothing to lock but the
small index of chunk digests. What nobody pins is removed by `collect`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from swarm.digest import CHUNK_BYTES, Digest, chunk_length, leaf_digest, num_chunks, root_of_leaves
from swarm.errors import StateError
from swarm.messages import BlobInfo

_INDEXED: Final = 4096  # blobs whose chunk digests are kept in memory: 32 bytes a MiB
_PARTIAL: Final = ".part"


class BlobStore:
    """Blobs in one folder, and files elsewhere that are served as blobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._infos: dict[Digest, BlobInfo] = {}
        self._elsewhere: dict[Digest, Path] = {}
        self._pins: dict[str, frozenset[Digest]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, parts: bytes | Sequence[bytes], *, durable: bool = True) -> Digest:
        """Stores a blob and returns its name; `durable`: it outlives a power cut once this returns."""
        blob = parts if isinstance(parts, bytes) else b"".join(parts)
        info = _info_of(blob)
        root = root_of_leaves(info.num_bytes, info.leaves)
        path = self._path(root)
        if not path.exists():
            partial = path.with_name(f"{path.name}.{threading.get_ident()}{_PARTIAL}")
            with disk_errors(path):
                with open(partial, "wb") as file:
                    file.write(blob)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                partial.replace(path)
        self._remember(root, info)
        return root

    def partial_path(self, root: Digest) -> Path:
        """Where a download of this blob is gathered."""
        return self._path(root).with_suffix(_PARTIAL)

    def adopt_partial(self, root: Digest, info: BlobInfo) -> None:
        """Makes a finished download, every chunk of which was checked, a blob."""
        with disk_errors(self._path(root)):
            self.partial_path(root).replace(self._path(root))
        self._remember(root, info)

    def serve_file(self, root: Digest, path: Path) -> None:
        """Serves a file outside the folder under its name; gone when the file is."""
        with self._lock:
            self._elsewhere[root] = path

    def has(self, root: Digest) -> bool:
        return self._locate(root) is not None

    def read(self, root: Digest, *, check: bool = False) -> bytes:
        """The whole blob. Raises StateError when it is not here, or, with `check`, when its bytes have changed."""
        path = self._locate(root)
        if path is None:
            raise StateError(f"blob {root} is not in {self._folder}")
        with disk_errors(path):
            blob = path.read_bytes()
        if check:
            info = _info_of(blob)
            if root_of_leaves(info.num_bytes, info.leaves) != root:
                raise StateError(f"{path}: its bytes are not the ones that were written ({len(blob)} bytes)")
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
                return None  # a file that changed under us is not that blob any more
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
        """Removes every blob that nobody pins; returns how many."""
        with self._lock:
            needed = {root.hex() for roots in self._pins.values() for root in roots}
            self._elsewhere = {root: path for root, path in self._elsewhere.items() if path.exists()}
        removed = 0
        for path in self._folder.iterdir():
            name = path.name.split(".")[0]
            if name not in needed:
                path.unlink(missing_ok=True)
                with self._lock:
                    self._infos.pop(Digest.from_hex(name), None) if len(name) == 64 else None
                removed += 1
        return removed

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


class disk_errors:
    """Turns the system's errors about a path into one line for the person at the keyboard."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StateError(f"{self._path.parent}: the disk is full; free some space and start again") from None
            raise StateError(f"{self._path}: {error.strerror or error}") from None


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
