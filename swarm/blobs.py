"""Fetching one blob from several holders, any of whom may lie, stall or die: which piece to ask of whom, and nothing else.

A pure machine: answers and time go in, requests come out; the shell sends them, gives each a timeout, ends those that are
not wanted any more, and stores verified chunks at `index * CHUNK_BYTES`. First the chunk digests (one holder's word is
enough: they must hash to the root), then the chunks, several at once from each holder that has sent a right one before. A
holder that sends a wrong byte is asked nothing more. Wrong bytes never count.

    missing -> asked -> verified        asked -> missing when its holder fails, lies, is busy or is dropped

Bytes are saved, as a joiner's download should cost little more than the state: nothing is asked twice before nothing else
is left to ask, then only of a holder that will be much sooner; a slow holder gets no chunk that the others finish before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from swarm.digest import Digest, chunk_length, leaf_digest, num_chunks, root_of_leaves
from swarm.errors import Refusal
from swarm.holders import MAX_BUSY, MAX_IN_FLIGHT, Holders
from swarm.identity import PeerId
from swarm.messages import MAX_LEAVES, BlobInfo, Chunk, GetBlob, GetChunk

BUSY: Final = "busy"  # a refusal that begins so means: ask again later
MAX_FAILURES: Final = 3  # in a row; then a holder is given up
REST_S: Final = 0.5  # after the first failure, doubled with each further one
MOST_REST_S: Final = 2.0  # after a refusal
LATE_S: Final = 4.0  # of silence; then what a holder owes may be asked of one more: 1 MiB takes 0.8 s at 10 Mbit/s
LATE_INFO_S: Final = 1.0  # the same for chunk digests, which are short
_MUCH_SOONER: Final = 2.0  # a second holder is asked when the first will take so many times as long,
_SOONER_S: Final = 1.0  # and so much longer
_INFO: Final = -1  # the piece that holds the chunk digests


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that should be sent now; report its outcome by `take`, or `on_cancelled`."""

    to: PeerId
    message: GetBlob | GetChunk

    @property
    def piece(self) -> int:
        return self.message.index if isinstance(self.message, GetChunk) else _INFO


@dataclass(slots=True)
class _Holder:
    """One holder of this blob. Nothing is asked of it while it rests, and never again once it is dropped."""

    asked: set[int] = field(default_factory=set)  # pieces that count as asked of it; its requests under way, or fewer
    wave: set[int] = field(default_factory=set)  # those that were asked when it failed: their failures are the same one
    wrong: int = 0
    failures: int = 0  # in a row
    refusals: int = 0  # it does not hold the blob, or not yet: whoever fetches it for others says so until it has come
    rest_s: float = 0.0  # a rest that begins at the next look at the clock
    rests_until_s: float = 0.0
    dropped: str = ""  # why

    @property
    def is_hopeless(self) -> bool:
        """Whether it alone is not worth waiting for. Beside another one it is asked again: that costs next to nothing."""
        return bool(self.dropped) or self.refusals >= MAX_FAILURES


