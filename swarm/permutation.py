"""An integer permutation of [0, n) from a seed: the order in which windows of text are used, alike on every machine.

A balanced Feistel network over the smallest even number of bits that holds n, walked along its cycle until the value is
below n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Only integer operations modulo 2**64, so that
no random generator of any library takes part. It spreads an order; it hides nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from swarm.digest import digest_of

if TYPE_CHECKING:
    pass

MAX_N: Final = 2**62  # both halves stay below 2**31
_ROUNDS: Final = 6
_MASK: Final = 2**64 - 1
_MULTIPLIER_1: Final = 0xBF58476D1CE4E5B9  # the finalizer of SplitMix64 (Steele, Lea, Flood 2014)
_MULTIPLIER_2: Final = 0x94D049BB133111EB


@lru_cache(maxsize=64)
def _round_keys(n: int, seed: int) -> tuple[int, ...]:
    """One 64-bit key a round, from n and the seed."""
    if not 1 <= n <= MAX_N:
        raise ValueError(f"n={n}: a permutation is over 1 to {MAX_N} values")
    if not 0 <= seed < 2**127:
        raise ValueError(f"seed={seed}: a seed is from 0 to 2**127 - 1")
    parts = (n.to_bytes(8, "little"), seed.to_bytes(16, "little"))
    return tuple(
        int.from_bytes(digest_of("permutation", *parts, bytes([turn])).raw[:8], "little") for turn in range(_ROUNDS)
    )


def _half_bits(n: int) -> int:
    return ((n - 1).bit_length() + 1) // 2


def permute(index: int, n: int, seed: int) -> int:
    """Where `index` goes in the permutation of [0, n) that the seed names: a bijection for every n and seed.

    Raises ValueError for an index outside [0, n), n outside [1, 2**62] or seed outside [0, 2**127).
    """
    keys = _round_keys(n, seed)
    if not 0 <= index < n:
        raise ValueError(f"index={index} is outside [0, {n})")
    half = _half_bits(n)
    low, shift = (1 << half) - 1, 64 - half
    value = index
    while n > 1:
        left, right = value >> half, value & low
        for key in keys:
            mixed = right ^ key
            mixed = ((mixed ^ (mixed >> 30)) * _MULTIPLIER_1) & _MASK
            mixed = ((mixed ^ (mixed >> 27)) * _MULTIPLIER_2) & _MASK
            mixed ^= mixed >> 31
            left, right = right, left ^ (mixed >> shift)
        value = (left << half) | right
        if value < n:  # else along the cycle: fewer than 4 turns in the mean, since 2**(2 * half) < 4 * n
            break
    return value
