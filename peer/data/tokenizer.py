"""Tokenizers: plain bytes, or any `tokenizer.json`, named by the digest of that file.

The separator stands behind each document and nowhere else: byte 0, or the tokenizer's own end-of-text token. Its name, and
other special tokens that are spelled out inside a text, are encoded as ordinary text, so that no document can fake an end.
Equal texts get equal ids everywhere: dropout is off.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from peer.data.pieces import encode_whole
from peer.tokenizer_file import as_trained
from swarm.digest import blob_digest
from swarm.errors import DataError

if TYPE_CHECKING:
    import tokenizers

BYTES: Final = "bytes"
MAX_TOKENIZER_BYTES: Final = 64 << 20  # the largest in common use has about 34 MB
# The names of the end-of-text token in common tokenizers; the first that a tokenizer has is the separator.
_END_OF_TEXT: Final = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|im_end|>",
    "<|eos|>",
    "<EOS>",
    "[EOS]",
    "[SEP]",
)
_UNREACHABLE: Final = "\0the end of a document\0"  # what the separator is called in the library, lest a text spell it
_MAX_CANDIDATES: Final = 8
_NO_TOKENIZER: Final = "not a tokenizer.json"


class Tokenizer(Protocol):
    """Texts to token ids; equal digests give equal ids."""

    digest: str  # "bytes", or the hex digest of the tokenizer.json
    vocab_size: int  # every id is below it
    separator: int  # the id behind each document
    separator_name: str  # its name in a tokenizer.json; "" for bytes
    notes: tuple[str, ...]  # what is done otherwise than the tokenizer.json says, in words

    def encode(self, texts: list[str]) -> list[NDArray[Any]]:
        """One array of ids a text, without separators. Raises DataError if a text would hold one all the same."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255. A 0 byte inside a text would end it; U+FFFD is encoded in its place."""

    digest = BYTES
    vocab_size = 256
    separator = 0
    separator_name = ""
    notes: tuple[str, ...] = ()

    def encode(self, texts: list[str]) -> list[NDArray[Any]]:
        return [np.frombuffer(text.replace("\0", "\ufffd").encode(), dtype=np.uint8) for text in texts]


class FileTokenizer:
    """The tokenizer in a `tokenizer.json`."""

    def __init__(self, path: Path, separator: str = "") -> None:
        """Reads the file; raises DataError when there is no tokenizer in it, or no token called `separator`.

        Without a `separator` it is the first of the common end-of-text tokens that the tokenizer has.
        """
        raw = read_tokenizer(path)
        vocabulary = _library(path, raw.decode(errors="replace"), _NO_TOKENIZER).get_vocab()
        table: dict[str, Any] = json.loads(raw)
        self._path = path
        self.separator_name = _separator(path, vocabulary, table, separator)
        self.separator = vocabulary[self.separator_name]
        self.vocab_size = 1 + max(vocabulary.values())
        self.digest = blob_digest(raw).hex()
        dropout = table["model"].get("dropout")
        off = f"the tokenizer's dropout {dropout} is off: all peers must get the same tokens"
        self.notes: tuple[str, ...] = (off,) if dropout else ()
        as_trained(table, self.separator_name)
        _hide_separator(table, self.separator_name)
        self._tokenizer = _library(path, json.dumps(table), f"{self.separator_name!r} cannot be its separator")
        vocabulary[_UNREACHABLE] = vocabulary.pop(self.separator_name)
        if self._tokenizer.get_vocab() != vocabulary:
            raise DataError(f"{path}: {self.separator_name!r} cannot be its separator: other tokens depend on it")
        self._tokenizer.encode_special_tokens = True

    def encode(self, texts: list[str]) -> list[NDArray[Any]]:
        encoded = encode_whole(self._tokenizer, texts)
        for text, ids in zip(texts, encoded, strict=True):
            if (ids == self.separator).any():
                raise DataError(
                    f"{self._path}: cannot keep documents apart: it gives its end-of-text token {self.separator_name!r} "
                    f"inside of a text, that which begins {text[:40]!r}; name another one with data.separator, or use "
                    "another tokenizer"
                )
        return encoded


