"""The tokenized cache: a source's documents as arrays of token ids on disk, made once and memory-mapped ever after.

A folder for each (source digest, tokenizer digest, separator) holds one array for training and one for each tier of held-out
documents, `journal.json` while it is being made, and `tokens.json`, written last: with it the arrays are whole. A kill
at any instruction costs the text since the last journal entry; the arrays come out byte for byte the same.

Which tier a document belongs to depends on its text alone: 1 % of all documents are in the first, 20 % in all five. A
run holds out as many tiers as its evaluation needs, so that a large corpus gives up 1 % and a short book still has
something to be tested on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from peer.data.cache import Progress, locked, read_json, write_json, writing
from peer.data.files import REPLACEMENT, Item, SourceFile, TextReader, refuse_changed
from peer.data.tokenizer import Tokenizer
from swarm.digest import Digest
from swarm.errors import DataError

TIER_PERCENTS: Final = (1, 2, 5, 10, 20)  # held out in all, up to and with each tier
_LAYOUT: Final = 2  # raised when the same text would give other arrays, or other files
_SEGMENTS: Final = ("train", *(f"heldout-{percent}" for percent in TIER_PERCENTS))
_BATCH_LETTERS: Final = 1 << 20  # encoded at once: enough for all cores, some 50 MB of encodings
_BATCH_DOCUMENTS: Final = 1024
_JOURNAL_LETTERS: Final = 16 << 20  # at most so much text is tokenized again after a kill
_MAX_FAULTS: Final = 20  # named; the others are counted
_MAX_SOURCES: Final = 1000  # counted by name; the others together
_OTHER_SOURCES: Final = "(other)"
_TEXT_BYTES_PER_REPLACED: Final = (
    1000  # of a text with more replaced bytes than one in so many, all is taken to be wrong
)


@dataclass(slots=True)
class Counts:
    """What a source holds."""

    documents: int = 0
    num_bytes: int = 0  # of text, in UTF-8
    tokens: int = 0  # separators included

    @staticmethod
    def total(sources: dict[str, Counts]) -> Counts:
        """All sources together."""
        all_of_them = sources.values()
        return Counts(
            sum(one.documents for one in all_of_them),
            sum(one.num_bytes for one in all_of_them),
            sum(one.tokens for one in all_of_them),
        )


@dataclass(frozen=True, slots=True)
class TokenSet:
    """A tokenized source; the arrays are read-only, each document ends with the separator."""

    train: NDArray[Any]
    heldout_tiers: tuple[NDArray[Any], ...]  # in the order of TIER_PERCENTS
    sources: dict[str, Counts]  # by `pile_set_name`, what is held out included
    num_items: int  # lines of jsonl and documents of .txt that were read
    num_malformed: int  # of them, left out
    faults: tuple[str, ...]  # the first malformed lines: file, line, what is wrong
    num_replaced: int  # bytes that are no text, each now U+FFFD
    first_replaced: str  # the place of the first of them, in words


@dataclass(slots=True)
class _Journal:
    """How far a source is tokenized. Bytes of the arrays beyond `lengths` are of a batch that was not recorded."""

    file: int = 0  # files before it are done
    offset: int = 0  # and so many decompressed bytes of it
    line: int = 0
    lengths: list[int] = field(default_factory=lambda: [0] * len(_SEGMENTS))  # tokens in each array
    num_items: int = 0
    num_malformed: int = 0
    faults: list[str] = field(default_factory=list)
    num_replaced: int = 0
    first_replaced: str = ""
    sources: dict[str, Counts] = field(default_factory=dict)

    def note_fault(self, file: SourceFile, item: Item) -> None:
        self.num_malformed += 1
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(f"{file.name} line {item.line}: {item.fault}")

    def count(self, document: Item, num_tokens: int) -> None:
        source = document.source
        if source not in self.sources and len(self.sources) >= _MAX_SOURCES:
            source = _OTHER_SOURCES
        counts = self.sources.setdefault(source, Counts())
        counts.documents += 1
        counts.num_bytes += len(document.text.encode())
        counts.tokens += num_tokens

    def note_replaced(self, file: SourceFile, document: Item) -> None:
        if not self.num_replaced:
            at = document.text.index(REPLACEMENT)
            self.first_replaced = f"{file.name} document {document.line}, {document.text[max(0, at - 10) : at + 11]!r}"
        self.num_replaced += document.num_replaced


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every id of the vocabulary."""
    return np.dtype("<u1" if vocab_size <= 2**8 else "<u2" if vocab_size <= 2**16 else "<u4")


