"""Windows: fixed cuts of `sequence_length + 1` tokens, in the order that all peers of a run share.

A window begins every `sequence_length` tokens, so that each token is predicted once; windows do not cross from one array
to the next. `describe_data` finds out what a manifest says of its data; `open_windows` opens the same data on any peer and
refuses others. Training windows go by slot number (`swarm/lease.py`), held-out windows by their own number.
"""

# B = windows in a batch, L = sequence_length

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from peer.data.account import left_out, lines_of_counts
from peer.data.cache import Progress, no_progress, write_atomically
from peer.data.embedded import (
    SEPARATOR,
    build_embedded_blob,
    embedded_path,
    load_embedded_blob,
    parse_embedded_blob,
)
from peer.data.files import find_files, source_digest
from peer.data.tokenizer import (
    BYTES,
    ByteTokenizer,
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
    refuse_no_tokenizer,
)
from peer.data.tokens import TIER_PERCENTS, Counts, TokenSet, tokenized
from swarm.config import DataConfig, RunConfig, SourceConfig
from swarm.digest import Digest, blob_digest
from swarm.errors import DataError
from swarm.lease import window_of_slot

Fetch = Callable[[Digest], bytes]
Say = Callable[[str], None]  # takes a line for people

EMBEDDED_NAME: Final = "python-standard-library"
_SOON_HASHED_BYTES: Final = 1 << 30  # in about a second
_CUT_UP: Final = "give it as more documents (a .txt is cut at blank lines, a line of jsonl is one)"


