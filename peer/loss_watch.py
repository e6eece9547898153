"""Whether the held-out loss jumped: each evaluation, ours or another peer's, against those of the versions before it."""

from __future__ import annotations

import statistics
from typing import Final

from swarm.events import LossJumped

MEAN_OF: Final = 5  # known losses of earlier versions that one is compared with: a round's own noise evens out
# Nats above their mean. Between healthy rounds of a model worth watching the loss moves by some hundredths; work of many
# rounds handed in at once has moved it by whole nats.
JUMP: Final = 0.1
_KEPT: Final = 32  # versions


class LossWatch:
    """The losses of the newest versions that are known."""

    def __init__(self) -> None:
        self._known: dict[int, float] = {}

    def learn(self, version: int, loss: float) -> LossJumped | None:
        """Takes a finite loss in; returns the event if it is the first one of its version, and a jump."""
        if version in self._known:
            return None
        earlier = [self._known[one] for one in sorted(self._known) if one < version][-MEAN_OF:]
        self._known[version] = loss
        if len(self._known) > _KEPT:
            del self._known[min(self._known)]
        if not earlier or loss <= (before := statistics.fmean(earlier)) + JUMP:
            return None
        return LossJumped(version, loss, before)
