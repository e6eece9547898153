"""The thread that runs the network's asyncio loop, seen from the main thread.

    start -> up (daemon, DHT, dialled) -> calls (manifest, blobs) -> node runs -> stop

`call` runs a coroutine in the loop and waits for it; `stop` ends everything. An error that ends the network while the
trainer runs is handed over through `on_end`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from peer.network import Network, NetworkConfig
from swarm.digest import Digest
from swarm.errors import TimedOut
from swarm.identity import Keypair

_Result = TypeVar("_Result")
OnEnd = Callable[[BaseException | None], None]


class NetworkThread:
    """Owns the loop and the `Network` in it."""

    def __init__(self, keypair: Keypair, run: Digest, config: NetworkConfig) -> None:
        self._own = (keypair, run, config)
        self._up: Future[Network] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._main_task: asyncio.Task[Any] | None = None
        self._network: Network | None = None
        self._on_end: OnEnd = lambda _: None
        self._background: Future[None] | None = None
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)

    def start(self) -> Network:
        """Starts daemon and DHT and dials the bootstrap addresses; returns once that is done. Raises what it raises."""
        self._thread.start()
        return _wait(self._up, None)

    def call(self, coroutine: Coroutine[Any, Any, _Result], timeout_s: float | None = None) -> _Result:
        """The result of a coroutine that runs in the loop; raises what it raises, or TimedOut."""
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return _wait(future, timeout_s)
        except BaseException:
            future.cancel()
            raise

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None
        return self._loop

    def run_in_background(self, coroutine: Coroutine[Any, Any, None], on_end: OnEnd) -> None:
        """Runs a coroutine beside; `on_end` is told how it, or the network itself, ended, in the loop's thread."""
        self._on_end = on_end
        self._background = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        self._background.add_done_callback(lambda done: on_end(None if done.cancelled() else done.exception()))

    def wait_background(self, timeout_s: float) -> None:
        """Waits until the coroutine beside has ended, at most so long."""
        if self._background is not None:
            wait([self._background], timeout_s)

    def remove_sockets(self) -> None:
        """Removes the daemon's socket folder; for a process that is about to end without unwinding."""
        if self._network is not None:
            self._network.remove_sockets()

    def stop(self, timeout_s: float) -> bool:
        """Ends the network, daemon included, even one that is still dialling; returns whether it ended in time."""
        if self._thread.ident is None:
            return True  # never started
        with contextlib.suppress(RuntimeError):  # the loop has just been closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._end)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _end(self) -> None:
        assert self._ending is not None and self._main_task is not None
        self._ending.set()
        if not self._up.done():
            self._main_task.cancel()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # the boundary of this thread
            if not self._up.done():
                self._up.set_exception(error)
            else:
                self._on_end(error)

    async def _main(self) -> None:
        self._ending, self._main_task = asyncio.Event(), asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._network = Network(*self._own)
        async with self._network as network:
            self._up.set_result(network)
            await self._ending.wait()


def _wait(future: Future[_Result], timeout_s: float | None) -> _Result:
    try:
        return future.result(timeout_s)
    except FutureTimeout:
        if future.done():  # the coroutine's own
            raise
        raise TimedOut(f"the network did not answer within {timeout_s:g} s") from None
