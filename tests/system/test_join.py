"""Joining in ways that must work: past dead addresses, through anybody, late, and side by side in the default homes."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.identity import Keypair
from swarm.invite import Invite
from tests.system.launcher import Launcher
from tests.system.swarm_of_processes import (
    GENEROUS_S,
    PeerProcess,
    SwarmOfProcesses,
    assert_one_state,
    assert_versions_grow,
    wait_listed,
)

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[SwarmOfProcesses]:
    """A run that one peer has begun alone and brought past version 3."""
    with SwarmOfProcesses(tmp_path_factory.mktemp("join"), launcher, min_peers=1) as swarm:
        swarm.found("p1").wait_version(4)
        yield swarm


def dead_address(stack: contextlib.ExitStack) -> str:
    """Bound and not listening: whoever dials is refused, and nobody else gets this port meanwhile."""
    silent = stack.enter_context(socket.socket())
    silent.bind(("127.0.0.1", 0))
    return f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{Keypair.generate().peer_id.base58}"


def test_late_past_dead_addresses_and_through_a_peer_that_did_not_begin_the_run(swarm: SwarmOfProcesses) -> None:
    first = swarm.peer("p1")
    alive = Invite.parse(first.invite())
    with contextlib.ExitStack() as stack:
        for name, addresses in (
            ("p2", (dead_address(stack), *alive.addresses)),
            ("p3", (*alive.addresses, dead_address(stack))),
        ):
            swarm.join(name, Invite(alive.run, addresses).encode())
        second, third = swarm.peer("p2"), swarm.peer("p3")
        enters_late(second, [first])
        enters_late(third, [first, second])
    first.kill()  # who began the run is gone for good; two of three go on
    fourth = swarm.join("p4", second.invite())
    enters_late(fourth, [second, third])
    for peer in (first, second, third, fourth):
        assert_versions_grow(peer)
        assert not peer.err, peer.err
    assert assert_one_state(second, third, fourth) >= 1


def enters_late(peer: PeerProcess, others: list[PeerProcess]) -> None:
    """It catches up by log or snapshot, and a later commit lists it."""
    caught_up = peer.wait_event("CaughtUp")
    assert caught_up["version"] > 3 and caught_up["how"].split(",")[0] in ("log", "snapshot")
    wait_listed(peer, others)
    own = peer.wait_event("RoundCommitted")
    assert own["version"] > caught_up["version"]
    assert assert_one_state(peer, *others) >= 1


def test_default_homes(tmp_path: Path, launcher: Launcher) -> None:
    """The first start begins a run, further peers take the next free homes, a later start resumes, `--new` does not."""
    with SwarmOfProcesses(tmp_path, launcher, min_peers=2) as swarm:
        first = swarm.peer("first").start("--config", str(swarm.config), at_default_home=True)
        first.wait_event("PeerStarted")
        second = swarm.peer("second").start(at_default_home=True)
        second.wait_version(1)
        assert "peer-1 is running already: this one is peer-2" in second.out
        first.wait_version(1)
        third = swarm.peer("third").start("--join", first.invite(), at_default_home=True)
        third.wait_version(1)
        assert "peer-2 is running already: this one is peer-3" in third.out
        for peer in (third, second, first):
            peer.stop()
        assert_one_state(first, second)
        homes = sorted(path.parent for path in swarm.data.glob("runs/*/*/identity.key"))
        assert [home.name for home in homes] == ["peer-1", "peer-2", "peer-3"]
        resumed = swarm.peer("resumed").start(at_default_home=True)
        assert resumed.wait_event("PeerStarted")["version"] >= 1
        resumed.stop()
        assert "resumes" in resumed.out
        afresh = swarm.peer("afresh").start("--new", "--config", str(swarm.config), at_default_home=True)
        assert afresh.wait_event("PeerStarted")["version"] == 0
        afresh.signal(signal.SIGINT)
        assert afresh.process.wait(GENEROUS_S) == 0
        runs = {path.parent.parent for path in swarm.data.glob("runs/*/*/identity.key")}
        assert len(runs) == 2
