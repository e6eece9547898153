"""How often something that looks at every peer may be done: its share of the time is the same for ten and for thousands."""

from __future__ import annotations

import math
from typing import Final

PROMPT_PEERS: Final = 64  # up to so many are looked at after every fact
LOOK_S: Final = 5e-4  # between two looks at more of them, for each: some 1 % of one core
LONGEST_S: Final = 4.0  # between two looks, however many there are


class Looks:
    """Says when the next look is due. In a group of at most `prompt` that is always."""

    def __init__(self, prompt: int = PROMPT_PEERS, each_s: float = LOOK_S) -> None:
        self._prompt = prompt
        self._each_s = each_s
        self._due_s = -math.inf

    def is_due(self, num_peers: int, now_s: float) -> bool:
        """Whether to look at so many peers now; if so, the next look is due when it has earned its cost."""
        if now_s < self._due_s and num_peers > self._prompt:
            return False
        self._due_s = now_s + min(LONGEST_S, num_peers * self._each_s)
        return True

    def reset(self) -> None:
        """Something has changed that cannot wait."""
        self._due_s = -math.inf
