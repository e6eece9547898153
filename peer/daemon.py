"""p2pd, hivemind's libp2p daemon, as a child of ours: started, watched, stopped, and never left behind.

It runs in its own session, so that a terminal's Ctrl+C reaches us first and we can say goodbye through it. A small launcher
asks the kernel to kill it when the thread that started it ends, then becomes it: start it from the thread that runs the
event loop. Two daemons on one port would both start (they share it by SO_REUSEPORT and split the connections), so the
port is tried first.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

import hivemind.hivemind_cli

from peer.control import MAX_CONTROL_BYTES, Control, DaemonRefused
from peer.own_addresses import check_port_free, listening_port
from peer.socket_dir import SocketDirectory
from swarm.errors import LocalError, StateError, UserError
from swarm.identity import Keypair

START_TIMEOUT_S: Final = 20.0  # it needs 0.2 s on an idle machine
TERM_TIMEOUT_S: Final = 0.5  # it needs 5 ms; what it has to say goodbye to are connections
CONTROL_SOCKET: Final = "p2pd.sock"
_LAST_LINES: Final = 20
_LONGEST_LINE: Final = 500
_PR_SET_PDEATHSIG: Final = 1
# Runs as `python -I -S -c ... PARENT_PID PROGRAM ARGS`. If the parent died before the signal was armed, nobody would ever
# send it: hence the look at who the parent is now.
_LAUNCHER: Final = f"""
import ctypes, os, signal, sys
if ctypes.CDLL(None, use_errno=True).prctl({_PR_SET_PDEATHSIG}, signal.SIGKILL, 0, 0, 0):
    sys.exit("cannot tie p2pd's life to its parent's: " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def p2pd_path() -> Path:
    """The daemon inside hivemind's package; raises UserError when it is missing."""
    for folder in hivemind.hivemind_cli.__path__:
        path = Path(folder) / "p2pd"
        if os.access(path, os.X_OK):
            return path
    raise UserError("hivemind's p2pd is missing or not executable; install hivemind again from its wheel")


class Daemon:
    """A running p2pd. Made by `start`; `stop` it in the same `finally`."""

    def __init__(self, process: asyncio.subprocess.Process, control: Control) -> None:
        self.control = control
        self.pid = process.pid
        self._process = process
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._said_its_id = asyncio.Event()
        self._listening = asyncio.create_task(self._listen(), name="p2pd output")

    @classmethod
    async def start(
        cls, keypair: Keypair, listen: tuple[str, ...], sockets: SocketDirectory, *, announce: tuple[str, ...] = ()
    ) -> Daemon:
        """A daemon that answers. Raises StateError when a port is taken, UserError when it does not come up."""
        for address in listen:
            check_port_free(address)
        control_path = sockets.socket(CONTROL_SOCKET)
        with suppress(FileNotFoundError):
            os.unlink(control_path)  # of a daemon that died
        key_path = sockets.path / "id"
        _write_private(key_path, keypair.to_libp2p())
        arguments = _arguments(control_path, key_path, listen, announce)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(p2pd_path()), *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "GOLOG_LOG_LEVEL": "error", "GOLOG_LOG_FMT": "nocolor"},
        )
        daemon = cls(process, Control(control_path))
        try:
            await daemon._until_ready(keypair, listen)
        except BaseException:
            await daemon.stop()
            raise
        finally:
            os.unlink(key_path)
        return daemon

    async def wait_died(self) -> str:
        """Waits for the daemon's end; returns how it ended, with its last words."""
        code = await self._process.wait()
        await asyncio.wait([self._listening], timeout=TERM_TIMEOUT_S)
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"p2pd ended with {cause}; {self.last_words()}"

    def last_words(self) -> str:
        """The last lines it wrote, on one line."""
        return "it said: " + " | ".join(self._lines) if self._lines else "it said nothing"

    def kill(self) -> None:
        """Ends the daemon at once; `wait_died` then returns."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Ends and reaps the daemon in less than a second. Idempotent."""
        for ending in (signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is not None:
                break
            # Not `Process.send_signal`: it may reap the process under the hands of asyncio's own waiting thread.
            with suppress(ProcessLookupError):
                os.kill(self.pid, ending)
            with suppress(TimeoutError):
                async with asyncio.timeout(TERM_TIMEOUT_S):
                    await self._process.wait()
                    break
        self._listening.cancel()
        await asyncio.wait([self._listening])
        # asyncio closes the pipe's read end only at its end of file, which a grandchild may hold up.
        self._process._transport.close()  # type: ignore[attr-defined]

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[:_LONGEST_LINE]
            self._lines.extend(line[:_LONGEST_LINE].decode(errors="replace").strip() for line in lines)
            if any(line.startswith(b"Peer ID:") for line in lines):
                self._said_its_id.set()

    async def _until_ready(self, keypair: Keypair, listen: tuple[str, ...]) -> None:
        said = asyncio.create_task(self._said_its_id.wait())
        died = asyncio.create_task(self.wait_died())
        try:
            await asyncio.wait((said, died), timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                raise UserError(f"the network daemon does not start at {', '.join(listen)}: {died.result()}")
            if not said.done():
                raise UserError(f"the network daemon did not start in {START_TIMEOUT_S:.0f} s; {self.last_words()}")
        finally:
            said.cancel()
            died.cancel()
            await asyncio.wait((said, died))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                peer_id, addresses = await self.control.identify()
        except (OSError, EOFError, DaemonRefused) as error:  # TimeoutError is an OSError
            raise UserError(f"the network daemon does not answer ({error!r}); {self.last_words()}") from None
        if peer_id != keypair.peer_id:
            raise LocalError(f"p2pd took the id {peer_id}, not {keypair.peer_id}")
        if listen and not addresses:
            raise StateError(f"the network daemon could not listen at {', '.join(listen)}: {self.last_words()}")


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def _arguments(control_path: str, key_path: Path, listen: tuple[str, ...], announce: tuple[str, ...]) -> list[str]:
    only_loopback = all(listening_port(address)[0] in ("127.0.0.1", "::1") for address in listen)
    arguments = [
        f"-listen=/unix{control_path}",
        f"-id={key_path}",
        "-dhtServer=1",  # libp2p's own DHT: finds the addresses of a peer that is known by its id alone
        "-b=0",  # we connect ourselves: the daemon crashes when every address it is given is dead
        "-tls=1",
        "-quic=0",
        f"-natPortMap={int(not only_loopback)}",
        f"-autonat={int(not only_loopback)}",
        "-connManager=1",
        "-relay=0",  # circuits stop at 128 KiB; peers behind NAT dial out instead
        "-relayService=0",
        "-pubsub=0",
        f"-persistentConnMaxMsgSize={MAX_CONTROL_BYTES}",
    ]
    arguments.append(f"-hostAddrs={','.join(listen)}" if listen else "-noListenAddrs=1")
    if announce:
        arguments.append(f"-announceAddrs={','.join(announce)}")
    return arguments
