"""`barnraise demo`: a real swarm on this machine, from genesis to a checkpoint that is pulled and speaks.

One monitor and three peers are processes of their own, as on three machines; one peer is killed half-way and a fourth
joins. The demo only starts, kills and reads: what it shows at the end it takes from the peers' event files and from the
checkpoint that the monitor's `pull` fetched. Exit code 0 only if everything in the summary holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from rich.console import Console
from rich.status import Status

from peer.demo_report import Outcome, PeerRecord, Played, judge, show
from peer.screen import error_line
from swarm.data_folder import DATA_ENV
from swarm.errors import BarnraiseError, ConfigError, StateError
from swarm.invite import Invite
from swarm.manifest import Manifest
from swarm.streams import NOBODY_READS, ending_signals

START_TIMEOUT_S: Final = 120.0  # imports of torch and hivemind by three processes on two slow cores
COMMIT_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 8.0
PULL_TIMEOUT_S: Final = 60.0
_MARKER: Final = ".barnraise-demo"  # a folder with it in was made by a demo, and may be emptied by one
_BARNRAISE: Final = (sys.executable, "-m", "peer")
CONFIG: Final = """\
# A run of the demo's size: a byte-level GPT-NeoX on the text of Python's standard library.
preset = "tiny"
name = "demo"

[inner]
learning_rate = 3e-3
batch_windows = 8

[outer]
optimizer = "nesterov"
learning_rate = 0.8
momentum = 0.5

[round]
local_steps = {local_steps}
min_peers = 3
train_deadline_s = 20.0
exchange_deadline_s = 15.0
heartbeat_s = 0.5
leader_timeout_s = 4.0

[checkpoint]
every = 2
"""


@dataclass(slots=True)
class _Process:
    """One process of the demo, and where it writes."""

    name: str
    popen: subprocess.Popen[bytes]
    log: IO[bytes]
    asked: bool = False

    def ask_to_leave(self, number: int = signal.SIGTERM) -> None:
        """Signals it, once: a second signal would mean "at once"."""
        if not self.asked and self.popen.poll() is None:
            self.popen.send_signal(number)
        self.asked = True

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it and waits; returns its exit code."""
        self.ask_to_leave(number)
        try:
            code = self.popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            code = self.popen.wait()
        if not self.log.closed:
            self.log.close()
        return code


