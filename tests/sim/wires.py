"""Messages as real bytes with a stand-in for signatures: a keyed digest that costs 1 us instead of 165.

Everything else is the product's: envelope layout, canonical form, limits, types, and that nobody speaks for another. A
message object is sealed once, and the same bytes are opened once, however many peers send or get them.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

from swarm import wire
from swarm.digest import Digest, digest_of
from swarm.envelope import Envelope, _to_sign
from swarm.errors import BadSignature
from swarm.identity import PeerId
from swarm.messages import message_of, seal_message
from swarm.round.commits import Seals, Verifier
from swarm.votes import Stand, issue_to_sign, to_sign

RUN = digest_of("run", b"simulated")
_REMEMBERED = 64

_sealed: dict[int, tuple[object, PeerId, bytes]] = {}  # the newest, by the message's id


class StubKey:
    """A key whose signature anyone could make."""

    def __init__(self, peer_id: PeerId) -> None:
        self.peer_id = peer_id

    def sign(self, to_sign: bytes) -> bytes:
        return digest_of("stub", self.peer_id.raw, to_sign).raw * 2


def seal(author: PeerId, message: object) -> bytes:
    known = _sealed.get(id(message))
    if known is not None and known[0] is message and known[1] is author:
        return known[2]
    raw = seal_message(StubKey(author), RUN, message)  # type: ignore[arg-type]
    _sealed[id(message)] = (message, author, raw)
    if len(_sealed) > _REMEMBERED:
        del _sealed[next(iter(_sealed))]
    return raw


@lru_cache(maxsize=1 << 13)  # a sealed contribution travels in many messages; opening it is a pure function
def unseal(raw: bytes) -> tuple[PeerId, Any]:
    """The author and the message; raises RemoteError as the real one does."""
    _, run, purpose, author, body, signature = wire.decode(raw)
    peer = PeerId(author)
    if signature != StubKey(peer).sign(_to_sign(run, purpose, author, body)):
        raise BadSignature(f"not signed by {peer}")
    return peer, message_of(Envelope(Digest(run), purpose, peer, wire.decode(body)))


def open_sealed(raw: bytes) -> Any:
    """The message in sealed bytes."""
    return unseal(raw)[1]


def vote(author: PeerId, stand: Stand) -> bytes:
    """A peer's vote."""
    return StubKey(author).sign(to_sign(RUN, stand))


@lru_cache(maxsize=1 << 12)
def is_vote(peer: PeerId, signature: bytes, stand: Stand) -> bool:
    """Whether that is its vote."""
    return signature == vote(peer, stand)


def issue(author: PeerId, view: int, head: Digest) -> bytes:
    """A leader's signature of a commit."""
    return StubKey(author).sign(issue_to_sign(RUN, view, head))


def is_issue(leader: PeerId, signature: bytes, view: int, head: Digest) -> bool:
    """Whether that leader issued it."""
    return signature == issue(leader, view, head)


VERIFIER = Verifier(open_sealed, is_vote, is_issue)


def seals_of(author: PeerId) -> Seals:
    """Signing and verifying, as the round machine takes it."""
    return Seals(VERIFIER, partial(seal, author), partial(vote, author), partial(issue, author))
