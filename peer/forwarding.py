"""Messages of peers that cannot reach each other: passed on, and taken in. The rules are in `swarm.net.forward`."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from peer.sealing import open_aside
from swarm.digest import Digest
from swarm.errors import BadSignature, MalformedBytes, NetworkError, Refusal, RemoteError
from swarm.identity import PeerId
from swarm.messages import MAX_FORWARDED_BYTES, Forward, GetBlob, GetChunk
from swarm.net.forward import ForwardLimits, ForwardNumbers
from swarm.net.transport import Transport
from swarm.schema import line

PASS_ON_TIMEOUT_S: Final = 2.0  # a receiver that takes longer is not there: its author asks another third, or waits


class Forwarding:
    """The forwarder's and the receiver's side."""

    def __init__(self, transport: Transport, run: Digest) -> None:
        self.num_passed_on = 0
        self._transport = transport
        self._run = run
        self._limits = ForwardLimits()
        self._numbers = ForwardNumbers()

    async def pass_on(self, remote: PeerId, author: PeerId, forward: Forward, payload: bytes) -> bytes:
        """The answer of the receiver. Raises Refusal when it is not reached now, BadSignature for what came by a third."""
        if author != remote:
            raise BadSignature(f"{remote} passed on, once more, what {author} had forwarded")
        now_s = asyncio.get_running_loop().time()
        if refusal := self._limits.refusal(author, len(payload), now_s):
            raise Refusal(refusal)
        if forward.to not in await self._transport.connected():
            raise Refusal(f"{forward.to} is not connected here")
        try:
            answer = await self._transport.request(forward.to, payload, timeout_s=PASS_ON_TIMEOUT_S)
        except (NetworkError, RemoteError) as error:
            raise Refusal(line(f"{forward.to} did not take it: {error}")) from None
        if len(answer) > MAX_FORWARDED_BYTES:
            raise Refusal(f"an answer of {len(answer)} bytes, at most {MAX_FORWARDED_BYTES} are passed on")
        self._limits.spend(author, len(answer), now_s)
        self.num_passed_on += 1
        return answer

    async def unwrap(self, author: PeerId, forward: Forward) -> tuple[PeerId, Any]:
        """Who signed the message for us in what a third passed on, and that message. Raises RemoteError if it came before."""
        if not self._numbers.is_new(author, forward.number):
            raise MalformedBytes(f"forward {forward.number} of {author} came before, or is too old")
        signed_by, message = await open_aside(forward.sealed, self._run)
        if isinstance(message, Forward | GetBlob | GetChunk):
            raise MalformedBytes(f"a {type(message).__name__} is not forwarded")
        return signed_by, message