def read_tokenizer(path: Path) -> bytes:
    """The bytes of a tokenizer.json, or of the one in the folder `path`; raises DataError."""
    try:
        if path.is_dir():
            path = path / "tokenizer.json"
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes; a tokenizer.json has at most {MAX_TOKENIZER_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: no tokenizer can be read there: {error.strerror}; give its tokenizer.json") from None


def _library(path: Path, text: str, complaint: str) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json's text; raises DataError with the complaint."""
    import tokenizers  # 0.1 s, and runs on bytes do without

    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for whatever it does not understand
        raise DataError(f"{path}: {complaint}: {str(error)[:200]}") from None


def refuse_no_tokenizer(path: Path) -> None:
    """Raises DataError if there is no tokenizer.json at `path`."""
    _library(path, read_tokenizer(path).decode(errors="replace"), _NO_TOKENIZER)


def _separator(path: Path, vocabulary: dict[str, int], table: dict[str, Any], named: str) -> str:
    """The name of the token that ends documents; raises DataError that names those that may be meant."""
    if named in vocabulary:
        return named
    special = [str(token["content"]) for token in table.get("added_tokens") or ()]
    if not named:
        if common := next((name for name in _END_OF_TEXT if name in vocabulary), None):
            return common
        what = f"has no end-of-text token that is known here ({', '.join(_END_OF_TEXT)}); name its own"
        near = special
    else:
        what = f"has no token {named[:60]!r}; name the one that ends a text"
        near = difflib.get_close_matches(named, special, n=3, cutoff=0.5) or special
    candidates = ", ".join(near[:_MAX_CANDIDATES]) or "none of its tokens is special"
    raise DataError(f'{path}: {what} in the config, as in [data] separator = "</s>"; candidates: {candidates}')


def _hide_separator(table: dict[str, Any], name: str) -> None:
    """Renames the separator in a tokenizer.json `as_trained`, so that no text is encoded to it; ids stay as they are."""
    for token in table["added_tokens"]:
        if token["content"] == name:
            token["content"] = _UNREACHABLE
    model = table["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {_UNREACHABLE if piece == name else piece: number for piece, number in vocabulary.items()}
    elif vocabulary:  # Unigram: pieces with their scores
        model["vocab"] = [[_UNREACHABLE if piece == name else piece, score] for piece, score in vocabulary]
    if model.get("unk_token") == name:
        model["unk_token"] = _UNREACHABLE


def load_tokenizer(named: str, path: Path | None, separator: str = "") -> Tokenizer:
    """The tokenizer that a manifest names: "bytes" or a hex digest; "" takes whatever is at `path`, without one bytes.

    Raises DataError when the file at `path` is not the one that is named, or is missing, or has no such separator.
    """
    if path is None:
        if named in (BYTES, ""):
            if separator:
                raise DataError(
                    f"data.separator = {separator[:60]!r}: plain bytes have none; leave it out, or name the tokenizer.json "
                    "that has it with --tokenizer PATH"
                )
            return ByteTokenizer()
        raise DataError(f"this run's tokenizer is {named[:12]}; give its tokenizer.json with --tokenizer PATH")
    if named == BYTES:
        raise DataError(f"this run is trained on plain bytes; leave out --tokenizer {path}")
    if named and (digest := blob_digest(read_tokenizer(path)).hex()) != named:
        raise DataError(
            f"{path}: wrong tokenizer: its digest is {digest[:12]}, the manifest names {named[:12]}; "
            "give the tokenizer.json that this run was made with"
        )
    return FileTokenizer(path, separator)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int | None) -> None:
    """Raises DataError if the model has no place for every token; None: nothing to check against."""
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocab_size is {vocab_size}; "
            f"set model.vocab_size to {tokenizer.vocab_size} or more"
        )
