"""How fast a peer serves what no round waits for: at a share of its upload, in turn, so that a joiner slows nobody.

    ask -> waiting -> granted            when the bucket holds its bytes and it is first in order
                   -> turned away        too many are waiting, or it would take too long: ask again later

Pure: times come in. In any span of t seconds at most `rate * t + BURST_BYTES` are granted. Turns are those of start-time
fair queueing: each ask is tagged with the bytes that its remote has been granted before, counted from when it came; the
lowest tag is granted first and the highest is turned away first. So nobody starves, however greedy the others are.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from swarm.identity import PeerId
from swarm.wire import MAX_FRAME_BYTES

SERVE_SHARE: Final = 0.25  # of the upload; a round's own exchange takes at most a third longer
MAX_SERVE_SHARE: Final = 0.5  # of an upload that was told, where newcomers need more
NEWCOMER_FACTOR: Final = (
    3.0  # times what the rounds make, from all holders together: it catches up in half of what it missed
)
ROUNDS_COUNTED: Final = 8
BURST_BYTES: Final = MAX_FRAME_BYTES  # the least that lets a chunk through
MAX_IN_LINE: Final = 16  # asks in all: each holds one of the places for requests that are served at once
MAX_IN_LINE_PER_REMOTE: Final = 4
MAX_WAIT_S: Final = 8.0  # expected; beyond it an ask is turned away at once
MAX_HELD_S: Final = 12.0  # that an ask waits at most, as others may come before it: the asker gives up at 20
LEAST_UPLOAD: Final = 1.25e6  # bytes/s that are taken for granted when nothing is known: 10 Mbit/s
UPLOAD_WINDOW_S: Final = 10.0  # an upload is the best rate seen over so long
_SLACK_BYTES: Final = 1e-3  # of rounding
_MAX_TAGS: Final = 1024


class TokenBucket:
    """Bytes that may be sent now: `rate` more each second, `burst` at most."""

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at_s = burst, now_s

    @property
    def rate(self) -> float:
        """Bytes/s; may be infinite."""
        return self._rate

    def set_rate(self, rate: float, now_s: float) -> None:
        """From now on it fills at another rate."""
        self._fill(now_s)
        self._rate = rate

    def take(self, num_bytes: float, now_s: float) -> bool:
        """Takes so many bytes out, if they are there."""
        self._fill(now_s)
        if self._level < num_bytes - _SLACK_BYTES:
            return False
        self._level -= num_bytes
        return True

    def ready_s(self, num_bytes: float, now_s: float) -> float:
        """When so many bytes will be there; beyond the burst, when they could have been taken one after the other."""
        self._fill(now_s)
        return now_s if math.isinf(self._rate) else now_s + max(0.0, num_bytes - self._level) / self._rate

    def _fill(self, now_s: float) -> None:
        if math.isinf(self._rate):
            self._level = self._burst
        elif now_s > self._at_s:
            self._level = min(self._burst, self._level + (now_s - self._at_s) * self._rate)
        self._at_s = max(now_s, self._at_s)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One ask. The order of these is the order of their turns."""

    tag: float
    ticket: int
    remote: PeerId
    num_bytes: int
    until_s: float


@dataclass(frozen=True, slots=True)
class Settled:
    """Asks that wait no longer, by ticket."""

    granted: tuple[int, ...] = ()
    turned_away: tuple[int, ...] = ()


