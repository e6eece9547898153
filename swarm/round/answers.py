"""Who has answered its leader, seen from the leader: words that were heard there, by whatever path.

A status that somebody else passed on says that its author lives, not that anything we say arrives there. So a leader's words
carry the number of its last heartbeat, and a member's status names the newest one that it has heard.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from swarm.identity import PeerId
from swarm.messages import Answer

MAX_SAID: Final = 256  # numbers of ours that count: far more than are said in the time for which one counts


class Answers:
    """When each member last heard us, and which of our numbers count: those that were said since we took the lead."""

    def __init__(self, me: PeerId, patience_s: float) -> None:
        self._me = me
        self._patience_s = patience_s  # a word of ours that was repeated counts for so long after it was said
        self._said: deque[tuple[int, float]] = deque(
            maxlen=MAX_SAID
        )  # not too old: our numbers, and when each was said
        self._heard_s: dict[PeerId, float] = {}  # when the newest number was said that a member has repeated

    def say(self, number: int, now_s: float) -> None:
        """What we send from now on carries this number."""
        self._said.append((number, now_s))
        while now_s - self._said[0][1] > self._patience_s:
            self._said.popleft()

    def begin(self) -> None:
        """What was said before counts no more: we have just taken the lead, or did not run for a while."""
        self._said.clear()
        self._heard_s.clear()

    def hear(self, member: PeerId, answer: Answer | None) -> None:
        """Takes what a member's status says it heard."""
        if answer is None or answer.leader != self._me:
            return
        said_s = next((at_s for number, at_s in self._said if number == answer.beat), None)
        if said_s is not None:
            self._heard_s[member] = max(said_s, self._heard_s.get(member, said_s))

    def has(self, member: PeerId, now_s: float) -> bool:
        """Whether a member has answered lately."""
        said_s = self._heard_s.get(member)
        return said_s is not None and now_s - said_s <= self._patience_s
