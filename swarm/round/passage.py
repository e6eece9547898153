"""The way from our head to the next: a commit is received and checked, its blobs are fetched, the trainer moves; or a better
head is seen elsewhere and caught up with. All end in a new head, or where they began.

    standing --commit--> fetching --all here--> moving --> standing at the next head
       |                    '--deadline--.
       '--a better head-----------------> syncing --> moving
"""

from __future__ import annotations

from typing import Final

from swarm import chain as chains
from swarm.chain import ChainState
from swarm.config import RunConfig
from swarm.digest import Digest
from swarm.errors import RemoteError
from swarm.events import PeerMisbehaved
from swarm.identity import PeerId
from swarm.messages import Commit, PeerStatus
from swarm.round.commits import OpenSealed, check_commit, roots_of
from swarm.round.doubts import Doubts
from swarm.round.exchange import Exchange
from swarm.round.facts import CatchUp, MoveTo, Received
from swarm.round.outbox import Outbox
from swarm.round.relay import passed_on_by
from swarm.round.turn import Turn
from swarm.schema import line

MISSED_COMMIT_HEARTBEATS: Final = 2  # how long a newer head elsewhere may be on its way before we go and get it


class Passage:
    """At most one is under way: `commit` is being fetched, the trainer is moving to it (`is_moving`), or `is_syncing`."""

    def __init__(self, turn: Turn, exchange: Exchange, out: Outbox, config: RunConfig, open_sealed: OpenSealed) -> None:
        self.commit: Commit | None = None
        self.is_moving = False
        self.is_syncing = False
        self.doubts = Doubts(config.round.heartbeat_s)
        self._since_s = 0.0
        self._early: Received | None = None  # a commit on the head that the trainer is moving to
        self._behind_since_s: float | None = None
        self._target: tuple[PeerStatus, ...] = ()  # whose heads we are on the way to
        self._abandoned: Digest | None = None  # the head of the commit whose blobs did not come
        self._turn = turn
        self._exchange = exchange
        self._out = out
        self._config = config.round
        self._lease_tokens = config.lease_tokens
        self._open_sealed = open_sealed

    @property
    def knows_better(self) -> bool:
        """Whether somebody is at a head that ranks above ours."""
        return self._behind_since_s is not None

    @property
    def is_under_way(self) -> bool:
        return self.is_syncing or self.commit is not None or self.knows_better

    @property
    def num_missing(self) -> int:
        """Blobs of the accepted commit that are not here yet."""
        roots = roots_of(self.commit.commit) if self.commit is not None else ()
        return sum(not self._exchange.holds(root) for root in roots)

    # ---------------------------------------------------------------- commits

    def receive(self, received: Received, now_s: float) -> None:
        """Takes a commit, if it is the next one and comes from who may lead us."""
        commit: Commit = received.message
        if self.is_moving and self.commit is not None:
            if commit.parent == chains.head_after(self.commit.parent, self.commit.commit):
                self._early = received
            return
        if commit.parent != self._turn.chain.head or self.is_syncing:
            return  # a newer head is noticed through statuses, and fetched
        if self.commit is not None and commit.view <= self.commit.view:
            return  # only a later leader's list takes the place of one whose blobs do not come
        if not self._turn.accept(received.sender, commit.view, self._out):
            return
        try:
            listed = check_commit(self._turn.chain, commit, self._open_sealed, self._lease_tokens)
        except RemoteError as error:
            self._out.happened(PeerMisbehaved(received.sender, line(f"its commit: {error}")))
            return
        self.commit, self._since_s = commit, now_s
        for peer in passed_on_by(commit, received.sender, self._turn.presence.me) if received.sealed else ():
            self._out.send(peer, commit, received.sealed)
        for one in listed:
            self._out.add(*self._exchange.listed(one, self._turn.chain))

    def go_on(self, now_s: float) -> None:
        """Moves once every blob of the commit is here; those that do not come are caught up with."""
        if self.commit is None or self.is_moving:
            return
        if not self.num_missing:
            self.is_moving = True
            self._out.add(MoveTo(self.commit))
        elif now_s - self._since_s > self._config.exchange_deadline_s:
            holders = {peer for one in self.commit.holders for peer in one.peers} - {self._turn.presence.me}
            self._abandoned = chains.head_after(self.commit.parent, self.commit.commit)
            self.catch_up(tuple(sorted(holders)), whole=False, reason="a committed contribution could not be fetched")

    # ---------------------------------------------------------------- catching up

    def look_ahead(self, now_s: float) -> None:
        """Notices a better head elsewhere; goes to get it once the commit has had its time to arrive by itself."""
        if self.is_syncing or self.commit is not None:
            return
        chain = self._turn.chain
        ahead = self._ahead(now_s)
        if not ahead:
            self._behind_since_s = None
            return
        if self._behind_since_s is None:
            self._behind_since_s = now_s
        patience_s = MISSED_COMMIT_HEARTBEATS * self._config.heartbeat_s
        if ahead[0].version > chain.version + 1 or now_s - self._behind_since_s >= patience_s:
            self._target = ahead
            peers = tuple(status.peer for status in ahead)
            self.catch_up(peers, whole=False, reason=f"{peers[0]} is at version {ahead[0].version}")

    def catch_up(self, peers: tuple[PeerId, ...], *, whole: bool, reason: str) -> None:
        self.is_syncing = True
        self.commit = None
        self._out.add(CatchUp(peers, whole, reason))

    def leave_barred(self, sender: PeerId) -> None:
        """Our head is barred on the sender's chain, it says: the log it gives us has to prove it."""
        if not (self.is_syncing or self.is_moving or self.doubts.is_doubted(sender, self._turn.now_s)):
            self.catch_up((sender,), whole=False, reason=f"{sender} says that our head is barred")

    def _ahead(self, now_s: float) -> tuple[PeerStatus, ...]:
        ahead = self._turn.presence.ahead_of(self._turn.chain, now_s)
        return ahead and tuple(status for status in ahead if not self.doubts.is_doubted(status.peer, now_s))

    # ---------------------------------------------------------------- the end

    def fail(self, now_s: float, *, is_own: bool) -> None:
        """Catching up came to nothing: whoever led us there is not believed for a while, so that we go on meanwhile; unless
        the fault is ours."""
        heads = [status.head for status in self._target] + ([self._abandoned] if self._abandoned else [])
        if not is_own:
            self.doubts.failed([status.peer for status in self._target], heads, now_s)
        self.end(None)

    def end(self, reached: ChainState | None) -> Commit | None:
        """It is over, at this head or (None) where it began; returns the commit that led there, None after catching up."""
        commit = self.commit
        self.commit, self.is_moving, self.is_syncing, self._behind_since_s = None, False, False, None
        if reached is not None:
            self.doubts.reached(reached, [status.peer for status in self._target])
        self._target, self._abandoned = (), None
        if commit is None or reached is None or chains.head_after(commit.parent, commit.commit) != reached.head:
            return None
        return commit

    def take_early(self, now_s: float) -> None:
        """Takes the commit that came while the trainer was moving."""
        if self._early is not None:
            early, self._early = self._early, None
            self.receive(early, now_s)
