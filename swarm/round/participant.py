"""The round machine of one peer: member always, leader while its view says so. Pure: facts in, effects out.

    TRAINING --cut--> PENDING --commit that lists me--> TRAINING
       |                 '-----commit without me------> PENDING (the same blob stays pending)
       '--- a better head elsewhere --> SYNCING --> TRAINING or WAITING (until a commit admits me)

A head moves in three steps: `Commit` is received and checked, its blobs are fetched, the trainer moves. Nothing else
changes the chain but catching up, which ends in the same `HeadReached`.
"""

from __future__ import annotations

from typing import Final

from swarm import chain as chains
from swarm.chain import ChainState, is_majority, leader_of
from swarm.config import RunConfig
from swarm.digest import Digest
from swarm.errors import RemoteError
from swarm.events import Event, PeerJoined, PeerLeft, PeerMisbehaved, RoundCommitted, StateDiffered, ViewChanged
from swarm.identity import PeerId
from swarm.messages import (
    Activity,
    Commit,
    Contribution,
    CutHint,
    Goodbye,
    Holding,
    LeaderBrief,
    NewView,
    PeerStatus,
    RoundOpened,
)
from swarm.round.choose import Deadlines, RoundView
from swarm.round.commits import OpenContribution, check_commit
from swarm.round.docket import Docket, may_be_listed
from swarm.round.facts import (
    BlobFailed,
    BlobStored,
    CatchUp,
    CatchUpEnded,
    CutDone,
    Effect,
    Fact,
    Fetch,
    Figures,
    Happened,
    HeadReached,
    Measured,
    MoveTo,
    Received,
    RequestCut,
    Send,
    Tick,
    Unreached,
)
from swarm.round.leader import Leading
from swarm.round.own import HeldBlobs, OwnContributions, Self, Standing, make_status
from swarm.round.presence import Presence, Views, key_of

MIN_ISOLATION_S: Final = 30.0  # an outage of a minute must make no fork: members go on training without commits
ISOLATION_DEADLINES: Final = 3  # round deadlines without a majority before whoever is left commits alone
OPENING_HEARTBEATS: Final = 3  # genesis waits so long for others who start at the same time
MISSED_COMMIT_HEARTBEATS: Final = 2  # how long a newer head elsewhere may be on its way before we go and get it
MISSED_BEATS: Final = 2  # heartbeats that a leader waits before it asks a member where it is
HOLDING_NAMED: Final = 64  # blobs that a status names: all of the last rounds of a group of 16