def tokenized(
    files: tuple[SourceFile, ...], source: Digest, tokenizer: Tokenizer, cache_dir: Path, progress: Progress
) -> TokenSet:
    """The tokens of a source, from the cache, else made now; an interrupted making goes on where it was.

    Memory stays bounded by a batch and a document. Raises DataError for unreadable text or text without a document,
    StateError when the cache cannot be written, and whatever `progress` raises to stop.
    """
    folder = cache_dir / f"tokens-{source.hex()[:24]}-{tokenizer.digest[:24]}-{tokenizer.separator}"
    dtype = token_dtype(tokenizer.vocab_size)
    if (found := _open_finished(folder, dtype)) is not None:
        return found
    with locked(folder / "lock", progress):
        if (found := _open_finished(folder, dtype)) is not None:  # by another process, while this one waited
            return found
        _make(files, tokenizer, folder, progress)
    found = _open_finished(folder, dtype)
    if found is None:
        raise DataError(f"{folder}: its files vanish or shrink; remove the folder and start again")
    return found


def _open_finished(folder: Path, dtype: np.dtype[Any]) -> TokenSet | None:
    """The token set of a folder whose making was finished and whose files are whole, else None."""
    journal = _read_journal(folder / "tokens.json")
    if journal is None:
        return None
    arrays: list[NDArray[Any]] = []
    for name, length in zip(_SEGMENTS, journal.lengths, strict=True):
        path = folder / f"{name}.tokens"
        try:
            if path.stat().st_size != length * dtype.itemsize:
                return None
            arrays.append(np.memmap(path, dtype=dtype, mode="r") if length else np.empty(0, dtype))
        except OSError:
            return None
    return TokenSet(
        train=arrays[0],
        heldout_tiers=tuple(arrays[1:]),
        sources=journal.sources,
        num_items=journal.num_items,
        num_malformed=journal.num_malformed,
        faults=tuple(journal.faults),
        num_replaced=journal.num_replaced,
        first_replaced=journal.first_replaced,
    )


def _read_journal(path: Path) -> _Journal | None:
    value = read_json(path)
    if value is None or value.pop("layout", None) != _LAYOUT:
        return None
    try:
        sources = {name: Counts(**counts) for name, counts in value.pop("sources").items()}
        journal = _Journal(**value, sources=sources)
    except (KeyError, TypeError, AttributeError):
        return None
    return journal if len(journal.lengths) == len(_SEGMENTS) else None


def _write_journal(path: Path, journal: _Journal) -> None:
    write_json(path, {"layout": _LAYOUT, **asdict(journal)})


class _Arrays:
    """The arrays of a folder, open to be appended to; a context manager."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], lengths: list[int]) -> None:
        """Cuts each file back to its recorded length; a file that is shorter raises ValueError."""
        self._folder = folder
        self._dtype = dtype
        self._files: list[BinaryIO] = []
        with writing(folder), ExitStack() as stack:
            for name, length in zip(_SEGMENTS, lengths, strict=True):
                file = stack.enter_context((folder / f"{name}.tokens").open("ab"))
                if file.tell() < length * dtype.itemsize:
                    raise ValueError(f"{name}.tokens is shorter than its journal says")
                file.truncate(length * dtype.itemsize)
                self._files.append(file)
            self._stack = stack.pop_all()  # nothing went wrong: they stay open

    def __enter__(self) -> _Arrays:
        return self

    def __exit__(self, *exception: object) -> None:
        with writing(self._folder):
            self._stack.close()

    def append(self, segment: int, ids: NDArray[Any]) -> None:
        self._files[segment].write(ids.astype(self._dtype, copy=False).tobytes())

    def sync(self) -> None:
        """Returns when everything appended is on disk."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())


