"""The run that the lab's peers train: one manifest for each number of peers that genesis waits for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from swarm.identity import Keypair
from swarm.manifest import Manifest, sign_manifest
from tests.system.launcher import ROOT

LOCAL_STEPS: Final = 4
TRAIN_DEADLINE_S: Final = 8.0
EXCHANGE_DEADLINE_S: Final = 6.0
HEARTBEAT_S: Final = 1.0
LEADER_TIMEOUT_S: Final = 6.0
CONFIG: Final = f"""
preset = "tiny"
name = "nat-lab"
[round]
local_steps = {LOCAL_STEPS}
train_deadline_s = {TRAIN_DEADLINE_S}
exchange_deadline_s = {EXCHANGE_DEADLINE_S}
heartbeat_s = {HEARTBEAT_S}
leader_timeout_s = {LEADER_TIMEOUT_S}
[checkpoint]
every = 1000
"""
BARNRAISE: Final = (sys.executable, "-m", "peer")  # what the `barnraise` command is
_NEW_S: Final = 120.0


class NatRun:
    """Manifests in a folder of their own. The first one is made by `barnraise new`, as a maintainer would."""

    def __init__(self, folder: Path, cache: Path) -> None:
        """`cache`: the text, packed once for all."""
        folder.mkdir(parents=True)
        (folder / "cache").symlink_to(cache)
        self._folder = folder
        self._first: Manifest | None = None

    def manifest(self, min_peers: int) -> Path:
        """Raises CalledProcessError."""
        path = self._folder / f"{min_peers}.manifest"
        if not path.exists():
            first = self._first = self._first or self._new()
            rounds = first.config.round.model_copy(update={"min_peers": min_peers})
            config = first.config.model_copy(update={"round": rounds})
            path.write_bytes(sign_manifest(config, [Keypair.generate()]).to_bytes())
        return path

    def _new(self) -> Manifest:
        config, out = self._folder / "run.toml", self._folder / "run.manifest"
        config.write_text(CONFIG)
        subprocess.run(
            [*BARNRAISE, "new", config, "-o", out, "--home", self._folder / "unused"],
            check=True,
            capture_output=True,
            timeout=_NEW_S,
            env={**os.environ, "BARNRAISE_DATA": str(self._folder), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
        )
        return Manifest.from_bytes(out.read_bytes())