class BlobFetch:
    """The progress of one blob. Each piece is in exactly one place: missing, asked of one or more holders, or verified."""

    def __init__(
        self,
        root: Digest,
        holders: Iterable[PeerId],
        max_in_flight: int = MAX_IN_FLIGHT,
        num_bytes: int | None = None,
        known: Holders | None = None,
    ) -> None:
        """`max_in_flight` bounds the requests to each holder, or `known` does, which is shared by many blobs; a blob not
        of `num_bytes` is refused, when that is known."""
        self.root = root
        self.num_bytes = num_bytes  # None until it is known
        self._known = Holders(max_in_flight) if known is None else known
        self._leaves: tuple[Digest, ...] | None = None
        self._holders: dict[PeerId, _Holder] = {}
        self._missing: deque[int] = deque([_INFO])
        self._asked: dict[int, dict[PeerId, float]] = {}  # piece -> holder -> when
        self._verified: set[int] = set()
        self._given_up = ""  # the last reason for which a holder was dropped
        self._now_s = 0.0  # the last look at the clock
        for holder in holders:
            self.add_holder(holder)

    # ---------------------------------------------------------------- reading

    @property
    def done(self) -> bool:
        """Whether every chunk was verified."""
        return self._leaves is not None and len(self._verified) == len(self._leaves)

    @property
    def failed_reason(self) -> str | None:
        """Why the blob cannot be had from the holders known now; None while it can. `add_holder` revives it."""
        if self.done or any(not holder.is_hopeless for holder in self._holders.values()):
            return None
        return f"blob {self.root}: no holder left of {len(self._holders)}" + (self._given_up and f"; {self._given_up}")

    @property
    def num_chunks(self) -> int | None:
        """How many chunks there are; None until a holder's chunk digests were verified."""
        return None if self._leaves is None else len(self._leaves)

    @property
    def info(self) -> BlobInfo | None:
        """Length and chunk digests; None until they were verified."""
        return None if self._leaves is None or self.num_bytes is None else BlobInfo(self.num_bytes, self._leaves)

    @property
    def verified(self) -> frozenset[int]:
        """The chunks whose bytes were verified."""
        return frozenset(self._verified)

    @property
    def wrong(self) -> dict[PeerId, int]:
        """Wrong answers by holder; those who gave none are left out."""
        return {peer: holder.wrong for peer, holder in self._holders.items() if holder.wrong}

    @property
    def is_hungry(self) -> bool:
        """Whether there are pieces that nobody has been asked for."""
        return bool(self._missing)

    def is_wanted(self, ask: Ask) -> bool:
        """Whether the answer to a request under way can still be of use; the shell ends one that cannot."""
        return ask.to in self._asked.get(ask.piece, {})

    def add_holder(self, peer: PeerId) -> None:
        """From now on asks that peer too. One who failed gets another chance; one who lied does not."""
        known = self._holders.setdefault(peer, _Holder())
        if known.dropped and not known.wrong:
            self._holders[peer] = _Holder()
        known.refusals = 0

    # ---------------------------------------------------------------- asking

    def next_requests(self, now_s: float) -> tuple[Ask, ...]:
        """The requests to send now; they count as asked from now on."""
        self._now_s = now_s
        for holder in self._holders.values():
            if holder.rest_s:
                holder.rests_until_s, holder.rest_s = now_s + holder.rest_s, 0.0
        asks: list[Ask] = []
        while self._missing:
            peer = self._best(self._missing[0], now_s)
            if peer is None:
                return tuple(asks)
            asks.append(self._ask(self._missing.popleft(), peer, now_s))
        for piece in sorted(self._asked):
            other = self._best(piece, now_s)
            if other is not None and all(self._is_late(piece, peer, other, now_s) for peer in self._asked[piece]):
                asks.append(self._ask(piece, other, now_s))
        return tuple(asks)

    def next_look_s(self, now_s: float) -> float | None:
        """When `next_requests` may have more to say without any answer coming in; None: never."""
        if self.done or self.failed_reason:
            return None
        times = [holder.rests_until_s for holder in self._holders.values()]
        times += [now_s + holder.rest_s for holder in self._holders.values() if holder.rest_s]
        times += [self._known[peer].rests_until_s for peer in self._holders]
        times += [
            max(when.values()) + (LATE_INFO_S if piece == _INFO else LATE_S) for piece, when in self._asked.items()
        ]
        return min((time_s for time_s in times if time_s > now_s), default=None)

    def _best(self, piece: int, now_s: float) -> PeerId | None:
        """Whom to ask for a piece now: who will have sent it first. None: nobody has room, or nobody is worth waiting for."""
        usable = [peer for peer, holder in self._holders.items() if not holder.dropped]
        honest = [peer for peer in usable if not self._known[peer].is_doubtful(now_s)]
        free = [
            peer
            for peer in honest or usable
            if now_s >= self._holders[peer].rests_until_s
            and piece not in self._holders[peer].asked
            and (piece == _INFO or self._known.has_room(peer, now_s))
        ]
        if piece == _INFO:
            free = [peer for peer in free if now_s >= self._known[peer].rests_until_s]
        if not free:
            return None
        best = min(free, key=lambda peer: (self._next_due_s(peer, now_s), self._known[peer].served))
        return None if piece != _INFO and self._is_too_slow(best, usable, now_s) else best

    def _next_due_s(self, peer: PeerId, now_s: float) -> float:
        standing = self._known[peer]
        return standing.due_s(standing.in_flight + 1, now_s)

    def _is_too_slow(self, peer: PeerId, usable: list[PeerId], now_s: float) -> bool:
        """Whether the others will have sent all that is left before `peer` has sent one chunk."""
        if not self._known[peer].served:
            return False  # nobody knows yet
        others = [self._known[one] for one in usable if one != peer and self._known[one].is_proved]
        rate = sum(1.0 / max(other.due_s(1, now_s), 1e-6) for other in others if now_s >= other.rests_until_s)
        left = len(self._missing) + sum(other.in_flight for other in others)
        return rate > 0 and self._next_due_s(peer, now_s) > left / rate + _SOONER_S

    def _is_late(self, piece: int, peer: PeerId, other: PeerId, now_s: float) -> bool:
        """Whether a piece that is asked of `peer` is rather had from `other`."""
        at_s = self._asked[piece][peer]
        if piece == _INFO:
            return now_s - at_s >= LATE_INFO_S
        one = self._known[peer]
        if one.silence_s(now_s) >= max(LATE_S, 3 * one.pace_s):
            return True
        before = sum(1 for when in self._asked.values() if when.get(peer, now_s) < at_s)
        return one.due_s(before + 1, now_s) > _MUCH_SOONER * self._next_due_s(other, now_s) + _SOONER_S

    def _ask(self, piece: int, peer: PeerId, now_s: float) -> Ask:
        self._holders[peer].asked.add(piece)
        self._asked.setdefault(piece, {})[peer] = now_s
        if piece == _INFO:
            return Ask(peer, GetBlob(self.root))
        self._known[peer].asked(now_s)
        return Ask(peer, GetChunk(self.root, piece))

    # ---------------------------------------------------------------- outcomes

    def take(self, ask: Ask, answer: object, now_s: float) -> bytes | None:
        """Takes the outcome of a request, an answer or an error; returns a chunk's bytes when they are right and new, to be
        stored at `index * CHUNK_BYTES`."""
        self._now_s = now_s
        match answer:
            case BlobInfo() if isinstance(ask.message, GetBlob):
                self.on_info(ask.to, answer)
            case Chunk(data) if isinstance(ask.message, GetChunk):
                return data if self.on_chunk(ask.to, ask.message.index, data) else None
            case Refusal():
                self.on_failure(ask.to, str(answer), refused=True, ask=ask)
            case Exception():
                self.on_failure(ask.to, str(answer), ask=ask)
            case _:
                self.on_failure(ask.to, f"answered with a {type(answer).__name__}", refused=True, ask=ask)
        return None

    def on_info(self, peer: PeerId, info: BlobInfo) -> bool:
        """Takes chunk digests; returns whether they are this blob's. Wrong ones cost the holder its place."""
        if not self._is_info_right(info):
            self._drop(peer, f"{peer} sent chunk digests that are not this blob's", wrong=True)
            return False
        self._answered(peer, _INFO)
        if self._leaves is None:
            self._leaves, self.num_bytes = info.leaves, info.num_bytes
            self._missing = deque(range(len(info.leaves)))
            self._release(_INFO)
        return True

    def on_chunk(self, peer: PeerId, index: int, data: bytes) -> bool:
        """Takes a chunk; returns True when its bytes are right and new, to be stored at `index * CHUNK_BYTES`."""
        self._known[peer].landed(self._now_s)
        if not self._is_chunk_right(index, data):
            self._drop(peer, f"{peer} sent a wrong chunk {index}", wrong=True)
            return False
        self._known[peer].sent_right()
        self._answered(peer, index)
        return self._verify(index)

    def on_local(self, index: int, data: bytes | memoryview) -> bool:
        """Takes a chunk from our own disk; returns whether it is right. A wrong one is simply still missing."""
        return self._is_chunk_right(index, data) and (self._verify(index) or index in self._verified)

    def on_cancelled(self, ask: Ask) -> None:
        """Takes note that the shell has ended a request that was not wanted any more."""
        if ask.piece != _INFO:
            self._known[ask.to].given_up(self._now_s)
        self._take_back(ask.to, {ask.piece})

    def on_failure(self, peer: PeerId, reason: str, *, refused: bool = False, ask: Ask | None = None) -> None:
        """Takes note that the request `ask` to `peer` failed: its piece is missing again, or all of that holder's pieces
        when it is not said which.

        `refused`: it said that it does not hold the blob, or that it is busy: it is left alone for a while.
        """
        if ask is None or ask.piece != _INFO:
            self._known[peer].landed(self._now_s)
        holder = self._holders.get(peer)
        if holder is None or holder.dropped or not holder.asked:
            return
        pieces = set(holder.asked) if ask is None else {ask.piece}
        is_busy = refused and reason.startswith(BUSY)
        # Several requests fail together when a holder dies: that is one failure.
        is_new = bool(pieces & holder.asked) and not pieces & holder.wave
        together = set(holder.asked)
        self._take_back(peer, pieces)
        if is_busy:
            self._known[peer].is_busy(self._now_s)
            if self._known[peer].num_busy > MAX_BUSY:
                self._drop(peer, f"{peer}: {reason}")
        elif refused:
            holder.refusals += 1
            holder.rest_s = min(REST_S * 2 ** (holder.refusals - 1), MOST_REST_S)
            self._given_up = f"{peer}: {reason}"
        elif is_new:
            holder.failures += 1
            holder.wave = together - pieces
            if holder.failures >= MAX_FAILURES:
                self._drop(peer, f"{peer}: {reason}")
            else:
                holder.rest_s = REST_S * 2 ** (holder.failures - 1)

    def _is_info_right(self, info: BlobInfo) -> bool:
        if self.num_bytes is not None and info.num_bytes != self.num_bytes:
            return False
        if len(info.leaves) > MAX_LEAVES or len(info.leaves) != num_chunks(info.num_bytes):
            return False
        return root_of_leaves(info.num_bytes, info.leaves) == self.root

    def _is_chunk_right(self, index: int, data: bytes | memoryview) -> bool:
        if self._leaves is None or self.num_bytes is None or not 0 <= index < len(self._leaves):
            return False
        return len(data) == chunk_length(self.num_bytes, index) and leaf_digest(data) == self._leaves[index]

    def _answered(self, peer: PeerId, piece: int) -> None:
        holder = self._holders.get(peer)
        if holder is not None:
            holder.asked.discard(piece)
            self._asked.get(piece, {}).pop(peer, None)
            holder.failures = holder.refusals = 0

    def _verify(self, index: int) -> bool:
        if index in self._verified:
            return False
        if index in self._missing:
            self._missing.remove(index)
        self._release(index)
        self._verified.add(index)
        return True

    def _release(self, piece: int) -> None:
        """Nobody counts as asked for the piece any more."""
        for peer in self._asked.pop(piece, {}):
            self._holders[peer].asked.discard(piece)

    def _take_back(self, peer: PeerId, pieces: set[int]) -> None:
        """Those of the pieces that were asked of that holder alone are missing again, and come first."""
        holder = self._holders.get(peer)
        if holder is None:
            return
        holder.wave -= pieces
        for piece in sorted(pieces & holder.asked, reverse=True):
            holder.asked.discard(piece)
            when = self._asked[piece]
            del when[peer]
            if not when:
                del self._asked[piece]
                self._missing.appendleft(piece)

    def _drop(self, peer: PeerId, reason: str, *, wrong: bool = False) -> None:
        holder = self._holders.get(peer)
        if holder is None:
            return
        if wrong:
            holder.wrong += 1
            self._known[peer].sent_wrong(self._now_s)
        self._take_back(peer, set(holder.asked))
        holder.dropped = self._given_up = reason
