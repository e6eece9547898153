"""Peers as real processes, each in its own home: started, watched by their JSON events, killed, stopped, none left behind.

Everything a swarm starts carries one TMPDIR of its own in its environment, which finds its processes (p2pd included) whatever
became of their parents. Most starts are forks of a process that has loaded torch already; `fresh` ones are not. Waiting is
polling of the events with a generous deadline; nothing is timed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from tests.system.launcher import POLL_S, ROOT, Launched, Launcher
from tests.system.namespaces import inside

RUN_PEER = ROOT / "run_peer.py"
GENEROUS_S = 120.0  # for what takes seconds on an idle machine
LEADER_TIMEOUT_S = 3.0
TRAIN_DEADLINE_S = 10.0
EXCHANGE_DEADLINE_S = 8.0
LOCAL_STEPS = 30
BATCH_WINDOWS = 2
# A model that is as small as one can be, on the embedded text: a round takes well under a second.
SMALLEST = f"""
preset = "tiny"
name = "smallest"
[model]
hidden_size = 32
num_layers = 2
num_heads = 2
intermediate_size = 64
[data]
sequence_length = 32
eval_windows = 2
[inner]
batch_windows = {BATCH_WINDOWS}
[round]
local_steps = {LOCAL_STEPS}
min_peers = {{min_peers}}
train_deadline_s = {TRAIN_DEADLINE_S}
exchange_deadline_s = {EXCHANGE_DEADLINE_S}
heartbeat_s = 0.3
leader_timeout_s = {LEADER_TIMEOUT_S}
[checkpoint]
every = 1000
"""
Json = dict[str, Any]
_Found = TypeVar("_Found")


class PeerProcess:
    """One peer: its home and files, which outlive its processes, and the process that runs now."""

    def __init__(self, swarm: SwarmOfProcesses, name: str) -> None:
        self.name = name
        self.home = swarm.folder / name
        self.events_path = swarm.folder / f"{name}.jsonl"
        self.out_path = swarm.folder / f"{name}.out"
        self.err_path = swarm.folder / f"{name}.err"
        self._swarm = swarm
        self.environment: dict[str, str] = {}  # of this peer alone
        self.reach: tuple[str, ...] = ("--local",)
        self.namespace: int | None = None  # the process whose network namespace it lives in
        self._process: Launched | subprocess.Popen[bytes] | None = None
        self._told: list[Json] = []  # the events read so far
        self._read_bytes = 0

    # ---------------------------------------------------------------- the process

    def start(self, *options: str, at_default_home: bool = False, fresh: bool = False) -> Self:
        """Starts the peer; the output of this process goes to fresh files, the events are appended."""
        assert not self.is_running
        swarm = self._swarm
        swarm.give_way()
        home = [] if at_default_home else ["--home", str(self.home), "--name", self.name]
        arguments = [*home, *self.reach, "--json-events", str(self.events_path), *options]
        environment = {**swarm.environment, **self.environment}
        if not fresh:
            self._process = swarm.launcher.start(
                arguments,
                environment,
                swarm.folder,
                out=self.out_path,
                err=self.err_path,
                namespace=self.namespace,
            )
        else:
            with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
                self._process = subprocess.Popen(
                    [*(inside(self.namespace) if self.namespace else ()), sys.executable, RUN_PEER, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env={**os.environ, **environment},
                    cwd=swarm.folder,
                    start_new_session=True,
                )
        swarm.started.append(psutil.Process(self._process.pid))
        return self

    @property
    def process(self) -> Launched | subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and the end of the process."""
        self._swarm.killed.add(self.process.pid)
        self.process.kill()
        self.process.wait(GENEROUS_S)

    def wait_ended(self) -> int:
        """The exit code."""
        return self.process.wait(GENEROUS_S)

    def stop(self) -> None:
        """SIGTERM; the process must end well."""
        self.signal(signal.SIGTERM)
        assert self.wait_ended() == 0, self.story()

    def daemon(self) -> psutil.Process:
        """The p2pd of this peer."""

        def find() -> psutil.Process | None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.process.pid).children():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if child.name() == "p2pd":
                            return child
            return None

        return self.wait("its p2pd", find)

    # ---------------------------------------------------------------- what it says

    @property
    def out(self) -> str:
        return self.out_path.read_text(errors="replace") if self.out_path.exists() else ""

    @property
    def err(self) -> str:
        return self.err_path.read_text(errors="replace") if self.err_path.exists() else ""

    def events(self, *kinds: str) -> list[Json]:
        """All events so far, of those kinds if kinds are named, over all processes of this home."""
        if self.events_path.exists():
            with self.events_path.open("rb") as file:
                file.seek(self._read_bytes)
                news, newline, _ = file.read().rpartition(b"\n")  # what follows the last newline is half a line
            self._read_bytes += len(news) + len(newline)
            self._told += [json.loads(line) for line in news.splitlines()]
        return [one for one in self._told if not kinds or one["event"] in kinds]

    @property
    def version(self) -> int:
        """The newest version it told of; -1 before the first."""
        told = self.events("RoundCommitted", "CaughtUp", "PeerStarted")
        return told[-1]["version"] if told else -1

    @property
    def peer_id(self) -> str:
        return str(self.wait_event("PeerStarted")["peer"])

    def invite(self) -> str:
        """The invite it prints, once it is reachable."""

        def printed() -> str | None:
            found = re.search(r"barnraise1-[a-z2-7]+", self.out)
            return found.group() if found else None

        return self.wait("its invite", printed)

    def story(self) -> str:
        """What a failed test shows of this peer."""
        code = self._process.poll() if self._process else "never started"
        return f"{self.name}: exit {code}\n--- stderr ---\n{self.err[-3000:]}\n--- stdout ---\n{self.out[-3000:]}"

    # ---------------------------------------------------------------- waiting

    def wait(self, what: str, find: Callable[[], _Found | None], *, may_end: bool = False) -> _Found:
        """What `find` gives once it gives something; fails when the process ends, or time is up."""
        ends_at = time.monotonic() + GENEROUS_S
        while True:
            ended = not self.is_running and not may_end
            if found := find():
                return found
            assert not ended, f"{self.name} ended before {what}\n{self.story()}"
            assert time.monotonic() < ends_at, f"{self.name}: no {what} within {GENEROUS_S} s\n{self.story()}"
            time.sleep(POLL_S)

    def wait_event(self, kind: str, after: int = 0, **fields: object) -> Json:
        """The first event of that kind and those fields behind the first `after` events."""

        def find() -> Json | None:
            for event in self.events()[after:]:
                if event["event"] == kind and all(event[name] == value for name, value in fields.items()):
                    return event
            return None

        return self.wait(f"{kind} {fields or ''}", find)

    def wait_version(self, version: int) -> None:
        self.wait(f"version {version}", lambda: self.version >= version or None)

    def wait_commit(self) -> Json:
        """The next commit it tells of."""
        return self.wait_event("RoundCommitted", after=len(self.events()))