def _make(files: tuple[SourceFile, ...], tokenizer: Tokenizer, folder: Path, progress: Progress) -> None:
    journal_path = folder / "journal.json"
    with writing(folder):
        (folder / "tokens.json").unlink(missing_ok=True)  # there is one only if its arrays were damaged
    dtype = token_dtype(tokenizer.vocab_size)
    journal = _read_journal(journal_path) or _Journal()
    try:
        arrays = _Arrays(folder, dtype, journal.lengths)
    except ValueError:  # arrays and journal do not belong together: begin afresh
        journal = _Journal()
        arrays = _Arrays(folder, dtype, journal.lengths)
    with arrays:
        letters = 0
        for batch, fraction in _batches(files, journal):
            with writing(folder):
                letters += _append(batch, tokenizer, arrays, journal)
                _refuse_other_encoding(files[batch.position[0]], journal)
                if letters >= _JOURNAL_LETTERS:
                    arrays.sync()
                    _write_journal(journal_path, journal)
                    letters = 0
            progress(fraction, f"tokenizing: {sum(journal.lengths):,} tokens, {journal.num_malformed} malformed lines")
        with writing(folder):
            arrays.sync()
    for file in files:
        refuse_changed(file)
    if not sum(journal.lengths):
        first = f", the first: {journal.faults[0]}" if journal.faults else ""
        raise DataError(
            f"{files[0].path}: no document in {len(files)} files: {journal.num_malformed} malformed lines{first}; "
            'a line of jsonl is {"text": "..."}'
        )
    _write_journal(folder / "tokens.json", journal)
    journal_path.unlink(missing_ok=True)


def _refuse_other_encoding(file: SourceFile, journal: _Journal) -> None:
    """Raises DataError when so much of what was read up to `file` is no text that it must be in another encoding.

    Asked behind each batch, so that a large text is refused soon, and before the journal moves, so that everybody refuses
    the same texts, interrupted or not.
    """
    num_bytes = Counts.total(journal.sources).num_bytes
    if journal.num_replaced * _TEXT_BYTES_PER_REPLACED > num_bytes:
        raise DataError(
            f"{file.path}: {journal.num_replaced} bytes up to there are not UTF-8 text, the first in "
            f"{journal.first_replaced}; at most one in {_TEXT_BYTES_PER_REPLACED} may be: convert the text, as in "
            "`iconv -f latin1 -t utf-8` or `iconv -f utf-16 -t utf-8`, or leave such files out"
        )


@dataclass(slots=True)
class _Batch:
    """Documents to encode together, and where reading goes on behind them."""

    documents: list[tuple[SourceFile, Item]] = field(default_factory=list)
    faults: list[tuple[SourceFile, Item]] = field(default_factory=list)
    letters: int = 0
    items: int = 0
    position: tuple[int, int, int] = (0, 0, 0)  # file, offset, line


def _batches(files: tuple[SourceFile, ...], journal: _Journal) -> Iterator[tuple[_Batch, float]]:
    """Batches of documents from the journal's position on, each with the share of the source that is read by then."""
    total = sum(file.num_bytes for file in files) or 1
    done = sum(file.num_bytes for file in files[: journal.file])
    start = (journal.offset, journal.line)  # of the first file; the journal moves on while this runs
    batch = _Batch(position=(journal.file, *start))
    for number, file in enumerate(files[journal.file :], start=journal.file):
        with TextReader(file, *start) as reader:
            for item in reader.items():
                batch.items += 1
                batch.letters += len(item.text)
                batch.position = (number, item.offset, item.line)
                if item.fault is not None:
                    batch.faults.append((file, item))
                elif item.text:
                    batch.documents.append((file, item))
                if batch.letters >= _BATCH_LETTERS or batch.items >= _BATCH_DOCUMENTS:
                    yield batch, min(1.0, (done + reader.bytes_read) / total)
                    batch = _Batch(position=batch.position)
        done += file.num_bytes
        start = (0, 0)
    yield batch, 1.0


def _append(batch: _Batch, tokenizer: Tokenizer, arrays: _Arrays, journal: _Journal) -> int:
    """Appends a batch to the arrays and moves the journal (in memory) behind it; returns the letters of the batch."""
    encoded = tokenizer.encode([document.text for _, document in batch.documents])
    separator = np.array([tokenizer.separator])
    for (file, document), ids in zip(batch.documents, encoded, strict=True):
        segment = _segment_of(document.text)
        arrays.append(segment, ids)
        arrays.append(segment, separator)
        journal.lengths[segment] += len(ids) + 1
        journal.count(document, len(ids) + 1)
        if document.num_replaced:
            journal.note_replaced(file, document)
    journal.num_items += batch.items
    for file, item in batch.faults:
        journal.note_fault(file, item)
    journal.file, journal.offset, journal.line = batch.position
    return batch.letters


def _segment_of(text: str) -> int:
    """0: for training; else the 1-based tier of a held-out document. By its text alone: copies stay together."""
    hasher = blake3(b"barnraise.heldout\x00")
    hasher.update(text.encode())
    number = int.from_bytes(hasher.digest()[:8], "little") % 100
    return next((tier for tier, percent in enumerate(TIER_PERCENTS, start=1) if number < percent), 0)
