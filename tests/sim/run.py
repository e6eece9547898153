"""Runs random schedules on all cores, replays one, or makes a broken one as small as it gets.

python -m tests.sim.run --seeds 10000 [--first N] [--json FILE]
python -m tests.sim.run --seed N [--shrink]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.sim.scenario import Result, make, play
from tests.sim.shrink import as_literal, shrink

CHUNK = 8
TAIL = 60  # lines of the transcript that a replay shows


@dataclass
class Totals:
    """What many schedules came to."""

    schedules: int = 0
    rounds: int = 0
    events: int = 0
    hours: float = 0.0
    minority: int = 0
    forks: int = 0
    barred: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    planned: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    broken: list[Result] = field(default_factory=list)

    def add(self, one: Result) -> None:
        self.schedules += 1
        self.rounds += one.rounds
        self.events += one.events
        self.hours += one.hours
        self.minority += one.minority
        self.forks += one.forks
        self.barred += one.barred
        self.fired += one.fired
        self.planned += one.planned
        self.columns += one.columns
        if one.law:
            self.broken.append(one)


def play_seed(seed: int) -> Result:
    torch.set_num_threads(1)
    return play(make(seed))


def results(seeds: Iterable[int], jobs: int) -> Iterator[Result]:
    """One result a seed, in no order, from so many processes."""
    torch.set_num_threads(1)
    if jobs == 1:
        yield from map(play_seed, seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(play_seed, seeds, chunksize=CHUNK)


def run_all(first: int, count: int, jobs: int) -> tuple[Totals, float]:
    """Plays the schedules of `count` seeds; prints how far it is."""
    totals, began_s, said_s = Totals(), time.monotonic(), 0.0
    for one in results(range(first, first + count), jobs):
        totals.add(one)
        elapsed_s = time.monotonic() - began_s
        if one.law:
            print(f"\nseed {one.seed} breaks [{one.law}]: {one.text.splitlines()[0][:200]}", flush=True)
        if elapsed_s - said_s > 5.0:
            said_s = elapsed_s
            rate = totals.schedules / elapsed_s
            print(
                f"\r{totals.schedules} of {count} schedules, {rate:.1f}/s, {len(totals.broken)} broken, "
                f"{(count - totals.schedules) / rate:.0f} s to go  ",
                end="",
                flush=True,
            )
    return totals, time.monotonic() - began_s


def report(totals: Totals, elapsed_s: float, jobs: int) -> str:
    """The last lines of a run."""
    lines = [
        "",
        f"{totals.schedules} schedules, {totals.rounds} rounds, {totals.events} events, {totals.hours:.1f} hours simulated "
        f"in {elapsed_s:.0f} s on {jobs} processes",
        f"{totals.schedules / elapsed_s:.2f} schedules/s, {totals.events / elapsed_s:.0f} events/s, "
        f"{totals.hours / elapsed_s:.4f} simulated hours/s",
        f"{totals.forks} forks, {totals.barred} barred heads, {totals.minority} commits without a majority",
        "faults that happened: "
        + ", ".join(f"{name} {totals.fired[name]}" for name in sorted(totals.planned | totals.fired)),
        "declared losses in tokens: "
        + ("; ".join(f"{name}: {tokens}" for name, tokens in sorted(totals.columns.items())) or "none"),
        f"{len(totals.broken)} broken",
    ]
    for law, count in Counter(one.law for one in totals.broken).most_common():
        seeds = sorted(one.seed for one in totals.broken if one.law == law)
        lines.append(f"  [{law}] {count}: seeds {', '.join(map(str, seeds[:12]))}{' ...' if count > 12 else ''}")
    lines += [f"  python -m tests.sim.run --seed {one.seed} --shrink" for one in totals.broken[:20]]
    return "\n".join(lines)


def replay(seed: int, shrinks: bool) -> int:
    """Plays one seed and shows it; returns 1 when it breaks."""
    scenario = make(seed)
    result = play(scenario, transcript=True)
    if result.law and shrinks:
        scenario, result = shrink(scenario, result.law, say=lambda line: print(line, flush=True))
        print("\nas small as it gets:\n" + as_literal(scenario) + "\n")
        result = play(scenario, transcript=True)
    print("\n".join(result.transcript[-TAIL:]))
    print(f"\n{scenario.peers} peers, {scenario.rules}")
    for fault in scenario.faults:
        print(f"  {fault}")
    print(f"{result.rounds} rounds, {result.events} events, {result.hours * 3600:.0f} s of virtual time")
    print(f"broken: [{result.law}]\n{result.text}" if result.law else "nothing broke")
    return int(bool(result.law))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run")
    parser.add_argument("--seeds", type=int, default=200, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", type=Path, help="write figures and broken seeds here too")
    parser.add_argument("--seed", type=int, help="replay one schedule")
    parser.add_argument("--shrink", action="store_true", help="with --seed: make it as small as it gets first")
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed, options.shrink)
    totals, elapsed_s = run_all(options.first, options.seeds, options.jobs)
    print(report(totals, elapsed_s, options.jobs))
    if options.json is not None:
        figures = {
            "schedules": totals.schedules,
            "rounds": totals.rounds,
            "events": totals.events,
            "hours": totals.hours,
            "seconds": elapsed_s,
            "faults": dict(totals.fired),
            "losses": dict(totals.columns),
            "broken": [{"seed": one.seed, "law": one.law, "text": one.text} for one in totals.broken],
        }
        options.json.write_text(json.dumps(figures, indent=1))
    return int(bool(totals.broken))


if __name__ == "__main__":
    sys.exit(main())
