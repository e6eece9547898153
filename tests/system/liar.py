"""A peer that serves wrong chunks, for tests: honest in everything else, its digests included."""

from __future__ import annotations

import os
from typing import Final

from peer.serve import Server
from swarm.digest import Digest
from swarm.identity import PeerId
from swarm.messages import Chunk, Refused

LIES_ENV: Final = "TEST_PEER_LIES"


def lie_if_told() -> None:
    """From now on this process serves wrong bytes, if LIES_ENV is set."""
    if not os.environ.get(LIES_ENV):
        return
    honest = Server._chunk

    async def wrong(self: Server, remote: PeerId, root: Digest, index: int) -> Chunk | Refused:
        answer = await honest(self, remote, root, index)
        return Chunk(bytes(len(answer.data))) if isinstance(answer, Chunk) else answer

    Server._chunk = wrong  # type: ignore[method-assign]
