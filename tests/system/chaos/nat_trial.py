"""One cell of the NAT lab: a swarm comes together, somebody joins or leaves, and what becomes of the rounds after that.

A round ends `train_deadline_s + exchange_deadline_s` after its head at the latest. Who left may have been its leader: then
`leader_timeout_s` goes by first. A newcomer is admitted by one round and included by the next. Those who reach nobody go on
after the isolation time and each member's turn to lead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from swarm.round.participant import ISOLATION_DEADLINES, MIN_ISOLATION_S
from tests.system.chaos.nat_arena import TOGETHER_S, NatArena
from tests.system.chaos.nat_cells import KILL, SLOW_MBIT, NatCell
from tests.system.chaos.nat_run import EXCHANGE_DEADLINE_S, LEADER_TIMEOUT_S, TRAIN_DEADLINE_S
from tests.system.chaos.nat_story import Share, Wait, commits_since, disagreements, share, waits
from tests.system.chaos.rounds import SLACK_S
from tests.system.swarm_of_processes import PeerProcess, assert_one_state, assert_versions_grow

ROUNDS: Final = 10  # that are looked at afterwards
LEAST_SHARE: Final = 0.9
ROUND_S: Final = TRAIN_DEADLINE_S + EXCHANGE_DEADLINE_S
ISOLATION_S: Final = max(MIN_ISOLATION_S, ISOLATION_DEADLINES * EXCHANGE_DEADLINE_S)
SAYS_ALONE: Final = "no reachable peer"  # the words of a peer that knows of nobody it could dial
_GIVE_UP: Final = 3  # times the bound: nobody waits for longer


@dataclass(slots=True)
class NatOutcome:
    """What was seen of a cell. Hosts are letters; `faults`: what did not hold."""

    what: str = "next commit"  # whose delay was measured
    bound_s: float = LEADER_TIMEOUT_S + ROUND_S
    delays: dict[str, Wait] = field(default_factory=dict)
    longest_s: float = 0.0  # of all waits for a commit afterwards
    shares: dict[str, Share] = field(default_factory=dict)
    led_before: str = ""
    led_after: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def worst_s(self) -> float:
        return max((wait.seconds for wait in self.delays.values()), default=0.0)


def try_nat_cell(arena: NatArena, cell: NatCell) -> NatOutcome:
    """What was seen, as far as it got."""
    trial = _Trial(arena, cell)
    try:
        trial.run()
    except AssertionError as error:
        trial.seen.faults.append((str(error) or "an assertion failed").splitlines()[0])
    return trial.seen


class _Trial:
    def __init__(self, arena: NatArena, cell: NatCell) -> None:
        self._arena = arena
        self._cell = cell
        self.seen = NatOutcome()

    def run(self) -> None:
        cell, arena = self._cell, self._arena
        if cell.slow:
            arena.lab.slow_uplink(cell.slow, SLOW_MBIT)
        members = arena.begin(cell.members, cell.with_relay)
        if not cell.joins and not cell.leaves:
            self._measure_genesis(members)
        since_s = arena.included_together(members)["at_unix_s"]
        if cell.joins:
            since_s = self._measure_newcomer(members)
        if cell.leaves:
            since_s = self._depart()
        self._follow(since_s)
        self._judge_agreement()

    # ---------------------------------------------------------------- what is measured

    def _measure_genesis(self, members: list[PeerProcess]) -> None:
        """From the moment that the last peer is there to the first commit, as each tells of it."""
        self.seen.what = "first commit"
        began_s = max(peer.wait_event("PeerStarted")["at_unix_s"] for peer in members)
        try:
            self._arena.wait(
                "first commit", members, lambda: all(p.events("RoundCommitted") for p in members), TOGETHER_S
            )
        finally:
            self._note_delays(members, began_s)

    def _measure_newcomer(self, members: list[PeerProcess]) -> float:
        """From its start to the first commit that includes it, as the others tell of it. Returns when that was."""
        self.seen.what, self.seen.bound_s = "first inclusion", 2 * ROUND_S
        newcomer = self._arena.join(self._cell.joins)
        included_s: float | None = None
        try:
            included_s = self._arena.wait_included(newcomer, members)
        finally:
            for event in newcomer.events("PeerStarted"):
                wait = Wait((included_s or time.time()) - event["at_unix_s"], included_s is not None)
                self.seen.delays = {newcomer.name: wait}
        return included_s

    def _depart(self) -> float:
        """Returns when it was."""
        cell = self._cell
        self.seen.what, self.seen.bound_s = "next commit", LEADER_TIMEOUT_S + ROUND_S
        if cell.each_alone:
            self.seen.bound_s = ISOLATION_S + len(cell.order) * LEADER_TIMEOUT_S + ROUND_S
        self.seen.led_before = self._leader(cell.leaves)
        since_s = time.time()
        if cell.how == KILL:
            self._arena.kill(cell.leaves)
        else:
            self._arena.say_goodbye(cell.leaves)
        return since_s

    def _follow(self, since_s: float) -> None:
        """The rounds from then on, of everyone who stays."""
        seen, cell = self.seen, self._cell
        staying = [self._arena.swarm.peer(host) for host in cell.stay]
        patience_s = _GIVE_UP * (LEADER_TIMEOUT_S + ROUND_S) if not cell.each_alone else seen.bound_s + ROUND_S

        def over() -> bool | None:
            told = [commits_since(peer.events(), since_s) for peer in staying]
            last = [commits[-1]["at_unix_s"] if commits else since_s for commits in told]
            enough = all(len(commits) >= ROUNDS for commits in told)
            return enough or time.time() - min(last) > patience_s or None

        try:
            self._arena.wait(f"{ROUNDS} rounds", staying, over, ROUNDS * patience_s)
        finally:
            self._judge_rounds(staying, since_s)

    # ---------------------------------------------------------------- what must hold

    def _judge_rounds(self, staying: list[PeerProcess], since_s: float) -> None:
        seen, cell = self.seen, self._cell
        now_s = time.time()
        lasted = {peer.name: waits(peer.events(), since_s, now_s, ROUNDS) for peer in staying}
        if cell.leaves:
            seen.delays = {name: found[0] for name, found in lasted.items()}
        for name, wait in seen.delays.items():
            if not wait.is_over or wait.seconds > seen.bound_s + SLACK_S:
                seen.faults.append(f"{name} waited {wait} s for its {seen.what}, at most {seen.bound_s:g} are allowed")
        seen.longest_s = max(wait.seconds for found in lasted.values() for wait in found)
        allowed_s = max(LEADER_TIMEOUT_S + ROUND_S, seen.bound_s if cell.each_alone else 0.0)
        if seen.longest_s > allowed_s + SLACK_S and not seen.faults:
            seen.faults.append(f"a round lasted {seen.longest_s:.1f} s")
        seen.led_after = self._leader(cell.stay)
        if cell.each_alone:
            self._judge_loneliness(staying)
            return
        stories = [peer.events() for peer in staying]
        for host in cell.natted:
            found = share(stories, self._arena.swarm.peer(host).peer_id, since_s, ROUNDS)
            seen.shares[host] = found
            if found.rounds < ROUNDS or found.included < LEAST_SHARE * found.rounds:
                seen.faults.append(f"{host} was included in {found} rounds")

    def _judge_loneliness(self, staying: list[PeerProcess]) -> None:
        """Each says so, and goes on."""
        for peer in staying:
            if SAYS_ALONE not in peer.out + peer.err:
                self.seen.faults.append(f"{peer.name} did not say: {SAYS_ALONE}")

    def _judge_agreement(self) -> None:
        known = {name: peer for name, peer in self._arena.swarm.peers.items() if peer.events("PeerStarted")}
        self.seen.faults += disagreements({name: peer.events() for name, peer in known.items()})
        if not self._cell.each_alone:
            assert_one_state(*(known[host] for host in self._cell.stay))
        for peer in known.values():
            assert_versions_grow(peer)
            assert "Traceback" not in peer.err, f"{peer.name} wrote a traceback"

    def _leader(self, hosts: str) -> str:
        """Who led the newest commit that one of these told of."""
        told = [one for host in hosts for one in self._arena.swarm.peer(host).events("RoundCommitted")]
        newest = max(told, key=lambda one: one["at_unix_s"], default=None)
        return self._arena.name_of(newest["leader"]) if newest else ""

    def _note_delays(self, peers: list[PeerProcess], since_s: float) -> None:
        now_s = time.time()
        self.seen.delays = {peer.name: waits(peer.events(), since_s, now_s, 1)[0] for peer in peers}
