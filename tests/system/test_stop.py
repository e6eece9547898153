"""Ctrl+C, SIGTERM and a closed terminal at every stage of a life: exit code 0 in 5 s, saved, said goodbye, nothing left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.launcher import Launcher
from tests.system.swarm_of_processes import PeerProcess, SwarmOfProcesses, assert_versions_grow, three_peers

pytestmark = pytest.mark.system
PROMISED_S = 5.0
ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[SwarmOfProcesses]:
    yield from three_peers(tmp_path_factory.mktemp("stop"), launcher)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[SwarmOfProcesses]:
    """A run that waits for a second peer, founded by `p1`, which has stopped."""
    with SwarmOfProcesses(tmp_path_factory.mktemp("alone"), launcher, min_peers=2) as swarm:
        first = swarm.found("p1")
        first.wait_event("PeerStarted")
        stops_as_promised(first, signal.SIGTERM)
        yield swarm


def stops_as_promised(peer: PeerProcess, number: signal.Signals) -> None:
    """Signals the whole process group, as a terminal does; p2pd is in a session of its own."""
    began = time.monotonic()
    os.killpg(peer.process.pid, number)
    assert peer.wait_ended() == 0, peer.story()
    assert time.monotonic() - began < PROMISED_S, peer.story()
    assert peer.err == ""


@pytest.mark.parametrize("number", ALL)
def test_while_training(three: SwarmOfProcesses, number: signal.Signals) -> None:
    leaver = three.peer("p3")
    if not leaver.is_running:
        leaver.start().wait_event("PeerStarted", after=len(leaver.events()))
    leaver.wait_commit()
    others = [three.peer("p1"), three.peer("p2")]
    seen = {other.name: len(other.events()) for other in others}
    daemon = leaver.daemon()
    stops_as_promised(leaver, number)
    assert not daemon.is_running(), "p2pd outlived its peer"
    assert "everything is saved" in leaver.out
    for other in others:
        other.wait_event("PeerLeft", after=seen[other.name], peer=leaver.peer_id, reason="left on purpose")
        other.wait_commit()  # and they go on without it
    newest, seen_own = leaver.version, len(leaver.events())
    leaver.start()
    assert leaver.wait_event("PeerStarted", after=seen_own)["version"] >= newest
    assert f"version {leaver.wait_event('PeerStarted', after=seen_own)['version']}" in leaver.out
    assert_versions_grow(leaver)


@pytest.mark.parametrize("number", ALL)
def test_while_it_waits_for_others(alone: SwarmOfProcesses, number: signal.Signals) -> None:
    peer = alone.peer("p1")
    seen = len(peer.events())
    peer.start().wait_event("PeerStarted", after=seen)
    daemon = peer.daemon()
    stops_as_promised(peer, number)
    assert not daemon.is_running()
    alone.assert_nothing_left()


@pytest.mark.parametrize("stage", ["python starts", "torch is loaded", "the daemon starts", "the model is built"])
def test_while_starting(alone: SwarmOfProcesses, stage: str) -> None:
    peer = alone.peer("p1").start(fresh=True)

    def reached() -> bool | None:
        process = psutil.Process(peer.process.pid)
        match stage:
            case "python starts":
                return any("rich/" in one.path or "_pydantic_core" in one.path for one in process.memory_maps()) or None
            case "torch is loaded":
                return any("libtorch_cpu" in one.path for one in process.memory_maps()) or None
            case "the daemon starts":
                return bool(process.children()) or None
            case _:
                return "listening" in peer.out or None

    peer.wait(stage, reached)
    stops_as_promised(peer, signal.SIGINT)
    alone.assert_nothing_left()


def test_while_dialling_somebody_who_does_not_answer(alone: SwarmOfProcesses, tmp_path: Path) -> None:
    peer = alone.join("p2", silent_invite(alone))
    peer.wait("its daemon", lambda: psutil.Process(peer.process.pid).children() or None)
    stops_as_promised(peer, signal.SIGINT)
    alone.assert_nothing_left()


def test_a_second_signal_ends_it_at_once(alone: SwarmOfProcesses) -> None:
    peer = alone.peer("p1")
    seen = len(peer.events())
    peer.start().wait_event("PeerStarted", after=seen)
    with_threads = psutil.Process(peer.process.pid)
    assert with_threads.is_running()
    peer.signal(signal.SIGINT)
    peer.signal(signal.SIGTERM)  # another number, so that it cannot be merged with the first while that is pending
    assert peer.wait_ended() in (0, 1)  # 0 when the first was quicker than the second
    assert "Traceback" not in peer.err
    alone.assert_nothing_left()


def silent_invite(swarm: SwarmOfProcesses) -> str:
    """An invite of an address that takes connections and never says a word."""
    import socket

    from swarm.digest import digest_of
    from swarm.identity import Keypair
    from swarm.invite import Invite

    mute = socket.create_server(("127.0.0.1", 0))
    swarm.closing.callback(mute.close)
    port = mute.getsockname()[1]
    return Invite(digest_of("a run"), (f"/ip4/127.0.0.1/tcp/{port}/p2p/{Keypair.generate().peer_id.base58}",)).encode()
