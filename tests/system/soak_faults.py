"""What a soak does to its peers: drawn from a seed, carried out on real processes, taken back again.

    up --kill--> down --start--> starting --PeerStarted--> up        up --leave--> leaving --ends--> down or gone
    up --freeze--> frozen --thaw--> up                               up --its p2pd is killed--> up

What is gone for good is replaced by a newcomer with a home and a key of its own. Unless asked otherwise, no fault takes the
majority of the newest roster: without one a swarm waits, by design, for as long as an outage may last.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

import psutil

from swarm.invite import Invite
from tests.system.soak_leaks import daemon_of
from tests.system.soak_story import Fault, Story
from tests.system.swarm_of_processes import PeerProcess, SwarmOfProcesses

LONGEST_LEAVE_S: Final = 15.0  # 5 s are promised on an idle machine
LONGEST_START_S: Final = 120.0
BACK_AFTER_S: Final = (0.5, 20.0)
FROZEN_FOR_S: Final = (1.0, 30.0)
DAEMON_REST_S: Final = 40.0  # the third death of a daemon within a minute ends its peer, as it should
_RETRY_S: Final = 1.0  # when what was drawn may not be done now
_WEIGHTS: Final = {
    "kill": 8,
    "freeze": 4,
    "freeze with its p2pd": 2,
    "kill p2pd": 3,
    "leave": 3,
    "leave for good": 1,
    "kill for good": 2,
    "kill several": 2,
    "freeze several": 1,
}
_ENDS_A_LIFE: Final = ("kill", "leave")


@dataclass(slots=True)
class Slot:
    """One peer as the soak treats it."""

    peer: PeerProcess
    state: str = "down"
    since_s: float = 0.0
    life: int = 0
    seen_started: int = 0
    daemon_killed_s: float = -1e9
    comes_back: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of the faults."""

    seed: int
    mean_life_s: float
    spared: frozenset[str] = frozenset()  # never killed nor asked to leave; frozen like others
    beyond_majority: bool = False
    everyone: bool = False  # now and then all are killed at once


