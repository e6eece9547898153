"""How long a newcomer behind NAT takes from the start of its process to its first included contribution."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swarm.identity import Keypair
from tests.system.chaos.nat_arena import NatArena
from tests.system.chaos.nat_lab import Lab
from tests.system.chaos.nat_run import NatRun
from tests.system.chaos.nat_story import Wait
from tests.system.launcher import Launcher

_NEWCOMER = "D"


@dataclass(frozen=True, slots=True)
class Invited:
    """Since the start of the process, which imports all that a contributor's does."""

    started: Wait  # until it is up and in the network
    included: Wait  # until the others told of a commit that lists it

    def __str__(self) -> str:
        return f"included after {self.included} s, of which {self.started} to be up"


def invite_times(folder: Path, launcher: Launcher, times: int) -> Iterator[Invited]:
    """A public peer and one behind NAT train; newcomers with homes and ids of their own come and go, one after the other.
    Raises NoNamespaces."""
    run = NatRun(folder / "nat-run", launcher.cache)
    with Lab() as lab, NatArena(folder / "invites", launcher, run, lab, "AC") as arena:
        members = arena.begin("AC", with_relay=False)
        arena.included_together(members)
        for number in range(times):
            newcomer = arena.place(f"{_NEWCOMER}{number}", Keypair.generate())
            began_s = time.time()
            arena.join(newcomer.name, fresh=True)
            started = Wait(newcomer.wait_event("PeerStarted")["at_unix_s"] - began_s)
            try:
                included = Wait(arena.wait_included(newcomer, members) - began_s)
            except AssertionError:
                included = Wait(time.time() - began_s, is_over=False)
            yield Invited(started, included)
            newcomer.stop()


def invite_summary(found: list[Invited]) -> str:
    """Median and worst; a newcomer that was not included counts with the time that it was given."""
    seconds = [one.included.seconds for one in found]
    if not seconds:
        return "no newcomer was tried"
    middle_s, worst_s, lost = statistics.median(seconds), max(seconds), sum(not one.included.is_over for one in found)
    return (
        f"{len(seconds)} newcomers behind NAT: included after {middle_s:.1f} s in the median, {worst_s:.1f} s at worst;"
        f" {lost} were not"
    )
