"""The default text: the source of Python's own standard library, packed into one blob that its digest names.

Releases of Python differ, so the text of whoever starts a run travels as a blob of at most 16 MiB; a peer whose own
library gives another digest fetches it. Layout, all limits checked before anything is built:

    u32 big-endian: length of the index | index: canonical wire value [[path, num_bytes], ...] | the files, in that order

Whole files are held out, chosen by the digest of their path. Each file ends with a 0 byte, the separator of bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from peer.data.cache import write_atomically
from swarm import wire
from swarm.digest import Digest, blob_digest, digest_of
from swarm.errors import DataError, MalformedBytes, RemoteError

MAX_BLOB_BYTES: Final = 16 << 20
MAX_INDEX_BYTES: Final = 256 << 10  # some 600 files with paths of about 20 letters need 15 KiB
SEPARATOR: Final = b"\0"
_INDEX_HEADER: Final = struct.Struct(">I")
_HELDOUT_PERCENT: Final = 5
# Not prose of the library: tests, vendored tools, character tables, and what differs between machines.
_SKIPPED_FOLDERS: Final = frozenset(
    {"__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib-dynload", "lib2to3"}
    | {"site-packages", "test", "tests", "turtledemo"}
)
_SKIPPED_PREFIXES: Final = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize", ".")


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """The two halves of the text; each file ends with a 0 byte."""

    train: bytes
    heldout: bytes


def build_embedded_blob(folder: Path | None = None) -> bytes:
    """The blob of this Python's standard library, or of the `*.py` files below `folder`: the same bytes at every call.

    Raises DataError when there are no such files, as in a Python that lives in a zip archive.
    """
    root = folder or Path(os.__file__).parent
    index: list[list[Any]] = []
    bodies: list[bytes] = []
    left = MAX_BLOB_BYTES - MAX_INDEX_BYTES - _INDEX_HEADER.size
    for path in sorted(_python_files(root, ""), key=str.encode):
        body = _text_of(root / path)
        if not body or len(body) > left:  # a file that does not fit any more is left out; smaller ones may still fit
            continue
        left -= len(body)
        index.append([path, len(body)])
        bodies.append(body)
    packed = wire.encode(index)
    if not bodies or len(packed) > MAX_INDEX_BYTES:
        raise DataError(
            f"{root}: {len(bodies)} readable *.py files there, so no text of Python's standard library to train on; "
            "give a text with --data PATH, or join a run that has it"
        )
    return b"".join([_INDEX_HEADER.pack(len(packed)), packed, *bodies])


def _python_files(folder: Path, prefix: str) -> Iterator[str]:
    """Paths of the library's files, relative, with forward slashes; symbolic links are not followed."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(_SKIPPED_PREFIXES) or entry.is_symlink():
            continue
        if entry.is_dir():
            if entry.name not in _SKIPPED_FOLDERS:
                yield from _python_files(folder / entry.name, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py") and entry.name.isascii():
            yield prefix + entry.name


def _text_of(path: Path) -> bytes:
    """The file's bytes if they are UTF-8 without a 0 byte, else nothing."""
    try:
        body = path.read_bytes()
        body.decode()
    except (OSError, ValueError):
        return b""
    return b"" if SEPARATOR in body else body


def parse_embedded_blob(raw: bytes) -> EmbeddedText:
    """The text in a blob, which may come from anybody; raises MalformedBytes."""
    if not _INDEX_HEADER.size <= len(raw) <= MAX_BLOB_BYTES:
        raise MalformedBytes(f"an embedded text of {len(raw)} bytes; at least 4, at most {MAX_BLOB_BYTES}")
    (index_bytes,) = _INDEX_HEADER.unpack_from(raw)
    position = _INDEX_HEADER.size + index_bytes
    if index_bytes > MAX_INDEX_BYTES or position > len(raw):
        raise MalformedBytes(f"an index of {index_bytes} bytes in an embedded text of {len(raw)}")
    train: list[bytes] = []
    heldout: list[bytes] = []
    before = ""
    for path, num_bytes in _entries(wire.decode(raw[_INDEX_HEADER.size : position], max_bytes=MAX_INDEX_BYTES)):
        if path.encode() <= before.encode():
            raise MalformedBytes(f"the embedded files are not in order at {path[:80]!r}")
        if num_bytes > len(raw) - position:
            raise MalformedBytes(f"{path[:80]!r}: {num_bytes} bytes announced, {len(raw) - position} there")
        half = heldout if _is_heldout(path) else train
        half += (raw[position : position + num_bytes], SEPARATOR)
        position += num_bytes
        before = path
    if position != len(raw):
        raise MalformedBytes(f"{len(raw) - position} bytes behind the last embedded file")
    return EmbeddedText(train=b"".join(train), heldout=b"".join(heldout))


def _entries(index: Any) -> Iterator[tuple[str, int]]:
    if not isinstance(index, list):
        raise MalformedBytes("the index of an embedded text is a list")
    for entry in index:
        match entry:
            case [str(path), int(num_bytes)] if not isinstance(num_bytes, bool) and num_bytes > 0:
                yield path, num_bytes
            case _:
                raise MalformedBytes("an entry of the index of an embedded text is a path and a size above 0")


def _is_heldout(path: str) -> bool:
    """By the digest of the path, so that a file stays held out whatever else a release of Python adds."""
    number = int.from_bytes(digest_of("embedded-heldout", path.encode()).raw[:8], "little")
    return number % 100 < _HELDOUT_PERCENT


def embedded_path(cache_dir: Path, digest: Digest) -> Path:
    """Where the blob of that digest lies once it was loaded, for whoever serves it to others."""
    return cache_dir / f"embedded-{digest.hex()}.blob"


def load_embedded_blob(
    digest: Digest, cache_dir: Path, fetch_blob: Callable[[Digest], bytes] | None, folder: Path | None = None
) -> bytes:
    """The blob that `digest` names: from the cache, from this Python's library, or from peers; then it is in the cache.

    Raises DataError when none of them has it. What `fetch_blob` raises by itself passes through.
    """
    cached = embedded_path(cache_dir, digest)
    try:
        raw = cached.read_bytes() if cached.stat().st_size <= MAX_BLOB_BYTES else b""
    except OSError:
        raw = b""
    if raw and blob_digest(raw) == digest:
        return raw
    try:
        raw = build_embedded_blob(folder)
    except DataError:
        raw = b""
    found = blob_digest(raw)
    if found != digest:
        if fetch_blob is None:
            raise DataError(
                f"this run's text is the standard library of another Python: the manifest names {digest}, this Python "
                f"gives {found}, and there is no peer to fetch it from; join while another peer is there"
            )
        raw = fetch_blob(digest)
        if len(raw) > MAX_BLOB_BYTES or blob_digest(raw) != digest:
            raise RemoteError(f"asked for the embedded text {digest}, got {len(raw)} bytes with another digest")
    write_atomically(cached, raw)
    return raw
