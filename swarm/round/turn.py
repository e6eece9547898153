"""Whose turn it is to lead: views, rosters and followers, seen from one peer at its head.

A view has one rightful leader, `chain.order[view mod n]`: dialable members come before the others. Where there is no roster,
the first by the same order among those here leads, and says who starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from swarm.chain import ChainState, is_majority, leader_of
from swarm.digest import Digest
from swarm.events import ViewChanged
from swarm.identity import PeerId
from swarm.messages import NewView, PeerStatus
from swarm.round.facts import HeadReached
from swarm.round.looks import Looks
from swarm.round.outbox import Outbox
from swarm.round.presence import Presence, key_of
from swarm.schema import line

ROLL_CALL_S: Final = 4e-3  # between two looks at who of the roster is here, for each: what matters is half a minute
MAX_VIEW: Final = 1 << 62  # counting on from here stays within a message's field; no honest swarm comes near


class Views:
    """The view this peer is in, and whether it is led there.

    A view changes when its leader is silent, or when the rightful leader of another one speaks to somebody who is not led.
    Who is led listens to no other leader, so one peer with a bad link deposes nobody; who is not led, or no more since its
    leader turned to another view itself, follows a later leader, or goes back to an earlier one whom the others never left.
    """

    def __init__(self, view: int = 0) -> None:
        self.view = view
        self.leader_heard_s = 0.0  # or since when it has had its chance
        self.is_led = False
        self.knows = False  # whether anyone has led us since we started or caught up; else any view may be the one

    def accepts(self, sender: PeerId, view: int, order: tuple[PeerId, ...]) -> bool:
        """Whether `sender` may lead us in `view`: its rightful leader, and at most one turn of the roster ahead."""
        farthest = self.view + len(order) if self.knows else MAX_VIEW
        return leader_of(view, order) == sender and (view == self.view or (not self.is_led and view <= farthest))

    def led(self, now_s: float) -> None:
        """The leader of our view was heard."""
        self.leader_heard_s = now_s
        self.is_led = self.knows = True

    def resume(self, now_s: float) -> None:
        """We did not run for a while: our leader was not silent to us in that time."""
        self.leader_heard_s = now_s

    def enter(self, view: int, now_s: float) -> None:
        """Turns to a view whose leader has not been heard yet."""
        self.view = view
        self.leader_heard_s = now_s
        self.is_led = False

    def let_go(self) -> None:
        """Our leader leads this view no more: whoever else may lead is listened to."""
        self.is_led = False

    def lose(self, now_s: float) -> None:
        """We caught up: others may have turned to any view meanwhile."""
        self.leader_heard_s = now_s
        self.is_led = self.knows = False

    def common_view(self, others: list[int]) -> int | None:
        """For one who was never led here: the view that the others are in, to look for its leader; None to stay.
        `others`: views of roster members at our head."""
        if self.knows or not others:
            return None
        middle = sorted(others)[(len(others) - 1) // 2]
        return middle if middle != self.view and middle <= MAX_VIEW else None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait."""

    silence_s: float  # for a word of somebody
    round_s: float  # for a commit, from a leader that speaks: the longest round, and a heartbeat or two
    isolation_s: float  # for a majority


