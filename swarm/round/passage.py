"""The way from our head to the next: a commit is received and checked, its blobs are fetched, the trainer moves; or a better
head is seen elsewhere and caught up with. All end in a new head, or where they began.

    standing --commit--> fetching --all here--> moving --> standing at the next head
       |                    '--deadline--.
       '--a better head-----------------> searching, aside --way found--> syncing --> standing there
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
from swarm.round.commits import Verifier, check_commit, roots_of
from swarm.round.doubts import Doubts
from swarm.round.exchange import Exchange
from swarm.round.facts import CatchUp, CatchUpEnded, MoveTo, Received
from swarm.round.outbox import Outbox
from swarm.round.presence import key_of
from swarm.round.relay import passed_on_by
from swarm.round.root import root_after
from swarm.round.turn import Turn
from swarm.schema import line
from swarm.votes import voted_by

MISSED_COMMIT_HEARTBEATS: Final = 2  # how long a newer head elsewhere may be on its way before we go and get it


class Passage:
    """At most one is under way: `commit` is being fetched, the trainer is moving to it (`is_moving`), or goes a way that was
    found (`is_syncing`). To look for a way (`is_searching`) stops none of these: what others claim may be wrong."""

    def __init__(self, turn: Turn, exchange: Exchange, out: Outbox, config: RunConfig, verifier: Verifier) -> None:
        self.commit: Commit | None = None
        self.is_moving = False
        self.is_syncing = False
        self.is_searching = False
        self.doubts = Doubts(config.round.heartbeat_s)
        self._since_s = 0.0
        self._early: Received | None = None  # a commit on the head that the trainer is moving to
        self._behind_since_s: float | None = None
        self._searched_from: Digest | None = None
        self._target: tuple[PeerStatus, ...] = ()  # whose heads we are on the way to
        self._abandoned: Digest | None = None  # the head of the commit whose blobs did not come
        self._turn = turn
        self._exchange = exchange
        self._out = out
        self._config = config.round
        self._lease = config.lease
        self._verifier = verifier

    @property
    def knows_better(self) -> bool:
        """Whether somebody is at a head that we may have to follow."""
        return self._behind_since_s is not None

    @property
    def is_under_way(self) -> bool:
        return self.is_syncing or self.commit is not None

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
        if commit.commit.minority and self._turn.roster and received.sender != self._turn.presence.me:
            return  # one leader's word that nobody else is here: its voters are asked, by catching up
        try:
            listed = check_commit(self._turn.chain, commit, self._verifier, self._lease.tokens)
            if not self._verifier.is_issue(received.sender, commit.issued, commit.view, self._head_after(commit)):
                raise RemoteError("its leader has not signed it for the log")
        except RemoteError as error:
            self._out.happened(PeerMisbehaved(received.sender, line(f"its commit: {error}")))
            return
        self.commit, self._since_s = commit, now_s
        for peer in passed_on_by(commit, received.sender, self._turn.presence.me) if received.sealed else ():
            self._out.send(peer, commit, received.sealed)
        for one in listed:
            self._out.add(*self._exchange.listed(one, self._turn.chain))

    @staticmethod
    def _head_after(commit: Commit) -> Digest:
        return chains.head_after(commit.parent, commit.commit)

    def go_on(self, now_s: float) -> None:
        """Moves once every blob of the commit is here; those that do not come are caught up with."""
        if self.commit is None or self.is_moving:
            return
        if not self.num_missing:
            chain, commit = self._turn.chain, self.commit
            self.is_moving = True
            voted = voted_by(chain, commit.votes)
            after = chains.apply(chain, commit.commit, self._lease.windows)
            self._out.add(MoveTo(commit, root_after(self._turn.root, chain, voted, after)))
        elif now_s - self._since_s > self._config.exchange_deadline_s:
            holders = {peer for one in self.commit.holders for peer in one.peers} - {self._turn.presence.me}
            self._abandoned = chains.head_after(self.commit.parent, self.commit.commit)
            self.commit = None
            self.catch_up(tuple(sorted(holders)), whole=False, reason="a committed contribution could not be fetched")

    # ---------------------------------------------------------------- catching up

    def look_ahead(self, now_s: float) -> None:
        """Notices a better head elsewhere; looks for the way once the commit has had its time to arrive by itself."""
        if self.is_searching or self.is_under_way:
            return
        ahead = self._ahead(now_s)
        if not ahead:
            self._behind_since_s = None
            return
        if self._behind_since_s is None:
            self._behind_since_s = now_s
        if now_s - self._behind_since_s >= self._patience_s(ahead[0]):
            self._target = ahead
            peers = tuple(status.peer for status in ahead)
            self.catch_up(peers, whole=False, reason=f"{peers[0]} is at version {ahead[0].version}")

    def _patience_s(self, ahead: PeerStatus) -> float:
        """How long a better head has been known when we look for the way there: a commit may still be on its way; and who
        asks strangers has to know several."""
        if self._turn.is_among_strangers:
            return self._config.heartbeat_s
        is_near = ahead.version == self._turn.chain.version + 1
        return MISSED_COMMIT_HEARTBEATS * self._config.heartbeat_s if is_near else 0.0

    def catch_up(self, peers: tuple[PeerId, ...], *, whole: bool, reason: str) -> None:
        """Looks for the way to where one of these stands."""
        if not self.is_searching:
            self.is_searching, self._searched_from = True, self._turn.chain.head
            self._out.add(CatchUp(peers, whole, reason))

    def found(self, head: Digest) -> None:
        """The way from this head is clear: the round waits for it, if we still stand there."""
        if self.is_searching and head == self._turn.chain.head and not self.is_moving:
            self.is_searching, self.is_syncing, self.commit = False, True, None

    def leave_barred(self, sender: PeerId) -> None:
        """Our head is barred on the sender's chain, it says: the log it gives us has to prove it."""
        is_busy = self.is_searching or self.is_under_way or self.doubts.is_doubted(sender, self._turn.now_s)
        if not is_busy and self._turn.heeds(sender):
            self.catch_up((sender,), whole=False, reason=f"{sender} says that our head is barred")

    def _ahead(self, now_s: float) -> tuple[PeerStatus, ...]:
        return tuple(status for status in self._turn.ahead() if not self.doubts.is_doubted(status.peer, now_s))

    # ---------------------------------------------------------------- the end

    def fail(self, ended: CatchUpEnded, now_s: float) -> None:
        """No way was found: whoever led us there is not believed for a while. Heads that nobody gave us are lost, if we were
        to follow them."""
        above = [] if ended.is_refused else [one.head for one in self._target if key_of(one) > self._turn.chain.key]
        heads = above + ([self._abandoned] if self._abandoned else [])
        if self._searched_from == self._turn.chain.head:  # else it was not for them
            self.doubts.failed([status.peer for status in self._target], heads, now_s)
        self.is_searching = self.is_syncing = False
        self._behind_since_s, self._target, self._abandoned = None, (), None

    def end(self, reached: ChainState | None) -> Commit | None:
        """It is over, at this head or (None) where it began; returns the commit that led there, None after catching up."""
        commit, was_syncing = self.commit, self.is_syncing
        self.commit, self.is_moving, self.is_syncing = None, False, False
        if reached is not None:
            self.doubts.reached(reached, [status.peer for status in self._target] if was_syncing else ())
        if was_syncing:
            self._target, self._abandoned = (), None
        if commit is None or reached is None or chains.head_after(commit.parent, commit.commit) != reached.head:
            return None
        return commit

    def take_early(self, now_s: float) -> None:
        """Takes the commit that came while the trainer was moving."""
        if self._early is not None:
            early, self._early = self._early, None
            self.receive(early, now_s)
