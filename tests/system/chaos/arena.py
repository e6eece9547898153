"""One swarm that cells are tried on, one after the other: three peers, on demand a fourth, which joins, and a monitor."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil

from peer.address_book import AddressBook
from peer.fault_point import FAULT_ENV, Fault, Mark
from swarm.digest import DIGEST_BYTES
from swarm.invite import Invite
from tests.system.chaos.links import Links
from tests.system.chaos.monitor_process import MonitorProcess
from tests.system.chaos.rounds import EXCHANGE_DEADLINE_S, LEADER_TIMEOUT_S, TRAIN_DEADLINE_S
from tests.system.launcher import POLL_S, Launcher
from tests.system.swarm_of_processes import Json, PeerProcess, SwarmOfProcesses

NAMES = ("p1", "p2", "p3")
JOINER = "p4"
MONITOR = "monitor"
PACE_S = 0.03  # of an inner step: several swarms fit on two cores
GENEROUS_S = 90.0
SNAPSHOT_VERSION = 18  # nobody's log reaches back to version 0 any more
DEATHS_S = 65.0  # a p2pd that dies three times within a minute ends its peer
CONFIG = f"""
preset = "tiny"
name = "chaos"
[model]
hidden_size = 32
num_layers = 2
num_heads = 2
intermediate_size = 64
[data]
sequence_length = 32
eval_windows = 2
[inner]
batch_windows = 2
[round]
local_steps = 20
min_peers = {{min_peers}}
train_deadline_s = {TRAIN_DEADLINE_S}
exchange_deadline_s = {EXCHANGE_DEADLINE_S}
heartbeat_s = 0.3
leader_timeout_s = {LEADER_TIMEOUT_S}
[checkpoint]
every = 1000
"""
_Found = TypeVar("_Found")


def until(what: str, find: Callable[[], _Found | None], within_s: float = GENEROUS_S) -> _Found:
    """What `find` gives once it gives something. Raises AssertionError when it does not."""
    ends_at = time.monotonic() + within_s
    while True:
        if found := find():
            return found
        assert time.monotonic() < ends_at, f"no {what} within {within_s:g} s"
        time.sleep(POLL_S)


class Arena:
    """A context manager; on a way out without an error nothing may be left behind."""

    def __init__(self, folder: Path, launcher: Launcher, links: Links | None = None) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.links = links
        self.swarm = SwarmOfProcesses(folder, launcher, config=CONFIG)
        self.peers = tuple(self._peer(name) for name in NAMES)
        inside = links.command(MONITOR) if links else []
        self.monitor = MonitorProcess(folder, {**os.environ, **self.swarm.environment}, inside)
        self._numbers = count(1)
        self._daemon_deaths: list[tuple[float, str]] = []

    def __enter__(self) -> Self:
        self.swarm.__enter__()
        try:
            first = self.swarm.found(NAMES[0])
            invite = first.invite()
            for name in NAMES[1:]:
                self.swarm.join(name, invite)
            self.settle()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.downloads_end()
                self.monitor.end()
            else:
                self.thaw_all()
        except BaseException as failed:
            kind, error = type(failed), failed
            raise
        finally:
            self.swarm.__exit__(kind, error, trace)
        if error is None:
            drafts = [path for path in self.folder.rglob("*.part") if len(path.stem) != 2 * DIGEST_BYTES]
            assert not drafts, f"drafts are left: {drafts}"

    def downloads_end(self) -> None:
        """What is half here now is whole or gone soon, also where a killed process left it. Who is stopped in the middle of
        a download keeps its part: the next process goes on with it."""
        running = [self.folder / peer.name for peer in self.swarm.peers.values() if peer.is_running]
        parts = [path for folder in running for path in folder.rglob("*.part")]
        until("end of the downloads under way", lambda: not any(path.exists() for path in parts) or None)

    # ---------------------------------------------------------------- peers

    def _peer(self, name: str) -> PeerProcess:
        peer = self.swarm.peer(name)
        peer.environment = {FAULT_ENV: f"orders={self._orders(name)};pace={PACE_S}"}
        if self.links is not None:
            peer.reach = ("--listen", f"/ip4/{self.links.address(name)}/tcp/0")
            peer.namespace = self.links.pid(name)
        return peer

    def invite(self) -> str:
        """With the address of everyone who runs."""
        running = [peer for peer in self.peers if peer.is_running]
        run = Invite.parse(running[0].invite()).run
        return Invite(run, tuple(address for peer in running for address in self._addresses_of(peer))).encode()

    @staticmethod
    def _addresses_of(peer: PeerProcess) -> tuple[str, ...]:
        """What it tells others."""
        return until(f"addresses of {peer.name}", lambda: AddressBook(peer.home / "peers.book").known.own or None)

    def newcomer(self) -> PeerProcess:
        """A fourth peer that was never here. Its past, if it had one, is gone."""
        peer = self.swarm.peers.pop(JOINER, None)
        assert peer is None or not peer.is_running
        shutil.rmtree(self.folder / JOINER, ignore_errors=True)
        (self.folder / f"{JOINER}.jsonl").unlink(missing_ok=True)
        until("versions that no log reaches", lambda: self.peers[0].version >= SNAPSHOT_VERSION or None)
        return self._peer(JOINER)

    def settle(self) -> str:
        """Waits for a commit that lists all three, as all three tell of it; returns its leader's name."""
        began_s = time.time()

        def agreed() -> str | None:
            for peer in self.peers:
                assert peer.is_running, peer.story()
            last = [peer.events("RoundCommitted")[-1:] for peer in self.peers]
            names = {peer.peer_id: peer.name for peer in self.peers}
            told = [one for commits in last for one in commits if one["at_unix_s"] >= began_s]
            leaders = {names.get(one["leader"]) for one in told if set(one["listed"]) == set(names)}
            return leaders.pop() if len(told) == len(self.peers) and len(leaders) == 1 else None

        return until("commit that lists all three peers", agreed)

    # ---------------------------------------------------------------- orders and marks

    def _orders(self, name: str) -> Path:
        return self.folder / f"{name}.order"

    def order(self, peers: Sequence[PeerProcess], phase: str, do: str, role: str) -> Path:
        """Tells these peers what to do to themselves; returns the marker file that the first one writes."""
        marker = self.folder / f"marks-{next(self._numbers)}"
        version = max(0, *(peer.version for peer in peers))
        for peer in peers:
            partial = self.folder / f"{peer.name}.order-part"
            partial.write_text(str(Fault(phase, do, marker, version, role)))
            partial.replace(self._orders(peer.name))
        return marker

    def wait_mark(self, marker: Path, peers: Sequence[PeerProcess]) -> tuple[Mark, PeerProcess]:
        """The proof that it happened, and whom it happened to; the others' orders are taken back."""
        try:
            mark = until("mark: the fault did not happen", lambda: Mark.read(marker))
        finally:
            for peer in peers:
                self._orders(peer.name).unlink(missing_ok=True)
        return mark, next(peer for peer in peers if peer.process.pid == mark.pid)

    def may_lose_daemon(self, peer: PeerProcess) -> bool:
        """Whether another death of its p2pd would not be one too many."""
        lately = [name for at_s, name in self._daemon_deaths if at_s > time.monotonic() - DEATHS_S]
        return lately.count(peer.name) < 2

    def note_daemon_death(self, peer: PeerProcess) -> None:
        self._daemon_deaths.append((time.monotonic(), peer.name))

    # ---------------------------------------------------------------- faults

    def thaw(self, peer: PeerProcess) -> None:
        """SIGCONT to a peer and its p2pd."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(peer.process.pid).children():
                child.send_signal(signal.SIGCONT)
        peer.signal(signal.SIGCONT)

    def thaw_all(self) -> None:
        for peer in self.swarm.peers.values():
            if peer.is_running:
                self.thaw(peer)

    def kill_all(self) -> None:
        """Everything that this swarm started, at once."""
        for process in self.swarm.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def told_of_round(self, peer: PeerProcess, after: int) -> list[Json]:
        """The commits that a peer told of behind its first `after` events."""
        return [event for event in peer.events()[after:] if event["event"] == "RoundCommitted"]

    def assert_no_remains(self) -> None:
        """Every folder of sockets and every p2pd belongs to somebody who runs."""
        alive = {peer.process.pid for peer in self.swarm.peers.values() if peer.is_running}

        def only_theirs() -> bool | None:
            folders = {int(path.name.split("-")[2]) for path in self.swarm.temporary.glob("barnraise-net-*")}
            with contextlib.suppress(psutil.NoSuchProcess):
                daemons = [one for one in self.swarm.processes() if one.name() == "p2pd" and one.ppid() not in alive]
                return (folders <= alive and not daemons) or None
            return None

        until("end of what a dead peer left (sockets, p2pd)", only_theirs, 20.0)
