"""What was refused, from whom, why and how often: told the first time at once, and then once a minute with its count.

Whoever sends wrong bytes as fast as it can costs a line a minute on the screen and in the event log, not thousands.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from peer.clock import awake_or_asleep_s
from swarm.events import Event, PeerMisbehaved
from swarm.identity import PeerId

TELL_EVERY_S: Final = 60.0  # of one sender
_MAX_REMEMBERED: Final = 1024  # senders; the one that was told of longest ago makes room


@dataclass(slots=True)
class _Sender:
    """The last refusal, with the number of those that were not told of yet."""

    last: PeerMisbehaved
    told_s: float


class Refusals:
    """A sieve for events: `happened` passes all others on as they come."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._senders: OrderedDict[PeerId, _Sender] = OrderedDict()  # told of longest ago first

    def happened(self, event: Event) -> None:
        """Tells of an event, or counts it."""
        if not isinstance(event, PeerMisbehaved):
            self._tell(event)
            return
        known = self._senders.get(event.peer)
        if known is None:
            while len(self._senders) >= _MAX_REMEMBERED:
                self._tell_of(next(iter(self._senders)))
                self._senders.popitem(last=False)
            self._senders[event.peer] = _Sender(replace(event, times=0), awake_or_asleep_s())
            self._tell(event)
        else:
            known.last = replace(event, times=known.last.times + event.times)

    def look(self) -> None:
        """Tells of what was counted a while ago. To be called now and then."""
        now_s = awake_or_asleep_s()
        while self._senders:
            peer, sender = next(iter(self._senders.items()))
            if now_s - sender.told_s < TELL_EVERY_S:
                return
            if sender.last.times:
                self._tell_of(peer)
            else:
                del self._senders[peer]  # nothing for so long: the next one is told at once

    def _tell_of(self, peer: PeerId) -> None:
        sender = self._senders[peer]
        if sender.last.times:
            self._tell(sender.last)
        sender.last, sender.told_s = replace(sender.last, times=0), awake_or_asleep_s()
        self._senders.move_to_end(peer)
