"""Text in files: `.jsonl.zst` and `.jsonl` in the Pile's layout, and `.txt`, one file or a folder of them.

Everything here streams: however large a file or a line is, memory holds one block and one document. A line of jsonl is
`{"text": ..., "meta": {"pile_set_name": ...}}`; a .txt file is cut at blank lines into documents of at least 16 KiB.
A source is named by one digest over its files' names and content; a source of a single file does not depend on its name.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

import zstandard
from blake3 import blake3

from peer.data.cache import Progress, read_json, write_json
from swarm.digest import Digest, digest_of
from swarm.errors import DataError

SUFFIXES: Final = (".jsonl.zst", ".jsonl", ".txt")
MAX_LINE_BYTES: Final = 64 << 20  # a line of jsonl beyond it is counted as malformed and skipped unread
TXT_DOCUMENT_BYTES: Final = 16 << 10  # small enough that whole documents can be held out of one short book
_TXT_MAX_BYTES: Final = 64 << 10  # text without blank lines is cut at a line's end, else at a space, before this
_BLOCK_BYTES: Final = 1 << 20
_HASH_BYTES: Final = 4 << 20
_SAVE_EVERY_BYTES: Final = 1 << 30  # of hashing that a kill may lose
_SOURCE_NAME_LETTERS: Final = 64
_DIGEST: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source, as it was when it was found."""

    name: str  # relative to the source's folder, with forward slashes
    path: Path
    num_bytes: int
    mtime_ns: int

    @property
    def suffix(self) -> str:
        return next(suffix for suffix in SUFFIXES if self.name.endswith(suffix))


@dataclass(frozen=True, slots=True)
class Item:
    """One document, or what is wrong with one line; and where reading goes on behind it."""

    text: str  # empty when there is no document here: a blank or malformed line
    source: str  # the document's `pile_set_name`, else the file's name without suffixes
    fault: str | None
    offset: int  # bytes of the decompressed file up to the end of this item
    line: int  # lines of it (documents, in a .txt) up to there


def find_files(data_path: Path) -> tuple[SourceFile, ...]:
    """The files of a source, sorted by name. Raises DataError when there is none, or none that is of a known kind."""
    kinds = ", ".join(SUFFIXES)
    if data_path.is_file():
        if not data_path.name.endswith(SUFFIXES):
            raise DataError(f"{data_path}: not a kind of text known here ({kinds})")
        paths = [data_path]
        root = data_path.parent
    elif data_path.is_dir():
        paths = [path for path in data_path.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file()]
        paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(data_path).parts)]
        root = data_path
        if not paths:
            raise DataError(f"{data_path}: no file there ends with one of {kinds}; give the folder that holds the text")
    else:
        raise DataError(f"{data_path}: no such file or folder; give the text of this run with --data PATH")
    found = []
    for path in paths:
        stat = path.stat()
        found.append(SourceFile(path.relative_to(root).as_posix(), path, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found, key=lambda file: file.name.encode()))


def source_digest(files: tuple[SourceFile, ...], cache_dir: Path, progress: Progress) -> Digest:
    """The name of a source. A file whose path, size and time of change are known from before is not read again.

    Raises DataError when a file cannot be read or changes meanwhile.
    """
    known_path = cache_dir / "file-digests.json"
    known = read_json(known_path) or {}
    fresh: dict[str, list[object]] = {}
    total = sum(file.num_bytes for file in files) or 1
    done = unsaved_bytes = 0
    parts: list[bytes] = []
    for number, file in enumerate(files, start=1):
        key = str(file.path.resolve())
        digest = _known_digest(file, known.get(key))
        if digest is None:
            digest = _read_digest(file, done, total, progress)
            fresh[key] = [file.num_bytes, file.mtime_ns, digest.hex()]
            unsaved_bytes += file.num_bytes
        done += file.num_bytes
        name = file.suffix if len(files) == 1 else file.name
        parts += (name.encode(), digest.raw)
        if fresh and (unsaved_bytes >= _SAVE_EVERY_BYTES or number == len(files)):
            # Read once more before writing: another peer of this machine may have added its own.
            write_json(known_path, {**(read_json(known_path) or {}), **fresh})
            unsaved_bytes = 0
    return digest_of("text-source", *parts)


def _known_digest(file: SourceFile, entry: object) -> Digest | None:
    """The digest in a cache entry if that is of this very file."""
    match entry:
        case [file.num_bytes, file.mtime_ns, str(text)] if _DIGEST.fullmatch(text):
            return Digest.from_hex(text)
    return None


def _read_digest(file: SourceFile, done: int, total: int, progress: Progress) -> Digest:
    """The digest of a file's content; `done` of the source's `total` bytes lie before it."""
    hasher = blake3(b"barnraise.text-file\x00")
    try:
        with file.path.open("rb", buffering=0) as stream:
            while block := stream.read(_HASH_BYTES):
                hasher.update(block)
                done += len(block)
                progress(min(1.0, done / total), f"checking the digest of {file.name}")
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read: {error.strerror}") from None
    refuse_changed(file)
    return Digest(hasher.digest())


