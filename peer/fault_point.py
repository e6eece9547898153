"""Faults on purpose, at named points of a peer's work: for tests of what a swarm survives. Off unless BARNRAISE_FAULT is set.

    BARNRAISE_FAULT="phase=fetch;version=3;role=leader;do=kill;marker=/tmp/marks"
    BARNRAISE_FAULT="orders=/tmp/p1.order;pace=0.02"

The first form is one fault: when the phase is reached for the first time at that version or a later one, by a peer in that
role, the marker file is made, as proof, and then this process does it to itself. Of several processes with one marker the
first one does it. The second form reads such faults, one after the other, from a file that may come at any time and is
removed when it is taken up. `pace`: least seconds of an inner
step, so that many peers fit on few cores.

Unset, each point costs one comparison with None.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from swarm.digest import Digest
from swarm.errors import ConfigError
from swarm.messages import Activity, Commit, GetChunk, GetState, StateRecord

if TYPE_CHECKING:
    from swarm.round.participant import Participant

FAULT_ENV: Final = "BARNRAISE_FAULT"
PHASES: Final = {
    "training": "in an inner step: its windows are taken, its tokens not counted",
    "cut-encoded": "a cut is encoded, not saved",
    "cut-saved": "a cut is saved, nobody has heard of it",
    "fetch": "the length and chunk digests of a blob are here, a chunk is about to be asked for",
    "serve": "a chunk has been asked for and is about to be served",
    "exchange": "one of the last two, after the own cut of this round",
    "commit-decided": "a leader has decided a commit and told nobody",
    "commit-alone": "a leader has moved to its own commit, on disk, and told nobody",
    "commit-one-told": "one other peer has been told of the commit",
    "commit-all-told": "everyone has been told of the commit",
    "commit-accepted": "a commit is accepted and its blobs are here; the move has not begun",
    "head-computed": "the new state is computed, not saved",
    "head-saved": "the new head is saved, nobody has heard of it",
    "save-blobs": "the blobs of a generation are written, its file is not",
    "save-done": "a generation's file is written, what is superseded is not removed yet",
}
ROLES: Final = {
    "leader": "leads its head's round",
    "member": "in the roster, and does not lead",
    "joiner": "not in the roster yet, or catching up",
    "donor": "at `serve` alone: the chunk is of a state that this peer reported to somebody who catches up",
}
DEEDS: Final = {
    "kill": "SIGKILL to itself",
    "stop": "SIGSTOP to itself; whoever tests sends SIGCONT. Its p2pd goes on",
    "stop-all": "SIGSTOP to its p2pd and itself, as when a lid is closed",
    "kill-p2pd": "SIGKILL to its p2pd",
    "mark": "nothing but the marker file",
}
_IN_TURN: Final = (
    "commit-alone",
    "commit-one-told",
    "commit-all-told",
)  # for these a commit is sent to one after the other
_SERVED: Final = 256  # roots of reported states that are remembered
_WITHHELD_LOOK_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to happen, once. `role` "": in any."""

    phase: str
    do: str
    marker: Path
    version: int = 0
    role: str = ""

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Raises ConfigError, which names the value and what it may be."""
        words = _words(text, {"phase", "version", "role", "do", "marker"})
        for name, known in (("phase", PHASES), ("do", DEEDS), ("role", ROLES)):
            if name not in words and name != "role":
                raise ConfigError(f"{FAULT_ENV}: {name} is missing; give one of {', '.join(known)}")
            if name in words and words[name] not in known:
                raise ConfigError(f"{FAULT_ENV}: {name}={words[name]!r} is none of {', '.join(known)}")
        version = words.get("version", "0")
        if not (version.isascii() and version.isdecimal()):
            raise ConfigError(f"{FAULT_ENV}: version={version!r} is not a number; give the least version it happens at")
        if not words.get("marker"):
            raise ConfigError(f"{FAULT_ENV}: marker is missing; give the file that is made as proof")
        return cls(words["phase"], words["do"], Path(words["marker"]), int(version), words.get("role", ""))

    def __str__(self) -> str:
        role = f";role={self.role}" if self.role else ""
        return f"phase={self.phase};version={self.version}{role};do={self.do};marker={self.marker}"


@dataclass(frozen=True, slots=True)
class Mark:
    """What the marker file says: the fault that is about to be done."""

    phase: str
    version: int
    role: str
    do: str
    pid: int
    at_unix_s: float

    @classmethod
    def read(cls, path: Path) -> Mark | None:
        """None when there is no file yet, or half of one."""
        text = path.read_text() if path.exists() else ""
        return cls(**json.loads(text)) if text.endswith("\n") else None


@dataclass(slots=True)
class _Armed:
    """What waits to happen in this process. Used by both of its threads."""

    fault: Fault | None
    orders: Path | None
    pace_s: float
    version: int = 0
    role: str = "joiner"
    has_cut: bool = False
    reported: dict[Digest, None] = field(default_factory=dict)  # roots of states that we reported
    commit: Digest | None = None  # the parent of the commit that is being told
    told: int = 0
    telling: int = 0
    in_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def due(self, phase: str, role: str) -> Fault | None:
        """The fault that happens here and now, taken up: it will not be given again."""
        with self.lock:
            fault = self.waiting()
            if fault is None or fault.phase != phase or self.version < fault.version:
                return None
            if fault.role and fault.role not in (role, self.role):
                return None
            if self.orders is not None:
                self.orders.unlink(missing_ok=True)
            self.fault = None
            return fault

    def waiting(self) -> Fault | None:
        if self.orders is None:
            return self.fault
        try:
            return Fault.parse(self.orders.read_text())
        except FileNotFoundError:
            return None

    def reached(self, phase: str, role: str = "") -> None:
        fault = self.due(phase, role)
        if fault is not None:
            _do(fault, Mark(phase, self.version, role or self.role, fault.do, os.getpid(), time.time()))

    async def tell(self, send: Coroutine[Any, Any, None]) -> None:
        """Sends of one commit go out one after the other, so that some may have been told and others not."""
        self.telling += 1
        try:
            async with self.in_turn:
                while self.withholds():  # noqa: ASYNC110  an order is a file, which tells nobody of itself
                    await asyncio.sleep(_WITHHELD_LOOK_S)
                await send
                self.told += 1
        finally:
            self.telling -= 1
        if self.told == 1:
            self.reached("commit-one-told")
        if not self.telling:
            self.reached("commit-all-told")

    def withholds(self) -> bool:
        """Whether a commit is to stay with us until we have moved to it."""
        fault = self.waiting()
        return fault is not None and fault.phase == "commit-alone" and self.version >= fault.version


_armed: _Armed | None = None


def arm(text: str | None) -> None:
    """Takes up the value of the environment variable; None or "" is off. Raises ConfigError for a value that is wrong."""
    global _armed
    _armed = None
    if not text:
        return
    if not text.startswith("orders="):
        _armed = _Armed(Fault.parse(text), None, 0.0)
        return
    words = _words(text, {"orders", "pace"})
    try:
        pace_s = float(words.get("pace", "0"))
    except ValueError:
        raise ConfigError(f"{FAULT_ENV}: pace={words['pace']!r} is not a number of seconds") from None
    if not words["orders"] or not 0.0 <= pace_s <= 60.0:
        raise ConfigError(f"{FAULT_ENV}: orders={words['orders']!r}, pace={pace_s:g}: give a file, and 0 to 60 seconds")
    _armed = _Armed(None, Path(words["orders"]), pace_s)


def reached(phase: str) -> None:
    """This process is at that point now."""
    if _armed is None:
        return
    assert phase in PHASES, phase
    if phase == "training" and _armed.pace_s:
        time.sleep(_armed.pace_s)
    if phase == "head-saved" and _armed.telling:
        _armed.reached("commit-alone")
    if phase == "fetch" and _armed.has_cut:
        _armed.reached("exchange")
    _armed.reached(phase)


def stands(participant: Participant) -> None:
    """Where this peer stands from now on, and in which role."""
    if _armed is None:
        return
    _armed.version = participant.chain.version
    is_member = participant.me.peer in participant.members and not participant.syncing
    _armed.role = ("leader" if participant.is_leader else "member") if is_member else "joiner"
    _armed.has_cut = participant.activity == Activity.PENDING


def serves(message: object, state: StateRecord | None) -> None:
    """This peer is about to answer that request."""
    if _armed is None:
        return
    if isinstance(message, GetState) and state is not None:
        _armed.reported |= dict.fromkeys(unit.root for unit in state.units)
        while len(_armed.reported) > _SERVED:
            del _armed.reported[next(iter(_armed.reported))]
    if isinstance(message, GetChunk):
        if _armed.has_cut:
            _armed.reached("exchange")
        _armed.reached("serve", "donor" if message.root in _armed.reported else "")


def telling(message: object, send: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """The sending of a message to one peer; returns what is to be awaited in its place."""
    if _armed is None or not isinstance(message, Commit):
        return send
    if _armed.commit != message.parent:
        _armed.commit, _armed.told = message.parent, 0
        _armed.reached("commit-decided")
    fault = _armed.waiting()  # only who waits for it sends differently from other peers
    return _armed.tell(send) if fault is not None and fault.phase in _IN_TURN else send


def _do(fault: Fault, mark: Mark) -> None:
    line = json.dumps(asdict(mark)) + "\n"
    try:
        descriptor = os.open(fault.marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return  # somebody else was first
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    if fault.do in ("kill-p2pd", "stop-all"):
        _signal_daemon(signal.SIGKILL if fault.do == "kill-p2pd" else signal.SIGSTOP)
    if fault.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.do in ("stop", "stop-all"):
        # To this very thread, which takes it before it does anything else; it stops the whole process.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _signal_daemon(number: signal.Signals) -> None:
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name() == "p2pd":
                child.send_signal(number)


def _words(text: str, known: set[str]) -> dict[str, str]:
    words: dict[str, str] = {}
    for word in text.strip().split(";"):
        name, separator, value = word.partition("=")
        if not separator or name not in known or name in words:
            raise ConfigError(f"{FAULT_ENV}: {word!r} is not understood; give {', '.join(sorted(known))}, each once")
        words[name] = value
    return words
