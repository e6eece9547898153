"""Fetching one blob from several holders, any of whom may lie, stall or die: which piece to ask of whom, and nothing else.

A pure machine: answers and time go in, requests come out; the shell sends them, gives each a timeout, and stores verified
chunks at `index * CHUNK_BYTES`. First the chunk digests (one holder's word is enough: they must hash to the root), then the
chunks, several at once from each holder. A holder that sends a wrong byte is asked nothing more. Wrong bytes never count.

    missing -> asked -> verified        asked -> missing when its holder fails, lies or is dropped
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from swarm.digest import Digest, chunk_length, leaf_digest, num_chunks, root_of_leaves
from swarm.identity import PeerId
from swarm.messages import MAX_LEAVES, BlobInfo, GetBlob, GetChunk

MAX_FAILURES: Final = 3  # in a row; then a holder is given up
REST_S: Final = 0.5  # after the first failure, doubled with each further one
LATE_S: Final = 4.0  # a piece asked for so long ago may be asked of one more holder: 1 MiB takes 0.8 s at 10 Mbit/s
_INFO: Final = -1  # the piece that holds the chunk digests


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that should be sent now; report its outcome by `on_info`, `on_chunk` or `on_failure`."""

    to: PeerId
    message: GetBlob | GetChunk


@dataclass(slots=True)
class _Holder:
    """What we think of one holder. Nothing is asked of it while it rests, and never again once it is dropped."""

    asked: set[int] = field(default_factory=set)  # pieces that count as asked of it; its requests under way, or fewer
    in_flight: int = 0  # requests without an outcome, those whose pieces were taken back too; at most max_in_flight
    served: int = 0
    wrong: int = 0
    failures: int = 0  # in a row
    rest_s: float = 0.0  # a rest that begins at the next look at the clock
    rests_until_s: float = 0.0
    dropped: str = ""  # why


