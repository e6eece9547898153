"""Peers die by SIGKILL, one after the other and all at once, and come back: one state, nothing lost but the last steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil
import pytest

from peer.saved import Generations
from swarm.chain import ChainState
from swarm.errors import StateError
from tests.system.launcher import Launcher
from tests.system.swarm_of_processes import (
    BATCH_WINDOWS,
    EXCHANGE_DEADLINE_S,
    LEADER_TIMEOUT_S,
    LOCAL_STEPS,
    TRAIN_DEADLINE_S,
    Json,
    PeerProcess,
    SwarmOfProcesses,
    assert_one_state,
    assert_versions_grow,
    three_peers,
    wait_listed,
)

pytestmark = pytest.mark.system
# The longest that two survivors of three may go without a commit after a death: until the leader counts as gone (or the
# member as not awaited), then a whole round of the new leader. The rest is for two slow cores that start a process beside.
LONGEST_GAP_S = LEADER_TIMEOUT_S + TRAIN_DEADLINE_S + EXCHANGE_DEADLINE_S + 15.0


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[SwarmOfProcesses]:
    yield from three_peers(tmp_path_factory.mktemp("kill"), launcher)


def test_each_peer_dies_and_comes_back_the_leader_first(swarm: SwarmOfProcesses) -> None:
    peers = tuple(swarm.peers.values())
    told_before = {peer.name: len(peer.events()) for peer in peers}
    left = set(swarm.peers)
    while left:
        witness = peers[0]
        leader = swarm.by_id(witness.wait_commit()["leader"]).name
        victim = swarm.peer(leader if leader in left else min(left))
        left.discard(victim.name)
        daemon = victim.daemon()
        victim.kill()
        psutil.wait_procs([daemon], timeout=30)
        assert not daemon.is_running(), "p2pd outlived its peer"
        survivors = [peer for peer in peers if peer is not victim]
        for peer in survivors:  # the two go on alone
            peer.wait_version(peer.version + 2)
        victim.start()
        wait_listed(victim, survivors)
    for peer in peers:
        assert_versions_grow(peer)
        assert "Traceback" not in peer.err, peer.err
    assert assert_one_state(*peers) >= 1
    assert longest_gap_s([peer.events()[told_before[peer.name] :] for peer in peers]) < LONGEST_GAP_S


def test_all_die_and_the_run_goes_on_from_its_last_commit(swarm: SwarmOfProcesses) -> None:
    peers = tuple(swarm.peers.values())
    peers[0].wait_commit()
    for peer in peers:
        peer.kill()
    told = max((event for peer in peers for event in peer.events("RoundCommitted")), key=lambda event: event["version"])
    kept = max((chain for peer in peers for chain in chains_on_disk(peer)), key=lambda chain: chain.version)
    assert kept.version >= told["version"]  # on disk before it is told
    told_before = {peer.name: len(peer.events()) for peer in peers}
    for peer in peers:
        peer.start()
    for peer in peers:
        peer.wait_version(kept.version + 2)
    news = [event for peer in peers for event in peer.events()[told_before[peer.name] :]]
    assert max(event["version"] for event in news if event["event"] == "PeerStarted") == kept.version
    # Nobody who was there undoes what he has, so the next commit is upon that very chain: its tokens, and its place in the
    # text, which moves by a lease for each member of the roster.
    first = next(event for event in news if event["event"] == "RoundCommitted" and event["version"] == kept.version + 1)
    assert first["tokens_in_all"] == kept.tokens + first["tokens"]

    def next_chain() -> ChainState | None:
        return next((chain for chain in chains_on_disk(peers[0]) if chain.version > kept.version), None)

    follower = peers[0].wait("its next state", next_chain)
    moved = (follower.cursor - kept.cursor) / (follower.version - kept.version)
    assert 2 <= moved / (LOCAL_STEPS * BATCH_WINDOWS) <= len(peers)
    for peer in peers:
        assert_versions_grow(peer)
    assert assert_one_state(*peers) >= 1


def test_a_peer_starts_its_dead_daemon_again(swarm: SwarmOfProcesses) -> None:
    victim = swarm.peer("p2")
    seen = len(victim.events())
    daemon = victim.daemon()
    daemon.kill()
    victim.wait_event("DaemonRestarted", after=seen)
    assert victim.daemon().pid != daemon.pid
    wait_listed(victim, [swarm.peer("p1")])
    victim.wait_commit()
    assert_one_state(*swarm.peers.values())


def longest_gap_s(stories: list[list[Json]]) -> float:
    """The longest time in which no peer told of a version that was new to all."""
    newest, told_at, longest = -1, None, 0.0
    commits = (event for story in stories for event in story if event["event"] == "RoundCommitted")
    for event in sorted(commits, key=lambda event: event["at_unix_s"]):
        if event["version"] > newest:
            newest = event["version"]
            longest = max(longest, event["at_unix_s"] - told_at) if told_at is not None else 0.0
            told_at = event["at_unix_s"]
    return longest


def chains_on_disk(peer: PeerProcess) -> list[ChainState]:
    """What the state files of a peer stand for; none of those that are being replaced just now."""
    with contextlib.suppress(StateError):
        return [state.chain for saved in Generations(peer.home / "state").kept() for state in saved.states]
    return []
