"""A snapshot over real p2pd from three donors, of whom one lies and one is killed half-way; a joiner that is killed itself.

The donors begin from prepared homes at version 40, beyond any log, and train so slowly that they stay there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from peer.blob_store import BlobStore
from peer.fault_point import FAULT_ENV
from peer.home import Home, open_home
from peer.main import make_run
from peer.model import layout_of, meta_model
from peer.replica import Replica
from peer.saved import Generations
from swarm.allreduce.codec import make_codec
from swarm.allreduce.outer import OuterState, initial_outer_state
from swarm.allreduce.shared import RunMath, SharedState
from swarm.chain import ChainState
from swarm.data_folder import DATA_ENV
from swarm.digest import digest_of
from swarm.identity import PeerId
from swarm.manifest import Manifest
from swarm.messages import StateRecord, record_digest
from tests.system.launcher import Launcher
from tests.system.liar import LIES_ENV
from tests.system.swarm_of_processes import PeerProcess, SwarmOfProcesses

pytestmark = pytest.mark.system
VERSION = 40
UPLOAD_MBIT = "120"  # of which a joiner gets 3.75 MB/s from each donor: time enough to kill somebody half-way
# About five million parameters: a state of some 40 MB.
CONFIG = """
preset = "tiny"
name = "some tens of MB"
[model]
hidden_size = 256
num_layers = 6
num_heads = 4
intermediate_size = 1024
[data]
sequence_length = 32
eval_windows = 1
[inner]
batch_windows = 1
[round]
min_peers = {min_peers}
train_deadline_s = 3600.0
exchange_deadline_s = 60.0
heartbeat_s = 0.3
leader_timeout_s = 30.0
[checkpoint]
every = 1000
"""


@dataclass
class Donors:
    swarm: SwarmOfProcesses
    record: StateRecord
    invite: str

    @property
    def num_bytes(self) -> int:
        return sum(unit.num_bytes for unit in self.record.units)


def prepared(folder: Path, manifest: Manifest, state: SharedState) -> StateRecord:
    """Writes a home that stands at that state."""
    home = open_home(folder)
    try:
        home.keep_manifest(manifest)
        math = _math(manifest)
        store = BlobStore(home.blobs)
        replica = Replica(math, home.keypair().peer_id, manifest.run_id, store, Generations(home.state))
        replica.begin(state)
        replica.save(state.anchor_N, None)
        return replica.present.record
    finally:
        home.release()


def _math(manifest: Manifest) -> RunMath:
    config = manifest.config
    return RunMath.of(config, layout_of(meta_model(config.model)), make_codec(config.codec))


def id_of(folder: Path) -> PeerId:
    """Of the peer whose home that is."""
    home = open_home(folder)
    try:
        return home.keypair().peer_id
    finally:
        home.release()


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[Donors]:
    with SwarmOfProcesses(tmp_path_factory.mktemp("donors"), launcher, min_peers=1, config=CONFIG) as swarm:
        names = ("honest", "liar", "dying")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(DATA_ENV, str(swarm.data))
            path = swarm.folder / "run.manifest"
            home = swarm.peer(names[0]).home
            assert make_run(swarm.config, path, home=home, data=None, tokenizer=None, port=0, local=True) == 0
        manifest = Manifest.from_bytes(path.read_bytes())
        ids = [id_of(swarm.peer(name).home) for name in names]
        layout = _math(manifest).layout
        draw = torch.Generator().manual_seed(1)
        anchor_N = torch.randn(layout.numel, generator=draw) * 0.02
        outer = initial_outer_state(manifest.config.outer, anchor_N)
        buffers = tuple(torch.randn(layout.numel, generator=draw) for _ in outer.buffers)
        chain = ChainState(
            head=digest_of("test", b"head 40"),
            version=VERSION,
            tokens=10**6,
            cursor=10**4,
            listed=(),
            roster=tuple(sorted(ids)),
            entries=len(ids),
            entered=(0,) * len(ids),
            dialable=bytes(len(ids)),
            voting=bytes([3]) * len(ids),
        )
        state = SharedState(chain, anchor_N, OuterState(buffers, outer.scalars))
        records = [prepared(swarm.peer(name).home, manifest, state) for name in names]
        swarm.peer("liar").environment = {LIES_ENV: "1"}
        for name in names:
            peer = swarm.peer(name)
            # A step takes a second, of which the processor is needed for some hundredths.
            peer.environment |= {FAULT_ENV: f"orders={swarm.folder / 'none'};pace=1.0"}
            join = ("--join", swarm.peer(names[0]).invite()) if name != names[0] else ()
            peer.start(*join, "--max-upload-mbit", UPLOAD_MBIT)
            assert peer.wait_event("PeerStarted")["version"] == VERSION
        yield Donors(swarm, records[0], swarm.peer(names[0]).invite())


def come(peer: PeerProcess) -> int:
    """The bytes of blobs and parts of blobs that are on a joiner's disk."""
    total = 0
    for path in peer.home.glob("blobs/*"):
        try:
            if re.fullmatch(r"[0-9a-f]{64}(\.part)?", path.name):
                total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def received(peer: PeerProcess) -> int:
    """What the joiner's p2pd has read so far: from the network, and the few requests of the peer itself."""
    return int(psutil.Process(peer.daemon().pid).io_counters().read_chars)


