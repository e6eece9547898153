"""The round machine of one peer: member always, leader while its view says so. Pure: facts in, effects out.

    TRAINING --cut--> PENDING --commit that lists me--> TRAINING
       |                 '-----commit without me------> PENDING (the same blob stays pending)
       '--- a better head elsewhere --> SYNCING --> TRAINING or WAITING (until a commit admits me)

What it knows lives in four nouns: `Turn` (our head, who counts there, who leads), `Exchange` (contributions and their blobs),
`Passage` (the way to the next head) and, while we lead, `Leadership`. This file says which fact concerns which of them, and
what follows. The chain changes by `HeadReached` alone, after a commit or after catching up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from swarm.chain import ChainState
from swarm.config import RunConfig
from swarm.digest import Digest
from swarm.errors import RemoteError
from swarm.events import HeadsBarred, PeerJoined, PeerLeft, PeerMisbehaved
from swarm.identity import PeerId
from swarm.messages import (
    HOLDING_NAMED,
    Activity,
    Commit,
    Contribution,
    CutHint,
    Goodbye,
    HeadBarred,
    Holding,
    LeaderBrief,
    NewView,
    PeerStatus,
    RoundOpened,
)
from swarm.round import listeners
from swarm.round.agreement import States
from swarm.round.ballot import Ballot
from swarm.round.choose import Deadlines
from swarm.round.commits import Seals, committed, open_as
from swarm.round.docket import may_be_listed
from swarm.round.exchange import Exchange
from swarm.round.facts import (
    BlobFailed,
    BlobStored,
    CatchUpEnded,
    CutDone,
    Effect,
    Fact,
    Figures,
    HeadReached,
    Measured,
    MoveFailed,
    Received,
    RequestCut,
    Resumed,
    Tick,
    Unreached,
    WayFound,
)
from swarm.round.leadership import Leadership, Seat
from swarm.round.outbox import Outbox
from swarm.round.own import HoldingNews, Self, Standing, Words, make_status
from swarm.round.passage import Passage
from swarm.round.presence import Presence, key_of
from swarm.round.replies import Replies
from swarm.round.turn import Patience, Turn
from swarm.schema import line
from swarm.votes import Stand, stand_at

MIN_ISOLATION_S: Final = 30.0  # an outage of a minute must make no fork: members go on training without commits
ISOLATION_DEADLINES: Final = 3  # round deadlines without a majority before whoever is left commits alone


class Participant:
    """One peer's view of the run. `step` is the only door; everything else reads."""

    def __init__(
        self,
        me: Self,
        config: RunConfig,
        start: HeadReached,
        seals: Seals,
        view: int = 0,
    ) -> None:
        self.me = me
        self.state_digest = start.state_digest
        self.figures = Figures()
        self.leaving = False
        self._config = config
        self._round = config.round
        self._deadlines = Deadlines(
            target_tokens=self._round.target_tokens,
            train_s=self._round.train_deadline_s,
            exchange_s=self._round.exchange_deadline_s,
            isolation_s=max(MIN_ISOLATION_S, ISOLATION_DEADLINES * self._round.exchange_deadline_s),
            max_listed=self._round.max_listed,
            local_steps=self._round.local_steps,
            heartbeat_s=self._round.heartbeat_s,
        )
        self._seals = seals
        self.presence = Presence(me.peer, self._round.leader_timeout_s, self._round.heartbeat_s)
        self._turn = Turn(start, self.presence, view, self._patience())
        self._exchange = Exchange(me, self._round.heartbeat_s)
        self._out = Outbox(me.peer)
        verifier = replace(seals.verifier, open_sealed=self._exchange.opener(seals.verifier.open_sealed))
        self._passage = Passage(self._turn, self._exchange, self._out, config, verifier)
        seat = Seat(self._turn, self._exchange, self._passage, self._out, Ballot(me.peer, seals))
        self._ballot = seat.ballot
        self._leadership = Leadership(seat, config, self._deadlines, self._own_report)
        self._states = States(self._turn, self._out, self._round.heartbeat_s)
        self._replies = Replies(self._turn, self._exchange, self._out, self._round.heartbeat_s)
        self._brief: LeaderBrief | None = None
        self._holding = HoldingNews()
        self._words = Words(me)
        self._beat_due_s = 0.0
        self._beaten_view = view
        self._now_s = 0.0
        self._started = False

    # ---------------------------------------------------------------- reading

    @property
    def chain(self) -> ChainState:
        """Our head and what it stands for."""
        return self._turn.chain

    @property
    def stand(self) -> Stand:
        """Where we stand: what we vote for."""
        return stand_at(self.chain, self.state_digest)

    @property
    def turn(self) -> Turn:
        """What we know of our head, its voters and its leader; to be read."""
        return self._turn

    @property
    def view(self) -> int:
        return self._turn.view

    @property
    def members(self) -> tuple[PeerId, ...]:
        """The roster; where there is none, those who opened."""
        return self._turn.members

    @property
    def opened(self) -> tuple[PeerId, ...]:
        """Where there is no roster: who starts, as its leader said."""
        return self._turn.opened

    @property
    def leader(self) -> PeerId:
        """The rightful leader of our view; where there is no roster, the first of those here."""
        return self._turn.leader

    @property
    def is_leader(self) -> bool:
        return self._turn.is_ours and not self.leaving

    @property
    def syncing(self) -> bool:
        """Whether we are catching up."""
        is_outside = self.me.peer not in self._turn.electorate
        return self._passage.is_syncing or (self._passage.is_searching and is_outside)

    @property
    def is_moving_on(self) -> bool:
        """Whether the way to a better head is clear, and we are on it."""
        return self._passage.is_syncing

    @property
    def may_train(self) -> bool:
        """Whether this head gives us a lease."""
        return self.me.peer in self._turn.electorate and not self.syncing

    @property
    def activity(self) -> Activity:
        if self.leaving:
            return Activity.LEAVING
        if self.syncing:
            return Activity.SYNCING
        if self._exchange.pending():
            return Activity.PENDING
        return Activity.TRAINING if self.me.peer in self._turn.electorate else Activity.WAITING

    @property
    def waits_for(self) -> str:
        """Why nothing seems to happen, for the screen; "" while training. First what our trainer says."""
        if self.syncing:
            return "catching up with the swarm"
        if self._passage.num_missing:
            return f"fetches {self._passage.num_missing} contributions of version {self.chain.version + 1}"
        if self.may_train and not self._exchange.pending():
            return self.figures.waits_for
        if self.is_leader:
            reason = self._leadership.now.reason if self._leadership.now else ""
        else:
            reason = self._brief.reason if self._brief else f"no word from leader {self.leader} yet"
        return "; ".join(one for one in (self.figures.waits_for, reason) if one)

    def status(self) -> PeerStatus:
        """A fresh heartbeat; each has a higher beat than the one before."""
        self._words.next()
        pending = self._exchange.pending()
        standing = Standing(
            activity=self.activity,
            view=self.view,
            chain=self.chain,
            state_digest=self.state_digest,
            waits_for=self.waits_for,
            pending=pending[0][1] if pending else None,
            holding=self._exchange.held_waiting(HOLDING_NAMED, self._words.count),
            lost=self._passage.doubts.lost,
            answer=self._words.answer,
            vote=self._ballot.own(self.stand),
        )
        return make_status(self.me, self._words.beat, standing, self.figures)

    def looks_for_peers(self) -> bool:
        """Whether we have heard lately of so few that all of the noticeboard is worth a look."""
        return listeners.are_few(self._turn)

    def acquaintances(self) -> tuple[PeerId, ...]:
        """Whom to tell that we are here."""
        return listeners.of_newcomer(self._turn)

    def farewells(self) -> tuple[PeerId, ...]:
        """Whom to tell that we leave."""
        return listeners.of_goodbye(self._turn)

    # ---------------------------------------------------------------- the door

    def step(self, fact: Fact, now_s: float) -> list[Effect]:
        """Takes one fact in; returns the effects, in the order in which they must be carried out."""
        self._now_s = max(self._now_s, now_s)
        if not self._started:
            self._started = True
            self._turn.begin(self._now_s)
        self._turn.pass_time(self._now_s)
        match fact:
            case Received():
                self._receive(fact)
            case Resumed(gap_s):
                self._turn.resume(gap_s)
                self._beat_due_s = self._now_s
            case Measured(figures):
                self.presence.attest(figures.dialled)
                self.figures = figures
            case CutDone(contribution, sealed):
                self._cut_done(contribution, sealed)
            case BlobStored(root):
                self._blob_stored(root)
            case BlobFailed(root):
                self._exchange.failed(root, self._now_s)
            case HeadReached():
                self._head_reached(fact)
            case WayFound(head):
                self._passage.found(head)
            case CatchUpEnded():
                self._passage.fail(fact, self._now_s)
            case MoveFailed():
                self._passage.end(None)
                self._leadership.reset()
            case Unreached() | Tick():
                pass
        if not self.leaving:
            self._drive()
        return self._out.take()

    def restore(self, contribution: Contribution, sealed: bytes) -> None:
        """Takes an own pending contribution up again after a restart; before the first fact."""
        self._exchange.add_own(contribution, sealed, self.chain)

    # ---------------------------------------------------------------- messages

    def _receive(self, received: Received) -> None:
        sender, message, sealed = received.sender, received.message, received.sealed
        match message:
            case PeerStatus():
                self._hear(message, sealed, received.age_s)
            case Contribution():
                self._take_announcement(message, sealed)
            case Holding(head, incarnation, roots):
                if head == self.chain.head:
                    self._exchange.docket.hold(sender, incarnation, roots)
            case LeaderBrief():
                self._hear_brief(sender, message)
            case RoundOpened(_, head, members):
                if (
                    head == self.chain.head
                    and not self._turn.roster
                    and self._turn.accept(sender, self.view, self._out)
                ):
                    self._turn.open(tuple(sorted(set(members))))
            case CutHint(view, head, reason):
                if head == self.chain.head and self._turn.accept(sender, view, self._out):
                    self._request_cut(reason)
            case Commit():
                self._passage.receive(received, self._now_s)
            case HeadBarred(head):
                if head == self.chain.head:
                    self._passage.leave_barred(sender)
            case NewView(view, head, beat):
                if head == self.chain.head and self._turn.accept(sender, view, self._out):
                    self._hear_leader(sender, beat)
                self._out.send(sender, self.status())
            case Goodbye(reason, incarnation):
                if self.presence.leave(sender, incarnation):
                    self._out.happened(PeerLeft(sender, reason))
            case _:
                self._out.happened(PeerMisbehaved(sender, f"a {type(message).__name__} is not a one-way message"))

    def _hear(self, status: PeerStatus, sealed: bytes, age_s: float | None) -> None:
        if status.peer == self.me.peer:
            return
        if self.presence.hear(status, sealed, self._now_s, age_s):
            self._out.happened(PeerJoined(status.peer, status.name))
        self._turn.hear(status, self._out)
        if status.pending is not None and self._exchange.docket.opened(status.pending) is None:
            try:
                pending = open_as(Contribution, status.pending, self._seals.verifier.open_sealed)
                self._take_announcement(pending, status.pending)
            except RemoteError as error:
                self._out.happened(PeerMisbehaved(status.peer, line(f"its pending contribution: {error}")))
        self._exchange.docket.hold(status.peer, status.incarnation, status.holding)
        self._turn.follow_others(self._out)
        if key_of(status) < self.chain.key or (status.head == self.chain.head and status.view < self.view):
            self._replies.tell(status.peer, self.status, now=self.is_leader)
        if status.head in self.chain.barred:
            self._out.send(status.peer, HeadBarred(status.head))
        if self.is_leader and status.head == self.chain.head:
            self._replies.answer(status, self.stand, self._words.said, self._leadership.now, self._now_s)
            if status.state_digest != self.state_digest and status.peer in self._turn.voters:
                self._states.compare(self.stand, {}, self._passage)

    def _take_announcement(self, contribution: Contribution, sealed: bytes) -> None:
        if not self._turn.may_author(contribution.author):
            if contribution.head in (self.chain.head, *self.chain.recent) and may_be_listed(contribution, self.chain):
                self._out.happened(PeerMisbehaved(contribution.author, "it contributes, and is no member"))
            return
        docket, process = self._exchange.docket, (contribution.author, contribution.incarnation)
        was_known = docket.is_two_faced(*process)
        self._out.add(*self._exchange.announced(contribution, sealed, self.chain))
        if docket.is_two_faced(*process) and not was_known:
            reason = f"it has signed two contributions with the number {contribution.seq}"
            self._out.happened(PeerMisbehaved(contribution.author, reason))

    def _hear_brief(self, sender: PeerId, heard: LeaderBrief) -> None:
        if heard.head != self.chain.head or not self._turn.accept(sender, heard.view, self._out):
            return
        self._brief = heard
        self._turn.expect_commit(is_alone=heard.is_alone)
        self._hear_leader(sender, heard.beat)
        if heard.state_digest == self.state_digest:
            self._states.agree(self.chain.head)
        else:
            self._states.compare(self.stand, {sender: heard.state_digest}, self._passage)

    def _hear_leader(self, leader: PeerId, beat: int) -> None:
        """Our next status says that we heard it; a new leader, who waits for that, is told at once."""
        if self._words.hear(leader, beat):
            self._beat_due_s = self._now_s

    # ---------------------------------------------------------------- contributions

    def _cut_done(self, contribution: Contribution, sealed: bytes) -> None:
        self.restore(contribution, sealed)
        self._beat_due_s = self._now_s
        for peer in listeners.of_contribution(self._turn, self.figures.dialled):
            self._out.send(peer, contribution, sealed)

    def _blob_stored(self, root: Digest) -> None:
        waiting = self._exchange.docket.get(root)
        if waiting is None or self.me.peer not in waiting.holders:
            self._holding.add(root)
        self._exchange.stored(root, self.chain.version)

    # ---------------------------------------------------------------- commits and heads

    def _head_reached(self, reached: HeadReached) -> None:
        old, duration_s = self.chain, self._now_s - self.presence.head_since_s
        commit = self._passage.end(reached.chain)
        self.state_digest = reached.state_digest
        self._brief = None
        self._holding.clear()
        self._leadership.reset()
        self._beat_due_s = self._now_s
        self._turn.move(reached, None if commit is None else commit.view)
        if commit is not None:
            self._out.happened(committed(commit, old, reached, duration_s))
            if commit.commit.barred:
                self._out.happened(HeadsBarred(reached.chain.version, commit.commit.barred))
        self._exchange.move(self.chain, reached.still_pending)
        self._passage.take_early(self._now_s)

    # ---------------------------------------------------------------- what time brings

    def _drive(self) -> None:
        """Everything that follows from where we stand now; runs after every fact."""
        self._turn.note_silences()
        self._out.add(*self._exchange.retries(self.chain, self._now_s))
        self._passage.go_on(self._now_s)
        self._passage.look_ahead(self._now_s)
        roots = self._holding.due(len(self.members), self._now_s)
        if roots:
            self._out.send(self.leader, Holding(self.chain.head, self.me.incarnation, roots))
        if not self._passage.is_under_way:
            self._turn.pass_on(self._out)
        if self._turn.takes_the_lead():
            self._words.next()
            self._turn.ask_all(self._words.say(), self._out)
            self.presence.answers.say(self._words.said, self._now_s)
        if self.is_leader and not self._passage.is_syncing:
            hinted = self._leadership.lead(self.figures, self.stand, self._now_s)
            if hinted is not None:
                self._request_cut(hinted)
        if self._now_s >= self._beat_due_s or self.view != self._beaten_view:
            self._beat_due_s = self._now_s + self._round.heartbeat_s
            self._replies.begin_beat()
            self._beat()

    def _beat(self) -> None:
        status = self.status()
        self.presence.answers.say(self._words.say(), self._now_s)
        for peer in listeners.of_heartbeat(self._turn, self._words.count, self._round.heartbeat_s, self._beaten_view):
            self._out.send(peer, status)
        for peer in listeners.holders_for(self._turn, self.figures.dialled):
            for contribution, sealed in self._exchange.pending():
                self._out.send(peer, contribution, sealed)
        self._beaten_view = self.view

    # ---------------------------------------------------------------- small change

    def _patience(self) -> Patience:
        """How long to wait for a word, for a commit, and for a majority."""
        one = self._round
        longest_s = one.train_deadline_s + 2 * one.exchange_deadline_s + one.leader_timeout_s
        return Patience(one.leader_timeout_s, longest_s, self._deadlines.isolation_s)

    def _own_report(self) -> tuple[PeerId, bytes]:
        return self.me.peer, self._seals.seal(self.status())

    def _request_cut(self, reason: str) -> None:
        if not self._exchange.pending() and self.may_train:
            self._out.add(RequestCut(reason))