class SwarmOfProcesses:
    """Peers that share a run and a folder. As a context manager: in the end all are stopped and nothing may be left."""

    def __init__(self, folder: Path, launcher: Launcher, *, min_peers: int = 3, config: str = SMALLEST) -> None:
        self.folder = folder
        self.launcher = launcher
        self.config = folder / "run.toml"
        self.config.write_text(config.format(min_peers=min_peers))
        self.data = folder / "data"
        self.data.mkdir()
        (self.data / "cache").symlink_to(launcher.cache)
        self.temporary = Path(tempfile.mkdtemp(prefix="bn-", dir="/tmp"))  # a socket's path must be short
        self.environment = {
            "BARNRAISE_DATA": str(self.data),
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        self.started: list[psutil.Process] = []
        self.killed: set[int] = set()
        self.closing = contextlib.ExitStack()  # what else ends with the swarm
        self.peers: dict[str, PeerProcess] = {}

    def peer(self, name: str) -> PeerProcess:
        return self.peers.setdefault(name, PeerProcess(self, name))

    def found(self, name: str, *, fresh: bool = False) -> PeerProcess:
        """Starts the first peer of a new run."""
        return self.peer(name).start("--config", str(self.config), fresh=fresh)

    def join(self, name: str, invite: str, *options: str) -> PeerProcess:
        return self.peer(name).start("--join", invite, *options)

    def by_id(self, peer_id: str) -> PeerProcess:
        return next(peer for peer in self.peers.values() if peer.peer_id == peer_id)

    def give_way(self) -> None:
        """Lets whoever starts now have the processor: on two cores a start beside full training takes half a minute."""
        for peer in self.peers.values():
            if peer.is_running and peer.version >= 0:
                psutil.Process(peer.process.pid).nice(10)  # of its main thread, which trains; not of its network

    def processes(self) -> list[psutil.Process]:
        """Everything alive that this swarm started, directly or not."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_ours = process in self.started or process.environ().get("TMPDIR") == str(self.temporary)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def assert_nothing_left(self) -> None:
        """No process, no socket folder of a process that was not killed by force, and no lock."""
        ends_at = time.monotonic() + GENEROUS_S
        while (left := self.processes()) and time.monotonic() < ends_at:
            time.sleep(POLL_S)
        assert not left, f"still alive: {left}"
        folders = [
            path for path in self.temporary.glob("barnraise-net-*") if int(path.name.split("-")[2]) not in self.killed
        ]
        assert not folders, f"socket folders are left: {folders}"
        for lock in self.folder.rglob("lock"):
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises when somebody holds it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            running = [peer for peer in self.peers.values() if peer.is_running]
            for peer in running:
                peer.signal(signal.SIGTERM)
            for peer in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    peer.process.wait(30)
            if error is None:
                assert all(peer.process.poll() == 0 for peer in running), [peer.story() for peer in running]
                self.assert_nothing_left()
        finally:
            self.closing.close()
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            for peer in self.peers.values():
                if peer.is_running:
                    peer.process.wait(30)
            shutil.rmtree(self.temporary, ignore_errors=True)


def three_peers(folder: Path, launcher: Launcher) -> Iterator[SwarmOfProcesses]:
    """A swarm of p1, p2 and p3 that has committed its first version."""
    with SwarmOfProcesses(folder, launcher) as swarm:
        first = swarm.found("p1", fresh=True)
        invite = first.invite()
        for name in ("p2", "p3"):
            swarm.join(name, invite)
        for peer in reversed(swarm.peers.values()):
            peer.wait_version(1)
        yield swarm


def wait_listed(peer: PeerProcess, others: list[PeerProcess]) -> None:
    """Waits until a coming commit, as each of the others tells of it, lists the peer."""
    for other in others:
        seen = len(other.events())

        def listing(other: PeerProcess = other, seen: int = seen) -> Json | None:
            news = other.events()[seen:]
            return next(
                (one for one in news if one["event"] == "RoundCommitted" and peer.peer_id in one["listed"]), None
            )

        other.wait(f"a commit that lists {peer.name}", listing)


def commits_that_stand(peer: PeerProcess) -> dict[int, Json]:
    """The commits that a peer told of and did not undo, by version."""
    kept: dict[int, Json] = {}
    version = -1
    for event in peer.events("PeerStarted", "CaughtUp", "RoundCommitted", "Undone"):
        if event["event"] == "Undone":  # told before the version that it led to
            kept = {number: one for number, one in kept.items() if number <= version - event["depth"]}
            continue
        version = event["version"]
        if event["event"] == "RoundCommitted":
            kept[version] = event
    return kept


def assert_one_state(*peers: PeerProcess) -> int:
    """Wherever two peers told of a version, they had equal bits. Returns how many versions all of them told of."""
    told = [commits_that_stand(peer) for peer in peers]
    for version in sorted(set().union(*told)):
        states = {
            (one[version]["head"], one[version]["state_digest"], one[version]["tokens_in_all"])
            for one in told
            if version in one
        }
        assert len(states) == 1, f"version {version}: {states}"
    for peer in peers:
        assert not peer.events("StateDiffered"), peer.events("StateDiffered")
    return len(set.intersection(*(set(one) for one in told)))


def assert_versions_grow(peer: PeerProcess) -> None:
    """No version is told of twice or after a later one, restarts included, unless it was undone in between."""
    newest = -1
    for event in peer.events("PeerStarted", "RoundCommitted", "CaughtUp", "Undone"):
        version = event["version"]
        match event["event"]:
            case "Undone":
                newest = min(newest, version)
            case "RoundCommitted":
                assert version > newest, f"{peer.name}: {event} after version {newest}"
                newest = version
            case _:  # a start or a catching up tells of the version it stands at
                assert version >= newest, f"{peer.name}: {event} after version {newest}"
                newest = version
