"""Two peers train, one is killed (or asked to stop) and started again at once: what that does to the held-out loss.

    python -m tests.system.restart_loss --times 5 --how kill --json FILE

Each time a new swarm of two: it trains, a victim ends (the first peer and the second in turn), is started again after a
second, and both go on. The losses are those that both peers tell of. So small a run swings by half a nat by itself, in
waves of some sixteen versions: the outer momentum. So a time has held when no loss after the end of the victim is more than
LIMIT above the highest of the half minute before it. `--how none` ends nobody.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.system.launcher import POLL_S, Launcher
from tests.system.swarm_of_processes import PeerProcess, SwarmOfProcesses, assert_one_state

CONFIG = """
preset = "tiny"
name = "restart"
seed = 5
[inner]
batch_windows = 1
[data]
sequence_length = 64
eval_windows = 1
[round]
local_steps = 3
train_deadline_s = 8.0
exchange_deadline_s = 5.0
min_peers = {min_peers}
"""
WAYS = {"kill": signal.SIGKILL, "ctrl-c": signal.SIGINT, "none": None}
MEAN_OF = 5  # losses before the end
PEAK_S = 30.0  # before the end: longer than a wave
LIMIT = 0.1  # nats


@dataclass(frozen=True, slots=True)
class Restart:
    """One time."""

    how: str
    victim: str
    version: int  # at the end of the victim
    before: float  # mean of the last losses told before it
    peak: float  # the highest of the last PEAK_S before it
    highest: float  # told afterwards
    highest_at: int  # its version
    last: float
    most_steps: int  # of one contribution cut afterwards
    jumps: int  # `LossJumped` told by either
    versions: int  # reached in all
    load: float
    losses: list[tuple[float, int, float]]  # all of them: seconds since the end, version, loss

    @property
    def rise(self) -> float:
        return self.highest - self.before


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C: nothing may be left behind
    restarts: list[Restart] = []
    with contextlib.suppress(KeyboardInterrupt):
        for number in range(options.times):
            one = _restart(options, ("p1", "p2")[number % 2])
            restarts.append(one)
            print(
                f"{number + 1:>3}  {one.how:<6} {one.victim} at version {one.version:<4} loss {one.before:.3f} before,"
                f" (peak {one.peak:.3f}), at most {one.highest:.3f} after (version {one.highest_at}), {one.last:.3f} in"
                f" the end; {one.most_steps} steps in one contribution, {one.jumps} jumps told, {one.versions} versions"
                f"  load {one.load:.1f}",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) | {"rise": one.rise} for one in restarts], indent=1) + "\n")
    held = sum(one.highest <= one.peak + LIMIT for one in restarts)
    for name, above in (
        ("mean", [one.rise for one in restarts]),
        ("peak", [one.highest - one.peak for one in restarts]),
    ):
        if above:
            print(
                f"above the {name}: min {min(above):+.3f}, median {statistics.median(above):+.3f}, max {max(above):+.3f}"
            )
    print(f"{len(restarts)} times, {held} never more than {LIMIT} above the peak of before")
    return 0 if held == options.times else 1


def _restart(options: argparse.Namespace, name: str) -> Restart:
    how: str = options.how
    folder = Path(tempfile.mkdtemp(prefix="barnraise-restart-"))
    (folder / "swarm").mkdir()
    (folder / "launcher").mkdir()
    with (
        contextlib.closing(Launcher(folder / "launcher")) as launcher,
        SwarmOfProcesses(
            folder / "swarm",
            launcher,
            min_peers=1,
            config=CONFIG.replace("eval_windows = 1", f"eval_windows = {options.eval_windows}"),
        ) as swarm,
    ):
        first = swarm.found("p1")
        swarm.join("p2", first.invite())
        peers = tuple(swarm.peers.values())
        for peer in peers:
            _wait_both(peer)
        _run_for(options.before_s, peers)
        victim = swarm.peer(name)
        version, ended_at = victim.version, time.time()
        _end(victim, how)
        if how != "none":
            _run_for(options.away_s, [peer for peer in peers if peer is not victim])
            victim.start(fresh=True)  # as a person does it: that takes its seconds
        _run_for(options.after_s, peers)
        told = sorted(_losses(peers))
        cuts = [one for peer in peers for one in peer.events("CutMade") if one["at_unix_s"] > ended_at]
        jumps = [one for peer in peers for one in peer.events("LossJumped") if one["at_unix_s"] > ended_at]
        assert_one_state(*peers)
        last_version = max(peer.version for peer in peers)
    shutil.rmtree(folder)
    old = [loss for at, _, loss in told if at <= ended_at]
    new = [(loss, number) for at, number, loss in told if at > ended_at]
    return Restart(
        how=how,
        victim=name,
        version=version,
        before=statistics.mean(old[-MEAN_OF:]),
        peak=max(loss for at, _, loss in told if ended_at - PEAK_S < at <= ended_at),
        highest=max(new)[0],
        highest_at=max(new)[1],
        last=new[-1][0],
        most_steps=max((one["steps"] for one in cuts), default=0),
        jumps=len(jumps),
        versions=last_version,
        load=os.getloadavg()[0],
        losses=[(round(at - ended_at, 1), number, round(loss, 4)) for at, number, loss in told],
    )


def _end(victim: PeerProcess, how: str) -> None:
    match how:
        case "kill":
            victim.kill()
        case "ctrl-c":
            victim.signal(signal.SIGINT)
            assert victim.wait_ended() == 0, victim.story()


def _losses(peers: Sequence[PeerProcess]) -> list[tuple[float, int, float]]:
    """When, of which version, and how high."""
    return [
        (one["at_unix_s"], one["version"], one["loss"])
        for peer in peers
        for one in peer.events("Evaluated")
        if one["version"]
    ]


def _wait_both(peer: PeerProcess) -> None:
    """Until a commit lists both, as the peer tells."""

    def found() -> dict[str, Any] | None:
        return next((one for one in peer.events("RoundCommitted") if len(one["listed"]) == 2), None)

    peer.wait("a commit that lists both", found)


def _run_for(seconds: float, peers: Sequence[PeerProcess]) -> None:
    """Lets them train; fails when one ends."""
    until = time.monotonic() + seconds
    for peer in peers:
        peer.wait("time passes", lambda: time.monotonic() >= until or None)
        time.sleep(POLL_S)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.restart_loss", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--times", type=int, default=5, metavar="N", help="how often")
    parser.add_argument("--how", choices=WAYS, default="kill", help="how the victim ends")
    parser.add_argument("--before-s", type=float, default=50.0, metavar="S", help="seconds of training before")
    parser.add_argument("--away-s", type=float, default=1.0, metavar="S", help="seconds before it is started again")
    parser.add_argument("--eval-windows", type=int, default=1, metavar="N", help="held-out windows that tell the loss")
    parser.add_argument("--after-s", type=float, default=60.0, metavar="S", help="seconds of training after")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each time's figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
