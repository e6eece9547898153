"""The one place where text from the network becomes text for a screen."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_LETTERS: Final = 400
# CSI and OSC sequences whole (ECMA-48 5.4, 8.3.89), so that their parameters do not stay behind as litter
_SEQUENCES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b.?"
)
_HIDDEN: Final = {
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
    "Zl",
    "Zp",
    "Mn",
    "Me",
}  # also bidi overrides, zero widths, stacked marks


def clean(text: str, limit: int = MAX_LETTERS) -> str:
    """`text` on one line, without control characters, escape sequences, bidi overrides and stacked marks.

    Markup of the terminal library is not touched: what draws puts remote text into plain cells, never into markup.
    """
    text = _SEQUENCES.sub("", text[: 4 * limit])
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    text = "".join(letter for letter in text if unicodedata.category(letter) not in _HIDDEN)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
