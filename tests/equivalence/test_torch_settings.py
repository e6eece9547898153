"""From equal contributions equal bits, whatever torch makes of the machine: threads and instruction sets.

Decode, mean and outer step use only operations that round alike everywhere. Here peers train three rounds for real; their
contributions are then replayed in processes with other settings, and each version must have the peers' own digest.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from swarm.config import CodecConfig, InnerConfig, ModelConfig, OuterConfig, RunConfig
from tests.equivalence.group import Group
from tests.equivalence.replay import record
from tests.equivalence.stand_ins import tiny_config, tiny_round

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3

# Units of 80 thousand elements: torch begins to share elementwise work among threads at 32768.
MODEL = ModelConfig(vocab_size=512, hidden_size=96, num_layers=2, num_heads=2, intermediate_size=192, max_positions=32)

RUNS = {
    "int8-nesterov": (CodecConfig(name="int8", block_size=1000), OuterConfig(optimizer="nesterov")),
    "raw-adamw": (CodecConfig(name="raw"), OuterConfig(optimizer="adamw", learning_rate=1e-3, weight_decay=0.1)),
}

SETTINGS = [(1, "default"), (2, "default"), (2, "avx2")]  # threads, ATEN_CPU_CAPABILITY


def run_config(codec: CodecConfig, outer: OuterConfig) -> RunConfig:
    return tiny_config(
        model=MODEL,
        inner=InnerConfig(optimizer="adamw", learning_rate=3e-3, batch_windows=1),
        outer=outer,
        codec=codec,
        round=tiny_round(local_steps=1, lease_steps=30, min_peers=3),
    )


def replay_all(folders: list[Path], threads: int, capability: str) -> tuple[list[list[str]], str]:
    """The digests of each folder's versions, from one process, and what torch said of its settings."""
    command = [sys.executable, "-m", "tests.equivalence.replay", str(threads), *map(str, folders)]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    settings, *lines = done.stdout.splitlines()
    return [line.split() for line in lines], settings


def test_digests_do_not_depend_on_threads_or_instruction_set(tmp_path: Path) -> None:
    folders, expected = [], []
    for name, (codec, outer) in RUNS.items():
        with Group(tmp_path / name, run_config(codec, outer), 3, batches=(2, 3, 5)) as group:
            source = group[0].replica
            genesis = (source.math.layout, source.present.state.anchor_N)
            digests = [source.present.digest]
            group.settle(ROUNDS)
            folders.append(tmp_path / f"{name}-record")
            record(folders[-1], group.config, genesis, source)
            expected.append([one.hex() for one in (*digests, *group.digests_to(group[0].head))])
    assert all(len(set(one)) == ROUNDS + 1 for one in expected)
    seen = set()
    for threads, capability in SETTINGS:
        found, settings = replay_all(folders, threads, capability)
        assert found == expected, f"{settings} differs"
        seen.add(settings)
    # Elsewhere than on x86 there is only the default set.
    distinct = SETTINGS if platform.machine() == "x86_64" else {threads for threads, _ in SETTINGS}
    assert len(seen) == len(distinct), f"the settings did not take: {seen}"
