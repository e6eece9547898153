"""Equal head, another state: which of the two is wrong, as far as one peer can tell, and when to take the other one.

A bit may flip in the memory of anybody, a leader too. What most of those at a head have is taken to be right. Who has
something else takes their state, and not over and over: each further time waits twice as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from swarm.digest import Digest
from swarm.events import StateDiffered
from swarm.identity import PeerId
from swarm.round.outbox import Outbox
from swarm.round.passage import Passage
from swarm.round.turn import Turn
from swarm.votes import Stand

PATIENCE_BEATS: Final = 2  # heartbeats in which a leader that is wrong hears of it, before its members move
MAX_REST_S: Final = 120.0  # between two tries to come to the others' state
SOUND_HEADS: Final = 3  # heads in a row at which all is well, after which a difference is the first one again


class Agreement:
    """Differences noticed, and how often we went to get another state."""

    def __init__(self, heartbeat_s: float) -> None:
        self._first_s = PATIENCE_BEATS * heartbeat_s
        self._differs_at: Digest | None = None
        self._since_s = 0.0
        self._tries = 0
        self._due_s = 0.0
        self._sound: dict[Digest, None] = {}  # heads since the last difference

    def agree(self, head: Digest) -> None:
        """At this head our leader has the state that we have."""
        self._differs_at = None
        if self._tries:
            self._sound[head] = None
            if len(self._sound) >= SOUND_HEADS:
                self._tries, self._due_s = 0, 0.0
                self._sound.clear()

    def differ(self, head: Digest, now_s: float) -> bool:
        """Somebody at this head has another state; returns whether that is news."""
        self._sound.clear()
        if head == self._differs_at:
            return False
        self._differs_at, self._since_s = head, now_s
        return True

    def whom_to_follow(
        self, own: Digest, others: Mapping[PeerId, Digest], now_s: float, *, leads: bool
    ) -> tuple[PeerId, ...]:
        """Whose state to take in place of ours now, by what those at our head say of theirs; empty: nobody's yet.

        More than have ours are believed at once. Of as many the leader's side stands: its members move, after a while in
        which it may hear that it is wrong.
        """
        votes = Counter(others.values())
        ours = votes.pop(own, 0) + 1
        best = max(votes, key=lambda digest: (votes[digest], digest.raw), default=None)
        if best is None or now_s < self._due_s or votes[best] < ours:
            return ()
        if votes[best] == ours and (leads or now_s - self._since_s < self._first_s):
            return ()
        self._tries += 1
        self._due_s = now_s + min(MAX_REST_S, self._first_s * 2**self._tries)
        return tuple(sorted(peer for peer, digest in others.items() if digest == best))


class States:
    """What others at our head have as their state, and what follows from it."""

    def __init__(self, turn: Turn, out: Outbox, heartbeat_s: float) -> None:
        self._turn = turn
        self._out = out
        self._agreement = Agreement(heartbeat_s)

    def agree(self, head: Digest) -> None:
        """At this head our leader has the state that we have."""
        self._agreement.agree(head)

    def compare(self, stand: Stand, told: dict[PeerId, Digest], passage: Passage) -> None:
        """Somebody at our head has another state: most are right. A leader hears of all its members' states; a member that
        knows of nobody else's goes by its leader, in the end."""
        if passage.is_searching or passage.is_moving or passage.is_syncing:
            return
        turn = self._turn
        here = {one.peer: one.state_digest for one in turn.at_head() if one.peer in turn.voters}
        others = {**here, **told}
        other = next((digest for digest in others.values() if digest != stand.state_digest), None)
        if other is None:
            return
        if self._agreement.differ(stand.head, turn.now_s):
            self._out.happened(StateDiffered(stand.version, stand.state_digest, other))
        peers = self._agreement.whom_to_follow(stand.state_digest, others, turn.now_s, leads=turn.is_ours)
        if peers:
            passage.catch_up(peers, whole=True, reason="our state differs from the others' at the same head")
