"""What one peer decides for itself; what peers must agree on is in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerOptions:
    """The options of `run_peer.py`."""

    join: str | None = None  # an invite
    new: bool = False  # start a run afresh even when there is one to resume
    config: Path | None = None  # TOML or a manifest, for a new run
    home: Path | None = None
    device: str | None = None
    data: Path | None = None
    tokenizer: Path | None = None
    name: str | None = None
    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    local: bool = False  # loopback only
    rounds: int | None = None  # leave after this version
    json_events: Path | None = None
    quiet: bool = False
    max_disk_gb: float = 0.0  # of this peer's home; 0: what the disk has
    max_upload_mbit: float = 0.0  # what the line can send; 0: unknown
    prefer_torch: bool | None = None  # fp32 optimizer moments where the run says 8 bits; None: what suits the machine
