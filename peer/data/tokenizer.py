"""Tokenizers: plain bytes, or any `tokenizer.json`, named by the digest of that file.

The separator stands behind each document: byte 0, or the tokenizer's own end-of-text token. Special tokens that are
spelled out inside a text are encoded as ordinary text, so that no document can fake an end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from swarm.digest import blob_digest
from swarm.errors import DataError

BYTES: Final = "bytes"
MAX_TOKENIZER_BYTES: Final = 64 << 20  # the largest in common use has about 34 MB
_MAX_PIECE_LETTERS: Final = 1 << 16  # of a document that is encoded at once: an encoding takes some 100 bytes a token
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


class Tokenizer(Protocol):
    """Texts to token ids; equal digests give equal ids."""

    digest: str  # "bytes", or the hex digest of the tokenizer.json
    vocab_size: int  # every id is below it
    separator: int  # the id behind each document

    def encode(self, texts: list[str]) -> list[NDArray[Any]]:
        """One array of ids a text, without separators."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255."""

    digest = BYTES
    vocab_size = 256
    separator = 0

    def encode(self, texts: list[str]) -> list[NDArray[Any]]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


class FileTokenizer:
    """The tokenizer in a `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        """Reads the file; raises DataError when there is none, or no tokenizer with an end-of-text token in it."""
        import tokenizers  # 0.1 s, and runs on bytes do without

        try:
            if path.is_dir():
                path = path / "tokenizer.json"
            if path.stat().st_size > MAX_TOKENIZER_BYTES:
                raise DataError(
                    f"{path}: {path.stat().st_size} bytes; a tokenizer.json has at most {MAX_TOKENIZER_BYTES}"
                )
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: no tokenizer can be read there: {error.strerror}; give its tokenizer.json"
            ) from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(raw.decode())
        except Exception as error:  # the library raises bare Exception for whatever it does not understand
            raise DataError(f"{path}: not a tokenizer.json: {str(error)[:200]}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        found = next((name for name in _END_OF_TEXT if name in vocabulary), None)
        if found is None:
            raise DataError(f"{path}: has no end-of-text token; one of {', '.join(_END_OF_TEXT)} is needed")
        self.digest = blob_digest(raw).hex()
        self.vocab_size = 1 + max(vocabulary.values())
        self.separator = vocabulary[found]

    def encode(self, texts: list[str]) -> list[NDArray[Any]]:
        pieces = [(place, piece) for place, text in enumerate(texts) for piece in _pieces(text)]
        encoded = self._tokenizer.encode_batch_fast([piece for _, piece in pieces], add_special_tokens=False)
        ids: list[list[NDArray[Any]]] = [[] for _ in texts]
        for (place, _), one in zip(pieces, encoded, strict=True):
            ids[place].append(np.array(one.ids, dtype=np.uint32))
        return [np.concatenate(parts) if parts else np.empty(0, np.uint32) for parts in ids]


def _pieces(text: str) -> list[str]:
    """The text, cut before spaces or line ends where it is too long to be encoded at once."""
    pieces, start = [], 0
    while len(text) - start > _MAX_PIECE_LETTERS:
        stop = start + _MAX_PIECE_LETTERS
        cut = max(text.rfind("\n", start + 1, stop), text.rfind(" ", start + 1, stop))
        pieces.append(text[start : cut if cut > start else stop])
        start += len(pieces[-1])
    return [*pieces, text[start:]] if start < len(text) else pieces


def load_tokenizer(named: str, path: Path | None) -> Tokenizer:
    """The tokenizer that a manifest names: "bytes" or a hex digest; "" takes whatever is at `path`, without one bytes.

    Raises DataError when the file at `path` is not the one that is named, or is missing.
    """
    if path is None:
        if named in (BYTES, ""):
            return ByteTokenizer()
        raise DataError(f"this run's tokenizer is {named[:12]}; give its tokenizer.json with --tokenizer PATH")
    if named == BYTES:
        raise DataError(f"this run is trained on plain bytes; leave out --tokenizer {path}")
    tokenizer = FileTokenizer(path)
    if named and tokenizer.digest != named:
        raise DataError(
            f"{path}: wrong tokenizer: its digest is {tokenizer.digest[:12]}, the manifest names {named[:12]}; "
            "give the tokenizer.json that this run was made with"
        )
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int | None) -> None:
    """Raises DataError if the model has no place for every token; None: nothing to check against."""
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocab_size is {vocab_size}; "
            f"set model.vocab_size to {tokenizer.vocab_size} or more"
        )
