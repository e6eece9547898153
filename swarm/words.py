"""Numbers with their nouns, as people read them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 head`, `2 heads`, `1,024 heads`; the plural of `noun` is regular."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def so_often(times: int) -> str:
    """Nothing for once; `, 1,024 times` behind what happened more often."""
    return "" if times == 1 else f", {times:,} times"