class TokenRuns:
    """Arrays of token ids, cut into windows that are numbered through."""

    def __init__(self, arrays: Sequence[NDArray[Any]], sequence_length: int) -> None:
        self._arrays = tuple(arrays)
        self._length = sequence_length
        counts = [max(0, (len(array) - 1) // sequence_length) for array in arrays]
        self._stops = np.cumsum(np.array([0, *counts], dtype=np.int64))  # windows before and in each array
        self.num_windows = int(self._stops[-1])

    def take(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """(B, L + 1) token ids of the windows of those numbers; raises IndexError for one that is not there."""
        taken = np.empty((len(numbers), self._length + 1), dtype=np.int64)
        for row, number in enumerate(numbers):
            if not 0 <= number < self.num_windows:
                raise IndexError(f"window {number} of {self.num_windows}")
            place = int(np.searchsorted(self._stops, number, side="right")) - 1
            start = (number - int(self._stops[place])) * self._length
            taken[row] = self._arrays[place][start : start + self._length + 1]
        return taken


@dataclass(frozen=True, slots=True)
class _Corpus:
    """Text as tokens, split, before a manifest's numbers are applied to it."""

    source: SourceConfig
    tokenizer: str
    separator: str  # the name that the tokenizer has for it
    train: TokenRuns
    heldout: TokenRuns
    sources: dict[str, Counts]
    notes: tuple[str, ...] = ()  # what was left out of the text, in words


class Windows:
    """The windows of a run. Equal manifests give equal windows for equal numbers, on every peer."""

    def __init__(self, config: DataConfig, corpus: _Corpus) -> None:
        self.num_windows = config.num_windows
        self.num_heldout_windows = config.num_heldout_windows
        self.sources = dict(corpus.sources)  # by name, what is held out included
        self.notes = corpus.notes  # what was left out of the text, in words
        self._seed = config.seed
        self._train = corpus.train
        self._heldout = corpus.heldout

    def train(self, slots: Sequence[int]) -> NDArray[np.int64]:
        """(B, L + 1) token ids of the training windows that those slots stand for."""
        return self._train.take([window_of_slot(slot, self.num_windows, self._seed) for slot in slots])

    def heldout(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """(B, L + 1) token ids of held-out windows; raises IndexError beyond `num_heldout_windows`."""
        if any(index >= self.num_heldout_windows for index in indices):
            raise IndexError(f"held-out window {max(indices)} of {self.num_heldout_windows}")
        return self._heldout.take(indices)

    def close(self) -> None:
        """Lets go of the memory-mapped files; no window can be read afterwards."""
        self._train = self._heldout = TokenRuns((), 1)


def say_nothing(line: str) -> None:
    """Lines that nobody reads."""


def describe_data(
    config: DataConfig,
    data_path: Path | None,
    tokenizer_path: Path | None,
    cache_dir: Path,
    progress: Progress = no_progress,
    say: Say = say_nothing,
    *,
    vocab_size: int | None = None,
) -> DataConfig:
    """The config with kind, source, tokenizer and numbers of windows as they are on this machine, for a new manifest.

    With a `data_path` the kind becomes "files". A digest or tokenizer that the config names already must fit. What the
    text holds and what is left out is told in lines. Raises DataError, also when the text is too short, or the vocabulary
    larger than the model's `vocab_size`; nothing of torch is loaded.
    """
    if data_path is None and config.kind == "embedded":
        _refuse_paths(config, None, tokenizer_path)
        raw = build_embedded_blob()
        write_atomically(embedded_path(cache_dir, blob_digest(raw)), raw)
        corpus = _embedded_corpus(config, raw, vocab_size, say)
    else:
        config = config.model_copy(update={"kind": "files"})
        named = "" if tokenizer_path is not None and config.tokenizer == BYTES else config.tokenizer
        tokenizer = load_tokenizer(named, tokenizer_path, config.separator)
        corpus = _file_corpus(config, data_path, tokenizer, vocab_size, (cache_dir, progress, say))
    if not corpus.train.num_windows:
        raise _too_little_to_train_on(config, Counts.total(corpus.sources))
    return config.model_copy(
        update={
            "sources": (corpus.source,),
            "tokenizer": corpus.tokenizer,
            "separator": corpus.separator,
            "num_windows": corpus.train.num_windows,
            "num_heldout_windows": corpus.heldout.num_windows,
        }
    )


def open_windows(
    config: DataConfig,
    data_path: Path | None,
    tokenizer_path: Path | None,
    cache_dir: Path,
    *,
    fetch_blob: Fetch | None = None,
    progress: Progress = no_progress,
    vocab_size: int | None = None,
) -> Windows:
    """The windows that a manifest's data section names, checked against it digest by digest.

    `fetch_blob` gets the embedded text from other peers when this Python's differs. Raises DataError that names what is
    wrong, both digests and what to do; StateError when the cache cannot be written; what `fetch_blob` and `progress` raise.
    """
    if len(config.sources) != 1:
        raise DataError(f"the manifest names {len(config.sources)} sources of text; this build reads exactly one")
    if config.kind == "embedded":
        _refuse_paths(config, data_path, tokenizer_path)
        raw = load_embedded_blob(_named_digest(config), cache_dir, fetch_blob)
        corpus = _embedded_corpus(config, raw, vocab_size, say_nothing)
    else:
        _named_digest(config)
        tokenizer = load_tokenizer(config.tokenizer, tokenizer_path, config.separator)
        corpus = _file_corpus(config, data_path, tokenizer, vocab_size, (cache_dir, progress, say_nothing))
    for kind, named, found in (
        ("training", config.num_windows, corpus.train.num_windows),
        ("held-out", config.num_heldout_windows, corpus.heldout.num_windows),
    ):
        if not 0 < named <= found:
            raise DataError(
                f"the manifest names {named} {kind} windows of {config.sequence_length + 1} tokens, the text gives "
                f"{found}; the manifest was not made from this text: ask its maintainer"
            )
    if config.eval_windows > config.num_heldout_windows:
        raise DataError(
            f"the manifest evaluates on {config.eval_windows} held-out windows and names {config.num_heldout_windows}"
        )
    return Windows(config, corpus)


def refuse_other_text(
    config: RunConfig | None, data_path: Path | None, tokenizer_path: Path | None, cache_dir: Path
) -> None:
    """Raises DataError if the paths do not lead to the text and tokenizer of that run, as far as a second tells.

    None is a run that is not known yet. `open_windows` looks at the rest.
    """
    data = None if config is None else config.data
    if data is not None and data.kind == "embedded":
        _refuse_paths(data, data_path, tokenizer_path)
    if tokenizer_path is not None and config is not None:
        tokenizer = load_tokenizer(config.data.tokenizer, tokenizer_path, config.data.separator)
        check_vocabulary(tokenizer, config.model.vocab_size)
    elif tokenizer_path is not None:
        refuse_no_tokenizer(tokenizer_path)
    if data_path is not None:
        files = find_files(data_path)
        num_bytes = sum(file.num_bytes for file in files)
        is_large = num_bytes > _SOON_HASHED_BYTES
        if data is not None and data.sources and not (is_large and num_bytes == data.sources[0].num_bytes):
            digest = "" if is_large else source_digest(files, cache_dir, no_progress).hex()
            found = SourceConfig(name=data.sources[0].name, digest=digest, num_bytes=num_bytes)
            _refuse_other_source(data, found, str(data_path))


def _named_digest(config: DataConfig) -> Digest:
    try:
        return Digest.from_hex(config.sources[0].digest)
    except ValueError:
        raise DataError(
            f"the manifest's digest of {config.sources[0].name[:64]!r} is {config.sources[0].digest[:64]!r}, not 64 hex "
            "digits; make the manifest with `barnraise new`"
        ) from None


def _refuse_paths(config: DataConfig, data_path: Path | None, tokenizer_path: Path | None) -> None:
    """The embedded text comes with Python: other text or tokens would silently not be used."""
    if data_path is not None:
        raise DataError(f"this run is trained on the text that comes with Python; leave out --data {data_path}")
    if tokenizer_path is not None or config.tokenizer != BYTES:
        raise DataError(
            f"the text that comes with Python is read as plain bytes, not with tokenizer {config.tokenizer[:12]!r}"
        )
    load_tokenizer(BYTES, None, config.separator)


def _embedded_corpus(config: DataConfig, raw: bytes, vocab_size: int | None, say: Say) -> _Corpus:
    check_vocabulary(ByteTokenizer(), vocab_size)
    text = parse_embedded_blob(raw)
    name = config.sources[0].name if config.sources else EMBEDDED_NAME
    source = SourceConfig(name=name, digest=blob_digest(raw).hex(), num_bytes=len(raw))
    _refuse_other_source(config, source, "this Python's own library")
    heldout = TokenRuns([np.frombuffer(text.heldout, np.uint8)], config.sequence_length)
    documents, tokens = (text.train + text.heldout).count(SEPARATOR), len(text.train) + len(text.heldout)
    sources = {name: Counts(documents, tokens - documents, tokens)}
    for line in lines_of_counts(sources):
        say(line)
    if heldout.num_windows < config.eval_windows:
        raise _too_little_heldout(config, Counts.total(sources), len(text.heldout), heldout.num_windows)
    train = TokenRuns([np.frombuffer(text.train, np.uint8)], config.sequence_length)
    return _Corpus(source, BYTES, "", train, heldout, sources)


def _file_corpus(
    config: DataConfig,
    data_path: Path | None,
    tokenizer: Tokenizer,
    vocab_size: int | None,
    making: tuple[Path, Progress, Say],
) -> _Corpus:
    """Digest first, then tokens, so that a wrong file is refused before hours of work."""
    check_vocabulary(tokenizer, vocab_size)
    if data_path is None:
        name = config.sources[0].name[:64] if config.sources else "text files"
        raise DataError(f"this run is trained on {name}; give your copy of it with --data PATH")
    cache_dir, progress, say = making
    files = find_files(data_path)
    num_bytes = sum(file.num_bytes for file in files)
    if not num_bytes:
        raise DataError(f"{data_path}: {len(files)} files, all empty; there is nothing to train on")
    digest = source_digest(files, cache_dir, progress)
    name = config.sources[0].name if config.sources else data_path.resolve().name
    source = SourceConfig(name=name, digest=digest.hex(), num_bytes=num_bytes)
    _refuse_other_source(config, source, str(data_path))
    tokens = tokenized(files, digest, tokenizer, cache_dir, progress)
    notes = tuple(left_out(tokens, tokenizer, data_path))
    for line in (*lines_of_counts(tokens.sources), *notes):
        say(line)
    train, heldout = _split(tokens, config)
    return _Corpus(source, tokenizer.digest, tokenizer.separator_name, train, heldout, tokens.sources, notes)


def _refuse_other_source(config: DataConfig, found: SourceConfig, where: str) -> None:
    """Raises DataError if the config names a digest already, and another one."""
    named = config.sources[0].digest if config.sources else ""
    if named and named != found.digest:
        digest = found.digest[:12] or "another one"
        raise DataError(
            f"{where}: wrong data: the digest of its {found.num_bytes} bytes is {digest}, the manifest names "
            f"{named[:12]} with {config.sources[0].num_bytes} bytes for {found.name[:64]!r}; give the same files that "
            "the run was made with"
        )


def _split(tokens: TokenSet, config: DataConfig) -> tuple[TokenRuns, TokenRuns]:
    """Training and held-out windows: as few tiers are held out as evaluation needs. Raises DataError if all are too few."""
    for count in range(1, len(TIER_PERCENTS) + 1):
        heldout = TokenRuns(tokens.heldout_tiers[:count], config.sequence_length)
        if heldout.num_windows >= config.eval_windows:
            return TokenRuns((tokens.train, *tokens.heldout_tiers[count:]), config.sequence_length), heldout
    total = Counts.total(tokens.sources)
    raise _too_little_heldout(config, total, sum(map(len, tokens.heldout_tiers)), heldout.num_windows)


def _too_little_heldout(config: DataConfig, total: Counts, num_tokens: int, num_windows: int) -> DataError:
    found = (
        f"{num_tokens} tokens can be held out, which is {num_windows} windows of {config.sequence_length + 1} tokens, and "
        f"{config.eval_windows} are to be evaluated on"
    )
    if few := _too_few_documents(config, total):
        return DataError(f"{few}: {found}; {_CUT_UP}")
    return DataError(
        f"too little text: {found}; give more text, or a smaller data.sequence_length or data.eval_windows"
    )


def _too_little_to_train_on(config: DataConfig, total: Counts) -> DataError:
    if few := _too_few_documents(config, total):
        return DataError(f"{few}: nothing is left to train on; {_CUT_UP}")
    return DataError(
        f"too little text: of {total.tokens} tokens no window of {config.sequence_length + 1} is left to train on; "
        "give more text, or a smaller data.sequence_length"
    )


def _too_few_documents(config: DataConfig, total: Counts) -> str:
    """What is wrong if there is text enough, and only its documents are too few to be divided; else ""."""
    if total.tokens * TIER_PERCENTS[-1] // 100 <= config.eval_windows * config.sequence_length:
        return ""
    what = "one document" if total.documents == 1 else f"{total.documents} documents"
    return f"all text is {what}: held-out documents are whole ones"
