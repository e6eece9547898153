"""Peers die by SIGKILL, one after the other and all at once, and come back: one state, nothing lost but the last steps."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import psutil
import pytest

from peer.learning_rate import learning_rate, swarm_tokens_now
from peer.main import LOG_ENV
from peer.saved import Generations
from swarm.chain import ChainState
from swarm.digest import Digest
from swarm.errors import StateError
from swarm.manifest import Manifest
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


def test_all_die_and_the_first_one_back_goes_on_from_the_last_commit(swarm: SwarmOfProcesses) -> None:
    peers = tuple(swarm.peers.values())
    peers[0].wait_commit()
    for peer in peers:
        peer.kill()
    told = max((event for peer in peers for event in peer.events("RoundCommitted")), key=lambda event: event["version"])
    first = max(peers, key=lambda peer: newest_chain(peer).version)
    kept = newest_chain(first)
    assert kept.version >= told["version"]  # on disk before it is told
    told_before = {peer.name: len(peer.events()) for peer in peers}
    first.environment = {LOG_ENV: "DEBUG"}
    first.start()
    started = first.wait_event("PeerStarted", after=told_before[first.name])
    assert started["version"] == kept.version
    assert resumed_at(first) == (kept.version, kept.tokens, kept.cursor, pytest.approx(rate_at(first), rel=1e-4))
    # It waits for the others as long as it must, then goes on alone: the next commit is upon that very chain, in its
    # tokens and in its place in the text, which moves by a lease for each member of the roster.
    commit = first.wait_event("RoundCommitted", after=told_before[first.name])
    assert (commit["version"], commit["minority"]) == (kept.version + 1, True)
    assert commit["tokens_in_all"] == kept.tokens + commit["tokens"]
    follower = first.wait(
        "its next state", lambda: next((one for one in chains_on_disk(first) if one.entries == 1), None)
    )
    lease = LOCAL_STEPS * BATCH_WINDOWS
    moved = (len(kept.roster) + follower.version - kept.version - 1) * lease
    assert follower.cursor - kept.cursor == moved
    assert re.search(r"DEBUG peer\.node: .* was not reached", first.err), first.story()  # what it is asked to tell
    for peer in peers:
        if peer is not first:
            peer.start()
    for peer in peers:
        wait_listed(peer, [one for one in peers if one is not peer])
    for peer in peers:
        assert_versions_grow(peer)
    assert assert_one_state(*peers) >= 1


def test_a_damaged_private_part_is_given_up_and_the_peer_goes_on(swarm: SwarmOfProcesses) -> None:
    victim, others = swarm.peer("p2"), [swarm.peer("p1"), swarm.peer("p3")]
    victim.kill()
    seen = len(victim.events())
    damage(victim, {saved.residual for saved in Generations(victim.home / "state").kept()})
    victim.start()
    assert "alone" in victim.wait_event("WorkDropped", after=seen)["reason"]
    wait_listed(victim, others)
    assert "the shared state is whole" in victim.out and not list(victim.home.glob("damaged-*"))
    assert_versions_grow(victim)
    assert_one_state(victim, *others)


def test_a_damaged_shared_state_is_moved_aside_and_the_peer_joins_again(swarm: SwarmOfProcesses) -> None:
    victim, others = swarm.peer("p3"), [swarm.peer("p1"), swarm.peer("p2")]
    victim.kill()
    seen, last = len(victim.events()), max(event["seq"] for event in victim.events("CutMade"))
    states = [state for saved in Generations(victim.home / "state").kept() for state in saved.states]
    damage(victim, {unit.root for state in states for unit in state.units})
    victim.start()
    assert "state" in victim.wait_event("WorkDropped", after=seen)["reason"]
    wait_listed(victim, others)
    assert "joins again" in victim.out and (victim.home / "damaged-1" / "state").is_dir()
    assert victim.wait_event("CutMade", after=seen)["seq"] > last
    assert_versions_grow(victim)
    assert_one_state(victim, *others)


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


def newest_chain(peer: PeerProcess) -> ChainState:
    return max(chains_on_disk(peer), key=lambda chain: chain.version)


def damage(peer: PeerProcess, roots: set[Digest]) -> None:
    """Changes the last byte of these blobs, as far as they are there still."""
    for root in roots:
        path = peer.home / "blobs" / root.hex()
        if path.exists():
            raw = path.read_bytes()
            path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def rate_at(peer: PeerProcess) -> float:
    """The learning rate that follows from what is on the peer's disk: from the swarm's tokens alone."""
    saved = Generations(peer.home / "state").kept()[0]
    chain = saved.states[-1].chain
    config = Manifest.from_bytes((peer.home / "run.manifest").read_bytes()).config
    return learning_rate(config.inner, swarm_tokens_now(chain.tokens, saved.tokens_since_cut, chain.entries))


def resumed_at(peer: PeerProcess) -> tuple[int, int, int, float]:
    """Version, tokens, first slot of the text and learning rate that a peer says it goes on with."""
    line = r"resumes\s+version (\d+), ([\d,]+) tokens, text from slot ([\d,]+), learning rate ([\d.e-]+)"
    found = peer.wait("where it resumes", lambda: re.search(line, peer.out))
    version, tokens, cursor = (int(one.replace(",", "")) for one in found.groups()[:3])
    return version, tokens, cursor, float(found[4])
