"""One cell, from a swarm that is well to a swarm that is well again, and what must hold in between.

settle -> order -> mark (it did happen) -> the fault -> the others go on -> the end of the fault -> the victim is listed
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from peer.fault_point import Mark
from tests.system.chaos.arena import JOINER, MONITOR, Arena, until
from tests.system.chaos.cells import DAEMON, KILL, LINK, STOP, STOP_ALL, Cell
from tests.system.chaos.rounds import Round, rounds_since
from tests.system.swarm_of_processes import PeerProcess, assert_one_state, assert_versions_grow, wait_listed

STOPPED_S = 20.0
CUT_S = 10.0
ROUNDS_BETWEEN = 2  # that the others finish before a killed peer comes back
_DEED = {KILL: "kill", STOP: "stop", STOP_ALL: "stop-all", DAEMON: "kill-p2pd", LINK: "stop"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen of a cell that held."""

    mark: Mark
    victim: str
    seconds: float
    longest: Round
    rounds: int  # of the survivors, from the fault to the end


@dataclass(frozen=True, slots=True)
class _Before:
    """What the survivors had told when the order was given."""

    survivors: tuple[PeerProcess, ...]
    seen: dict[str, int]


def try_cell(arena: Arena, cell: Cell) -> Outcome:
    """Raises AssertionError, with what did not hold."""
    began_s = time.monotonic()
    leader = arena.settle()
    match cell.role:
        case "joiner" | "donor":
            mark, victim, before = _with_a_newcomer(arena, cell)
        case "monitor":
            mark, victim, before = _with_a_monitor(arena, cell, leader)
        case _:
            mark, victim, before = _among_three(arena, cell)
    rounds = [one for peer in before.survivors for one in _rounds(peer, before, mark)]
    late = [one for one in rounds if one.is_late]
    assert not late, f"rounds past their deadline: {late}"
    assert rounds, "the survivors finished no round after the fault"
    known = [peer for peer in arena.swarm.peers.values() if peer.events("PeerStarted")]
    assert_one_state(*known)
    for peer in known:
        assert_versions_grow(peer)
        assert "Traceback" not in peer.err, peer.err
    arena.assert_no_remains()
    return Outcome(mark, victim, time.monotonic() - began_s, max(rounds, key=lambda one: one.seconds), len(rounds))


# -------------------------------------------------------------------- the stages


def _among_three(arena: Arena, cell: Cell) -> tuple[Mark, str, _Before]:
    """A leader, a member, or the peer whose address the others' invite had."""
    if cell.role == "bootstrap":
        candidates: Sequence[PeerProcess] = arena.peers[:1]
    elif cell.fault == DAEMON:
        candidates = [peer for peer in arena.peers if arena.may_lose_daemon(peer)]
    else:
        candidates = arena.peers
    seen = _seen(arena)
    role = "" if cell.role == "bootstrap" else cell.role
    marker = arena.order(candidates, cell.phase, _DEED[cell.fault], role)
    mark, victim = arena.wait_mark(marker, candidates)
    before = _before(arena, seen, victim)
    _suffer(arena, cell.fault, mark, victim, before)
    wait_listed(victim, list(before.survivors))
    return mark, victim.name, before


def _with_a_newcomer(arena: Arena, cell: Cell) -> tuple[Mark, str, _Before]:
    """A fourth peer joins by a snapshot: it is hit, or one of those whose state it fetches."""
    newcomer = arena.newcomer()
    seen = _seen(arena)
    candidates: Sequence[PeerProcess] = [newcomer] if cell.role == "joiner" else arena.peers
    marker = arena.order(candidates, cell.phase, _DEED[cell.fault], cell.role)
    newcomer.start("--join", arena.invite())
    mark, victim = arena.wait_mark(marker, candidates)
    before = _before(arena, seen, victim)
    _suffer(arena, cell.fault, mark, victim, before)
    wait_listed(victim, list(before.survivors))
    if victim is not newcomer:
        assert newcomer.wait_event("CaughtUp")["version"] > 0
        wait_listed(newcomer, list(before.survivors))
    newcomer.stop()
    return mark, victim.name, before


