"""The tokenizer of a checkpoint: a `tokenizer.json` that gives by default the ids that training used.

Of a run on bytes it is made here: token i is byte i, no merges. The format spells bytes as printable letters: those of
Latin-1 that are printable stand for themselves, the others, in order, for U+0100 and up (GPT-2, `bytes_to_unicode`). Byte 0
is in no text and ends each, so it has the usual name of an end of text. Of another run it is the run's own, as trained.

Written here and not by the tokenizers library, so that the bytes are the same under every release; the library reads them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

_PRINTABLE: Final = frozenset((*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)))
_END_OF_BYTES: Final = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """What a checkpoint tells of its tokenizer."""

    content: bytes  # of its tokenizer.json
    separator: str  # the token behind each document of training
    separator_id: int


def byte_tokenizer_file() -> TokenizerFile:
    """The tokenizer of a run on bytes; equal in every process."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    letters = [_END_OF_BYTES, *_letters()[1:]]
    table: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Replace", "pattern": {"String": "\0"}, "content": "\ufffd"},  # as training does
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letter: byte for byte, letter in enumerate(letters)},
            "merges": [],
        },
    }
    separator_id = as_trained(table, _END_OF_BYTES)
    return TokenizerFile((json.dumps(table, indent=1) + "\n").encode(), _END_OF_BYTES, separator_id)


def trained_tokenizer_file(raw: bytes, separator: str) -> TokenizerFile:
    """The tokenizer of a run on a `tokenizer.json` with these bytes; follows from them and the separator's name alone."""
    table: dict[str, Any] = json.loads(raw)
    separator_id = as_trained(table, separator)
    return TokenizerFile((json.dumps(table, ensure_ascii=False) + "\n").encode(), separator, separator_id)


def as_trained(table: dict[str, Any], separator: str) -> int:
    """Changes a parsed tokenizer.json to what training needs, and returns the separator's id.

    Whole texts, without dropout, which would give each peer other tokens; nothing is put in front of a text or behind it;
    the separator is special, which is found in no text where special tokens are not looked for, and no merge leads to it.
    """
    model = table["model"]
    model["dropout"] = None
    table.update(truncation=None, padding=None, post_processor=None)
    if "merges" in model:  # either of the form "a b" or ["a", "b"]
        parts = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [list(pair) for pair in parts if "".join(pair) != separator]
    added = table["added_tokens"] = list(table.get("added_tokens") or ())
    for token in added:
        if token["content"] == separator:
            token["special"] = True
            return int(token["id"])
    separator_id = _id_in(model["vocab"], separator)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added.append({"id": separator_id, "content": separator, **flags, "special": True})
    added.sort(key=lambda token: int(token["id"]))
    return separator_id


def _id_in(vocabulary: Any, name: str) -> int:
    if isinstance(vocabulary, dict):
        return int(vocabulary[name])
    return [piece for piece, _ in vocabulary].index(name)  # Unigram: pieces with their scores


def _letters() -> list[str]:
    """The letter that stands for each byte."""
    letters, others = [], 0
    for byte in range(256):
        if byte in _PRINTABLE:
            letters.append(chr(byte))
        else:
            letters.append(chr(0x100 + others))
            others += 1
    return letters
