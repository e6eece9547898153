"""Who is here, seen from one peer: statuses heard, and silences."""

from __future__ import annotations

import math

from swarm.chain import ChainState, is_majority
from swarm.identity import PeerId
from swarm.messages import Activity, PeerStatus
from swarm.round.roll import MAX_HEARD, Heard, Roll

_NOT_AWAITED = (Activity.SYNCING, Activity.LEAVING)


class Presence:
    """Statuses and silences. Silence counts from the last word or from when we began to listen, whichever is later: a member
    not heard of since is here until its silence is long enough to say otherwise. Members speak to their leader alone, so
    who takes the lead knows nothing of them yet and begins to listen then."""

    def __init__(self, me: PeerId, silence_s: float) -> None:
        self.me = me
        self.roll = Roll()
        self.head_since_s = 0.0
        self.majority_s = 0.0  # when a majority of the members was last here
        self.regained_s = 0.0  # since when it has been, without a break
        self._has_majority = True
        self.roster_s = 0.0  # when anyone of the roster was, ourselves among them if we are in it
        self._listens_since_s = 0.0
        self._given_up: set[PeerId] = (
            set()
        )  # leaders whose silence made us turn to another: only a word brings them back
        self._silence_s = silence_s
        self._sorted_at: ChainState | None = None  # what the three below refer to
        self._at_head: dict[PeerId, Heard] = {}
        self._ahead: dict[PeerId, Heard] = {}
        self._lowest: PeerId | None = None  # of those at our head, or None where that is not known

    def start(self, now_s: float) -> None:
        """A new head, or the first fact."""
        self.head_since_s = now_s
        self._given_up = set()
        self.listen(now_s)

    def listen(self, now_s: float) -> None:
        """Silences count from here."""
        self._listens_since_s = self.majority_s = self.roster_s = now_s

    def give_up(self, leader: PeerId) -> None:
        """Its silence was long enough at this head: nobody waits for it once more."""
        self._given_up.add(leader)

    def hear(self, status: PeerStatus, sealed: bytes, now_s: float) -> bool:
        """Takes a status; returns whether the peer is new here or back."""
        is_new = self.roll.hear(status, sealed, now_s)
        self._note(status.peer)
        if len(self._at_head) + len(self._ahead) > 2 * MAX_HEARD:
            self._sorted_at = None  # strangers that the roll has forgotten
        return is_new

    def leave(self, peer: PeerId) -> bool:
        """Notes a goodbye; returns whether the peer was here."""
        was_here = self.roll.leave(peer)
        self._note(peer)
        return was_here

    def fresh(self, now_s: float) -> tuple[Heard, ...]:
        """Those heard lately, by peer id."""
        return self.roll.fresh(now_s, self._silence_s)

    def at_head(self, chain: ChainState, now_s: float) -> tuple[PeerStatus, ...]:
        """The statuses of those heard lately who stand at our head, by peer id."""
        self._sort(chain)
        here = [heard.status for heard in self._at_head.values() if now_s - heard.at_s <= self._silence_s]
        return tuple(sorted(here, key=lambda status: status.peer.raw))

    def lowest_at_head(self, chain: ChainState, now_s: float) -> PeerId:
        """The lowest id among those heard lately who stand at our head, and ours."""
        self._sort(chain)
        lowest = None if self._lowest is None else self._at_head.get(self._lowest)
        if lowest is None or now_s - lowest.at_s > self._silence_s:
            here = self.at_head(chain, now_s)
            self._lowest = here[0].peer if here else None
        return self.me if self._lowest is None else min(self.me, self._lowest)

    def ahead_of(self, chain: ChainState, now_s: float) -> tuple[PeerStatus, ...]:
        """The statuses of those heard lately whose head ranks above ours, best first."""
        self._sort(chain)
        if not self._ahead:
            return ()
        for peer in [peer for peer, heard in self._ahead.items() if now_s - heard.at_s > self._silence_s]:
            del self._ahead[peer]
        ahead = sorted(self._ahead.values(), key=lambda heard: heard.status.peer.raw)
        return tuple(sorted((heard.status for heard in ahead), key=key_of, reverse=True))

    def best_ahead_of(self, chain: ChainState, now_s: float) -> Heard | None:
        """Whoever stands at the best head above ours, with its signed words."""
        ahead = self.ahead_of(chain, now_s)
        return self.roll.get(ahead[0].peer) if ahead else None

    def _sort(self, chain: ChainState) -> None:
        """Who is at our head, and who ranks above it: kept from word to word, and found anew at each head."""
        if self._sorted_at is chain:
            return
        if self._sorted_at is None or self._sorted_at.head != chain.head:
            self._sorted_at = chain
            self._at_head, self._ahead, self._lowest = {}, {}, None
            for heard in self.roll.lately(math.inf, math.inf):
                self._note(heard.status.peer)

    def _note(self, peer: PeerId) -> None:
        heard, chain = self.roll.get(peer), self._sorted_at
        self._at_head.pop(peer, None)
        self._ahead.pop(peer, None)
        if heard is None or heard.left or chain is None:
            return
        if heard.status.head == chain.head:
            self._at_head[peer] = heard
            if self._lowest is not None and peer < self._lowest:
                self._lowest = peer
        elif key_of(heard.status) > chain.key and heard.status.head not in chain.barred:
            self._ahead[peer] = heard

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

    def is_awaited(self, peer: PeerId, now_s: float) -> bool:
        """Whether a round should wait for a member: live, and not on its way out or behind."""
        heard = self.roll.get(peer)
        busy = heard is None or heard.status.activity not in _NOT_AWAITED
        return peer == self.me or (busy and self.is_live(peer, now_s))

    def note_members(self, roster: tuple[PeerId, ...], members: tuple[PeerId, ...], now_s: float) -> None:
        """Keeps `roster_s`, `majority_s` and `regained_s` up to date."""
        if any(self.is_live(peer, now_s) for peer in roster):
            self.roster_s = now_s
        has_majority = not members or is_majority(sum(self.is_live(peer, now_s) for peer in members), len(members))
        if has_majority:
            self.majority_s = now_s
        if has_majority and not self._has_majority:
            self.regained_s = now_s
        self._has_majority = has_majority


def key_of(status: PeerStatus) -> tuple[int, int, bytes]:
    """The rank of the head that a status reports; see `ChainState.key`."""
    return status.tokens, status.version, status.head.raw