def assert_has(donors: Donors, peer: PeerProcess) -> None:
    """The stopped peer's home stands at the donors' state, and every byte of it is right."""
    home = Home(peer.home)
    (saved, *_) = Generations(home.state).kept()
    assert record_digest(saved.states[-1]) == record_digest(donors.record)
    store = BlobStore(home.blobs)
    for unit in donors.record.units:
        store.read(unit.root, check=True)


def test_one_donor_lies_and_one_is_killed_half_way(donors: Donors, capsys: pytest.CaptureFixture[str]) -> None:
    swarm = donors.swarm
    joiner = swarm.join("joiner", donors.invite)
    own = joiner.wait("version 0", lambda: joiner.events("PeerStarted") and come(joiner))
    joiner.wait("a quarter of the state", lambda: come(joiner) - own > donors.num_bytes // 4)
    swarm.peer("dying").kill()
    assert come(joiner) - own < donors.num_bytes, "it was killed too late"
    caught_up = joiner.wait_event("CaughtUp")
    num_bytes = received(joiner)
    assert (caught_up["how"], caught_up["version"]) == ("snapshot, on the word of strangers", VERSION)
    assert caught_up["num_bytes"] == donors.num_bytes
    joiner.stop()
    assert_has(donors, joiner)
    with capsys.disabled():
        print(
            f"\n  state {donors.num_bytes:,} bytes, received {num_bytes:,} ({num_bytes / donors.num_bytes:.3f} times)"
            f" in {caught_up['seconds']:.1f} s, digest equal"
        )
    assert num_bytes <= 1.3 * donors.num_bytes


def test_a_joiner_that_is_killed_goes_on_where_it_was(donors: Donors, capsys: pytest.CaptureFixture[str]) -> None:
    joiner = donors.swarm.join("unlucky", donors.invite)
    own = joiner.wait("version 0", lambda: joiner.events("PeerStarted") and come(joiner))
    joiner.wait("half of the state", lambda: come(joiner) - own > donors.num_bytes // 2)
    joiner.kill()
    kept = come(joiner) - own
    assert not joiner.events("CaughtUp"), "it was killed too late"
    joiner.start("--join", donors.invite)
    joiner.wait_event("CaughtUp")
    num_bytes = received(joiner)
    joiner.stop()
    assert_has(donors, joiner)
    with capsys.disabled():
        print(f"\n  state {donors.num_bytes:,} bytes, {kept:,} kept, then received {num_bytes:,}")
    assert num_bytes <= donors.num_bytes - kept + 0.15 * donors.num_bytes
