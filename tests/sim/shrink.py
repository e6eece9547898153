"""Makes a broken schedule as small as it gets: fewer faults, fewer peers, simpler rules, shorter and earlier faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from tests.sim.faults import Fault
from tests.sim.scenario import Result, Rules, Scenario, play

MAX_PLAYS = 400


def shrink(scenario: Scenario, law: str, say: Callable[[str], None]) -> tuple[Scenario, Result]:
    """The smallest schedule found that breaks the same law, and how it went."""
    plays, best, result = 0, scenario, play(scenario)
    progress = True
    while progress and plays < MAX_PLAYS:
        progress = False
        for smaller in _smaller(best):
            plays += 1
            tried = play(smaller)
            if tried.law == law:
                best, result, progress = smaller, tried, True
                say(f"  {best.peers} peers, {len(best.faults)} faults, rules {_changed(best.rules)} ({plays} tries)")
                break
            if plays >= MAX_PLAYS:
                break
    return best, result


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Everything that is one step simpler, the biggest steps first."""
    faults = scenario.faults
    for half in (faults[: len(faults) // 2], faults[len(faults) // 2 :]) if len(faults) > 2 else ():
        yield replace(scenario, faults=half)
    for place in range(len(faults)):
        yield replace(scenario, faults=faults[:place] + faults[place + 1 :])
    used = max((number for fault in faults for number in _numbers(fault)), default=0)
    for peers in sorted({max(used + 1, 2), (scenario.peers + used + 1) // 2, scenario.peers - 1}):
        if used < peers < scenario.peers and peers >= 1:
            yield replace(scenario, peers=peers)
    plain = Rules()
    for one in fields(Rules):
        if getattr(scenario.rules, one.name) != getattr(plain, one.name):
            yield replace(scenario, rules=replace(scenario.rules, **{one.name: getattr(plain, one.name)}))
    if scenario.rounds > 2:
        yield replace(scenario, rounds=scenario.rounds // 2)
    for place, fault in enumerate(faults):
        for simpler in _simpler(fault):
            yield replace(scenario, faults=(*faults[:place], simpler, *faults[place + 1 :]))


def _simpler(fault: Fault) -> Iterator[Fault]:
    for begin, end in (("from_s", "to_s"), ("at_s", "back_s")):
        from_s, to_s = getattr(fault, begin, None), getattr(fault, end, None)
        if from_s is None or to_s is None:
            continue
        if to_s - from_s > 1.0:
            yield replace(fault, **{end: round((from_s + to_s) / 2, 3)})  # type: ignore[arg-type]
        if from_s > 8.0:
            yield replace(fault, **{begin: round(from_s / 2, 3), end: round(to_s - from_s / 2, 3)})  # type: ignore[arg-type]
    count = getattr(fault, "count", 1)
    if count > 1:
        yield replace(fault, count=1)  # type: ignore[call-arg]


def _numbers(fault: Fault) -> tuple[int, ...]:
    found: list[int] = []
    for name in ("peer", "side", "other", "peers"):
        value = getattr(fault, name, None)
        found += [value] if isinstance(value, int) else list(value or ())
    return tuple(found)


def _changed(rules: Rules) -> str:
    plain = Rules()
    told = {one.name: getattr(rules, one.name) for one in fields(Rules)}
    return str({name: value for name, value in told.items() if value != getattr(plain, name)})


def as_literal(scenario: Scenario) -> str:
    """The schedule as Python that makes it again."""
    text = repr(scenario)
    for enum in ("Phase", "Disk"):
        while f"<{enum}." in text:
            begin = text.index(f"<{enum}.")
            end = text.index(">", begin)
            text = text[:begin] + text[begin + 1 :].split(":")[0] + text[end + 1 :]
    return text
