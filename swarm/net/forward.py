"""One hop for two peers that cannot reach each other, both behind NAT say: a third, connected to both, passes messages on.

    author --Forward(to, number, sealed)--> forwarder --the same bytes--> `to`, and its answer back the same way

A forwarder takes a message from its author's own connection alone, for one named peer that is connected to it now, within a
rate. It keeps nothing, tells nobody else, and passes nothing on that was passed on to it. Blobs do not go this way. The
receiver takes each number of an author once, so that nobody can say again what an author said some time ago.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from swarm.identity import PeerId
from swarm.messages import MAX_FORWARDED_BYTES

MAX_FORWARDS_PER_S: Final = 20  # of one author: a leader's words to so many members
MAX_FORWARDERS: Final = 4  # peers that are asked, one after the other, to pass one message on
MAX_FORWARDED_BYTES_PER_S: Final = 128 << 10
NUMBER_WINDOW: Final = 256  # numbers below an author's highest that may still come: messages overtake each other
_MAX_AUTHORS: Final = 1024  # remembered


@dataclass(slots=True)
class _Allowance:
    """What an author may still send: messages and bytes, both grow back within a second."""

    messages: float
    num_bytes: float
    at_s: float


class ForwardLimits:
    """The forwarder's side: whether it passes a message on."""

    def __init__(self) -> None:
        self._allowances: OrderedDict[PeerId, _Allowance] = OrderedDict()

    def refusal(self, author: PeerId, num_bytes: int, now_s: float) -> str:
        """Why a message of this author is not passed on now; "" when it is, and counts."""
        if num_bytes > MAX_FORWARDED_BYTES:
            return f"{num_bytes} bytes, at most {MAX_FORWARDED_BYTES} are passed on"
        left = self._left(author, now_s)
        if left.messages < 1 or left.num_bytes < num_bytes:
            return f"busy: at most {MAX_FORWARDS_PER_S} messages and {MAX_FORWARDED_BYTES_PER_S} bytes a second are passed on"
        left.messages -= 1
        left.num_bytes -= num_bytes
        return ""

    def spend(self, author: PeerId, num_bytes: int, now_s: float) -> None:
        """An answer of that length goes back to the author: it counts as well."""
        self._left(author, now_s).num_bytes -= num_bytes

    def _left(self, author: PeerId, now_s: float) -> _Allowance:
        known = self._allowances.pop(author, None)
        if known is None:
            known = _Allowance(MAX_FORWARDS_PER_S, MAX_FORWARDED_BYTES_PER_S, now_s)
        since_s = max(0.0, now_s - known.at_s)
        known.messages = min(MAX_FORWARDS_PER_S, known.messages + since_s * MAX_FORWARDS_PER_S)
        known.num_bytes = min(MAX_FORWARDED_BYTES_PER_S, known.num_bytes + since_s * MAX_FORWARDED_BYTES_PER_S)
        known.at_s = now_s
        self._allowances[author] = known
        while len(self._allowances) > _MAX_AUTHORS:
            self._allowances.popitem(last=False)
        return known


@dataclass(slots=True)
class _Numbers:
    """Those of one author: the highest, and which of the NUMBER_WINDOW below it have come."""

    highest: int = 0
    seen: set[int] = field(default_factory=set)


class ForwardNumbers:
    """The receiver's side: each number of an author counts once."""

    def __init__(self) -> None:
        self._of: OrderedDict[PeerId, _Numbers] = OrderedDict()

    def is_new(self, author: PeerId, number: int) -> bool:
        """Whether this number has not come yet, and is not too old; it has come from now on."""
        known = self._of.setdefault(author, _Numbers())
        self._of.move_to_end(author)
        while len(self._of) > _MAX_AUTHORS:
            self._of.popitem(last=False)
        oldest = max(known.highest, number) - NUMBER_WINDOW
        if number in known.seen or number <= oldest:
            return False
        known.highest = max(known.highest, number)
        known.seen = {one for one in known.seen if one > oldest} | {number}
        return True