def _with_a_monitor(arena: Arena, cell: Cell, leader: str) -> tuple[Mark, str, _Before]:
    """The monitor is hit while a member is held at the phase; no peer may notice."""
    monitor = arena.monitor
    if not monitor.is_running:
        monitor.start(arena.invite())
    monitor.wait_sees(0, len(arena.peers))
    members = [peer for peer in arena.peers if peer.name != leader]
    seen = _seen(arena)
    marker = arena.order(members, cell.phase, _DEED[STOP], "")
    mark, held = arena.wait_mark(marker, members)
    before = _Before(arena.peers, seen)
    if cell.fault == LINK:
        assert arena.links is not None
        arena.links.cut(MONITOR)
    else:
        os.kill(monitor.process.pid, signal.SIGKILL if cell.fault == KILL else signal.SIGSTOP)
    arena.thaw(held)
    _wait_rounds(arena, before)
    if cell.fault == KILL:
        monitor.process.wait()
        monitor.start(arena.invite())
    else:
        _wait_until(mark.at_unix_s + (CUT_S if cell.fault == LINK else STOPPED_S))
        if cell.fault == LINK:
            assert arena.links is not None
            arena.links.heal(MONITOR)
        else:
            os.kill(monitor.process.pid, signal.SIGCONT)
    monitor.wait_sees(max(peer.version for peer in arena.peers), len(arena.peers))
    return mark, MONITOR, before


# -------------------------------------------------------------------- the faults


def _suffer(arena: Arena, fault: str, mark: Mark, victim: PeerProcess, before: _Before) -> None:
    """From the mark to the end of the fault; the others go on meanwhile."""
    match fault:
        case "kill":
            arena.swarm.killed.add(mark.pid)
            assert victim.process.wait(30) == -signal.SIGKILL
            _wait_rounds(arena, before)
            victim.start(*_again(arena, victim))
        case "stop" | "stop-all":
            _wait_rounds(arena, before)
            _wait_until(mark.at_unix_s + STOPPED_S)
            arena.thaw(victim)
        case "kill-p2pd":
            arena.note_daemon_death(victim)
            seen = before.seen.get(victim.name, 0)
            if victim.name == JOINER:  # whose network may not be told of yet
                until("p2pd again", lambda: victim.daemon().is_running() or None)
            else:
                victim.wait_event("DaemonRestarted", after=seen)
            _wait_rounds(arena, before)
        case "link":
            assert arena.links is not None
            arena.links.cut(victim.name)
            arena.thaw(victim)
            try:
                _wait_rounds(arena, before)
                _wait_until(mark.at_unix_s + CUT_S)
            finally:
                arena.links.heal(victim.name)
        case _:
            raise AssertionError(f"no such fault: {fault}")


def _again(arena: Arena, victim: PeerProcess) -> tuple[str, ...]:
    """How a killed peer is started: one that had just come joins again, the others resume."""
    return ("--join", arena.invite()) if victim.name == JOINER else ()


def _wait_until(unix_s: float) -> None:
    """The one wait for time itself: a fault lasts as long as it is said to last."""
    time.sleep(max(0.0, unix_s - time.time()))


# -------------------------------------------------------------------- the others


def _seen(arena: Arena) -> dict[str, int]:
    return {peer.name: len(peer.events()) for peer in arena.swarm.peers.values()}


def _before(arena: Arena, seen: dict[str, int], victim: PeerProcess) -> _Before:
    return _Before(tuple(peer for peer in arena.peers if peer is not victim), seen)


def _wait_rounds(arena: Arena, before: _Before) -> None:
    """Until each survivor has finished some more rounds than it had."""
    for peer in before.survivors:
        seen = len(peer.events())

        def enough(peer: PeerProcess = peer, seen: int = seen) -> bool | None:
            return len(arena.told_of_round(peer, seen)) >= ROUNDS_BETWEEN or None

        peer.wait(f"{ROUNDS_BETWEEN} rounds after the fault", enough)


def _rounds(peer: PeerProcess, before: _Before, mark: Mark) -> list[Round]:
    """That ended after the fault. The first began before it."""
    events = peer.events()
    first = max(0, before.seen[peer.name] - 200)  # far enough to see its beginning
    return rounds_since(events[first:], mark.at_unix_s)