class BlobFetch:
    """The progress of one blob. Each piece is in exactly one place: missing, asked of one or two holders, or verified."""

    def __init__(
        self, root: Digest, holders: Iterable[PeerId], max_in_flight: int = 4, num_bytes: int | None = None
    ) -> None:
        """`max_in_flight` bounds the requests to each holder; a blob not of `num_bytes` is refused, when that is known."""
        self.root = root
        self.num_bytes = num_bytes  # None until it is known
        self._max_in_flight = max_in_flight
        self._leaves: tuple[Digest, ...] | None = None
        self._holders: dict[PeerId, _Holder] = {}
        self._missing: deque[int] = deque([_INFO])
        self._asked: dict[int, dict[PeerId, float]] = {}  # piece -> holder -> when
        self._verified: set[int] = set()
        self._given_up = ""  # the last reason for which a holder was dropped
        for holder in holders:
            self.add_holder(holder)

    @property
    def done(self) -> bool:
        """Whether every chunk was verified."""
        return self._leaves is not None and len(self._verified) == len(self._leaves)

    @property
    def failed_reason(self) -> str | None:
        """Why the blob cannot be had from the holders known now; None while it can. `add_holder` revives it."""
        if self.done or any(not holder.dropped for holder in self._holders.values()):
            return None
        return f"blob {self.root}: no holder left of {len(self._holders)}" + (self._given_up and f"; {self._given_up}")

    @property
    def num_chunks(self) -> int | None:
        """How many chunks there are; None until a holder's chunk digests were verified."""
        return None if self._leaves is None else len(self._leaves)

    @property
    def verified(self) -> frozenset[int]:
        """The chunks whose bytes were verified."""
        return frozenset(self._verified)

    @property
    def wrong(self) -> dict[PeerId, int]:
        """Wrong answers by holder; those who gave none are left out."""
        return {peer: holder.wrong for peer, holder in self._holders.items() if holder.wrong}

    def add_holder(self, peer: PeerId) -> None:
        """From now on asks that peer too. One who failed gets another chance; one who lied does not."""
        known = self._holders.setdefault(peer, _Holder())
        if known.dropped and not known.wrong:
            self._holders[peer] = _Holder(served=known.served, in_flight=known.in_flight)

    def next_requests(self, now_s: float) -> tuple[Ask, ...]:
        """The requests to send now; they count as asked from now on."""
        for holder in self._holders.values():
            if holder.rest_s:
                holder.rests_until_s, holder.rest_s = now_s + holder.rest_s, 0.0
        free = {
            peer: holder
            for peer, holder in self._holders.items()
            if not holder.dropped and now_s >= holder.rests_until_s and holder.in_flight < self._max_in_flight
        }
        asks: list[Ask] = []
        while free and self._missing:
            asks.append(self._ask(self._missing.popleft(), free, now_s))
        late = sorted(piece for piece, when in self._asked.items() if len(when) == 1 and self._is_late(when, now_s))
        for piece in late:
            others = {peer: holder for peer, holder in free.items() if piece not in holder.asked}
            if others:
                asks.append(self._ask(piece, others, now_s))
                free = {peer: holder for peer, holder in free.items() if holder.in_flight < self._max_in_flight}
        return tuple(asks)

    def next_look_s(self, now_s: float) -> float | None:
        """When `next_requests` may have more to say without any answer coming in; None: never."""
        if self.done or self.failed_reason:
            return None
        times = [holder.rests_until_s for holder in self._holders.values() if holder.rests_until_s > now_s]
        times += [now_s + holder.rest_s for holder in self._holders.values() if holder.rest_s]
        times += [at_s + LATE_S for when in self._asked.values() if len(when) == 1 for at_s in when.values()]
        return min((time_s for time_s in times if time_s > now_s), default=None)

    def on_info(self, peer: PeerId, info: BlobInfo) -> bool:
        """Takes chunk digests; returns whether they are this blob's. Wrong ones cost the holder its place."""
        self._landed(peer)
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
        self._landed(peer)
        if not self._is_chunk_right(index, data):
            self._drop(peer, f"{peer} sent a wrong chunk {index}", wrong=True)
            return False
        self._answered(peer, index)
        return self._verify(index)

    def on_local(self, index: int, data: bytes | memoryview) -> bool:
        """Takes a chunk from our own disk; returns whether it is right. A wrong one is simply still missing."""
        return self._is_chunk_right(index, data) and (self._verify(index) or index in self._verified)

    def on_failure(self, peer: PeerId, reason: str, *, refused: bool = False) -> None:
        """Takes note that a request to `peer` failed; all that was asked of it is missing again.

        `refused`: it said that it does not hold the blob, so it is dropped at once.
        """
        self._landed(peer)
        holder = self._holders.get(peer)
        if holder is None or holder.dropped or not holder.asked:
            return  # several requests fail together when a holder dies: that is one failure
        holder.failures += 1
        self._take_back(peer, holder)
        if refused or holder.failures >= MAX_FAILURES:
            self._drop(peer, f"{peer}: {reason}")
        else:
            holder.rest_s = REST_S * 2 ** (holder.failures - 1)

    def _ask(self, piece: int, free: dict[PeerId, _Holder], now_s: float) -> Ask:
        """Asks the least busy of the free holders; one that is busy enough now is taken out of `free`."""
        peer = min(free, key=lambda one: (free[one].in_flight, free[one].served))
        free[peer].asked.add(piece)
        free[peer].in_flight += 1
        self._asked.setdefault(piece, {})[peer] = now_s
        if free[peer].in_flight >= self._max_in_flight:
            del free[peer]
        return Ask(peer, GetBlob(self.root) if piece == _INFO else GetChunk(self.root, piece))

    @staticmethod
    def _is_late(when: dict[PeerId, float], now_s: float) -> bool:
        return all(now_s - at_s >= LATE_S for at_s in when.values())

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

    def _landed(self, peer: PeerId) -> None:
        """One request to `peer` has its outcome."""
        holder = self._holders.get(peer)
        if holder is not None and holder.in_flight:
            holder.in_flight -= 1

    def _answered(self, peer: PeerId, piece: int) -> None:
        holder = self._holders.get(peer)
        if holder is not None and piece in holder.asked:
            holder.served += 1
            holder.failures = 0

    def _verify(self, index: int) -> bool:
        if index in self._verified:
            return False
        if index not in self._asked:
            self._missing.remove(index)
        self._release(index)
        self._verified.add(index)
        return True

    def _release(self, piece: int) -> None:
        """Nobody counts as asked for the piece any more."""
        for peer in self._asked.pop(piece, {}):
            self._holders[peer].asked.discard(piece)

    def _take_back(self, peer: PeerId, holder: _Holder) -> None:
        """What was asked of that holder alone is missing again, and comes first."""
        for piece in sorted(holder.asked, reverse=True):
            when = self._asked[piece]
            del when[peer]
            if not when:
                del self._asked[piece]
                self._missing.appendleft(piece)
        holder.asked.clear()

    def _drop(self, peer: PeerId, reason: str, *, wrong: bool = False) -> None:
        holder = self._holders.get(peer)
        if holder is None:
            return
        holder.wrong += wrong
        self._take_back(peer, holder)
        holder.dropped = self._given_up = reason
