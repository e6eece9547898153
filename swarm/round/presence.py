"""Who is here, seen from one peer: statuses heard, and silences."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

from swarm.chain import ChainState, is_majority
from swarm.identity import PeerId
from swarm.messages import Activity, PeerStatus
from swarm.round.answers import Answers
from swarm.round.roll import MAX_HEARD, Heard, Roll

LATE_BEATS: Final = 3  # heartbeats without a word, after which a peer is asked behind the others
_NOT_AWAITED: Final = (Activity.SYNCING, Activity.LEAVING)


class Presence:
    """Statuses, answers and silences. `is_live`: a status was heard lately, by whatever path. `is_here`, at a leader: it
    hears us, too. Silence counts from the last word or from when we began to listen, whichever is later: a member not heard
    of since is here until its silence is long enough to say otherwise. Members speak to their leader alone, so who takes the
    lead knows nothing of them yet and begins to listen then."""

    def __init__(self, me: PeerId, silence_s: float, heartbeat_s: float = 0.0) -> None:
        self.me = me
        self.roll = Roll(silence_s)
        self.answers = Answers(me, silence_s + 2 * heartbeat_s)  # an answer is on its way for two heartbeats
        self.head_since_s = 0.0
        self.majority_s = 0.0  # when a majority of the voters was last here
        self.regained_s = 0.0  # since when it has been, without a break
        self._has_majority = True
        self.roster_s = 0.0  # when any of the voters of our head was, ourselves among them if we are one
        self.others_s = -math.inf  # when any other voter that we know was last heard
        self._listens_since_s = 0.0
        self._dialled: tuple[PeerId, ...] = ()  # who answered a fresh dial of ours lately
        self._given_up: set[PeerId] = (
            set()
        )  # leaders whose silence made us turn to another: only a word brings them back
        self._silence_s = silence_s
        self._late_s = LATE_BEATS * heartbeat_s
        self._sorted_at: ChainState | None = None  # what the three below refer to
        self._at_head: dict[PeerId, Heard] = {}
        self._elsewhere: dict[PeerId, Heard] = {}  # at heads that are not on our chain, as far as it remembers
        self._first: PeerId | None = None  # of those at our head in the order of leaders, or None: not known

    def start(self, now_s: float) -> None:
        """A new head, or the first fact."""
        self.head_since_s = self.roster_s = now_s
        self.others_s = max(self.others_s, 0.0) or now_s
        self.listen(now_s)

    def listen(self, now_s: float) -> None:
        """Silences of members count from here. Not of the whole roster: who leads because that is gone would wait for it
        once more, and for ever."""
        self._listens_since_s = self.majority_s = now_s

    def resume(self, gap_s: float, now_s: float) -> None:
        """This process did not run for `gap_s`: nobody was silent to us in that time, and nobody has answered us yet."""
        self.roll.wait_for(gap_s)
        self.roster_s = self.others_s = now_s
        self.listen(now_s)
        self.answers.begin()

    def give_up(self, leader: PeerId) -> None:
        """Its silence was long enough: nobody waits for it once more, at this head or a later one, before it speaks."""
        self._given_up.add(leader)

    def forget_but(self, roster: tuple[PeerId, ...]) -> None:
        """Of those given up only members matter."""
        self._given_up &= set(roster)

    @property
    def given_up(self) -> frozenset[PeerId]:
        """Leaders who were silent in their turn, and still are."""
        return frozenset(self._given_up)

    def hear(self, status: PeerStatus, sealed: bytes, now_s: float, age_s: float | None = None) -> bool:
        """Takes a status from its author, or one that was said `age_s` ago to somebody else; returns whether the peer is new
        here or back."""
        known = self.roll.get(status.peer)
        is_new = self.roll.hear(status, sealed, now_s, age_s)
        if (known.status.dialled if known is not None else ()) != status.dialled:
            self._first = None
        self.answers.hear(status.peer, status.answer)
        if age_s is None:
            self._given_up.discard(status.peer)
        self._note(status.peer)
        if len(self._at_head) + len(self._elsewhere) > 2 * MAX_HEARD:
            self._sorted_at = None  # strangers that the roll has forgotten
        return is_new

    def attest(self, dialled: tuple[PeerId, ...]) -> None:
        """These answered a fresh dial of ours lately, and nobody else."""
        if dialled != self._dialled:
            self.roll.attest(self.me, dialled, self._dialled)
            self._dialled, self._first = dialled, None

    def carriers(self, author: PeerId) -> tuple[PeerId, ...]:
        """Peers that may hold what an author has announced, as it is connected to them: those that it has dialled."""
        heard = self.roll.get(author)
        dialled = () if heard is None else heard.status.dialled
        return tuple(peer for peer in dialled if peer not in (author, self.me))

    def forwarders(self, to: PeerId) -> tuple[PeerId, ...]:
        """Who may pass a message on to `to`, the best guess first: who is connected to both, to it, to us, and others that
        somebody could dial."""
        theirs = self.carriers(to)
        both = [peer for peer in theirs if peer in self._dialled]
        others = sorted(self.roll.attested, key=lambda peer: peer.raw)
        found = dict.fromkeys((*both, *theirs, *self._dialled, *others))
        there = (peer for peer in found if peer not in (to, self.me) and not self.has_left(peer))
        return tuple(there)

    def leave(self, peer: PeerId, incarnation: int) -> bool:
        """Notes a goodbye of that process of the peer's; returns whether the peer was here."""
        was_here = self.roll.leave(peer, incarnation)
        self._note(peer)
        return was_here

    def fresh(self, now_s: float) -> tuple[Heard, ...]:
        """Those heard lately, by peer id."""
        return self.roll.fresh(now_s, self._silence_s)

    def to_ask(self, first: tuple[PeerId, ...], now_s: float) -> tuple[PeerId, ...]:
        """These and everyone else heard lately, whoever missed its heartbeats last: a frozen one costs its timeout."""
        said_s = {heard.status.peer: heard.at_s for heard in self.fresh(now_s)}
        peers = dict.fromkeys((*first, *said_s))
        return tuple(sorted(peers, key=lambda peer: now_s - said_s.get(peer, now_s) > self._late_s))

    def at_head(self, chain: ChainState, now_s: float) -> tuple[PeerStatus, ...]:
        """The statuses of those heard lately who stand at our head, by peer id."""
        self._sort(chain)
        here = [heard.status for heard in self._at_head.values() if now_s - heard.at_s <= self._silence_s]
        return tuple(sorted(here, key=lambda status: status.peer.raw))

    def answering(self, chain: ChainState, now_s: float) -> tuple[PeerStatus, ...]:
        """Those of them who have answered us lately."""
        return tuple(one for one in self.at_head(chain, now_s) if self.answers.has(one.peer, now_s))

    def first_at_head(self, chain: ChainState, now_s: float) -> PeerId:
        """Who leads where there is no roster: of those heard lately who stand at our head, and us, the lowest id that
        somebody else has dialled; where there is none such, the lowest."""
        self._sort(chain)
        first = None if self._first is None else self._at_head.get(self._first)
        if first is None or now_s - first.at_s > self._silence_s:
            here = (status.peer for status in self.at_head(chain, now_s))
            self._first = min(here, key=self.turn_of, default=None)
        return self.me if self._first is None else min(self.me, self._first, key=self.turn_of)

    def turn_of(self, peer: PeerId) -> tuple[bool, bytes]:
        """Where a peer stands in the order of leaders while there is no roster."""
        return not self.roll.is_attested(peer), peer.raw

    def elsewhere(self, chain: ChainState, now_s: float) -> tuple[PeerStatus, ...]:
        """The statuses of those heard lately whose head is not on our chain, as far as it remembers: ahead of us, on another
        branch, or long behind. The highest first."""
        self._sort(chain)
        if not self._elsewhere:
            return ()
        for peer in [peer for peer, heard in self._elsewhere.items() if now_s - heard.at_s > self._silence_s]:
            del self._elsewhere[peer]
        others = sorted(self._elsewhere.values(), key=lambda heard: heard.status.peer.raw)
        return tuple(sorted((heard.status for heard in others), key=key_of, reverse=True))

    def _sort(self, chain: ChainState) -> None:
        """Who is at our head, and who is elsewhere: kept from word to word, and found anew at each head."""
        if self._sorted_at is chain:
            return
        if self._sorted_at is None or self._sorted_at.head != chain.head:
            self._sorted_at = chain
            self._at_head, self._elsewhere, self._first = {}, {}, None
            for heard in self.roll.lately(math.inf, math.inf):
                self._note(heard.status.peer)

    def _note(self, peer: PeerId) -> None:
        heard, chain = self.roll.get(peer), self._sorted_at
        self._at_head.pop(peer, None)
        self._elsewhere.pop(peer, None)
        if heard is None or heard.left or chain is None:
            return
        if heard.status.head == chain.head:
            self._at_head[peer] = heard
            if self._first is not None and self.turn_of(peer) < self.turn_of(self._first):
                self._first = peer
        elif heard.status.head not in chain.recent and heard.status.head not in chain.barred:
            self._elsewhere[peer] = heard

    def has_left(self, peer: PeerId) -> bool:
        """Whether a peer said goodbye, and nothing since."""
        heard = self.roll.get(peer)
        return heard is not None and heard.left

    def is_live(self, peer: PeerId, now_s: float) -> bool:
        """Whether a peer has not been silent for too long, nor left; we are always live."""
        heard = self.roll.get(peer)
        if heard is not None and now_s - heard.at_s <= self._silence_s:
            return not heard.left or peer == self.me
        if heard is not None and heard.left:
            return peer == self.me
        listens = now_s - self._listens_since_s <= self._silence_s and peer not in self._given_up
        return listens or peer == self.me

    def is_here(self, peer: PeerId, now_s: float) -> bool:
        """At a leader: whether a member has answered lately, or may still do so since we began to listen, or since it has
        spoken to us again after a silence."""
        heard = self.roll.get(peer)
        if peer == self.me or (heard is not None and heard.left):
            return peer == self.me
        if now_s - self._listens_since_s <= self._silence_s and peer not in self._given_up:
            return True
        is_back = heard is not None and now_s - heard.back_s <= self._silence_s
        return (is_back or self.answers.has(peer, now_s)) and self.is_live(peer, now_s)

    def is_awaited(self, peer: PeerId, now_s: float) -> bool:
        """Whether a round should wait for a member: here, and not on its way out or behind."""
        heard = self.roll.get(peer)
        busy = heard is None or heard.status.activity not in _NOT_AWAITED
        return peer == self.me or (busy and self.is_here(peer, now_s))

    def note_others(self, voters: Collection[PeerId], now_s: float) -> None:
        """Keeps `others_s` up to date, by the words of these."""
        if any(peer != self.me and self._is_heard(peer, now_s) for peer in voters):
            self.others_s = now_s

    def _is_heard(self, peer: PeerId, now_s: float) -> bool:
        heard = self.roll.get(peer)
        return heard is not None and not heard.left and now_s - heard.at_s <= self._silence_s

    def note_voters(self, of_head: Collection[PeerId], voters: Collection[PeerId], now_s: float) -> None:
        """Keeps `roster_s`, by the voters `of_head`, and `majority_s` and `regained_s`, by those that count, up to date."""
        if any(self.is_live(peer, now_s) for peer in of_head):
            self.roster_s = now_s
        has_majority = not voters or is_majority(sum(self.is_here(peer, now_s) for peer in voters), len(voters))
        if has_majority:
            self.majority_s = now_s
        if has_majority and not self._has_majority:
            self.regained_s = now_s
        self._has_majority = has_majority


def key_of(status: PeerStatus) -> tuple[int, int, bytes]:
    """The rank of the head that a status reports; see `ChainState.key`."""
    return status.tokens, status.version, status.head.raw