class Turn:
    """Our head, who counts there, and who leads them. `chain` changes by `move` alone."""

    def __init__(self, start: HeadReached, presence: Presence, view: int, patience: Patience) -> None:
        self.chain = start.chain
        self.root = start.root
        self.opened: tuple[PeerId, ...] = ()  # where there is no roster: who starts, as its leader said
        self.presence = presence
        self._views = Views(view)
        self._isolation_s, self._silence_s, self._round_s = patience.isolation_s, patience.silence_s, patience.round_s
        self._now_s = self._view_since_s = 0.0
        self._roll_call = Looks(0, ROLL_CALL_S)
        self._search = Looks()
        self._electorate: tuple[tuple[PeerId, ...], frozenset[PeerId]] = ((), frozenset())
        self._known_voters: tuple[object, frozenset[PeerId]] = (None, frozenset())
        self._voters: tuple[object, frozenset[PeerId]] = (None, frozenset())
        self._order: tuple[ChainState | None, tuple[PeerId, ...]] = (None, ())
        self._led_view: int | None = None  # in which we have told the members that we lead
        self._commit_due_s = math.inf  # by when the leader of this view is to have brought a commit

    # ---------------------------------------------------------------- reading

    @property
    def now_s(self) -> float:
        return self._now_s

    @property
    def view(self) -> int:
        return self._views.view

    @property
    def roster(self) -> tuple[PeerId, ...]:
        """The roster of our head. Empty at genesis, and when none of its voters was found for so long that each of them has
        had its turn to be asked: then whoever is left begins as at genesis."""
        patience_s = self._isolation_s + len(self.order_of_head) * self._silence_s
        return self.chain.roster if self._now_s - self.presence.roster_s <= patience_s else ()

    @property
    def members(self) -> tuple[PeerId, ...]:
        """The roster; where there is none, those who opened."""
        return self.roster or self.opened

    @property
    def electorate(self) -> frozenset[PeerId]:
        """The members as a set; the same object for as long as they are the same."""
        members = self.members
        if self._electorate[0] is not members:
            self._electorate = (members, frozenset(members))
        return self._electorate[1]

    @property
    def voters(self) -> frozenset[PeerId]:
        """Who leads and counts in majorities: members whose work was listed lately; where there is no roster, those who
        opened. The same object for as long as they are the same."""
        source = self.chain if self.roster else self.opened
        if self._voters[0] is not source:
            self._voters = (source, frozenset(self.order_of_head if self.roster else self.opened))
        return self._voters[1]

    @property
    def order_of_head(self) -> tuple[PeerId, ...]:
        """The voters of our head in the order in which they lead."""
        if self._order[0] is not self.chain:
            self._order = (self.chain, self.chain.order)
        return self._order[1]

    @property
    def order(self) -> tuple[PeerId, ...]:
        """The same; empty where there is no roster."""
        return self.order_of_head if self.roster else ()

    @property
    def known_voters(self) -> frozenset[PeerId]:
        """Voters of our head and of our root: what others say of better heads does not move us."""
        if self._known_voters[0] is not self.chain:
            self._known_voters = (self.chain, frozenset((*self.order_of_head, *self.root.voters)))
        return self._known_voters[1]

    @property
    def is_among_strangers(self) -> bool:
        """Whether none of the voters that we know has been here for long, but ourselves; a newcomer knows none."""
        return not self.chain.version or self._now_s - self.presence.others_s > self._isolation_s

    def heeds(self, peer: PeerId) -> bool:
        """Whether what this peer says of its head is looked at."""
        return peer in self.known_voters or self.is_among_strangers

    def ahead(self) -> tuple[PeerStatus, ...]:
        """Statuses of those heard lately whose head we may have to follow, the highest first: those above ours; and while
        ours is not proved, as that of those who went on without a majority, any others."""
        elsewhere = tuple(one for one in self.presence.elsewhere(self.chain, self._now_s) if self.heeds(one.peer))
        above = tuple(one for one in elsewhere if key_of(one) > self.chain.key)
        is_proved = self.root.head in (self.chain.head, *self.chain.recent[:1])
        return above if above or is_proved else elsewhere

    def stands(self) -> dict[PeerId, Digest]:
        """Where each of the voters that we know stands, in words that are fresh, and where we do."""
        heard = (self.presence.roll.get(peer) for peer in self.known_voters)
        patience_s = self._now_s - self._silence_s
        stands = {one.status.peer: one.status.head for one in heard if one and not one.left and one.at_s >= patience_s}
        if self._views.is_led and self._views.leader_heard_s >= patience_s:
            stands[self.leader] = self.chain.head
        stands[self.presence.me] = self.chain.head
        return stands

    @property
    def acceptable_views(self) -> tuple[int, int] | None:
        """The lowest and the highest view in which somebody else may lead us on from our head; None: we cannot tell."""
        if not self.roster or not self._views.knows:
            return None
        is_led = self.is_followed() if self.is_ours else self._views.is_led
        return (self.view, self.view) if is_led else (0, self.view + len(self.order))

    def may_author(self, peer: PeerId) -> bool:
        """Whether a commit on our head may list that peer's work."""
        return not self.roster or self.chain.may_author(peer)

    @property
    def leader(self) -> PeerId:
        """The rightful leader of our view; where there is no roster, the first of those here."""
        rightful = leader_of(self.view, self.order)
        return rightful or self.presence.first_at_head(self.chain, self._now_s)

    @property
    def is_ours(self) -> bool:
        return self.leader == self.presence.me

    def at_head(self) -> tuple[PeerStatus, ...]:
        """Statuses of those heard lately who stand at our head."""
        return self.presence.at_head(self.chain, self._now_s)

    def answering(self) -> tuple[PeerStatus, ...]:
        """Those of them who have answered us, their leader."""
        return self.presence.answering(self.chain, self._now_s)

    def is_followed(self) -> bool:
        """Whether a majority of the voters stands at our head in our view, and has answered us since we lead it."""
        answering = self.answering()
        following = {one.peer for one in answering if one.view == self.view or not self.roster} & self.voters
        return is_majority(len(following | {self.presence.me}), len(self.voters))

    # ---------------------------------------------------------------- what moves it

    def begin(self, now_s: float) -> None:
        """The first fact."""
        self._now_s = now_s
        self.presence.start(now_s)
        self._views.leader_heard_s = now_s

    def pass_time(self, now_s: float) -> None:
        self._now_s = now_s

    def note_silences(self) -> None:
        """Keeps the roll, and who is here of those who have a vote, up to date."""
        self.presence.roll.forget_silent(self._now_s)
        if self._roll_call.is_due(len(self.order_of_head) + len(self.opened), self._now_s):
            voters = self.voters if self.is_ours else frozenset()  # whether there is a majority is its leader's affair
            self.presence.note_voters(self.order_of_head, voters, self._now_s)
            self.presence.note_others(self.known_voters, self._now_s)

    def accept(self, sender: PeerId, view: int, out: Outbox) -> bool:
        """Whether `sender` may lead us in `view`; if so, we are in it from now on."""
        if not self.roster:
            accepted = sender == self.leader
        else:
            if self.is_ours:
                self._views.is_led = self.is_followed()
            accepted = self._views.accepts(sender, view, self.order)
            if accepted and view != self.view:
                self._enter(view, f"{sender} leads it", out)
        if accepted:
            self._views.led(self._now_s)
            if sender in self.known_voters and sender != self.presence.me:
                self.presence.others_s = self._now_s
        return accepted

    def follow_others(self, out: Outbox) -> None:
        """One who was never led at this head looks for the leader in the view that the others are in."""
        if self._views.knows or not self._search.is_due(len(self.presence.roll), self._now_s):
            return
        here = [one for one in self.at_head() if one.peer in self.voters]
        led = max((one.view for one in here if leader_of(one.view, self.order) == one.peer), default=None)
        common = self._views.common_view([one.view for one in here] if led is None else [led])
        if common is not None and (led is not None or common > self.view):
            self._enter(common, "its leader is in it" if led is not None else "the others are in it", out)

    def step_down(self, reason: str, out: Outbox) -> None:
        """We lead no more: the next one does."""
        self._enter(self.view + 1, reason, out)

    def hear(self, status: PeerStatus, out: Outbox) -> None:
        """A leader that has turned to another view leads us no more; whose turn it is then leads at once. Who went on
        listening to it alone would take the lead from the next one later, as that one took it from ours: so three peers of
        a roster of four never came together."""
        known = self.presence.roll.get(status.peer)
        is_news = known is not None and known.status is status
        if is_news and status.peer == self.leader and status.head == self.chain.head and status.view != self.view:
            self._views.let_go()
            is_near = self.view < status.view <= self.view + len(self.order)
            if is_near and leader_of(status.view, self.order) == self.presence.me:
                self._enter(status.view, f"{status.peer} leads no more", out)

    def pass_on(self, out: Outbox) -> None:
        """Turns to the next leader when ours is silent, or has left."""
        if self.is_ours or not self.roster:
            return
        silence_s = self._now_s - self._views.leader_heard_s
        if self.presence.has_left(self.leader):
            self._enter(self.view + 1, f"leader {self.leader} has left", out)
        elif silence_s > self._silence_s:
            self.presence.give_up(self.leader)
            self._enter(self.view + 1, f"leader {self.leader} was silent for {silence_s:.1f} s", out)
        elif self._now_s > self._commit_due_s:
            self._enter(self.view + 1, f"leader {self.leader} has brought no commit in its time", out)

    def expect_commit(self, *, is_alone: bool) -> None:
        """Our leader has spoken: its words keep it there only for as long as a round can take, from when it began; and for
        the isolation time more, if it is alone."""
        began_s = max(self.presence.head_since_s, self._view_since_s)
        self._commit_due_s = began_s + self._round_s + (self._isolation_s if is_alone else 0.0)

    def open(self, here: tuple[PeerId, ...]) -> None:
        """Without a roster: these start."""
        self.opened = here

    def move(self, reached: HeadReached, committed_view: int | None) -> None:
        """A new head, by a commit of that view's leader or by catching up (None)."""
        old, led, chain = self.chain, self.is_ours, reached.chain
        self.chain, self.root, self.opened = chain, reached.root, ()
        self._commit_due_s = math.inf
        self.presence.start(self._now_s)
        if committed_view is None:
            self._views.lose(self._now_s)
        else:
            # It works: whoever had given up on it comes back.
            self._views.enter(view_after(committed_view, old.order, chain), self._now_s)
            self._views.led(self._now_s)
        self.presence.forget_but(chain.roster)
        self._led_view = self.view if led and self.is_ours and committed_view is not None else None

    def resume(self, gap_s: float) -> None:
        """This process did not run for `gap_s`."""
        self.presence.resume(gap_s, self._now_s)
        self._views.resume(self._now_s)
        self._led_view = None

    def takes_the_lead(self) -> bool:
        """Whether we have just become the leader of a view: we know nothing of the members, and they have to answer us."""
        led_view = self.view if self.is_ours else None
        is_new = led_view is not None and led_view != self._led_view
        self._led_view = led_view
        if is_new:
            self.presence.listen(self._now_s)
            self.presence.answers.begin()
        return is_new

    def ask_all(self, beat: int, out: Outbox) -> None:
        """A new leader asks the members where they stand."""
        for peer in self.members:
            out.send(peer, NewView(self.view, self.chain.head, beat))

    def _enter(self, view: int, reason: str, out: Outbox) -> None:
        for passed in range(self.view, min(view, self.view + len(self.order))):  # the others have given these up
            leader = leader_of(passed, self.order)
            if leader is not None and leader != self.presence.me:
                self.presence.give_up(leader)
        self._views.enter(view, self._now_s)
        self._view_since_s, self._commit_due_s = self._now_s, math.inf
        out.happened(ViewChanged(view, self.leader, line(reason)))


def view_after(view: int, order: tuple[PeerId, ...], chain: ChainState) -> int:
    """The view in which the head behind a commit begins, that the leader of `view` in that `order` made: its leader goes on,
    if it is a member still and no dialable one has to lead in its place; else the first in the new order does."""
    leader, after = leader_of(view, order), chain.order
    if leader in after and (chain.is_dialable(leader) or not chain.is_dialable(after[0])):
        return view + (after.index(leader) - view) % len(after)
    return view + -view % max(1, len(after))
