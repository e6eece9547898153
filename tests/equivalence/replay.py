"""Replays recorded commits over recorded contributions, in a process with torch settings of its own.

    python -m tests.equivalence.replay THREADS FOLDER...

prints torch's settings, then the state digests of each folder's versions on a line. A folder holds what `record` wrote: the
config, the layout, version 0, commits in order, blobs by digest. Nothing is trained here, and transformers is not even
imported: from equal contributions every machine must come to equal bits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from peer.blob_store import BlobStore
from peer.replica import Replica
from peer.saved import Generations
from swarm import wire
from swarm.allreduce.codec import bytes_of, make_codec, vector_from
from swarm.allreduce.layout import ModelLayout, build_layout
from swarm.allreduce.shared import RunMath, genesis_state
from swarm.chain import apply
from swarm.config import RunConfig
from swarm.digest import digest_of
from swarm.identity import Keypair
from swarm.messages import Commit
from swarm.round.root import root_after
from swarm.schema import from_value, to_value
from swarm.votes import voted_by

RUN = digest_of("test-run")


def record(folder: Path, config: RunConfig, genesis: tuple[ModelLayout, Tensor], source: Replica) -> None:
    """Writes what `replay` reads: the log of `source`, which begins at version 0, with its blobs."""
    folder.mkdir()
    layout, parameters_N = genesis
    (folder / "config.json").write_text(config.model_dump_json())
    units = [[(slot.name, slot.shape) for slot in unit.tensors] for unit in layout.units]
    (folder / "layout.json").write_text(json.dumps(units))
    (folder / "version-0").write_bytes(bytes_of(parameters_N))
    store = BlobStore(folder / "blobs")
    for number, commit in enumerate(source.log):
        (folder / f"{number:03d}.commit").write_bytes(wire.encode(to_value(commit)))
        for entry in commit.commit.entries:
            store.put(source.store.read(entry.root, check=True), durable=False)


def replay(folder: Path) -> list[str]:
    """State digests of versions 0, 1 ... in hex."""
    config = RunConfig.model_validate_json((folder / "config.json").read_text(), strict=False)
    units = json.loads((folder / "layout.json").read_text())
    layout = build_layout([[(name, tuple(shape)) for name, shape in unit] for unit in units])
    math = RunMath.of(config, layout, make_codec(config.codec))
    author = Keypair.from_seed(b"w" * 32).peer_id
    replica = Replica(math, author, RUN, BlobStore(folder / "blobs"), Generations(folder / "state"))
    replica.begin(genesis_state(math, RUN, vector_from((folder / "version-0").read_bytes())))
    theta_N = replica.present.state.anchor_N
    digests = [replica.present.digest.hex()]
    for path in sorted(folder.glob("*.commit")):
        commit = from_value(Commit, wire.decode(path.read_bytes()))
        chain = replica.chains[0]
        child = apply(chain, commit.commit, config.lease_windows)
        root = root_after(replica.roots[0], chain, voted_by(chain, commit.votes), child)
        theta_N = replica.apply(chain.head, (commit,), (root,), theta_N).theta_N
        assert torch.equal(theta_N, replica.present.state.anchor_N)
        digests.append(replica.present.digest.hex())
    return digests


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    for folder in sys.argv[2:]:
        print(*replay(Path(folder)))
