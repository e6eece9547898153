"""A process that is the peer's network shell on a real p2pd, moved from outside: hivemind cannot live beside libp2p.

Over standard input and output go canonical wire lists behind four bytes of length:

    in    ["connect", number, address, timeout_s] | ["request", number, peer, payload, timeout_s] | ["close", number]
          ["answer", call, payload or None]
    out   ["up", peer, [addresses]] | ["done", number, value] | ["failed", number, error, text]
          ["asked", call, peer, payload]

Ends with its standard input, and takes p2pd with it.
"""

import asyncio
import contextlib
import itertools
import sys
from typing import Any

from peer.network import Network, NetworkConfig
from swarm import wire
from swarm.digest import digest_of
from swarm.errors import BarnraiseError, Refusal
from swarm.identity import Keypair, PeerId

MAX_BYTES = 4 << 20


class Shell:
    """One network, its orders and the calls that wait for an answer."""

    def __init__(self, network: Network) -> None:
        self.transport = network.transport
        self.numbers = itertools.count()
        self.calls: dict[int, asyncio.Future[bytes | None]] = {}

    def tell(self, *message: Any) -> None:
        raw = wire.encode(message)
        sys.stdout.buffer.write(len(raw).to_bytes(4, "big") + raw)
        sys.stdout.buffer.flush()

    async def asked(self, asker: PeerId, payload: bytes) -> bytes:
        call = next(self.numbers)
        self.calls[call] = asyncio.get_running_loop().create_future()
        self.tell("asked", call, asker.raw, payload)
        try:
            answer = await self.calls[call]
        finally:
            del self.calls[call]
        if answer is None:
            raise Refusal("whoever moves this shell refused")
        return answer

    async def carry_out(self, kind: str, number: int, *words: Any) -> None:
        try:
            self.tell("done", number, await self.value_of(kind, *words))
        except BarnraiseError as error:
            self.tell("failed", number, type(error).__name__, str(error))

    async def value_of(self, kind: str, *words: Any) -> bytes | None:
        if kind == "connect":
            address, timeout_s = words
            return (await self.transport.connect(address, timeout_s=timeout_s)).raw
        if kind == "request":
            peer, payload, timeout_s = words
            return await self.transport.request(PeerId(peer), payload, timeout_s=timeout_s)
        await self.transport.close()
        return None


async def main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with Network(Keypair.generate(), digest_of("contract"), NetworkConfig()) as network:
        shell = Shell(network)
        shell.transport.serve(shell.asked)
        shell.tell("up", shell.transport.peer_id.raw, list(shell.transport.addresses()))
        orders: set[asyncio.Task[None]] = set()
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                length = int.from_bytes(await reader.readexactly(4), "big")
                kind, number, *words = wire.decode(await reader.readexactly(length), max_bytes=MAX_BYTES)
                if kind == "answer":
                    if number in shell.calls:  # else the asker has gone meanwhile
                        shell.calls[number].set_result(words[0])
                else:
                    task = asyncio.create_task(shell.carry_out(kind, number, *words))
                    orders.add(task)
                    task.add_done_callback(orders.discard)
        for task in list(orders):
            task.cancel()


asyncio.run(main())