class Faults:
    """Call `tick` often; it never waits for long."""

    def __init__(self, swarm: SwarmOfProcesses, story: Story, plan: Plan) -> None:
        self.done: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.slots: dict[str, Slot] = {}
        self.broken: list[str] = []  # what went wrong with processes
        self.is_quiet = True  # no new faults
        self._swarm = swarm
        self._story = story
        self._plan = plan
        self._chance = random.Random(f"soak/{plan.seed}")
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._next_s: float | None = None

    # ---------------------------------------------------------------- starting

    def found(self, name: str) -> None:
        """The first peer of the run."""
        self._swarm.found(name)
        self._note_start(name)

    def newcomer(self) -> str:
        """A peer that was never here joins; returns its name."""
        name = f"p{len(self.slots) + 1}"
        self._swarm.join(name, self.invite())
        self._note_start(name)
        return name

    def _replace(self) -> None:
        self.newcomer()

    def invite(self) -> str:
        """One invite with the addresses of all who run, so that it is good as long as any of them lives."""
        printed = (
            re.search(r"barnraise1-[a-z2-7]+", slot.peer.out) for slot in self.slots.values() if slot.peer.is_running
        )
        parsed = [Invite.parse(one.group()) for one in printed if one is not None]
        own = dict.fromkeys(one.addresses[0] for one in parsed)  # the others in it may be gone by now
        return Invite(parsed[0].run, tuple(own)[:16]).encode()

    def _note_start(self, name: str) -> None:
        slot = self.slots.setdefault(name, Slot(self._swarm.peer(name)))
        slot.life += 1
        slot.seen_started = self._story.peer(name).started
        self._enter(slot, "starting")

    def _start_again(self, slot: Slot) -> None:
        for path in (slot.peer.out_path, slot.peer.err_path):
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(f"{path.stem}.{slot.life}{path.suffix}"))
        slot.peer.start()
        self._note_start(slot.peer.name)

    def running(self) -> list[Slot]:
        return [slot for slot in self.slots.values() if slot.peer.is_running]

    # ---------------------------------------------------------------- time

    def tick(self) -> None:
        """Carries out what is due, notices what ended, and draws the next fault."""
        now_s = time.time()
        while self._due and self._due[0][0] <= now_s:
            heapq.heappop(self._due)[2]()
        for slot in self.slots.values():
            self._look_at(slot, now_s)
        if self.is_quiet:
            self._next_s = None
            return
        if self._next_s is None:
            up = max(1, sum(slot.state == "up" for slot in self.slots.values()))
            self._next_s = now_s + self._chance.expovariate(up / self._plan.mean_life_s)
        if now_s >= self._next_s:
            self._next_s = None if self._draw(now_s) else now_s + _RETRY_S

    def thaw_all(self) -> None:
        """Before the end: who is stopped could not be asked to end."""
        for slot in self.slots.values():
            if slot.state == "frozen":
                self._continue(slot)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.time() + seconds, next(self._numbers), action))

    def _enter(self, slot: Slot, state: str) -> None:
        slot.state, slot.since_s = state, time.time()

    def _look_at(self, slot: Slot, now_s: float) -> None:
        name, ended = slot.peer.name, not slot.peer.is_running
        in_state_s = now_s - slot.since_s
        match slot.state:
            case "starting" | "up" | "frozen" if ended:
                self.broken.append(f"{name} ended by itself while {slot.state}: {slot.peer.story()}")
                self._enter(slot, "down")
                self._later(5.0, lambda: self._start_again(slot))
            case "starting" if self._story.peer(name).started > slot.seen_started:
                self._enter(slot, "up")
            case "starting" if in_state_s > LONGEST_START_S:
                self.broken.append(f"{name} did not start within {LONGEST_START_S:.0f} s: {slot.peer.story()}")
                slot.peer.kill()
                self._enter(slot, "down")
                self._later(5.0, lambda: self._start_again(slot))
            case "leaving" if ended:
                if slot.peer.wait_ended() != 0:
                    self.broken.append(f"{name} was asked to leave: {slot.peer.story()}")
                self._after_its_end(slot)
            case "leaving" if in_state_s > LONGEST_LEAVE_S:
                self.broken.append(f"{name} did not leave within {LONGEST_LEAVE_S:.0f} s: {slot.peer.story()}")
                slot.peer.kill()
                self._after_its_end(slot)

    def _after_its_end(self, slot: Slot) -> None:
        wait_s = self._chance.uniform(*BACK_AFTER_S)
        if slot.comes_back:
            self._enter(slot, "down")
            self._later(wait_s, lambda: self._start_again(slot))
        else:
            self._enter(slot, "gone")
            self._later(wait_s, self._replace)

    # ---------------------------------------------------------------- faults

    def _draw(self, now_s: float) -> bool:
        """Draws a fault and does it; False when none of that kind may be done now."""
        if self._plan.everyone and self._chance.random() < 0.03:
            return self._do("kill everyone", [slot for slot in self.slots.values() if slot.state == "up"])
        kind = self._chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        able = [slot for slot in self.slots.values() if slot.state == "up" and self._may(kind, slot, now_s)]
        self._chance.shuffle(able)
        wanted = self._chance.randint(2, max(2, len(self.slots) // 2)) if kind.endswith("several") else 1
        for number in range(wanted, min(wanted, 2) - 1, -1):
            victims = able[:number]
            if len(victims) == number and (self._plan.beyond_majority or self._keeps_majority(victims)):
                return self._do(kind, victims)
        return False

    def _may(self, kind: str, slot: Slot, now_s: float) -> bool:
        if kind.startswith(_ENDS_A_LIFE) and kind != "kill p2pd" and slot.peer.name in self._plan.spared:
            return False
        return kind != "kill p2pd" or now_s - slot.daemon_killed_s > DAEMON_REST_S

    def _keeps_majority(self, victims: list[Slot]) -> bool:
        """Whether most of the newest roster is well without these."""
        newest = self._story.newest
        well = {
            self._story.peer(slot.peer.name).peer
            for slot in self.slots.values()
            if slot.state == "up" and slot not in victims and self._story.peer(slot.peer.name).version >= newest - 1
        }
        return 2 * len(well & set(self._story.roster)) > len(self._story.roster)

    def _do(self, kind: str, victims: list[Slot]) -> bool:
        fault = Fault(time.time(), kind, tuple(slot.peer.name for slot in victims))
        self.done.append(fault)
        self.counts[kind] += 1
        for slot in victims:
            slot.comes_back = not kind.endswith("for good")
            if kind == "kill p2pd":
                self._kill_daemon(slot)
            elif kind.startswith("kill"):
                slot.peer.kill()
                self._after_its_end(slot)
            elif kind.startswith("leave"):
                slot.peer.signal(signal.SIGINT)
                self._enter(slot, "leaving")
            else:
                self._freeze(slot, fault, with_daemon="p2pd" in kind)
        return bool(victims)

    def _kill_daemon(self, slot: Slot) -> None:
        slot.daemon_killed_s = time.time()
        with contextlib.suppress(psutil.Error):
            daemon = daemon_of(psutil.Process(slot.peer.process.pid))
            if daemon is not None:
                daemon.kill()

    def _freeze(self, slot: Slot, fault: Fault, *, with_daemon: bool) -> None:
        self._enter(slot, "frozen")
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(slot.peer.process.pid)
            daemon = daemon_of(process) if with_daemon else None
            for one in (process, daemon):
                if one is not None:
                    one.suspend()

        def thaw() -> None:
            if slot.state == "frozen":
                self._continue(slot)
                fault.until_s = time.time()

        self._later(self._chance.uniform(*FROZEN_FOR_S), thaw)

    def _continue(self, slot: Slot) -> None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(slot.peer.process.pid)
            for one in (daemon_of(process), process):
                if one is not None:
                    one.resume()
        self._enter(slot, "up")
