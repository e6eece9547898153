"""How long rounds took, from the events of one peer, against what the protocol promises.

A round has `train_deadline_s` from its head to the cut hint and `exchange_deadline_s` from there to a commit. A leader that
falls silent adds `leader_timeout_s` until the next one takes over, whose own exchange deadline then begins anew. A round's
end is the commit as its peer tells of it; `SLACK_S` is for the way there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

TRAIN_DEADLINE_S: Final = 4.0
EXCHANGE_DEADLINE_S: Final = 4.0
LEADER_TIMEOUT_S: Final = 2.0
SLACK_S: Final = 1.0
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one peer, from head to head."""

    version: int
    seconds: float
    views: int  # leaders given up meanwhile

    @property
    def deadline_s(self) -> float:
        return TRAIN_DEADLINE_S + EXCHANGE_DEADLINE_S + self.views * (LEADER_TIMEOUT_S + EXCHANGE_DEADLINE_S)

    @property
    def is_late(self) -> bool:
        return self.seconds > self.deadline_s + SLACK_S


def rounds_since(events: Sequence[Json], since_unix_s: float) -> list[Round]:
    """The rounds of a peer that ended after that moment: the first of them began before it."""
    rounds = []
    began_s: float | None = None
    views = 0
    for event in events:
        match event["event"]:
            case "ViewChanged":
                views += 1
            case "RoundCommitted" | "CaughtUp" | "PeerStarted":
                ended_s = event["at_unix_s"]
                if began_s is not None and ended_s >= since_unix_s and event["event"] == "RoundCommitted":
                    rounds.append(Round(event["version"], ended_s - began_s, views))
                began_s, views = ended_s, 0
    return rounds
