"""What the demo claims, each claim checked against what really happened, and the table that shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from peer.screen import plain
from swarm.config import DataConfig

LOSS_TOLERANCE = 1e-3  # of the pulled checkpoint's loss against the one the swarm reported for that version
_PROMPT = "def "


@dataclass(slots=True)
class PeerRecord:
    """One peer's event file, read so far."""

    name: str
    peer: str = ""
    started: bool = False
    version: int = 0
    leader: str = ""
    checkpoint: int = 0
    digests: dict[tuple[int, str], str] = field(default_factory=dict)  # (version, head) -> state digest
    losses: dict[int, float] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    sent_bytes: int = 0
    tokens: int = 0
    lists_newcomer: bool = False

    @classmethod
    def read(cls, name: str, path: Path) -> PeerRecord:
        """Reads a JSON-lines file that may still be written: a half last line is left for the next time."""
        record = cls(name)
        try:
            lines = path.read_text().splitlines(keepends=True)
        except OSError:
            return record
        for line in lines:
            if not line.endswith("\n"):
                continue
            try:
                event = json.loads(line)
            except ValueError:
                continue  # what was being written when the peer was killed, and was then written behind
            record._take(event)
        return record

    def _take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "PeerStarted":
                self.started, self.peer = True, event["peer"]
            case "RoundCommitted":
                self.version = max(self.version, event["version"])
                self.leader = event["leader"]
                self.digests[event["version"], event["head"]] = event["state_digest"]
                self.commits.append(event)
                if self.name == "peer-4" and self.peer in event["listed"]:
                    self.lists_newcomer = True
            case "CaughtUp":
                self.version = max(self.version, event["version"])
            case "Evaluated":
                self.losses[event["version"]] = event["loss"]
            case "CheckpointKept":
                self.checkpoint = max(self.checkpoint, event["version"])
            case "CutMade":
                self.sent_bytes += event["num_bytes"]
                self.tokens += event["tokens"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the summary: what should hold, whether it does, and by which figures."""

    what: str
    holds: bool
    figures: str


@dataclass(frozen=True, slots=True)
class Played:
    """What the demo did, to be judged."""

    victim: str
    killed_at: int
    codes: dict[str, int]  # exit codes of those that were asked to leave
    trained_s: float
    checkpoint: Path
    data: DataConfig
    cache: Path
    traffic: dict[str, tuple[int, int]]  # bytes up and down since its start, by peer's name; the dead are not there


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything the summary shows."""

    claims: tuple[Claim, ...]
    records: tuple[PeerRecord, ...]
    played: Played
    sample: str

    @property
    def holds(self) -> bool:
        return all(claim.holds for claim in self.claims)


@dataclass(frozen=True, slots=True)
class Pulled:
    """The pulled checkpoint: its loss by plain transformers, and the one that the swarm reported for it."""

    version: int
    loss: float
    reported: float


def judge(records: list[PeerRecord], played: Played) -> Outcome:
    """Checks every claim; loads the pulled checkpoint to do so."""
    found = json.loads((played.checkpoint / "barnraise-record.json").read_text())
    loss, sample = _load_and_speak(played, found["evaluation"]["windows"])
    pulled = Pulled(found["version"], loss, found["evaluation"]["heldout_loss"])
    return Outcome(claims_of(records, played, pulled), tuple(records), played, sample)


def claims_of(records: Sequence[PeerRecord], played: Played, pulled: Pulled) -> tuple[Claim, ...]:
    """Every claim, and whether it holds."""
    victim, killed_at, codes, trained_s = played.victim, played.killed_at, played.codes, played.trained_s
    loss, reported = pulled.loss, pulled.reported
    first = next((record.losses[0] for record in records if 0 in record.losses), math.nan)
    by_head: dict[tuple[int, str], set[str]] = {}
    for record in records:
        for key, digest in record.digests.items():
            by_head.setdefault(key, set()).add(digest)
    versions = sorted({version for version, _ in by_head})
    one_state = all(len(digests) == 1 for digests in by_head.values()) and len(by_head) == len(versions)
    last = max((record.version for record in records), default=0)
    tokens = max((commit["tokens_in_all"] for record in records for commit in record.commits), default=0)
    per_s = tokens / max(1.0, trained_s)
    newcomer = next((record for record in records if record.name == "peer-4"), PeerRecord("peer-4"))
    return (
        Claim("held-out loss fell", loss < first - 0.1, f"{first:.4f} -> {loss:.4f}"),
        Claim("equal digests at every version", one_state, f"{len(versions)} versions, {len(by_head)} heads"),
        Claim("outlived the kill", last > killed_at + 1, f"{victim} killed at version {killed_at}, swarm at {last}"),
        Claim("a newcomer contributes", newcomer.lists_newcomer, f"peer-4 did {newcomer.tokens:,} tokens"),
        Claim(
            "the pulled checkpoint loads",
            abs(loss - reported) < LOSS_TOLERANCE,
            f"version {pulled.version}: loss {loss:.5f}, the swarm reported {reported:.5f}",
        ),
        Claim(
            "everyone left in peace",
            all(code == 0 for code in codes.values()),
            ", ".join(f"{name} {code}" for name, code in sorted(codes.items())),
        ),
        Claim(
            "rounds",
            last > 0,
            f"{last} in {trained_s:.0f} s; {tokens:,} tokens, {per_s:,.0f} tokens/s",
        ),
    )


def show(console: Console, outcome: Outcome) -> None:
    """Prints the summary."""
    table = Table(title="What happened", title_justify="left", show_header=False, box=None, padding=(0, 1))
    for claim in outcome.claims:
        table.add_row("[green]yes[/]" if claim.holds else "[bold red]NO[/]", claim.what, claim.figures)
    console.print(table)
    peers = Table(title="Peers", title_justify="left", box=None, padding=(0, 1))
    for title in ("name", "version", "tokens", "contributions", "encoded MB", "up MB", "down MB"):
        peers.add_column(title, justify="left" if title == "name" else "right")
    played = outcome.played
    for record in outcome.records:
        name = record.name + (" (killed)" if record.name == played.victim else "")
        listed = sum(record.peer in commit["listed"] for commit in record.commits)
        traffic = [f"{count / 1e6:.1f}" for count in played.traffic.get(record.name, ())] or ["", ""]
        encoded = f"{record.sent_bytes / 1e6:.1f}"
        peers.add_row(name, str(record.version), f"{record.tokens:,}", str(listed), encoded, *traffic)
    console.print(peers)
    console.print("\n[bold]The pulled model goes on from[/] " + repr(_PROMPT))
    console.print(plain(outcome.sample.replace("\n", " ⏎ ")), markup=False)
    console.print(f"\nCheckpoint: {played.checkpoint}")
    console.print(f'  AutoModelForCausalLM.from_pretrained("{played.checkpoint}")', markup=False)
    console.print("[bold green]All of it holds.[/]" if outcome.holds else "[bold red]Not all of it holds.[/]")


def _load_and_speak(played: Played, heldout: list[int]) -> tuple[float, str]:
    """The loss of the pulled model on those held-out windows, by plain transformers; and a sample."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from peer.data.windows import open_windows

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(played.checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(played.checkpoint)
    tokens = torch.from_numpy(open_windows(played.data, None, None, played.cache).heldout(heldout))
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits.float()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
    torch.manual_seed(0)
    prompt = tokenizer(_PROMPT, return_tensors="pt")
    told = model.generate(**prompt, max_new_tokens=120, do_sample=True, temperature=0.7, pad_token_id=0)
    return loss, str(tokenizer.decode(told[0]))
