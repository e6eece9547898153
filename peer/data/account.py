"""What a text holds and what was left out of it, in lines for people."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from peer.data.files import files_beside
from peer.data.tokenizer import Tokenizer
from peer.data.tokens import Counts, TokenSet
from swarm.words import counted

_MAX_SOURCES: Final = 8  # named; the others are one line
_MAX_REASONS: Final = 5


def lines_of_counts(sources: dict[str, Counts]) -> list[str]:
    """Documents, bytes and tokens of each source, the largest first, and of all together if there are several."""
    largest = sorted(sources.items(), key=lambda one: (-one[1].num_bytes, one[0]))
    lines = [f"{name}: {_in_words(counts)}" for name, counts in largest[:_MAX_SOURCES]]
    if rest := dict(largest[_MAX_SOURCES:]):
        lines.append(f"{len(rest)} more: {_in_words(Counts.total(rest))}")
    if len(sources) > 1:
        lines.append(f"all together: {_in_words(Counts.total(sources))}")
    return lines


def left_out(tokens: TokenSet, tokenizer: Tokenizer, data_path: Path) -> list[str]:
    """What of a text is not trained on, or not as it stands; empty when all is."""
    lines = [f"beside the text, not read: {beside}"] if (beside := files_beside(data_path)) else []
    if tokens.num_malformed:
        lines.append(
            f"{tokens.num_malformed:,} of {counted(tokens.num_items, 'line')} left out, the first of each kind:"
        )
        first_of_each = {fault.partition(": ")[2]: fault for fault in reversed(tokens.faults)}
        lines += [f"  {fault}" for fault in list(reversed(first_of_each.values()))[:_MAX_REASONS]]
    if tokens.num_replaced:
        lines.append(
            f"{counted(tokens.num_replaced, 'byte')} that are not UTF-8 text replaced by U+FFFD, the first in "
            f"{tokens.first_replaced}"
        )
    return [*lines, *tokenizer.notes]


def _in_words(counts: Counts) -> str:
    return ", ".join(
        counted(count, what)
        for count, what in ((counts.documents, "document"), (counts.num_bytes, "byte"), (counts.tokens, "token"))
    )