@dataclass(slots=True)
class _Stage:
    """The demo's folder and the processes in it."""

    out: Path
    console: Console
    peers: dict[str, _Process] = field(default_factory=dict)
    monitor: _Process | None = None
    invite: str = ""
    busy: Status | None = None

    def environment(self) -> dict[str, str]:
        # One thread each: three peers share this machine as if each had its own.
        return {**os.environ, DATA_ENV: str(self.out / "data"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    @property
    def notes(self) -> Path:
        """What the monitor shows among its news."""
        return self.out / "notes"

    def say(self, line: str) -> None:
        """A line of the demo's own: on the monitor's screen while that covers the terminal."""
        if self.monitor is not None and self.console.is_terminal:
            with self.notes.open("a") as file:
                file.write(f"{line}\n")
        else:
            self.console.print(line, markup=False)

    def step(self, what: str) -> None:
        """What goes on before there is anything to see."""
        if self.busy is not None:
            self.busy.stop()
        self.busy = self.console.status(what) if what and self.console.is_terminal else None
        if self.busy is not None:
            self.busy.start()
        elif what:
            self.console.print(f"{what} ...", markup=False)

    def records(self) -> list[PeerRecord]:
        return [PeerRecord.read(name, self.out / f"{name}.events.jsonl") for name in sorted(self.peers)]

    def version(self) -> int:
        return max((record.version for record in self.records()), default=0)


def run_demo(out: Path, *, seconds: int) -> int:
    """Runs the demo for about that long; returns the exit code."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    stage = _Stage(out.resolve(), console)
    for number in ending_signals():  # a shell starts what runs behind it with Ctrl+C ignored
        signal.signal(number, signal.default_int_handler)
    try:
        with _clean_stage(stage):
            outcome = _play(stage, seconds)
        show(console, outcome)
        return 0 if outcome.holds else 1
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            console.print("demo stopped; everything it started has ended")
        return 130
    except BrokenPipeError:
        raise  # nobody reads any more: told by the exit code alone
    except (BarnraiseError, OSError) as error:
        error_line(error)
        _show_logs(stage)
        return 2


@contextlib.contextmanager
def _clean_stage(stage: _Stage) -> Iterator[None]:
    make_empty(stage.out)
    try:
        yield
    finally:
        processes = [*stage.peers.values(), *([stage.monitor] if stage.monitor else [])]
        for process in processes:  # all at once, so that they say goodbye together
            process.ask_to_leave()
        for process in processes:
            process.stop()
        with contextlib.suppress(OSError):  # of a terminal that is gone
            stage.step("")


def make_empty(out: Path) -> None:
    """An empty folder for the demo. Raises ConfigError for one with anything in it that no demo made."""
    if out.exists():
        if not out.is_dir():
            raise ConfigError(f"--out {out}: a file is there; name a folder")
        found = sorted(path.name for path in out.iterdir())
        if found and _MARKER not in found:
            some = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
            raise ConfigError(f"--out {out}: the demo empties its folder, and made nothing of what is there: {some}")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / _MARKER).write_text("Made by `barnraise demo`, which removes this folder when it runs again.\n")


def _play(stage: _Stage, seconds: int) -> Outcome:
    console = stage.console
    console.print(f"[bold]Barnraise demo[/]: three peers and a monitor on this machine; everything lies in {stage.out}")
    stage.step("making the run: its text and version 0 of the model")
    _make_run(stage, local_steps=12 if seconds < 90 else 20)
    stage.step("starting three peers: each loads torch and hivemind, some 10 to 40 s together")
    for number in (1, 2, 3):
        _start_peer(stage, number)
        if number == 1:
            _wait(stage, "peer-1 is in the network", START_TIMEOUT_S, lambda: stage.records()[0].started)
    stage.step("")
    _start_monitor(stage)
    _wait(stage, "all three peers", START_TIMEOUT_S, lambda: all(record.started for record in stage.records()))
    stage.invite = _everyones_invite(stage)
    _wait(stage, "the first commit", START_TIMEOUT_S, lambda: stage.version() >= 1)
    began = time.monotonic()
    _wait_seconds(stage, seconds / 2)
    killed_at = stage.version()
    victim = _leader_name(stage)
    stage.say(f"SIGKILL for {victim}, which leads the swarm, at version {killed_at}; peer-4 joins")
    stage.peers[victim].stop(signal.SIGKILL)
    _start_peer(stage, 4)
    newcomer = stage.peers["peer-4"]
    _wait(
        stage,
        "a commit that lists peer-4",
        COMMIT_TIMEOUT_S,
        lambda: newcomer.popen.poll() is None and any(one.lists_newcomer for one in stage.records()),
    )
    _wait_seconds(stage, max(0.0, seconds - (time.monotonic() - began)))
    at_end = stage.version()
    _wait(stage, "the next checkpoint", COMMIT_TIMEOUT_S, lambda: _newest_checkpoint(stage) > at_end)
    checkpoint = stage.out / "checkpoint"
    stage.say(f"pulling version {_newest_checkpoint(stage)} from the peers")
    _pull(stage, checkpoint)
    trained_s = time.monotonic() - began
    traffic = _traffic(stage)
    if stage.monitor is not None:
        stage.monitor.stop(signal.SIGINT)
    leaving = {name: process for name, process in stage.peers.items() if name != victim}
    for process in leaving.values():  # all at once, as a room empties
        process.ask_to_leave()
    codes = {name: process.stop() for name, process in leaving.items()}
    config = Manifest.from_bytes((stage.out / "run.manifest").read_bytes()).config
    cache = stage.out / "data" / "cache"
    played = Played(victim, killed_at, codes, trained_s, checkpoint, config.data, cache, traffic)
    return judge(stage.records(), played)


def _make_run(stage: _Stage, local_steps: int) -> None:
    config = stage.out / "run.toml"
    config.write_text(CONFIG.format(local_steps=local_steps))
    command = [*_BARNRAISE, "new", str(config), "-o", str(stage.out / "run.manifest")]
    command += ["--home", str(stage.out / "peer-1"), "--local"]
    made = subprocess.run(
        command,
        env=stage.environment(),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    words = made.stdout.split()
    if made.returncode != 0 or "invite" not in words:
        raise StateError(f"the run could not be made: {made.stderr.strip() or made.stdout.strip()}")
    stage.invite = words[words.index("invite") + 1]


def _everyones_invite(stage: _Stage) -> str:
    """One invite with every peer's address: it is good as long as any of them lives."""
    own = Invite.parse(stage.invite)
    printed = [
        Invite.parse(line.split("--join ")[1].split()[0])
        for name in stage.peers
        for line in (stage.out / f"{name}.log").read_text().splitlines()
        if "--join barnraise1-" in line
    ]
    addresses = dict.fromkeys(address for invite in (own, *printed) for address in invite.addresses)
    return Invite(own.run, tuple(addresses)).encode()


def _start_peer(stage: _Stage, number: int) -> None:
    name = f"peer-{number}"
    command = [*_BARNRAISE, "peer", "--home", str(stage.out / name), "--name", name, "--local"]
    command += ["--device", "cpu", "--json-events", str(stage.out / f"{name}.events.jsonl")]
    command += [] if number == 1 else ["--join", stage.invite]
    log = open(stage.out / f"{name}.log", "wb")  # noqa: SIM115  closed by _Process.stop
    popen = subprocess.Popen(
        command, env=stage.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl+C in this terminal is ours to pass on
    )  # fmt: skip
    stage.peers[name] = _Process(name, popen, log)


def _start_monitor(stage: _Stage) -> None:
    """The monitor draws on our terminal, or writes its lines into our pipe."""
    command = [sys.executable, "-m", "coordinator", "monitor", stage.invite, "--home", str(stage.out / "monitor")]
    if stage.console.is_terminal:
        stage.notes.touch()
        command += ["--notes", str(stage.notes)]
    log = open(stage.out / "monitor.log", "wb")  # noqa: SIM115  closed by _Process.stop
    popen = subprocess.Popen(command, env=stage.environment(), stdin=subprocess.DEVNULL, stderr=log)
    stage.monitor = _Process("monitor", popen, log)


def _pull(stage: _Stage, target: Path) -> None:
    command = [sys.executable, "-m", "coordinator", "pull", str(target), "--invite", stage.invite]
    command += ["--home", str(stage.out / "maintainer")]
    pulled = subprocess.run(
        command, env=stage.environment(), capture_output=True, text=True, timeout=PULL_TIMEOUT_S, check=False
    )
    (stage.out / "pull.log").write_text(pulled.stdout + pulled.stderr)
    if pulled.returncode != 0:
        raise StateError(f"the checkpoint could not be pulled: {pulled.stderr.strip() or pulled.stdout.strip()}")


def _traffic(stage: _Stage) -> dict[str, tuple[int, int]]:
    """Bytes up and down by peer's name, as the peers count them, from one look at the swarm."""
    command = [sys.executable, "-m", "coordinator", "status", "--json", "--invite", stage.invite]
    command += ["--home", str(stage.out / "maintainer")]
    looked = subprocess.run(
        command, env=stage.environment(), capture_output=True, text=True, timeout=PULL_TIMEOUT_S, check=False
    )
    if looked.returncode != 0:
        raise StateError(f"nobody could look at the swarm: {looked.stderr.strip()}")
    return {peer["name"]: (peer["up_bytes"], peer["down_bytes"]) for peer in json.loads(looked.stdout)["peers"]}


def _wait(stage: _Stage, what: str, timeout_s: float, happened: object) -> None:
    """Waits until `happened()`; raises StateError when it takes too long or a peer that should live has ended."""
    assert callable(happened)
    deadline = time.monotonic() + timeout_s
    while not happened():
        _check_alive(stage)
        if time.monotonic() > deadline:
            raise StateError(f"{what}: did not come within {timeout_s:.0f} s; the logs are in {stage.out}")
        time.sleep(0.2)


def _wait_seconds(stage: _Stage, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _check_alive(stage)
        time.sleep(0.2)


def _check_alive(stage: _Stage) -> None:
    for name, process in stage.peers.items():
        code = process.popen.poll()
        if code is not None and code != -signal.SIGKILL:
            raise StateError(f"{name} ended with {code}; see {stage.out / (name + '.log')}")
    code = None if stage.monitor is None else stage.monitor.popen.poll()
    if code == NOBODY_READS:  # it writes where we do
        raise BrokenPipeError
    if code is not None:
        raise StateError(f"the monitor ended with {code}; see {stage.out / 'monitor.log'}")


def _leader_name(stage: _Stage) -> str:
    """Who issued the last commit."""
    records = stage.records()
    leader = max(records, key=lambda record: record.version).leader
    return next((record.name for record in records if record.peer == leader), records[-1].name)


def _newest_checkpoint(stage: _Stage) -> int:
    return max((record.checkpoint for record in stage.records()), default=0)


def _show_logs(stage: _Stage) -> None:
    for path in sorted(stage.out.glob("*.log")):
        tail = path.read_text(errors="replace").splitlines()[-5:]
        if tail:
            print(f"--- {path.name}", *tail, sep="\n", file=sys.stderr)
