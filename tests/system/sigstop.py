"""`make sigstop`: one of four peers freezes, its p2pd lives on; how long until the others have a commit.

    python -m tests.system.sigstop --times 50 --json FILE
    python -m tests.system.sigstop --leader --times 20

In mid-exchange, at the demo's size: the peers are told to freeze, and whoever is the first to ask for or serve a chunk after
its own cut stops itself by SIGSTOP, at that very point. The time runs until the last of the other three tells of the commit.

With `--leader`, in rounds as short as can be, the leader is stopped: at any moment of its round, soon after its cut, or when
one of the others has been told of its commit, in turn. The time runs to the next commit that all others tell of, which may
have been on its way, and to the one after it, which they have to make alone.

Then the frozen one is thawed, and it begins again once a commit has listed all four.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from peer.demo import CONFIG
from peer.fault_point import FAULT_ENV, Fault, Mark
from tests.system.launcher import POLL_S, Launcher
from tests.system.swarm_of_processes import (
    EXCHANGE_DEADLINE_S,
    SMALLEST,
    TRAIN_DEADLINE_S,
    Json,
    PeerProcess,
    SwarmOfProcesses,
    assert_one_state,
)
from tests.system.swarm_of_processes import LEADER_TIMEOUT_S as SHORT_TIMEOUT_S

NAMES = ("p1", "p2", "p3", "p4")
ROLES = ("member", "leader")  # in turn
MOMENTS = ("any", "cut", "commit")  # of the leader's round, in turn
SOON_S = 0.3  # after the leader's cut: while its blob is on the way to the others
LIMIT_S = 10.0
LEADER_TIMEOUT_S = 8.0
HEARTBEAT_S = 1.0
LEADER_LIMIT_S = LEADER_TIMEOUT_S + TRAIN_DEADLINE_S + EXCHANGE_DEADLINE_S  # until it is given up, and one round
GENEROUS_S = 120.0


@dataclass(frozen=True, slots=True)
class Freeze:
    """One time."""

    role: str
    phase: str
    version: int
    last_cut_s: float  # until the last of the others had cut: they may still train when the first begins to exchange
    seconds: float  # until the last of the others told of the commit
    views: int  # leaders given up
    listed: int  # contributions in the commit
    caught_up: int  # of the others: how many came to the head by the log instead
    load: float

    def __str__(self) -> str:
        return (
            f"{self.role:<7} version {self.version:<4} round ended after {self.seconds:4.1f} s"
            f" ({self.last_cut_s:4.1f} s of it to the last cut), {self.listed} listed, {self.views} views,"
            f" {self.caught_up} caught up  load {self.load:.1f}"
        )


@dataclass(frozen=True, slots=True)
class LeaderFreeze:
    """One time with `--leader`."""

    moment: str
    version: int  # the newest that anybody had told of, or that the leader stood at
    round_s: float  # median of the last rounds before
    seconds: float  # until the last of the others told of a version above that
    seconds_alone: float  # and of one above that
    views: int  # that the others turned to meanwhile: the most of one of them
    caught_up: int  # of the others: how often one came to a head by the log instead
    load: float

    def __str__(self) -> str:
        return (
            f"{self.moment:<6} version {self.version:<4} next commit after {self.seconds:4.1f} s,"
            f" one more after {self.seconds_alone:4.1f} s, {self.views} views, {self.caught_up} caught up"
            f"  rounds of {self.round_s:.1f} s  load {self.load:.1f}"
        )


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C: nothing may be left behind
    freeze = _freeze_leader if options.leader else _freeze
    freezes: list[Freeze | LeaderFreeze] = []
    folder = Path(tempfile.mkdtemp(prefix="barnraise-sigstop-"))
    print(f"the peers' homes and events are in {folder}", flush=True)
    with _four_peers(folder, _short_rounds() if options.leader else _demo_rounds()) as swarm:
        with contextlib.suppress(KeyboardInterrupt):
            for number in range(options.times):
                freezes.append(freeze(swarm, number))
                print(f"{number + 1:>3}  {freezes[-1]}", flush=True)
        assert_one_state(*swarm.peers.values())
    shutil.rmtree(folder)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in freezes], indent=1) + "\n")
    if not options.leader:
        return _sum_up("", [one.seconds for one in freezes], options.times, LIMIT_S)
    alone = [one.seconds_alone for one in freezes if isinstance(one, LeaderFreeze)]
    return max(
        _sum_up("to the next commit: ", [one.seconds for one in freezes], options.times, LEADER_LIMIT_S),
        _sum_up("to the one after it: ", alone, options.times, LEADER_LIMIT_S),
    )


def _sum_up(what: str, seconds: Sequence[float], times: int, limit_s: float) -> int:
    below = sum(one < limit_s for one in seconds)
    if seconds:
        print(f"{what}min {min(seconds):.1f} s, median {statistics.median(seconds):.1f} s, max {max(seconds):.1f} s")
    print(f"{len(seconds)} times, {below} below {limit_s:.0f} s")
    return 0 if below == times else 1


def _demo_rounds() -> str:
    return CONFIG.format(local_steps=12).replace("min_peers = 3", "min_peers = {min_peers}")


def _short_rounds() -> str:
    patient = SMALLEST.replace("heartbeat_s = 0.3", f"heartbeat_s = {HEARTBEAT_S}")
    return patient.replace(f"leader_timeout_s = {SHORT_TIMEOUT_S}", f"leader_timeout_s = {LEADER_TIMEOUT_S}")


@contextlib.contextmanager
def _four_peers(folder: Path, config: str) -> Iterator[SwarmOfProcesses]:
    (folder / "swarm").mkdir()
    (folder / "launcher").mkdir()
    with contextlib.closing(Launcher(folder / "launcher")) as launcher:
        with SwarmOfProcesses(folder / "swarm", launcher, min_peers=len(NAMES), config=config) as swarm:
            for name in NAMES:
                swarm.peer(name).environment = {FAULT_ENV: f"orders={_orders(swarm, name)}"}
            invite = swarm.found(NAMES[0]).invite()
            for name in NAMES[1:]:
                swarm.join(name, invite)
            try:
                yield swarm
            finally:
                for peer in swarm.peers.values():
                    if peer.is_running:
                        peer.signal(signal.SIGCONT)


def _orders(swarm: SwarmOfProcesses, name: str) -> Path:
    return swarm.folder / f"{name}.order"


def _freeze(swarm: SwarmOfProcesses, number: int) -> Freeze:
    peers = list(swarm.peers.values())
    _settle(peers)
    role, marker = ROLES[number % len(ROLES)], swarm.folder / f"mark-{number}"
    version = max(peer.version for peer in peers) + 1
    seen = {peer.name: len(peer.events()) for peer in peers}
    victim, mark = _stop_by_order(swarm, Fault("exchange", "stop", marker, version, role))
    others = [peer for peer in peers if peer is not victim]
    commits = [
        other.wait(f"commit of version {mark.version + 1}", lambda o=other: _commit(o, mark)) for other in others
    ]  # type: ignore[misc]
    victim.signal(signal.SIGCONT)
    news = [event for other in others for event in other.events()[seen[other.name] :]]
    cuts = [one["at_unix_s"] for one in news if one["event"] == "CutMade" and one["version"] == mark.version]
    views = [
        one for one in others[0].events()[seen[others[0].name] :]
        if one["event"] == "ViewChanged" and mark.at_unix_s <= one["at_unix_s"] <= commits[0]["at_unix_s"]
    ]  # fmt: skip
    return Freeze(
        role=mark.role,
        phase=mark.phase,
        version=mark.version,
        last_cut_s=max(0.0, max(cuts, default=0.0) - mark.at_unix_s),
        seconds=max(one["at_unix_s"] for one in commits) - mark.at_unix_s,
        views=len(views),
        listed=max(len(one.get("listed", ())) for one in commits),
        caught_up=sum(one["event"] == "CaughtUp" for one in commits),
        load=os.getloadavg()[0],
    )


def _stop_by_order(swarm: SwarmOfProcesses, fault: Fault) -> tuple[PeerProcess, Mark]:
    """Who has stopped itself, as all were told to, and its mark."""
    peers = list(swarm.peers.values())
    for peer in peers:
        partial = swarm.folder / f"{peer.name}.order-part"
        partial.write_text(str(fault))
        partial.replace(_orders(swarm, peer.name))
    mark = _wait_mark(fault.marker)
    for peer in peers:
        _orders(swarm, peer.name).unlink(missing_ok=True)
    return next(peer for peer in peers if peer.process.pid == mark.pid), mark


def _commit(peer: PeerProcess, mark: Mark) -> dict[str, object] | None:
    """How a peer tells of the end of the round in which it happened."""
    told = peer.events("RoundCommitted", "CaughtUp")
    return next((one for one in told if one["version"] > mark.version and one["at_unix_s"] > mark.at_unix_s), None)


def _freeze_leader(swarm: SwarmOfProcesses, number: int) -> LeaderFreeze:
    peers = list(swarm.peers.values())
    _settle(peers)
    round_s = statistics.median(one["duration_s"] for one in peers[0].events("RoundCommitted")[-8:])
    seen = {peer.name: len(peer.events()) for peer in peers}
    moment = MOMENTS[number % len(MOMENTS)]
    if moment == "commit":
        version, marker = max(peer.version for peer in peers) + 1, swarm.folder / f"mark-{number}"
        victim, mark = _stop_by_order(swarm, Fault("commit-one-told", "stop", marker, version, "leader"))
        version, frozen_s = mark.version, mark.at_unix_s
    else:
        chance = random.Random(number)
        victim = _leader(swarm)
        if moment == "cut":
            victim.wait_event("CutMade", after=seen[victim.name])
        time.sleep(chance.uniform(0.0, SOON_S if moment == "cut" else 2 * round_s))
        victim, frozen_s = _leader(swarm), time.time()
        victim.signal(signal.SIGSTOP)
        version = max(peer.version for peer in peers)
    others = [peer for peer in peers if peer is not victim]
    seconds = _all_reached_s(others, version + 1) - frozen_s
    seconds_alone = _all_reached_s(others, version + 2) - frozen_s
    victim.signal(signal.SIGCONT)
    news = {peer.name: peer.events()[seen[peer.name] :] for peer in others}
    return LeaderFreeze(
        moment=moment,
        version=version,
        round_s=round_s,
        seconds=max(0.0, seconds),
        seconds_alone=max(0.0, seconds_alone),
        views=max(_count(one, "ViewChanged") for one in news.values()),
        caught_up=sum(_count(one, "CaughtUp") for one in news.values()),
        load=os.getloadavg()[0],
    )


def _leader(swarm: SwarmOfProcesses) -> PeerProcess:
    """Who leads: whoever led to the newest head leads on."""
    told = (peer.events("RoundCommitted")[-1] for peer in swarm.peers.values())
    return swarm.by_id(max(told, key=lambda one: one["version"])["leader"])


def _all_reached_s(peers: Sequence[PeerProcess], version: int) -> float:
    """When the last of them told of that version or a later one."""

    def reached_s(peer: PeerProcess) -> float | None:
        told = peer.events("RoundCommitted", "CaughtUp")
        return next((one["at_unix_s"] for one in told if one["version"] >= version), None)

    return max(peer.wait(f"version {version}", lambda p=peer: reached_s(p)) for peer in peers)  # type: ignore[misc]


def _count(events: Sequence[Json], kind: str) -> int:
    return sum(one["event"] == kind for one in events)


def _settle(peers: Sequence[PeerProcess]) -> None:
    """Until a new commit has listed all, as all of them tell."""
    seen = {peer.name: len(peer.events()) for peer in peers}
    for peer in peers:
        peer.wait(
            "commit that lists all four",
            lambda p=peer: (
                any(  # type: ignore[misc]
                    one["event"] == "RoundCommitted" and len(one["listed"]) == len(peers)
                    for one in p.events()[seen[p.name] :]
                )
                or None
            ),
        )


def _wait_mark(marker: Path) -> Mark:
    ends_at = time.monotonic() + GENEROUS_S
    while (mark := Mark.read(marker)) is None:
        assert time.monotonic() < ends_at, f"nobody froze within {GENEROUS_S:g} s"
        time.sleep(POLL_S)
    return mark


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make sigstop", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--leader", action="store_true", help="stop the leader")
    parser.add_argument("--times", type=int, default=50, metavar="N", help="how often")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each time's figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
