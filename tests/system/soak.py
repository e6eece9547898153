"""A long run of a small swarm of real processes under random faults: `make soak MINUTES=60`.

Six peers on this machine and a monitor. Peers are killed, frozen, lose their p2pd, leave and come back or are replaced,
all drawn from a seed. What the peers tell of is watched as it happens, and what their processes use is measured. A line
every 30 s; a summary and verdicts at the end, also after Ctrl+C. Exit code 1 when a verdict does not hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tests.system.launcher import ROOT, Launcher
from tests.system.soak_faults import Faults, Plan
from tests.system.soak_leaks import Leaks, Verdict
from tests.system.soak_story import EventFile, Gap, Story, near
from tests.system.swarm_of_processes import SwarmOfProcesses

TICK_S: Final = 0.2
SAMPLE_EVERY_S: Final = 5.0
LINE_EVERY_S: Final = 30.0
QUIET_END_S: Final = 20.0  # without new faults before the end, so that everyone can come to one head
FIRST_COMMIT_S: Final = 180.0
TRAIN_DEADLINE_S: Final = 10.0
EXCHANGE_DEADLINE_S: Final = 8.0
ROUND_DEADLINE_S: Final = TRAIN_DEADLINE_S + EXCHANGE_DEADLINE_S
ISOLATION_S: Final = 30.0  # without a majority, members wait so long before whoever is left goes on
ROUNDS_PER_GAP: Final = 3.0
GAPS_TOLD: Final = 5
CONFIG: Final = f"""
preset = "tiny"
name = "soak"
[model]
hidden_size = 64
num_layers = 2
num_heads = 2
intermediate_size = 128
[data]
sequence_length = 64
eval_windows = 2
[inner]
batch_windows = 4
[round]
local_steps = 40
min_peers = 3
train_deadline_s = {TRAIN_DEADLINE_S}
exchange_deadline_s = {EXCHANGE_DEADLINE_S}
heartbeat_s = 0.5
leader_timeout_s = 3.0
[checkpoint]
every = 100
keep = 2
"""


class SoakSwarm(SwarmOfProcesses):
    """Peers that all have the same share of the processor."""

    def give_way(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    minutes: float
    peers: int
    plan: Plan
    json_path: Path | None


class Soak:
    """One run, from founding to verdicts."""

    def __init__(self, options: Options, folder: Path, swarm: SoakSwarm) -> None:
        self._options = options
        self._folder = folder
        self._swarm = swarm
        self._story = Story()
        self._faults = Faults(swarm, self._story, options.plan)
        self._leaks = Leaks()
        self._files: dict[str, EventFile] = {}
        self._monitor: subprocess.Popen[bytes] | None = None
        self._monitor_file = EventFile(folder / "monitor.jsonl")
        self._monitor_looks = 0
        self._began_s = time.time()
        self._told_gaps = 0
        self._left_behind = ""

    # ---------------------------------------------------------------- the run

    def run(self) -> None:
        """Until time is up or somebody presses Ctrl+C."""
        with contextlib.suppress(KeyboardInterrupt):
            self._begin()
            ends_s = time.time() + 60.0 * self._options.minutes
            sample_s = line_s = time.time()
            while (now_s := time.time()) < ends_s:
                self._faults.is_quiet = now_s > ends_s - QUIET_END_S
                self._look()
                self._tell_gaps()
                if now_s >= sample_s:
                    sample_s = now_s + SAMPLE_EVERY_S
                    self._sample(now_s)
                if now_s >= line_s:
                    line_s = now_s + LINE_EVERY_S
                    print(self._line(now_s), flush=True)
                time.sleep(TICK_S)
        self._faults.is_quiet = True

    def _begin(self) -> None:
        self._faults.found("p1")
        first = self._swarm.peer("p1")
        first.invite()
        for _ in range(self._options.peers - 1):
            self._faults.newcomer()
        self._start_monitor()
        patience_s = time.time() + FIRST_COMMIT_S
        while self._story.newest < 1 or any(slot.state != "up" for slot in self._faults.slots.values()):
            self._look()
            if time.time() > patience_s:
                raise SystemExit("no first commit: " + "\n".join(peer.story() for peer in self._swarm.peers.values()))
            time.sleep(TICK_S)

    def _start_monitor(self) -> None:
        command = [sys.executable, "-m", "coordinator", "monitor", self._faults.invite()]
        command += ["--json", "--home", str(self._folder / "monitor")]
        with (self._folder / "monitor.jsonl").open("ab") as out, (self._folder / "monitor.err").open("ab") as err:
            self._monitor = subprocess.Popen(
                command,
                env={**os.environ, **self._swarm.environment},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def _look(self) -> None:
        """What was told since, and what is to be done now."""
        for name in self._faults.slots:
            file = self._files.setdefault(name, EventFile(self._swarm.peer(name).events_path))
            self._story.take(name, file.news())
        for look in self._monitor_file.news():
            self._monitor_looks += 1
            self._story.statuses(look["at_unix_s"], look["peers"])
            if not look["digests_equal"]:
                self._story.divergences.append(f"the monitor saw different digests at version {look['version']}")
        if self._monitor is not None and self._monitor.poll() is not None:
            self._faults.broken.append(f"the monitor ended with {self._monitor.returncode}")
            self._monitor = None
        self._faults.tick()

    def _sample(self, now_s: float) -> None:
        running = self._faults.running()
        for slot in running:
            if slot.state == "up":
                self._leaks.sample_peer(slot.peer.name, slot.peer.process.pid, slot.peer.home, now_s)
        if self._monitor is not None:
            self._leaks.sample_monitor(self._monitor.pid, now_s)
        self._leaks.count(self._swarm.processes(), self._swarm.temporary, len(running))

    def end(self) -> None:
        """Stops everything; what cannot be stopped well, or is left, is a verdict."""
        with contextlib.suppress(KeyboardInterrupt):
            self._look()
        self._faults.thaw_all()
        if self._monitor is not None:
            self._monitor.send_signal(signal.SIGINT)
            try:
                if self._monitor.wait(15) not in (0, 130):
                    self._left_behind += f"the monitor ended with {self._monitor.returncode}; "
            except subprocess.TimeoutExpired:
                self._left_behind += "the monitor did not end; "
                self._monitor.kill()
        try:
            self._swarm.__exit__(None, None, None)
        except AssertionError as error:
            self._left_behind += str(error)[:2000]

    # ---------------------------------------------------------------- lines

    def _limit_s(self) -> float:
        extra_s = ISOLATION_S if self._options.plan.beyond_majority or self._options.plan.everyone else 0.0
        return ROUNDS_PER_GAP * self._story.median_round_s() + ROUND_DEADLINE_S + extra_s

    def _long_gaps(self, now_s: float | None = None) -> list[Gap]:
        return [gap for gap in self._story.gaps(now_s) if gap.seconds > self._limit_s()]

    def _tell_gaps(self) -> None:
        """Each gap that is too long, as soon as it is over."""
        found = self._long_gaps()
        for gap in found[self._told_gaps :]:
            print(f"  {self._describe(gap)}", flush=True)
        self._told_gaps = max(self._told_gaps, len(found))

    def _describe(self, gap: Gap) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(gap.began_s))
        reasons = near(gap, self._faults.done)
        return f"gap of {gap.seconds:.1f} s from {at} ({gap.began_s:.1f}) until version {gap.version}: {reasons}"

    def _line(self, now_s: float) -> str:
        story, leaks = self._story, self._leaks
        states = Counter(slot.state for slot in self._faults.slots.values())
        away = states.total() - states["up"] - states["frozen"] - states["gone"]
        gaps = story.gaps(now_s)
        resident = sum(leaks.series["peer memory"].newest(now_s - 2 * SAMPLE_EVERY_S))
        files = sum(leaks.series["peer descriptors"].newest(now_s - 2 * SAMPLE_EVERY_S))
        return (
            f"{now_s - self._began_s:6.0f} s  version {story.newest:>4}"
            f"  up {states['up']} frozen {states['frozen']} away {away}"
            f"  round {story.median_round_s():.1f} s  longest gap {max((gap.seconds for gap in gaps), default=0.0):.1f} s"
            f"  faults {len(self._faults.done)}  divergences {len(story.divergences)}  forks {story.forks}"
            f"  undone {story.counts['Undone']}  memory {resident:.0f} MiB  descriptors {files:.0f}"
            f"  p2pd {leaks.last.get('p2pd processes', 0)}"
        )

    def longest_gaps(self) -> list[str]:
        """The five longest, with what was near."""
        ordered = sorted(self._story.gaps(), key=lambda gap: gap.seconds, reverse=True)
        return [self._describe(gap) for gap in ordered[:GAPS_TOLD]]

    # ---------------------------------------------------------------- the end

    def verdicts(self) -> list[Verdict]:
        """Every law with whether it held."""
        story, faults = self._story, self._faults
        errors = self._complaints()
        gaps = self._story.gaps()
        longest = max(gaps, key=lambda gap: gap.seconds, default=None)
        gap_law = (
            f"no gap longer than {ROUNDS_PER_GAP:g} median rounds and a round's deadline = {self._limit_s():.1f} s"
        )
        broken_lines = sum(file.num_broken for file in self._files.values())
        return [
            Verdict("0 divergences", not story.divergences, _first(story.divergences)),
            Verdict("no version goes back but by an undo", not story.went_back, _first(story.went_back)),
            Verdict(
                gap_law, bool(gaps) and not self._long_gaps(), self._describe(longest) if longest else "no commits"
            ),
            Verdict("nobody ends, hangs or fails by itself", not faults.broken, _first(faults.broken)),
            Verdict("nobody is said to misbehave", not story.misbehaved, _first(list(story.misbehaved))),
            Verdict("no traceback on any stderr", not errors, _first(errors)),
            Verdict("every line of the event files is whole", not broken_lines, f"{broken_lines} broken"),
            Verdict("everyone leaves well, nothing is left", not self._left_behind, self._left_behind or "nothing"),
            *self._leaks.verdicts(),
        ]

    def _complaints(self) -> list[str]:
        found = []
        for path in [*self._folder.glob("*.err"), *self._folder.glob("*.out")]:
            text = path.read_text(errors="replace")
            if "Traceback" in text:
                found.append(f"{path.name}: ...{text[-1500:]}")
        return found

    def figures(self) -> dict[str, Any]:
        """What the table shows, as plain values."""
        story, gaps = self._story, sorted(gap.seconds for gap in self._story.gaps())
        series = {
            name: {"slope_per_h": one.slope_per_h(), "start_and_end": one.start_and_end(), "lives": one.thinned()}
            for name, one in self._leaks.series.items()
        }
        return {
            "seconds": round(time.time() - self._began_s, 1),
            "seed": self._options.plan.seed,
            "version": story.newest,
            "rounds_per_minute": round(60.0 * len(gaps) / max(1.0, sum(gaps)), 2),
            "gap_s": {"median": _at(gaps, 0.5), "99 of 100": _at(gaps, 0.99), "longest": _at(gaps, 1.0)},
            "faults": dict(self._faults.counts),
            "lives": sum(slot.life for slot in self._faults.slots.values()),
            "events": dict(story.counts),
            "forks": story.forks,
            "minority_commits": story.minority,
            "caught_up": dict(story.caught_up),
            "dropped_tokens": story.dropped_tokens,
            "monitor_looks": self._monitor_looks,
            "most_at_once": self._leaks.most,
            "used": series,
        }


def _first(lines: list[str]) -> str:
    return f"{len(lines)}" + (f", first: {lines[0]}" if lines else "")


def _at(ordered: list[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else 0.0


def report(soak: Soak, json_path: Path | None) -> bool:
    """Prints table and verdicts; returns whether all hold."""
    figures, verdicts = soak.figures(), soak.verdicts()
    print("\n--- soak")
    for name, value in figures.items():
        if name != "used":
            print(f"{name:<18}  {value}")
    print("--- longest gaps")
    for line in soak.longest_gaps():
        print(line)
    print("--- verdicts")
    for verdict in verdicts:
        print(verdict.line())
    if json_path is not None:
        json_path.write_text(json.dumps({**figures, "verdicts": [asdict(one) for one in verdicts]}, indent=2) + "\n")
    return all(verdict.held is not False for verdict in verdicts)


def soak(  # noqa: PLR0913  as many as options
    minutes: Annotated[float, typer.Option(help="How long to run after the first commit.")] = 60.0,
    peers: Annotated[int, typer.Option(min=3, help="Peers at a time.")] = 6,
    seed: Annotated[int, typer.Option(help="Of the faults.")] = 1,
    life: Annotated[float, typer.Option(help="Mean seconds from one fault of a peer to its next.")] = 180.0,
    spare: Annotated[str, typer.Option(help="Peers that are never killed nor leave, by comma.")] = "p2",
    beyond_majority: Annotated[bool, typer.Option(help="Faults may take the majority of a roster.")] = False,
    everyone: Annotated[bool, typer.Option(help="Now and then kill everyone at once.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write figures and verdicts there.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep everything in this new folder.")] = None,
) -> None:
    """Run a small swarm under random faults and say whether it held."""
    plan = Plan(seed, life, frozenset(spare.split(",")), beyond_majority, everyone)
    options = Options(minutes, peers, plan, json_path)
    folder = out or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run").mkdir()
    print(f"soak of {minutes:g} minutes, {peers} peers, seed {seed}, in {folder}", flush=True)
    held = False
    with contextlib.closing(Launcher(folder)) as launcher:
        swarm = SoakSwarm(folder / "run", launcher)
        swarm.config.write_text(CONFIG)
        run = Soak(options, folder / "run", swarm)
        try:
            run.run()
        finally:
            run.end()
        held = report(run, json_path)
    if held and out is None:
        shutil.rmtree(folder)
    else:
        print(f"logs and events: {folder}")
    raise typer.Exit(0 if held else 1)


if __name__ == "__main__":
    typer.run(soak)
