"""The byte-level tokenizer as a `tokenizer.json`: token i is byte i, no merges, no special tokens.

The format spells bytes as printable letters: those of Latin-1 that are printable stand for themselves, the others, in order,
for U+0100 and up (GPT-2, `bytes_to_unicode`). Written here and not by the tokenizers library, so that its bytes are the same
under every release; the library is what reads it.
"""

from __future__ import annotations

import json
from typing import Any, Final

_PRINTABLE: Final = frozenset((*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)))


def byte_tokenizer_json() -> bytes:
    """The content of the file; equal bytes in every process."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
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
            "vocab": {letter: byte for byte, letter in enumerate(_letters())},
            "merges": [],
        },
    }
    return (json.dumps(tokenizer, indent=1) + "\n").encode()


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
