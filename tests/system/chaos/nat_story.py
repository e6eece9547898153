"""What the events of several peers say: how long each waited for a commit, who was included, and whether all agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """For a commit. One that is not over has lasted so long when we stopped looking."""

    seconds: float
    is_over: bool = True

    def __str__(self) -> str:
        return f"{self.seconds:.1f}" if self.is_over else f">{self.seconds:.0f}"


@dataclass(frozen=True, slots=True)
class Share:
    """In how many of the rounds a peer was included."""

    included: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.included}/{self.rounds}"


def commits_since(events: Sequence[Json], since_unix_s: float) -> list[Json]:
    """Those that a peer told of after that moment."""
    return [one for one in events if one["event"] == "RoundCommitted" and one["at_unix_s"] > since_unix_s]


def waits(events: Sequence[Json], since_unix_s: float, until_unix_s: float, commits: int) -> list[Wait]:
    """A peer's waits from that moment to its next commit, from there to the one after, and so on: so many, or as far as it
    got. At least one."""
    times = [one["at_unix_s"] for one in commits_since(events, since_unix_s)][:commits]
    starts = [since_unix_s, *times]
    found = [Wait(end - start) for start, end in zip(starts, times, strict=False)]
    return found if len(times) == commits else [*found, Wait(max(0.0, until_unix_s - starts[-1]), is_over=False)]


def share(stories: Sequence[Sequence[Json]], peer_id: str, since_unix_s: float, rounds: int) -> Share:
    """Of the first rounds after that moment, as anybody tells of them."""
    by_version: dict[int, set[str]] = {}
    for events in stories:
        for one in commits_since(events, since_unix_s):
            by_version.setdefault(one["version"], set()).update(one["listed"])
    listed = [by_version[version] for version in sorted(by_version)][:rounds]
    return Share(sum(peer_id in authors for authors in listed), len(listed))


def disagreements(stories: Mapping[str, Sequence[Json]]) -> list[str]:
    """Heads at which two peers had other bits, in words."""
    found = []
    first: dict[str, tuple[str, Json]] = {}
    for name, events in stories.items():
        for one in events:
            if one["event"] == "StateDiffered":
                found.append(f"{name} found its state to differ at version {one['version']}")
            if one["event"] == "RoundCommitted":
                other, known = first.setdefault(one["head"], (name, one))
                if known["state_digest"] != one["state_digest"]:
                    found.append(f"{other} and {name} have other bits at version {one['version']}")
    return found
