"""Long texts to the ids that the library gives for the whole, without encoding it at once.

An encoding takes some 100 bytes a token, a document may have 64 MiB. So a long text is encoded in pieces that overlap, and
two pieces are joined where they agree on several tokens in a row: what a tokenizer does at the beginning of a text (a
space in front) and what it would have done beyond the end of a piece lie outside of that. Merges and patterns look no further
than their neighbours, so behind such a place the later piece goes on as the whole would. Where no such place is found,
as in the midst of one endless word, the whole is encoded at once after all.
"""

# N = tokens of a piece

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import tokenizers

PIECE_LETTERS: Final = 1 << 16
OVERLAP_LETTERS: Final = 1 << 12
_AGREED_TOKENS: Final = 8  # on either side of the place where two pieces are joined
_PIECES_AT_ONCE: Final = 16  # enough for all cores


def encode_whole(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[NDArray[np.uint32]]:
    """The ids of each text, without special tokens; equal to the library's for the whole text."""
    short = [text if len(text) <= PIECE_LETTERS else "" for text in texts]
    encoded = tokenizer.encode_batch_fast(short, add_special_tokens=False)
    return [
        np.array(one.ids, dtype=np.uint32) if len(text) <= PIECE_LETTERS else _encode_long(tokenizer, text)
        for text, one in zip(texts, encoded, strict=True)
    ]


def _encode_long(tokenizer: tokenizers.Tokenizer, text: str) -> NDArray[np.uint32]:
    ids: list[NDArray[np.uint32]] = []
    before: NDArray[Any] = np.empty((0, 3), np.int64)
    start = end = 0
    for piece_N3, end_of_piece in _pieces(tokenizer, text):
        if not end:
            before, end = piece_N3, end_of_piece
            continue
        places = _joint(before[start:], piece_N3, end - OVERLAP_LETTERS)
        if places is None:
            whole = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
            return np.array(whole.ids, dtype=np.uint32)
        stop, beginning = places
        ids.append(before[start : start + stop, 0].astype(np.uint32))
        before, start, end = piece_N3, beginning, end_of_piece
    return np.concatenate([*ids, before[start:, 0].astype(np.uint32)])


def _pieces(tokenizer: tokenizers.Tokenizer, text: str) -> Iterator[tuple[NDArray[np.int64], int]]:
    """(N, 3) of each piece: id, first letter and end in the whole text of each token; and where the piece ends."""
    step = PIECE_LETTERS - OVERLAP_LETTERS
    starts = range(0, max(1, len(text) - OVERLAP_LETTERS), step)
    for first in range(0, len(starts), _PIECES_AT_ONCE):
        some = starts[first : first + _PIECES_AT_ONCE]
        encoded = tokenizer.encode_batch([text[at : at + PIECE_LETTERS] for at in some], add_special_tokens=False)
        for at, one in zip(some, encoded, strict=True):
            spans = np.array(one.offsets, dtype=np.int64).reshape(-1, 2) + at
            ids = np.array(one.ids, dtype=np.int64)
            yield np.column_stack([ids, spans]), min(at + PIECE_LETTERS, len(text))


def _joint(before_N3: NDArray[np.int64], after_N3: NDArray[np.int64], overlap: int) -> tuple[int, int] | None:
    """The same place in two pieces, amid tokens that are equal in both; in the middle half of the overlap, which begins at
    letter `overlap`. None: there is no such place."""
    margin = OVERLAP_LETTERS // 4
    first = int(np.searchsorted(before_N3[:, 1], overlap + margin))
    last = int(np.searchsorted(before_N3[:, 1], overlap + OVERLAP_LETTERS - margin))
    for place in range(max(first, _AGREED_TOKENS), last):
        other = int(np.searchsorted(after_N3[:, 1], before_N3[place, 1]))
        if other < _AGREED_TOKENS or before_N3[place, 1] == before_N3[place - 1, 1]:
            continue
        here = before_N3[place - _AGREED_TOKENS : place + _AGREED_TOKENS]
        there = after_N3[other - _AGREED_TOKENS : other + _AGREED_TOKENS]
        if len(here) == 2 * _AGREED_TOKENS and np.array_equal(here, there):
            return place, other
    return None