class Participant:
    """One peer's view of the run. `step` is the only door; everything else reads."""

    def __init__(
        self,
        me: Self,
        config: RunConfig,
        chain: ChainState,
        state_digest: Digest,
        open_contribution: OpenContribution,
        view: int = 0,
    ) -> None:
        round_config = config.round
        self.me = me
        self.chain = chain
        self.state_digest = state_digest
        self.figures = Figures()
        self.opened: tuple[PeerId, ...] = ()  # where there is no roster: who starts, as its leader said
        self.syncing = False
        self.leaving = False
        self.presence = Presence(me.peer, round_config.leader_timeout_s)
        self._views = Views(view)
        self._config = config
        self._round = round_config
        self._deadlines = Deadlines(
            target_tokens=round_config.target_tokens,
            train_s=round_config.train_deadline_s,
            exchange_s=round_config.exchange_deadline_s,
            isolation_s=max(MIN_ISOLATION_S, ISOLATION_DEADLINES * round_config.exchange_deadline_s),
        )
        self._open_contribution = open_contribution
        self._docket = Docket()
        self._own = OwnContributions()
        self._held = HeldBlobs()
        self._refetch_s: dict[Digest, float] = {}  # contributions that could not be had, and when to try again
        self._brief: LeaderBrief | None = None
        self._commit: Commit | None = None  # accepted; its blobs are being fetched, or the trainer is moving
        self._commit_since_s = 0.0
        self._moving = False
        self._next_commit: Received | None = None  # came early: its parent is where the trainer is moving to
        self._leading: Leading | None = None
        self._beats = 0
        self._beat_due_s = 0.0
        self._behind_since_s: float | None = None
        self._now_s = 0.0
        self._started = False
        self._out: list[Effect] = []

    # ---------------------------------------------------------------- reading

    @property
    def view(self) -> int:
        return self._views.view

    @property
    def roster(self) -> tuple[PeerId, ...]:
        """The roster of our head. Empty at genesis, and when none of it was found for so long that each of them has had its
        turn to be asked: then whoever is left begins as at genesis."""
        patience_s = self._deadlines.isolation_s + len(self.chain.roster) * self._round.leader_timeout_s
        return self.chain.roster if self._now_s - self.presence.roster_s <= patience_s else ()

    @property
    def members(self) -> tuple[PeerId, ...]:
        """The roster; where there is none, those who opened."""
        return self.roster or self.opened

    @property
    def leader(self) -> PeerId:
        """The rightful leader of our view; where there is no roster, the lowest id among those here."""
        rightful = leader_of(self.view, self.roster)
        if rightful is not None:
            return rightful
        return min(self.me.peer, *(status.peer for status in self._at_head()), self.me.peer)

    @property
    def is_leader(self) -> bool:
        return self.leader == self.me.peer and not self.leaving

    @property
    def may_train(self) -> bool:
        """Whether this head gives us a lease."""
        return self.me.peer in self.members and not self.syncing

    @property
    def activity(self) -> Activity:
        if self.leaving:
            return Activity.LEAVING
        if self.syncing:
            return Activity.SYNCING
        if self._own.pending():
            return Activity.PENDING
        return Activity.TRAINING if self.me.peer in self.members else Activity.WAITING

    @property
    def waits_for(self) -> str:
        """Why nothing seems to happen, for the screen; "" while training."""
        if self.syncing:
            return "catching up with the swarm"
        if self._commit is not None and not self._moving:
            missing = sum(entry.root not in self._held for entry in self._commit.commit.entries)
            return f"fetches {missing} contributions of version {self.chain.version + 1}"
        if self.may_train and not self._own.pending():
            return ""
        if self.is_leader:
            return self._leading.reason if self._leading else ""
        return self._brief.reason if self._brief else f"no word from leader {self.leader} yet"

    def status(self) -> PeerStatus:
        """A fresh heartbeat; each has a higher beat than the one before."""
        self._beats += 1
        pending = self._own.pending()
        standing = Standing(
            activity=self.activity,
            view=self.view,
            chain=self.chain,
            state_digest=self.state_digest,
            waits_for=self.waits_for,
            pending=pending[0][1] if pending else None,
            holding=self._held.newest(HOLDING_NAMED),
        )
        return make_status(self.me, self._beats, standing, self.figures)

    # ---------------------------------------------------------------- the door

    def step(self, fact: Fact, now_s: float) -> list[Effect]:
        """Takes one fact in; returns the effects, in the order in which they must be carried out."""
        self._now_s = max(self._now_s, now_s)
        if not self._started:
            self._started = True
            self.presence.start(self._now_s)
            self._views.leader_heard_s = self._now_s
        match fact:
            case Received(sender, message, sealed):
                self._receive(sender, message, sealed)
            case Measured(figures):
                self.figures = figures
            case CutDone(contribution, sealed):
                self._cut_done(contribution, sealed)
            case BlobStored(root):
                self._blob_stored(root)
            case BlobFailed(root):
                self._refetch_s[root] = self._now_s + self._round.heartbeat_s
            case HeadReached():
                self._head_reached(fact)
            case CatchUpEnded():  # also of a move that the trainer could not make
                self._commit, self._moving, self.syncing = None, False, False
                self._leading, self._behind_since_s = None, None
            case Unreached() | Tick():
                pass
        if not self.leaving:
            self._drive()
        effects, self._out = self._out, []
        return effects

    def restore(self, contribution: Contribution, sealed: bytes) -> None:
        """Takes an own pending contribution up again after a restart; before the first fact."""
        self._own.add(contribution, sealed)
        self._held.add(contribution.root)
        self._docket.announce(contribution, sealed, self.chain)

    # ---------------------------------------------------------------- messages

    def _receive(self, sender: PeerId, message: object, sealed: bytes) -> None:
        match message:
            case PeerStatus():
                self._hear(message, sealed)
            case Contribution():
                self._announced(message, sealed)
            case Holding(head, roots):
                if head == self.chain.head:
                    self._docket.hold(sender, roots)
            case LeaderBrief():
                self._hear_brief(sender, message)
            case RoundOpened(_, head, members):
                if head == self.chain.head and not self.roster and self._accept_view(sender, self.view):
                    self.opened = tuple(sorted(set(members)))
            case CutHint(view, head, reason):
                if head == self.chain.head and self._accept_view(sender, view):
                    self._request_cut(reason)
            case Commit():
                self._receive_commit(Received(sender, message, sealed))
            case NewView(view, head):
                if head == self.chain.head:
                    self._accept_view(sender, view)
                self._send(sender, self.status())
            case Goodbye(reason):
                if self.presence.roll.leave(sender):
                    self._happened(PeerLeft(sender, reason))
            case _:
                self._happened(PeerMisbehaved(sender, f"a {type(message).__name__} is not a one-way message"))

    def _hear(self, status: PeerStatus, sealed: bytes) -> None:
        if status.peer == self.me.peer:
            return
        if self.presence.roll.hear(status, sealed, self._now_s):
            self._happened(PeerJoined(status.peer, status.name))
        if status.pending is not None:
            try:
                self._announced(self._open_contribution(status.pending), status.pending)
            except RemoteError as error:
                self._happened(PeerMisbehaved(status.peer, f"its pending contribution: {error}"[:400]))
        self._docket.hold(status.peer, status.holding)
        self._follow_others()
        if key_of(status) < self.chain.key or (status.head == self.chain.head and status.view < self.view):
            self._send(status.peer, self.status())  # it is behind: let it see by how much
        if self.is_leader and status.head == self.chain.head:
            self._answer_heartbeat(status)

    def _follow_others(self) -> None:
        common = self._views.common_view([one.view for one in self._at_head() if one.peer in self.roster])
        if common is not None:
            self._enter_view(common, "the others are in it")

    def _answer_heartbeat(self, status: PeerStatus) -> None:
        """The brief, and whatever of this round an earlier message did not bring there."""
        reason = self._leading.reason if self._leading else "the leader has just taken over"
        chain = self.chain
        self._send(
            status.peer,
            LeaderBrief(self.view, chain.version, chain.head, chain.tokens, self.state_digest, reason[:400]),
        )
        if not self.roster and self.opened:
            self._send(status.peer, RoundOpened(self.view, chain.head, self.opened))
        if self._leading is None:
            return
        if self._leading.issued is not None:
            self._send(status.peer, self._leading.issued)
            return
        if self._leading.hinted_s is not None and status.pending is None:
            self._send(status.peer, CutHint(self.view, chain.head, "the hint again"))
        for one in self._docket.waiting():
            if one.contribution.root not in status.holding:
                self._send(status.peer, one.contribution, one.sealed)

    def _hear_brief(self, sender: PeerId, brief: LeaderBrief) -> None:
        if brief.head != self.chain.head or not self._accept_view(sender, brief.view):
            return
        self._brief = brief
        if brief.state_digest != self.state_digest and not self.syncing and not self._moving:
            self._happened(StateDiffered(self.chain.version, self.state_digest, brief.state_digest))
            self._catch_up((sender,), whole=True, reason="our state differs from the leader's at the same head")

    def _accept_view(self, sender: PeerId, view: int) -> bool:
        """Whether `sender` may lead us in `view`; if so, we are in it from now on."""
        if not self.roster:
            accepted = sender == self.leader
        else:
            if self.is_leader:
                self._views.is_led = self._has_followers()
            accepted = self._views.accepts(sender, view, self.roster)
            if accepted and view != self.view:
                self._enter_view(view, f"{sender} leads it")
        if accepted:
            self._views.led(self._now_s)
        return accepted

    def _has_followers(self) -> bool:
        """Whether a majority of the members stands at our head in our view, as far as we have heard lately."""
        at_head = self._at_head()
        following = {one.peer for one in at_head if one.view == self.view or not self.roster} & set(self.members)
        return is_majority(len(following | {self.me.peer}), len(self.members))

    def _enter_view(self, view: int, reason: str) -> None:
        self._views.enter(view, self._now_s)
        self._leading = None
        self._beat_due_s = self._now_s
        self._happened(ViewChanged(view, self.leader, reason[:400]))
        if self.is_leader:
            self.presence.listen(self._now_s)
            for peer in self.members:
                self._send(peer, NewView(view, self.chain.head))

    # ---------------------------------------------------------------- contributions

    def _cut_done(self, contribution: Contribution, sealed: bytes) -> None:
        self.restore(contribution, sealed)
        self._beat_due_s = self._now_s
        for peer in sorted({*self.members, *(status.peer for status in self._at_head())}):
            self._send(peer, contribution, sealed)

    def _announced(self, contribution: Contribution, sealed: bytes) -> None:
        waiting = self._docket.announce(contribution, sealed, self.chain)
        if waiting is None:
            return
        if contribution.root in self._held:
            self._docket.hold(self.me.peer, (contribution.root,))
        elif contribution.author != self.me.peer:
            self._out.append(Fetch(contribution, (contribution.author,)))

    def _blob_stored(self, root: Digest) -> None:
        self._held.add(root)
        self._refetch_s.pop(root, None)
        self._docket.hold(self.me.peer, (root,))
        self._send(self.leader, Holding(self.chain.head, (root,)))

    def _drive_fetches(self) -> None:
        """Tries again what could not be had, as long as a commit may list it."""
        for root in [root for root, due_s in self._refetch_s.items() if due_s <= self._now_s]:
            del self._refetch_s[root]
            waiting = self._docket.get(root)
            if waiting is not None and root not in self._held and may_be_listed(waiting.contribution, self.chain):
                self._out.append(Fetch(waiting.contribution, tuple(sorted(waiting.holders - {self.me.peer}))))

    # ---------------------------------------------------------------- commits and heads

    def _receive_commit(self, received: Received) -> None:
        commit: Commit = received.message
        if self._moving and self._commit is not None:
            if commit.parent == chains.head_after(self._commit.parent, self._commit.commit):
                self._next_commit = received
            return
        if commit.parent != self.chain.head or self.syncing:
            return  # a newer head is noticed through statuses, and fetched
        if self._commit is not None and commit.view <= self._commit.view:
            return  # only a later leader's list takes the place of one whose blobs do not come
        if not self._accept_view(received.sender, commit.view):
            return
        try:
            listed = check_commit(self.chain, commit, self._open_contribution)
        except RemoteError as error:
            self._happened(PeerMisbehaved(received.sender, f"its commit: {error}"[:400]))
            return
        self._commit, self._commit_since_s = commit, self._now_s
        for one in listed:
            root = one.contribution.root
            is_new = self._docket.announce(one.contribution, one.sealed, self.chain) is not None
            for holder in one.holders:
                self._docket.hold(holder, (root,))
            if is_new and root not in self._held:
                self._out.append(Fetch(one.contribution, tuple(peer for peer in one.holders if peer != self.me.peer)))

    def _drive_commit(self) -> None:
        if self._commit is None or self._moving:
            return
        if all(entry.root in self._held for entry in self._commit.commit.entries):
            self._moving = True
            self._out.append(MoveTo(self._commit))
        elif self._now_s - self._commit_since_s > self._round.exchange_deadline_s:
            holders = {peer for one in self._commit.holders for peer in one.peers} - {self.me.peer}
            self._catch_up(tuple(sorted(holders)), whole=False, reason="a committed contribution could not be fetched")

    def _head_reached(self, reached: HeadReached) -> None:
        old, commit = self.chain, self._commit
        by_commit = commit is not None and chains.head_after(commit.parent, commit.commit) == reached.chain.head
        duration_s = self._now_s - self.presence.head_since_s
        self.chain, self.state_digest = reached.chain, reached.state_digest
        self._commit, self._moving, self.syncing = None, False, False
        self._leading, self._behind_since_s, self.opened, self._brief = None, None, (), None
        self.presence.start(self._now_s)
        self._beat_due_s = self._now_s
        if by_commit and commit is not None:
            self._views.enter(commit.view, self._now_s)  # it works: whoever had given up on it comes back
            self._views.led(self._now_s)
            self._happened(self._committed(old, commit, duration_s))
        else:
            self._views.lose(self._now_s)
        self._own.move(reached.still_pending, self.chain.version)
        self._docket.prune(self.chain)
        for contribution, sealed in self._own.pending():  # an undone one is back on the docket
            self._docket.announce(contribution, sealed, self.chain)
        if self._next_commit is not None:
            early, self._next_commit = self._next_commit, None
            self._receive_commit(early)

    def _committed(self, old: ChainState, commit: Commit, duration_s: float) -> RoundCommitted:
        listed = tuple(sorted({entry.author for entry in commit.commit.entries}))
        return RoundCommitted(
            version=self.chain.version,
            head=self.chain.head,
            state_digest=self.state_digest,
            tokens=commit.commit.tokens,
            tokens_in_all=self.chain.tokens,
            leader=leader_of(commit.view, old.roster) or min(listed),
            view=commit.view,
            listed=listed,
            left_out=tuple(peer for peer in old.roster if peer not in listed),
            minority=commit.commit.minority,
            duration_s=duration_s,
            reason=commit.reason,
        )

    def _catch_up(self, peers: tuple[PeerId, ...], *, whole: bool, reason: str) -> None:
        self.syncing = True
        self._commit = None
        self._out.append(CatchUp(peers, whole, reason))

    # ---------------------------------------------------------------- what time brings

    def _drive(self) -> None:
        """Everything that follows from where we stand now; runs after every fact."""
        self.presence.roll.forget_silent(self._now_s)
        self.presence.note_members(self.chain.roster, self.members, self._now_s)
        self._drive_fetches()
        self._drive_commit()
        self._drive_catch_up()
        self._drive_view()
        if self.is_leader and not self.syncing:
            self._lead()
        if self._now_s >= self._beat_due_s:
            self._beat_due_s = self._now_s + self._round.heartbeat_s
            self._beat()

    def _drive_catch_up(self) -> None:
        """Notices a better head elsewhere; goes to get it once the commit has had its time to arrive by itself."""
        if self.syncing or self._moving or self._commit is not None:
            return
        ahead = self.presence.ahead_of(self.chain, self._now_s)
        if not ahead:
            self._behind_since_s = None
            return
        if self._behind_since_s is None:
            self._behind_since_s = self._now_s
        waited_s = self._now_s - self._behind_since_s
        far = ahead[0].version > self.chain.version + 1
        if far or waited_s >= MISSED_COMMIT_HEARTBEATS * self._round.heartbeat_s:
            peers = tuple(status.peer for status in ahead)
            self._catch_up(peers, whole=False, reason=f"{peers[0]} is at version {ahead[0].version}")

    def _drive_view(self) -> None:
        """Turns to the next leader when ours is silent at a head where we all are, or has left."""
        on_the_way = self.syncing or self._commit is not None or self._behind_since_s is not None
        if self.is_leader or not self.roster or on_the_way:
            return
        silence_s = self._now_s - self._views.leader_heard_s
        if self.presence.has_left(self.leader):
            self._enter_view(self.view + 1, f"leader {self.leader} has left")
        elif silence_s > self._round.leader_timeout_s:
            self._enter_view(self.view + 1, f"leader {self.leader} was silent for {silence_s:.1f} s")

    def _beat(self) -> None:
        """Tells the leader of us. A leader tells members who do not beat, in case they follow another or are elsewhere;
        where there is no roster, everyone must know everyone who starts."""
        status = self.status()
        if not self.roster:
            listeners = [heard.status.peer for heard in self.presence.roll.all() if not heard.left]
        elif self.is_leader:
            lately = self.presence.roll.fresh(self._now_s, MISSED_BEATS * self._round.heartbeat_s)
            heard = {one.status.peer for one in lately}
            listeners = [peer for peer in self.members if peer not in heard and not self.presence.has_left(peer)]
        else:
            listeners = [self.leader]
        for peer in listeners:
            self._send(peer, status)

    # ---------------------------------------------------------------- leading

    def _lead(self) -> None:
        if self._leading is None:
            self._leading = Leading(began_s=self._now_s)
        if self._behind_since_s is not None:
            return  # a better head is on its way: what we issued here would only be undone
        if not self.roster and not self._open_round(self._leading):
            return
        round_view = self._round_view(self._leading)
        hint = self._leading.hint(round_view, self._deadlines, self.view, self._now_s)
        if hint is not None:
            for peer in round_view.present:
                self._send(peer, hint)
            self._request_cut(hint.reason)
        commit = self._leading.commit(round_view, self._deadlines, self.view, self._docket)
        if commit is not None:
            for peer in sorted({*round_view.present, *self.members}):
                self._send(peer, commit)
            self._receive_commit(Received(self.me.peer, commit))
            self._drive_commit()

    def _open_round(self, leading: Leading) -> bool:
        """Without a roster: opens the round once enough peers are here; returns whether it is open."""
        if self.opened:
            return True
        here = tuple(sorted({self.me.peer, *(status.peer for status in self._at_head())}))
        if len(here) < self._round.min_peers:
            leading.reason = f"{len(here)} of {self._round.min_peers} peers are here"
            return False
        if self._now_s - leading.began_s < OPENING_HEARTBEATS * self._round.heartbeat_s:
            leading.reason = "gathering whoever starts now"
            return False
        self.opened = here
        self.presence.start(self._now_s)
        for peer in here:
            self._send(peer, RoundOpened(self.view, self.chain.head, here))
        return True

    def _round_view(self, leading: Leading) -> RoundView:
        idle = (Activity.SYNCING, Activity.JOINING, Activity.LEAVING)
        present = {status.peer: status for status in self._at_head() if status.activity not in idle}
        awaited = tuple(peer for peer in self.members if self.presence.is_awaited(peer, self._now_s))
        waiting = self._docket.waiting()
        working = self.figures.tokens_since_cut + sum(
            present[peer].tokens_since_cut for peer in awaited if peer in present
        )
        return RoundView(
            me=self.me.peer,
            chain=self.chain,
            members=self.members,
            awaited=awaited,
            present=tuple(sorted({self.me.peer, *present})),
            waiting=waiting,
            tokens=working + sum(one.contribution.tokens for one in waiting),
            since_head_s=self._now_s - self.presence.head_since_s,
            since_hint_s=None if leading.hinted_s is None else self._now_s - leading.hinted_s,
            since_majority_s=self._now_s - self.presence.majority_s,
            is_followed=self._has_followers(),
            lease_tokens=self._config.lease_tokens,
        )

    # ---------------------------------------------------------------- small change

    def _at_head(self) -> tuple[PeerStatus, ...]:
        return self.presence.at_head(self.chain, self._now_s)

    def _request_cut(self, reason: str) -> None:
        if not self._own.pending() and self.may_train:
            self._out.append(RequestCut(reason))

    def _send(self, to: PeerId, message: object, sealed: bytes | None = None) -> None:
        if to != self.me.peer:
            self._out.append(Send(to, message, sealed))

    def _happened(self, event: Event) -> None:
        self._out.append(Happened(event))
