"""`make sigstop`: one of four peers freezes in mid-exchange; how long until the others' round ends. At the demo's size.

    python -m tests.system.sigstop --times 50 --json FILE

Each time the peers are told to freeze: whoever is the first to ask for or serve a chunk after its own cut stops itself by
SIGSTOP, at that very point. The time runs from there until the last of the other three tells of the commit. Then the frozen
one is thawed, and it begins again once a commit has listed all four.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
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
from tests.system.swarm_of_processes import PeerProcess, SwarmOfProcesses, assert_one_state

NAMES = ("p1", "p2", "p3", "p4")
ROLES = ("member", "leader")  # in turn
LIMIT_S = 10.0
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


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C: nothing may be left behind
    freezes: list[Freeze] = []
    folder = Path(tempfile.mkdtemp(prefix="barnraise-sigstop-"))
    print(f"the peers' homes and events are in {folder}", flush=True)
    with _four_peers(folder) as swarm:
        with contextlib.suppress(KeyboardInterrupt):
            for number in range(options.times):
                freeze = _freeze(swarm, number)
                freezes.append(freeze)
                print(
                    f"{number + 1:>3}  {freeze.role:<7} version {freeze.version:<4} round ended after"
                    f" {freeze.seconds:4.1f} s ({freeze.last_cut_s:4.1f} s of it to the last cut),"
                    f" {freeze.listed} listed, {freeze.views} views, {freeze.caught_up} caught up  load {freeze.load:.1f}",
                    flush=True,
                )
        assert_one_state(*swarm.peers.values())
    shutil.rmtree(folder)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(freeze) for freeze in freezes], indent=1) + "\n")
    return _sum_up(freezes, options.times)


def _sum_up(freezes: Sequence[Freeze], times: int) -> int:
    seconds = [freeze.seconds for freeze in freezes]
    below = sum(one < LIMIT_S for one in seconds)
    if seconds:
        print(f"min {min(seconds):.1f} s, median {statistics.median(seconds):.1f} s, max {max(seconds):.1f} s")
    print(f"{len(seconds)} times, {below} below {LIMIT_S:.0f} s")
    return 0 if below == times else 1


@contextlib.contextmanager
def _four_peers(folder: Path) -> Iterator[SwarmOfProcesses]:
    config = CONFIG.format(local_steps=12).replace("min_peers = 3", "min_peers = {min_peers}")
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
    for peer in peers:
        partial = swarm.folder / f"{peer.name}.order-part"
        partial.write_text(str(Fault("exchange", "stop", marker, version, role)))
        partial.replace(_orders(swarm, peer.name))
    mark = _wait_mark(marker)
    for peer in peers:
        _orders(swarm, peer.name).unlink(missing_ok=True)
    victim = next(peer for peer in peers if peer.process.pid == mark.pid)
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


def _commit(peer: PeerProcess, mark: Mark) -> dict[str, object] | None:
    """How a peer tells of the end of the round in which it happened."""
    told = peer.events("RoundCommitted", "CaughtUp")
    return next((one for one in told if one["version"] > mark.version and one["at_unix_s"] > mark.at_unix_s), None)


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
    parser.add_argument("--times", type=int, default=50, metavar="N", help="how often")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each time's figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