class ServeQueue:
    """Whose turn it is to be sent something that no round waits for."""

    def __init__(self, rate: float, now_s: float) -> None:
        self._bucket = TokenBucket(rate, BURST_BYTES, now_s)
        self._waiting: dict[int, _Waiting] = {}
        self._ends: dict[PeerId, float] = {}  # the tag of each remote's next ask, if it comes at once
        self._tag = 0.0  # of the ask granted last
        self._count = 0
        self._away: list[int] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def set_rate(self, rate: float, now_s: float) -> None:
        """From now on grants at most so many bytes/s."""
        self._bucket.set_rate(rate, now_s)

    def ask(self, remote: PeerId, num_bytes: int, now_s: float) -> int:
        """A ticket for sending `num_bytes` (a chunk at most) to `remote`; `settle` says what becomes of it."""
        self._count += 1
        tag = max(self._tag, self._ends.get(remote, 0.0))
        one = _Waiting(tag, self._count, remote, num_bytes, now_s + MAX_HELD_S)
        self._waiting[one.ticket] = one
        self._ends[remote] = tag + num_bytes
        counts = Counter(waiting.remote for waiting in self._waiting.values())
        before = sum(waiting.num_bytes for waiting in self._waiting.values() if _turn(waiting) <= _turn(one))
        if counts[remote] > MAX_IN_LINE_PER_REMOTE or self._bucket.ready_s(before, now_s) > now_s + MAX_WAIT_S:
            self._turn_away(one)
        elif len(self._waiting) > MAX_IN_LINE:
            self._turn_away(max(self._waiting.values(), key=_turn))
        return one.ticket

    def leave(self, ticket: int) -> None:
        """Whoever asked has gone."""
        self._waiting.pop(ticket, None)

    def settle(self, now_s: float) -> Settled:
        """Those whose turn has come, in order, and those who need not wait any more."""
        granted = []
        for one in sorted(self._waiting.values(), key=_turn):
            if not self._bucket.take(one.num_bytes, now_s):
                break
            del self._waiting[one.ticket]
            self._tag = max(self._tag, one.tag)
            granted.append(one.ticket)
        for one in [one for one in self._waiting.values() if one.until_s <= now_s]:
            self._turn_away(one)
        if len(self._ends) > _MAX_TAGS:
            self._ends = {remote: end for remote, end in self._ends.items() if end > self._tag}
        away, self._away = tuple(self._away), []
        return Settled(tuple(granted), away)

    def next_s(self, now_s: float) -> float | None:
        """When `settle` will have something to say without another ask; None: never."""
        if self._away:
            return now_s
        if not self._waiting:
            return None
        first = min(self._waiting.values(), key=_turn)
        return min(self._bucket.ready_s(first.num_bytes, now_s), min(one.until_s for one in self._waiting.values()))

    def _turn_away(self, one: _Waiting) -> None:
        del self._waiting[one.ticket]
        self._away.append(one.ticket)
        # What it was not granted does not count; with the newest of a remote gone, that is where its next one stands.
        self._ends[one.remote] = max(0.0, self._ends[one.remote] - one.num_bytes)


def _turn(one: _Waiting) -> tuple[float, int]:
    return one.tag, one.ticket


class RoundTraffic:
    """What the rounds make that a newcomer has to fetch: served more slowly than that, it would fall behind for ever."""

    def __init__(self) -> None:
        self._rounds: deque[tuple[float, float]] = deque(maxlen=ROUNDS_COUNTED + 1)  # when each ended, and its bytes

    def note(self, num_bytes: float, now_s: float) -> None:
        """A round has ended that listed so many bytes."""
        self._rounds.append((now_s, num_bytes))

    def bytes_per_s(self, now_s: float) -> float:
        """Over the last rounds; 0.0 before there were two."""
        if len(self._rounds) < 2:
            return 0.0
        first_s = self._rounds[0][0]
        num_bytes = sum(one for _, one in self._rounds) - self._rounds[0][1]
        return num_bytes / max(1.0, now_s - first_s)


class Upload:
    """What this peer can send: what it was told, or else the best that was seen over UPLOAD_WINDOW_S."""

    def __init__(self, told: float | None = None) -> None:
        """`told`: bytes/s; may be infinite."""
        self._told = told
        self._best = 0.0
        self._seen: deque[tuple[float, int]] = deque()  # when, and the bytes sent until then; a second apart

    def serving(self, needed: float) -> float:
        """Bytes/s at which to serve what no round waits for: SERVE_SHARE, or what is `needed` for a newcomer to come closer;
        of an upload that was told, MAX_SERVE_SHARE at most."""
        most = math.inf if self._told is None else MAX_SERVE_SHARE * self._told
        return max(SERVE_SHARE * self.bytes_per_s, min(needed, most))

    @property
    def bytes_per_s(self) -> float:
        return self._told if self._told is not None else max(LEAST_UPLOAD, self._best)

    def note(self, sent_bytes: int, now_s: float) -> None:
        """Takes note of how many bytes were sent in all until now."""
        if self._told is not None or (self._seen and now_s - self._seen[-1][0] < 1.0):
            return
        self._seen.append((now_s, sent_bytes))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= UPLOAD_WINDOW_S:
            self._seen.popleft()
        at_s, before = self._seen[0]
        if now_s - at_s >= UPLOAD_WINDOW_S:
            self._best = max(self._best, (sent_bytes - before) / (now_s - at_s))
