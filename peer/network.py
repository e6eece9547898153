"""A peer's network: the daemon, the transport over it and the noticeboard, kept alive as one.

    async with Network(keypair, run, config) as network:
        network.transport, network.board, network.addresses ...

Tasks, all children of one TaskGroup: the supervisor (starts the daemon again when it dies, on the same port and with the
same identity; requests in between raise Unreachable), the tender (asks for our public address, finds the way back to a
swarm we lost), and one per request that is being answered. A third death within a minute ends the network: the `async with`
raises Unreachable with the daemon's last words.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError

from peer.control import DaemonRefused
from peer.daemon import START_TIMEOUT_S, Daemon
from peer.dht import Noticeboard
from peer.net import INCOMING_SOCKET, HivemindTransport
from peer.own_addresses import with_port
from peer.socket_dir import SocketDirectory
from swarm.address import nobody_answers, parse_address
from swarm.digest import Digest
from swarm.errors import BarnraiseError, NetworkError, RemoteError, Unreachable, UserError
from swarm.identity import Keypair, PeerId

log = logging.getLogger(__name__)

MAX_DEATHS: Final = 3
DEATHS_WITHIN_S: Final = 60.0
DIAL_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """What one peer decides about its own network."""

    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)  # empty: dials out only; port 0: any free one
    announce: tuple[str, ...] = ()  # what to tell others instead of what the daemon finds, as `announced` made it
    bootstrap: tuple[str, ...] = ()  # peers to dial at the start; one must answer, unless there are none
    must_reach: bool = True  # one of the bootstrap addresses must answer; else they are only tried, again and again
    local: bool = True  # tell others loopback addresses, and no other
    dial_timeout_s: float = DIAL_TIMEOUT_S
    tend_every_s: float = 30.0  # how often to look after the daemon, which has as long to answer
    sockets_parent: Path | None = None  # where the private directory of sockets goes; None: the temporary folder


class Network:
    """Owns everything that connects this peer to others; see the top of the file."""

    def __init__(self, keypair: Keypair, run: Digest, config: NetworkConfig) -> None:
        self.board = Noticeboard(run)
        self.num_restarts = 0
        self.transport: HivemindTransport
        self._keypair = keypair
        self._config = config
        self._listen = config.listen
        self._own = AsyncExitStack()
        self._tasks = asyncio.TaskGroup()
        self._daemon: Daemon | None = None
        self._sockets: SocketDirectory
        self._has_sockets = False
        self._children: list[asyncio.Task[None]] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.transport.addresses()

    @property
    def listening(self) -> tuple[str, ...]:
        """Where the daemon listens, ports settled: what to ask for after a restart, so that others find us again."""
        return self._listen

    def remove_sockets(self) -> None:
        """Removes the socket folder at once, for a process that ends without unwinding. The daemon dies with its parent."""
        if self._has_sockets:
            self._sockets.remove()

    @property
    def up_bytes(self) -> int:
        return self.transport.up_bytes

    @property
    def down_bytes(self) -> int:
        return self.transport.down_bytes

    @property
    def up_s(self) -> float:
        return self.transport.up_s

    @property
    def down_s(self) -> float:
        return self.transport.down_s

    @property
    def up_bytes_per_s(self) -> float:
        return self.transport.up_bytes_per_s

    @property
    def down_bytes_per_s(self) -> float:
        return self.transport.down_bytes_per_s

    @property
    def daemon_pid(self) -> int | None:
        """The daemon's process id; None while there is none."""
        return None if self._daemon is None else self._daemon.pid

    async def __aenter__(self) -> Self:
        """Raises StateError (port taken), ConfigError (a bad address), MalformedBytes (a bad bootstrap address), or
        Unreachable when there are bootstrap addresses and none of them answers."""
        for address in self._config.bootstrap:
            parse_address(address)
        async with AsyncExitStack() as stack:  # undoes what was begun when a later step fails
            self._sockets = SocketDirectory(self._config.sockets_parent)
            self._has_sockets = True
            stack.callback(self._sockets.remove)
            await stack.enter_async_context(self._tasks)
            self.transport = HivemindTransport(self._keypair.peer_id, self._tasks, local=self._config.local)
            stack.push_async_callback(self._stop)
            try:
                await self._start_daemon()
                try:
                    await self.connect_all(self._config.bootstrap)
                except Unreachable:
                    if self._config.must_reach:
                        raise
            except BarnraiseError as error:
                # Raised behind the task group, which would wrap it.
                failed: BarnraiseError | None = error
            else:
                failed = None
                self._children = [
                    self._tasks.create_task(self._supervise(), name="daemon supervisor"),
                    self._tasks.create_task(self._tend(), name="network tender"),
                ]
                self._own = stack.pop_all()
        if failed is not None:
            raise failed
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._own.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:  # one thing went wrong: say that, not that a group did
                raise group.exceptions[0] from None
            raise

    async def connect_all(self, addresses: tuple[str, ...]) -> tuple[PeerId, ...]:
        """Dials all addresses at once, each with its own time-out, and makes the DHT nodes there known to ours.

        Returns who answered. Raises Unreachable, with addresses and reasons, when there are addresses and none answers.
        """
        async with asyncio.TaskGroup() as dials:
            tasks = [dials.create_task(self._dial(address)) for address in addresses]
        results = [task.result() for task in tasks]
        answered = tuple(dict.fromkeys(result for result in results if isinstance(result, PeerId)))
        if addresses and not answered:
            raise Unreachable(nobody_answers({one: str(why) for one, why in zip(addresses, results, strict=True)}))
        await asyncio.gather(*(self.board.introduce(peer) for peer in answered))
        return answered

    async def _dial(self, address: str) -> PeerId | str:
        """Who is there, or why nobody is."""
        if parse_address(address).peer == self._keypair.peer_id:
            return "that is this peer itself"
        try:
            return await self.transport.connect(address, timeout_s=self._config.dial_timeout_s)
        except (NetworkError, RemoteError) as error:
            return str(error).removeprefix(f"{address}: ")

    async def _start_daemon(self) -> None:
        self._daemon = await Daemon.start(self._keypair, self._listen, self._sockets, announce=self._config.announce)
        control = self._daemon.control
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                _, found = await control.identify()
                # From now on this very port: others know us by it.
                self._listen = tuple(_settled(address, found) for address in self._listen)
                await self.transport.attach(control, self._sockets.socket(INCOMING_SOCKET))
                await self.board.attach(control.path, self._sockets)
        except (OSError, EOFError, ValueError, DaemonRefused, P2PDaemonError) as error:  # TimeoutError is an OSError
            raise Unreachable(f"the network daemon went away while it started: {error!r}") from None

    async def _supervise(self) -> None:
        deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        clock = asyncio.get_running_loop().time
        while True:
            assert self._daemon is not None
            last_words = await self._daemon.wait_died()
            while True:
                deaths.append(clock())
                await self._take_down(f"the network daemon died and is being started again ({last_words})")
                if len(deaths) == MAX_DEATHS and deaths[-1] - deaths[0] < DEATHS_WITHIN_S:
                    raise Unreachable(
                        f"the network daemon died {MAX_DEATHS} times within {DEATHS_WITHIN_S:.0f} s; {last_words}; "
                        "look for what ends it (memory, another program on its port), then start this peer again"
                    )
                log.warning("%s; starting it again", last_words)
                try:
                    await self._start_daemon()
                    break
                except (UserError, NetworkError) as error:
                    last_words = str(error)
            await self._reconnect()
            self.num_restarts += 1

    async def _reconnect(self) -> None:
        """Dials everyone we knew; nobody may be there any more, which the tender then goes on trying to mend."""
        known = [str(address) for address in self.transport.known.values()]
        try:
            await self.connect_all(tuple(dict.fromkeys((*known, *self._config.bootstrap))))
        except NetworkError as error:
            log.warning("%s", error)

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(self._config.tend_every_s)
            daemon = self._daemon
            if daemon is None:
                continue  # the supervisor is at work
            try:
                async with asyncio.timeout(self._config.tend_every_s):
                    await self.transport.refresh_addresses()
                if not self.board.num_neighbours:
                    await self._reconnect()
            except TimeoutError:
                log.warning("the network daemon did not answer for %g s: ending it", self._config.tend_every_s)
                daemon.kill()
            except NetworkError as error:
                log.debug("%s", error)  # it has just died

    async def _take_down(self, reason: str) -> None:
        await self.transport.detach(reason)
        await self.board.detach(daemon_lives=False)
        if self._daemon is not None:
            await self._daemon.stop()
            self._daemon = None

    async def _stop(self) -> None:
        for task in self._children:
            task.cancel()
        if self._children:
            await asyncio.wait(self._children)
        await self.board.detach(daemon_lives=self._daemon is not None)
        await self.transport.close()
        if self._daemon is not None:
            await self._daemon.stop()
            self._daemon = None


def _settled(listen: str, found: tuple[str, ...]) -> str:
    """The listening address with the port that was found for its port 0."""
    if not listen.endswith("/0"):
        return listen
    kind, host = listen.split("/")[1:3]
    for text in found:
        parts = text.split("/")
        if len(parts) == 5 and parts[1] == kind and (parts[2] == host or host in ("0.0.0.0", "::")):
            return with_port(listen, int(parts[4]))
    return listen
