"""Text in files: `.jsonl` in the Pile's layout, packed or not, and `.txt`, one file or a folder of them.

Everything here streams: however large a file or a line is, memory holds one block and one document. A line of jsonl is
`{"text": ..., "meta": {"pile_set_name": ...}}`; a .txt file is cut at blank lines into documents of at least 16 Ki letters.
Text is UTF-8, with or without a byte order mark; in a .txt, CRLF and CR count as LF. A source is named by one digest over
its files' names and content; a source of a single file does not depend on its name.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from blake3 import blake3

from peer.data.cache import Progress, read_json, write_json
from peer.data.packed import BROKEN, PACKED_SUFFIXES, PackedStream
from swarm.digest import Digest, digest_of
from swarm.errors import DataError

SUFFIXES: Final = (*(f".jsonl{packed}" for packed in PACKED_SUFFIXES), ".jsonl", ".txt")
MAX_LINE_BYTES: Final = 64 << 20  # a line of jsonl beyond it is counted as malformed and skipped unread
TXT_DOCUMENT_LETTERS: Final = 16 << 10  # small enough that whole documents can be held out of one short book
_TXT_MAX_LETTERS: Final = 64 << 10  # text without blank lines is cut at a line's end, else at a space, before this
_NOT_TEXT: Final = re.compile("[\0\udc80-\udcff]")  # a 0 byte, as UTF-16 has them, or a byte that is not UTF-8
REPLACEMENT: Final = "\ufffd"
# What lies beside a text and is not meant to be read as one, by its name without .txt.
_BESIDE_THE_TEXT: Final = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|citation)([._-].*)?|(.*[._-])?(sha\d+|md5|blake\d|b3|check)(sums?)?",
    re.IGNORECASE,
)
_MAX_NAMED: Final = 3  # files of one kind that are named; of more the number is
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
    offset: int  # bytes of the unpacked file (letters, in a .txt) up to the end of this item
    line: int  # lines of it (documents, in a .txt) up to there
    num_replaced: int = 0  # bytes of a .txt that are no text; U+FFFD stands for each


def find_files(data_path: Path) -> tuple[SourceFile, ...]:
    """The files of a source, sorted by name. Raises DataError when there is none, or none that is of a known kind."""
    kinds = ", ".join(SUFFIXES)
    if data_path.is_file():
        if not data_path.name.endswith(SUFFIXES):
            raise DataError(f"{data_path}: not a kind of text known here ({kinds})")
        paths, root = [data_path], data_path.parent
    elif data_path.is_dir():
        paths, root = [path for path in _visible_files(data_path) if _is_text(path)], data_path
        if not paths:
            others = f"; there are {beside}" if (beside := files_beside(data_path)) else ""
            raise DataError(
                f"{data_path}: no text there that ends with one of {kinds}{others}; give the folder that holds the text"
            )
    else:
        raise DataError(f"{data_path}: no such file or folder; give the text of this run with --data PATH")
    found = []
    for path in paths:
        stat = path.stat()
        found.append(SourceFile(path.relative_to(root).as_posix(), path, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found, key=lambda file: file.name.encode()))


def files_beside(data_path: Path) -> str:
    """What lies in the source's folder and is not read, in words; "" when all is, and for a single file."""
    kinds: dict[str, list[str]] = {}
    for path in _visible_files(data_path) if data_path.is_dir() else ():
        if not _is_text(path):
            kinds.setdefault(path.suffix, []).append(path.name)
    named = (
        ", ".join(sorted(names)) if not kind or len(names) <= _MAX_NAMED else f"{len(names)} files {kind}"
        for kind, names in sorted(kinds.items())
    )
    return ", ".join(named)


def _visible_files(folder: Path) -> list[Path]:
    """All files below the folder but hidden ones and those in hidden folders."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _is_text(path: Path) -> bool:
    """Whether a file that was found in a folder is read."""
    return path.name.endswith(SUFFIXES) and not (
        path.suffix == ".txt" and _BESIDE_THE_TEXT.fullmatch(path.name.removesuffix(".txt"))
    )


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
        """Opens the file at `offset`, an Item's end; raises DataError."""
        self.file = file
        self._offset = offset
        self._line = line
        self._stream: io.BufferedReader | PackedStream
        try:
            self._raw: BinaryIO = file.path.open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"{file.path}: cannot be read: {error.strerror}") from None
        if file.suffix.endswith(PACKED_SUFFIXES):
            self._stream = PackedStream(self._raw, file.suffix)
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
            yield from self._txt(fallback) if self.file.suffix == ".txt" else self._jsonl(fallback)
        except BROKEN as error:
            raise DataError(
                f"{self.file.path}: broken behind line {self._line}: {error}; fetch the file again"
            ) from None
        except OSError as error:
            raise DataError(f"{self.file.path}: cannot be read: {error.strerror}") from None

    @property
    def _cut_off(self) -> bool:
        return isinstance(self._stream, PackedStream) and self._stream.cut_off

    def _jsonl(self, fallback: str) -> Iterator[Item]:
        if isinstance(self._stream, PackedStream):
            _skip(self._stream, self._offset)  # unpacked again, which is far cheaper than making tokens
        else:
            self._stream.seek(self._offset)
        while line := self._stream.readline(MAX_LINE_BYTES + 1):
            if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES and self._cut_off:
                break  # what came of a line
            self._offset += len(line)
            self._line += 1
            too_long = len(line) > MAX_LINE_BYTES
            while too_long and not line.endswith(b"\n") and (line := self._stream.readline(_BLOCK_BYTES)):
                self._offset += len(line)
            if too_long:
                parsed: tuple[str, str, str | None] = ("", fallback, f"longer than {MAX_LINE_BYTES} bytes")
            else:
                parsed = _parse_line(line, fallback, is_first=self._line == 1)
            yield Item(*parsed, self._offset, self._line)
        if self._cut_off:
            raise DataError(f"{self.file.path}: cut off after document {self._line}; fetch the file again")

    def _txt(self, fallback: str) -> Iterator[Item]:
        letters = io.TextIOWrapper(self._stream, "utf-8-sig", "surrogateescape", newline=None)
        _skip(letters, self._offset)
        held = ""
        while True:
            held += letters.read(_TXT_MAX_LETTERS - len(held))
            if not held:
                return
            end = _document_end(held)
            self._offset += end
            self._line += 1
            text, num_replaced = _NOT_TEXT.subn(REPLACEMENT, held[:end])
            yield Item(text, fallback, None, self._offset, self._line, num_replaced)
            held = held[end:]


def _skip(stream: io.BufferedReader | io.TextIOWrapper, count: int) -> None:
    """Reads on by so many bytes or letters."""
    while count and (block := stream.read(min(count, _BLOCK_BYTES))):
        count -= len(block)


def _document_end(held: str) -> int:
    """Where the document at the start of `held` ends: at a blank line, else at the end of a line, of a word, or anywhere."""
    if (blank := held.find("\n\n", TXT_DOCUMENT_LETTERS)) >= 0:
        return blank + 2
    if len(held) < _TXT_MAX_LETTERS:
        return len(held)
    for mark in ("\n", " "):
        if (found := held.rfind(mark, TXT_DOCUMENT_LETTERS)) >= 0:
            return found + 1
    return len(held)


def _parse_line(line: bytes, fallback: str, *, is_first: bool) -> tuple[str, str, str | None]:
    """The text, the source and the fault of a line of jsonl."""
    try:
        letters = line.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        return "", fallback, f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start} of the line"
    if not letters.strip():
        return "", fallback, None
    try:
        value = json.loads(letters)
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