def refuse_changed(file: SourceFile) -> None:
    """Raises DataError if the file is another one than when it was found."""
    try:
        now = file.path.stat()
        if (now.st_size, now.st_mtime_ns) == (file.num_bytes, file.mtime_ns):
            return
    except OSError:
        pass
    raise DataError(f"{file.path}: changed while it was being read; start again when nobody writes to it")


class TextReader:
    """Reads one file's documents from an offset on; a context manager. Memory: one block and one document."""

    def __init__(self, file: SourceFile, offset: int = 0, line: int = 0) -> None:
        """Opens the file at `offset` of its decompressed bytes, an Item's end; raises DataError."""
        self.file = file
        self._offset = offset
        self._line = line
        try:
            self._raw: BinaryIO = file.path.open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"{file.path}: cannot be read: {error.strerror}") from None
        if file.suffix.endswith(".zst"):
            reader = zstandard.ZstdDecompressor().stream_reader(self._raw, read_across_frames=True)
            self._stream = io.BufferedReader(cast(io.RawIOBase, reader), _BLOCK_BYTES)
        else:
            self._stream = io.BufferedReader(cast(io.RawIOBase, self._raw), _BLOCK_BYTES)

    def __enter__(self) -> TextReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()
        self._raw.close()

    @property
    def bytes_read(self) -> int:
        """How far the file on disk has been read."""
        return self._raw.tell()

    def items(self) -> Iterator[Item]:
        """The documents and faults from where this reader was opened; raises DataError for a broken file."""
        fallback = self.file.path.name.removesuffix(self.file.suffix)[:_SOURCE_NAME_LETTERS]
        try:
            self._skip_to(self._offset)
            yield from self._txt(fallback) if self.file.suffix == ".txt" else self._jsonl(fallback)
        except zstandard.ZstdError as error:
            raise DataError(
                f"{self.file.path}: broken behind line {self._line}: {error}; fetch the file again"
            ) from None
        except OSError as error:
            raise DataError(f"{self.file.path}: cannot be read: {error.strerror}") from None

    def _skip_to(self, offset: int) -> None:
        if self.file.suffix.endswith(".zst"):  # only forwards: decompressed again, which is far cheaper than tokens
            while offset and (block := self._stream.read(min(offset, _BLOCK_BYTES))):
                offset -= len(block)
        else:
            self._stream.seek(offset)

    def _jsonl(self, fallback: str) -> Iterator[Item]:
        while line := self._stream.readline(MAX_LINE_BYTES + 1):
            self._offset += len(line)
            self._line += 1
            too_long = len(line) > MAX_LINE_BYTES
            while too_long and not line.endswith(b"\n") and (line := self._stream.readline(_BLOCK_BYTES)):
                self._offset += len(line)
            if too_long:
                parsed: tuple[str, str, str | None] = ("", fallback, f"longer than {MAX_LINE_BYTES} bytes")
            else:
                parsed = _parse_line(line, fallback)
            yield Item(*parsed, self._offset, self._line)

    def _txt(self, fallback: str) -> Iterator[Item]:
        held = b""
        while True:
            held += self._stream.read(max(0, _TXT_MAX_BYTES - len(held)))
            if not held:
                return
            end = _document_end(held)
            self._offset += end
            self._line += 1
            yield Item(held[:end].decode(errors="replace"), fallback, None, self._offset, self._line)
            held = held[end:]


def _document_end(held: bytes) -> int:
    """Where the document at the start of `held` ends: at a blank line, else the end of a line, a word, a letter."""
    if (blank := held.find(b"\n\n", TXT_DOCUMENT_BYTES)) >= 0:
        return blank + 2
    if len(held) < _TXT_MAX_BYTES:
        return len(held)
    for mark in (b"\n", b" "):
        if (found := held.rfind(mark, TXT_DOCUMENT_BYTES)) >= 0:
            return found + 1
    # Where the last letter begins: no letter of UTF-8 is cut in two.
    return next((at for at in range(len(held) - 1, len(held) - 5, -1) if held[at] & 0xC0 != 0x80), len(held))


def _parse_line(line: bytes, fallback: str) -> tuple[str, str, str | None]:
    """The text, the source and the fault of a line of jsonl."""
    if not line.strip():
        return "", fallback, None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        cut_off = "" if line.endswith(b"\n") else " (the file may be cut off there)"
        return "", fallback, f"not JSON: {str(error)[:80]}{cut_off}"
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        return "", fallback, 'no "text" that is a string'
    try:
        text.encode()
    except UnicodeEncodeError:
        return "", fallback, "half of a surrogate pair in the text"
    meta = value.get("meta")
    name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    if not isinstance(name, str) or not name:
        name = fallback
    return text, name.encode(errors="replace").decode()[:_SOURCE_NAME_LETTERS], None
