"""What the peers of a soak told, folded: commits, gaps, forks, divergences, versions that went back.

The event files are read as they grow, over all lives of each peer. Nothing here acts or prints.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

NEAR_S: Final = 5.0  # a fault that ended so long before a gap began may still be why
_MAX_FAULTS_TOLD: Final = 50
Json = dict[str, Any]


class EventFile:
    """A growing file of JSON lines, read from where the last look ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.num_broken = 0

    def news(self) -> list[Json]:
        """The whole lines that came since; a line that is no JSON is counted and passed over."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            raw = file.read()
        whole = raw.rfind(b"\n") + 1
        self._offset += whole
        found = []
        for line in raw[:whole].splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                self.num_broken += 1
        return found


@dataclass(slots=True)
class PeerStory:
    """One peer over its lives."""

    name: str
    peer: str = ""
    version: int = -1  # the newest it told of, undone ones taken back
    started: int = 0
    commits: int = 0
    last_event_s: float = 0.0
    last_started_s: float = 0.0
    last_commit_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without a commit that is new to all."""

    began_s: float
    ended_s: float
    version: int  # of the commit that ended it; of the newest before it for the one that is open

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s


@dataclass(slots=True)
class Story:
    """The swarm as its peers tell of it."""

    peers: dict[str, PeerStory] = field(default_factory=dict)
    states: dict[str, tuple[str, str]] = field(default_factory=dict)  # head: its state digest, and who told it first
    first_told_s: dict[int, float] = field(default_factory=dict)  # version: when the first of all told of it
    heads_of: dict[int, set[str]] = field(default_factory=dict)
    roster: tuple[str, ...] = ()  # whom the newest commit lists
    newest: int = -1
    counts: Counter[str] = field(default_factory=Counter)  # events by kind
    caught_up: Counter[str] = field(default_factory=Counter)  # by way
    minority: int = 0
    divergences: list[str] = field(default_factory=list)
    went_back: list[str] = field(default_factory=list)
    misbehaved: Counter[str] = field(default_factory=Counter)  # by reason; nobody here does on purpose
    dropped_tokens: int = 0

    def peer(self, name: str) -> PeerStory:
        return self.peers.setdefault(name, PeerStory(name))

    def name_of(self, peer: str) -> str:
        return next((one.name for one in self.peers.values() if one.peer == peer), peer)

    # ---------------------------------------------------------------- taking in

    def take(self, name: str, events: Iterable[Json]) -> None:
        """The next events of one peer, in their order."""
        told = self.peer(name)
        for event in events:
            kind = event["event"]
            self.counts[kind] += 1
            told.last_event_s = event["at_unix_s"]
            match kind:
                case "PeerStarted":
                    told.peer = event["peer"]
                    told.started += 1
                    told.last_started_s = event["at_unix_s"]
                    self._reached(told, event, event["version"] >= told.version)
                case "CaughtUp":
                    self.caught_up[event["how"]] += 1
                    self._reached(told, event, event["version"] >= told.version)
                case "RoundCommitted":
                    self._committed(told, event)
                case "Undone":
                    told.version = min(told.version, event["version"] - 1)  # a commit to that very version may follow
                case "StateDiffered":
                    self.divergences.append(f"{name}: StateDiffered at version {event['version']}")
                case "PeerMisbehaved":
                    self.misbehaved[event["reason"]] += 1
                case "WorkDropped":
                    self.dropped_tokens += event["tokens"]

    def _reached(self, told: PeerStory, event: Json, forward: bool) -> None:
        if not forward:
            self.went_back.append(f"{told.name}: {event['event']} at {event['version']} after {told.version}")
        told.version = event["version"]

    def _committed(self, told: PeerStory, event: Json) -> None:
        version, head, state, at_s = event["version"], event["head"], event["state_digest"], event["at_unix_s"]
        self._reached(told, event, version > told.version)
        told.commits += 1
        told.last_commit_s = at_s
        before = self.states.setdefault(head, (state, told.name))
        if before[0] != state:
            self.divergences.append(f"head {head[:12]} of version {version}: {told.name} against {before[1]}")
        self.heads_of.setdefault(version, set()).add(head)
        self.first_told_s[version] = min(at_s, self.first_told_s.get(version, at_s))
        if version > self.newest:
            self.newest, self.roster = version, tuple(event["listed"])
            self.minority += event["minority"]

    def statuses(self, at_s: float, peers: Iterable[Json]) -> None:
        """What a monitor heard of the peers: each head's state digest too."""
        for one in peers:
            before = self.states.get(one["head"])
            if before is not None and before[0] != one["state_digest"]:
                self.divergences.append(f"status of {one['name']} at version {one['version']} against {before[1]}")

    # ---------------------------------------------------------------- reading

    @property
    def forks(self) -> int:
        """Versions of which peers told more than one head."""
        return sum(len(heads) > 1 for heads in self.heads_of.values())

    def gaps(self, now_s: float | None = None) -> list[Gap]:
        """The times between commits that were new to all, oldest first; up to `now_s` if it is given."""
        found: list[Gap] = []
        last_s, newest = None, -1
        for at_s, version in sorted((at_s, version) for version, at_s in self.first_told_s.items()):
            if version < newest:
                continue  # a fork's, or one told late
            if last_s is not None:
                found.append(Gap(last_s, at_s, version))
            last_s, newest = at_s, version
        if now_s is not None and last_s is not None:
            found.append(Gap(last_s, max(now_s, last_s), newest))
        return found

    def median_round_s(self) -> float:
        """The median time between commits; 0 before there are two."""
        gaps = [gap.seconds for gap in self.gaps()]
        return statistics.median(gaps) if gaps else 0.0


@dataclass(slots=True)
class Fault:
    """One thing done to one peer, or to several at once."""

    at_s: float
    kind: str
    names: tuple[str, ...]
    until_s: float | None = None  # when what was done was taken back, if it has been

    def line(self) -> str:
        length = "" if self.until_s is None else f" for {self.until_s - self.at_s:.0f} s"
        return f"{self.kind} {'+'.join(self.names)}{length}"


def near(gap: Gap, faults: Iterable[Fault]) -> str:
    """The faults that may have had a part in a gap, each with its second within it."""
    told = [
        f"{fault.line()} at {fault.at_s - gap.began_s:+.0f} s"
        for fault in faults
        if fault.at_s <= gap.ended_s and (fault.until_s or fault.at_s) >= gap.began_s - NEAR_S
    ]
    return "; ".join(told[:_MAX_FAULTS_TOLD]) or "no fault near"
