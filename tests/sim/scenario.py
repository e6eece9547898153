"""A schedule as data, made from a seed: peers, configuration and faults. `play` runs one and says how it went."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from swarm.config import RunConfig
from tests.sim import faults as kinds
from tests.sim.books import LawBroken
from tests.sim.faults import Disk, Fault, Join, Phase, over_at_s
from tests.sim.world import World, round_config

ROUNDS = 20  # every schedule has at least so many
TICK_S = 1.0
FAULTS_UNTIL_S = 90.0
STARTED_S = 5.0
FORGED_FROM_S = 40.0  # whoever is there has a vote by then
BEGUN_S = 30.0  # by then whoever is there has made version 1
NO_RESCUE: tuple[type, ...] = ()  # kinds of faults that nothing in the product answers yet


@dataclass(frozen=True)
class Rules:
    """What the manifest of a schedule says."""

    train_s: float = 6.0
    exchange_s: float = 6.0
    leader_timeout_s: float = 6.0
    local_steps: int = 0
    lease_steps: int = 0
    target_tokens: int = 0
    min_peers: int = 1
    overlap: bool = False
    max_listed: int = 64
    codec: str = "int8"
    error_decay: float = 1.0
    outer: str = "nesterov"
    precision: str = "fp64"


@dataclass(frozen=True)
class Scenario:
    """One schedule."""

    seed: int
    peers: int
    rules: Rules
    faults: tuple[Fault, ...]
    rounds: int = ROUNDS


@dataclass
class Result:
    """How one schedule went. `law` is "" when nothing broke."""

    seed: int
    peers: int
    rounds: int = 0
    events: int = 0
    hours: float = 0.0  # of virtual time
    law: str = ""
    text: str = ""
    fired: Counter[str] = field(default_factory=Counter)  # faults that happened, by kind
    planned: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)  # tokens, by declared loss
    minority: int = 0  # commits without a majority
    forks: int = 0  # versions with more than one head
    barred: int = 0
    transcript: tuple[str, ...] = ()


@lru_cache(maxsize=256)
def config_of(rules: Rules) -> RunConfig:
    return round_config(
        codec=rules.codec,
        error_decay=rules.error_decay,
        outer=rules.outer,
        precision=rules.precision,
        train_deadline_s=rules.train_s,
        exchange_deadline_s=rules.exchange_s,
        leader_timeout_s=rules.leader_timeout_s,
        local_steps=rules.local_steps,
        lease_steps=rules.lease_steps,
        target_tokens=rules.target_tokens,
        min_peers=rules.min_peers,
        overlap=rules.overlap,
        max_listed=rules.max_listed,
    )


# ---------------------------------------------------------------- from a seed


def make(seed: int) -> Scenario:
    """The schedule of a seed: 78 % of 3 to 5 peers, 19 % of 6 to 10, 2.5 % of 11 to 20, 0.5 % of 21 to 40."""
    chance = random.Random(f"scenario/{seed}")
    share = chance.random()
    low, high = (3, 5) if share < 0.78 else (6, 10) if share < 0.97 else (11, 20) if share < 0.995 else (21, 40)
    peers = chance.randint(low, high)
    rules = Rules(
        train_s=chance.choice((5.0, 6.0, 8.0)),
        exchange_s=chance.choice((4.0, 6.0, 8.0)),
        leader_timeout_s=chance.choice((6.0, 8.0)),
        local_steps=chance.choice((0, 0, 0, 3, 5)),
        lease_steps=chance.choice((0, 3, 6)),
        target_tokens=chance.choice((0, 0, 0, 3 * peers * 4096)),
        min_peers=chance.choice((1, 1, peers // 2 + 1, peers)),
        overlap=chance.random() < 0.3,
        max_listed=chance.choice((64, 64, 64, 64, 64, peers // 2 + 1)),
        codec=chance.choice(("int8", "int8", "raw")),
        error_decay=chance.choice((1.0, 1.0, 0.95)),
        outer=chance.choice(("nesterov", "nesterov", "sgd", "adamw")),
        precision=chance.choice(("fp64", "fp64", "fp32")),
    )
    faults = _faults(chance, peers)
    gone = sum(isinstance(one, kinds.Leave) or getattr(one, "back_s", 0.0) is None for one in faults)
    if any(isinstance(one, kinds.Partition) and one.from_s < BEGUN_S for one in faults):
        rules = replace(rules, min_peers=max(rules.min_peers, peers // 2 + 1))  # two groups that began apart stay apart
    # Who is gone before version 1 is not waited for: the run would rightly never begin.
    return Scenario(seed, peers, replace(rules, min_peers=min(rules.min_peers, peers - gone)), faults)


def _faults(chance: random.Random, peers: int) -> tuple[Fault, ...]:
    found: list[Fault] = []
    if chance.random() < 0.2:
        found.append(kinds.Skew(chance.randrange(peers), chance.uniform(0.98, 1.02), chance.uniform(-20.0, 20.0)))
    names, weights = zip(*((make_one, weight) for make_one, weight in KINDS), strict=True)
    makers: list[Callable[[random.Random, int], Fault | None]] = chance.choices(
        names, weights, k=chance.choice((1, 2, 2, 3, 3, 4, 5, 6))
    )
    gone: set[int] = set()
    for maker in makers:
        one = maker(chance, peers)
        if one is None or type(one) in NO_RESCUE:
            continue
        ends = isinstance(one, kinds.Leave) or (isinstance(one, kinds.Crash) and one.back_s is None)
        if ends and (one.peer in gone or len(gone) + 2 > peers):  # type: ignore[union-attr]
            continue
        if ends:
            gone.add(one.peer)  # type: ignore[union-attr]
        if one not in found:
            found.append(one)
    if chance.random() < 0.5:
        forger = _forger(chance, peers)
        beside = [one for one in found if _beside(forger, one, peers)]
        parting = [one for one in beside if isinstance(one, _PARTING)]
        kept = [one for one in beside if one not in parting[1:]]
        hit = {forger.peer, *(getattr(one, "peer", -1) for one in kept)}
        honest = next((number for number in range(peers) if number not in hit), None)
        joins = (kinds.Join, type(None)) if honest is None else ()  # a newcomer that knows nobody may be surrounded
        found = [forger, *(_invited(one, honest) for one in kept if not isinstance(one, joins))]
    return (*_hidden(chance, peers, found), *found)


def _hidden(chance: random.Random, peers: int, faults: list[Fault]) -> list[Fault]:
    """In a third of the schedules some are behind NAT; one that cannot be is there to the end, but for its accidents."""
    if chance.random() >= 1 / 3:
        return []
    lost = {one.peer for one in faults if isinstance(one, kinds.Crash) and one.disk is Disk.LOST}
    gone = {one.peer for one in faults if isinstance(one, kinds.Leave) or getattr(one, "back_s", 0.0) is None}  # type: ignore[union-attr]
    stay = [number for number in range(peers) if number not in gone | lost] or [0]
    public = {chance.choice(stay)}
    others = [number for number in range(peers) if number not in public]
    return [kinds.Hidden(number) for number in sorted(chance.sample(others, chance.randint(1, len(others))))]


def _span(chance: random.Random) -> tuple[float, float]:
    from_s = chance.uniform(STARTED_S, FAULTS_UNTIL_S)
    return round(from_s, 3), round(from_s + chance.choice((1.0, 3.0, 8.0, 15.0, 25.0, 50.0)), 3)


def _crash(chance: random.Random, peers: int) -> Fault:
    at_s, back_s = _span(chance)
    disk = chance.choice((Disk.KEPT, Disk.KEPT, Disk.KEPT, Disk.OLDER, Disk.LOST))
    return kinds.Crash(chance.randrange(peers), at_s, None if chance.random() < 0.1 else back_s, disk)


def _partition(chance: random.Random, peers: int) -> Fault:
    side = tuple(sorted(chance.sample(range(peers), chance.randint(1, max(1, peers // 2)))))
    from_s, to_s = _span(chance)
    if chance.random() < 0.25:
        to_s = from_s + 90.0  # both sides make several versions of their own: a deep fork, of which one side is left
    return kinds.Partition(side, from_s, round(to_s, 3))


def _link(chance: random.Random, peers: int) -> Fault:
    a, b = chance.sample(range(peers), 2)
    return kinds.Partition((a,), *_span(chance), other=(b,), one_way=chance.random() < 0.4)


def _one_way(chance: random.Random, peers: int) -> Fault:
    return kinds.Partition((chance.randrange(peers),), *_span(chance), one_way=True)


def _lossy(chance: random.Random, peers: int) -> Fault:
    return kinds.Lossy(
        chance.choice((0.0, 0.05, 0.2)), chance.choice((0.0, 0.1, 0.5)), *_span(chance), chance.choice((0.0, 0.5, 3.0))
    )


def _strike(chance: random.Random, peers: int) -> Fault:
    back_s = chance.choice((2.0, 8.0, 20.0, 45.0))
    return kinds.StrikeLeader(chance.randint(0, 10), chance.choice(list(Phase)), back_s, chance.random() < 0.4)


def _strike_effect(chance: random.Random, peers: int) -> Fault:
    back_s = chance.choice((2.0, 8.0, 20.0, 45.0))
    return kinds.StrikeEffect(chance.randint(1, 10), chance.randint(1, 12 * peers), back_s, chance.random() < 0.3)


def _strike_output(chance: random.Random, peers: int) -> Fault:
    return kinds.StrikeOutput(chance.randrange(peers), chance.randint(2, 120), chance.choice((2.0, 8.0, 20.0)))


def _withhold(chance: random.Random, peers: int) -> Fault:
    who = tuple(sorted(chance.sample(range(peers), chance.randint(1, peers))))
    from_s, _ = _span(chance)
    return kinds.Withhold(who, from_s, from_s + chance.choice((2.0, 6.0, 15.0)))


def _leave(chance: random.Random, peers: int) -> Fault:
    return kinds.Leave(chance.randrange(peers), _span(chance)[0])


def _join(chance: random.Random, peers: int) -> Fault:
    return Join(_span(chance)[0], chance.choice((1, 1, 2, 4)), chance.choice((0.5, 5.0)))


def _forger(chance: random.Random, peers: int) -> kinds.Forger:
    from_s = chance.uniform(FORGED_FROM_S, FAULTS_UNTIL_S)
    to_s = from_s + chance.choice((8.0, 25.0, 50.0))
    ids = chance.choice((1, 4, 16))
    return kinds.Forger(chance.randrange(peers), round(from_s, 3), round(to_s, 3), chance.choice(list(kinds.Lie)), ids)


def _invited(fault: Fault, introducer: int | None) -> Fault:
    """Newcomers are invited by that peer."""
    return replace(fault, introducer=introducer) if isinstance(fault, kinds.Join) else fault


def _beside(forger: kinds.Forger, fault: Fault, peers: int) -> bool:
    """Whether this may happen beside a forger. It wins over an honest voter that hears it alone: nothing parts the others
    meanwhile, and of fewer than five none is gone."""
    if isinstance(fault, _PARTING):
        return (
            peers >= 5
            and isinstance(fault, kinds.Freeze | kinds.Crash)
            and getattr(fault, "disk", None) is not Disk.LOST
        )
    return True


def _slow_link(chance: random.Random, peers: int) -> Fault:
    latency_s, bytes_per_s = chance.choice(((0.3, 2e5), (1.0, 1e6)))
    return kinds.SlowLink(chance.randrange(peers), latency_s, bytes_per_s, *_span(chance))


_PARTING = (
    kinds.Crash,
    kinds.Freeze,
    kinds.StrikeLeader,
    kinds.StrikeEffect,
    kinds.StrikeOutput,
    kinds.Partition,
    kinds.Leave,
    kinds.Lossy,
    kinds.DiskFull,
    kinds.Usurper,
)
Maker = Callable[[random.Random, int], Fault | None]
KINDS: list[tuple[Maker, float]] = [
    (_crash, 4.0),
    (_strike, 3.0),
    (_strike_effect, 3.0),
    (_strike_output, 3.0),
    (lambda chance, peers: kinds.Freeze(chance.randrange(peers), *_span(chance)), 3.0),
    (_partition, 3.0),
    (_link, 1.5),
    (_one_way, 1.0),
    (_lossy, 2.0),
    (lambda chance, peers: kinds.Slow(chance.randrange(peers), chance.choice((3.0, 10.0)), *_span(chance)), 2.0),
    (lambda chance, peers: kinds.SlowDisk(chance.randrange(peers), chance.choice((0.5, 3.0)), *_span(chance)), 1.0),
    (_slow_link, 1.0),
    (lambda chance, peers: kinds.DiskFull(chance.randrange(peers), *_span(chance)), 1.0),
    (_withhold, 1.0),
    (lambda chance, peers: kinds.Usurper(chance.randrange(peers), *_span(chance)), 1.0),
    (lambda chance, peers: kinds.Liar(chance.randrange(peers), *_span(chance)), 1.0),
    (lambda chance, peers: kinds.BitFlip(chance.randrange(peers), _span(chance)[0]), 1.0),
    (_join, 1.5),
    (_leave, 1.0),
]


# ---------------------------------------------------------------- playing


def play(scenario: Scenario, *, transcript: bool = False) -> Result:
    """Runs a schedule to its end, or to the first law that breaks."""
    result = Result(scenario.seed, scenario.peers)
    world = World(
        scenario.peers, scenario.seed, scenario.faults, config_of(scenario.rules), discovers_for_s=1e9, tick_s=TICK_S
    )
    if transcript:
        world.transcript = []
    try:
        _play(world, scenario)
    except LawBroken as broken:
        result.law, result.text = broken.law, f"{broken}\n{world.describe()}"
    except AssertionError as broken:
        result.law, result.text = "everyone agrees", str(broken)
    except Exception as error:  # whatever rises out of the product's machines is a break too
        result.law = f"no {type(error).__name__} rises"
        result.text = f"{type(error).__name__}: {error}\n{_where(error)}\n{world.describe()}"
    result.rounds, result.events, result.hours = world.version, world.num_events, world.now_s / 3600
    result.fired = Counter(type(fault).__name__ for fault in world.fate.fired)
    result.planned = Counter(type(fault).__name__ for fault in scenario.faults)
    result.columns = world.books.columns
    result.minority, result.forks = world.laws.num_minority, world.laws.forks()
    result.barred = world.laws.num_barred
    result.transcript = tuple(world.transcript or ())
    return result


def _play(world: World, scenario: Scenario) -> None:
    world.run_for(over_at_s(scenario.faults) + 0.01)
    members = len(world.peers)
    round_s = world.laws.round_s(0, members)
    take_overs_s = 2 * members * (scenario.rules.leader_timeout_s + 6.0)
    world.settle(2, 5 * round_s + take_overs_s + 3 * world.laws.isolation_s)
    while world.version < scenario.rounds:
        world.run_until(
            min(world.version + 5, scenario.rounds), 6 * round_s + take_overs_s + 2 * world.laws.isolation_s
        )


def _where(error: BaseException) -> str:
    place = error.__traceback__
    lines = []
    while place is not None:
        lines.append(f"{place.tb_frame.f_code.co_filename.rsplit('/', 2)[-1]}:{place.tb_lineno}")
        place = place.tb_next
    return " > ".join(lines[-6:])
