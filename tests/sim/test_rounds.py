"""The round machine through steady days and bad nights: what must come out, and that the fault did happen."""

from __future__ import annotations

import pytest

from swarm.events import RoundCommitted, ViewChanged
from tests.sim.faults import Crash, DiskFull, Freeze, Join, Leave, Lossy, Partition, Phase, Slow, StrikeLeader, Withhold
from tests.sim.world import World, round_config

ROUND_S = 20.0  # training and exchange of one quiet round here, with room: 10 s of training, a cut, a commit
TAKE_OVER_S = 10.0 + 4.0  # a leader's silence, its successor's questions and the others' next heartbeats
ALONE_S = 30.0  # how long whoever is left waits for a majority
SEEDS = pytest.mark.parametrize("seed", range(2))


def commits(world: World) -> dict[int, RoundCommitted]:
    """What each version's commit said; the first peer's word, all that say it say the same list."""
    said: dict[int, RoundCommitted] = {}
    for _, _, event in world.of_kind(RoundCommitted):
        known = said.setdefault(event.version, event)
        assert known.head != event.head or known.listed == event.listed
    return said


def names(world: World, event: RoundCommitted) -> str:
    return "".join(sorted(peer.name for peer in world.peers if peer.id in event.listed))


def forks(world: World) -> int:
    """Versions that were reached at more than one head."""
    heads: dict[int, set[object]] = {}
    for _, _, event in world.of_kind(RoundCommitted):
        heads.setdefault(event.version, set()).add(event.head)
    return sum(len(found) > 1 for found in heads.values())


# ---------------------------------------------------------------- quiet days


def test_one_peer_makes_rounds_by_itself() -> None:
    world = World(1).run_until(5, 5 * ROUND_S)
    assert all(names(world, event) == "a" and not event.minority for event in commits(world).values())
    assert not world.of_kind(ViewChanged)


@SEEDS
@pytest.mark.parametrize("peers", [2, 3, 5])
def test_a_steady_swarm_lists_everyone_in_every_round(peers: int, seed: int) -> None:
    world = World(peers, seed).run_until(8, 8 * ROUND_S)
    everyone = "abcde"[:peers]
    assert {names(world, event) for event in commits(world).values()} == {everyone}
    assert not any(event.minority for event in commits(world).values())
    assert not world.of_kind(ViewChanged) and not forks(world)


@pytest.mark.parametrize("peers", [3, 5])
def test_messages_of_a_round_grow_with_the_pairs_of_members(peers: int) -> None:
    world = World(peers, discovers_for_s=20.0).run_until(3, 4 * ROUND_S)
    before, began_s = world.traffic.sent.copy(), world.now_s
    world.run_until(8, 6 * ROUND_S)
    sent = {kind: (world.traffic.sent[kind] - before[kind]) / 5 for kind in world.traffic.sent}
    beats = (world.now_s - began_s) / 5 / world.config.round.heartbeat_s + 3  # some come early: cuts, heads
    followers = peers - 1
    assert sent["Commit"] <= 2 * followers  # each once, and once more to whoever beats while the leader moves
    assert sent["Contribution"] <= peers * followers + 2 * followers  # everyone's to everyone
    assert sent["Holding"] <= peers * followers
    assert sent["PeerStatus"] <= beats * followers + followers
    assert sent["LeaderBrief"] <= sent["PeerStatus"] + 1  # an answer each; a few statuses were sent before we counted


def test_cutting_by_own_step_count_needs_no_hint() -> None:
    world = World(3, config=round_config(local_steps=4, train_deadline_s=60.0, min_peers=3)).run_until(5, 100)
    assert {names(world, event) for event in commits(world).values()} == {"abc"}


def test_enough_tokens_make_a_round() -> None:
    config = round_config(target_tokens=12 * 4096, train_deadline_s=600.0, min_peers=3)
    world = World(3, config=config).run_until(5, 100)
    assert min(event.tokens for event in commits(world).values()) >= 12 * 4096


@SEEDS
def test_training_goes_on_underneath(seed: int) -> None:
    world = World(3, seed, config=round_config(overlap=True, min_peers=3)).run_until(8, 8 * ROUND_S)
    assert {names(world, event) for event in commits(world).values()} == {"abc"}


# ---------------------------------------------------------------- nobody commits


@pytest.mark.parametrize("overlap", [False, True], ids=["blocking", "overlap"])
def test_who_waits_for_a_commit_trains_one_round_ahead_and_says_so(overlap: bool) -> None:
    config = round_config(local_steps=3, exchange_deadline_s=5.0, overlap=overlap, min_peers=2)
    world = World(2, config=config).run_until(3, 3 * ROUND_S)
    world.crash(world.peers[1], None)
    world.run_for(25.0)
    life = world.life(0)
    (number,), version = life.replica.pending, life.machine.chain.version
    assert life.replica.work.steps == 3 and life.replica.pending_steps == 3
    due = f"trained one round ahead, contribution {number} is pending since version {version}"
    assert due in life.machine.status().waits_for and "no majority" in life.machine.status().waits_for
    world.run_until(version + 3, 2 * ALONE_S + 3 * ROUND_S)
    steps = [cut.contribution.steps for cut in world.books.cuts[life.peer.id].values()]
    assert max(steps) == 3 and world.life(0).machine.status().waits_for == ""


def test_who_has_used_its_lease_up_waits_for_a_hint_and_says_so() -> None:
    world = World(2, config=round_config(lease_steps=4, train_deadline_s=20.0, min_peers=2))
    world.run_for(15.0)
    for life in world.lives():
        assert life.replica.work.steps == 4 and not life.replica.pending
        assert "the lease of version 0 is used up, 4 steps since the last cut" in life.machine.status().waits_for
    world.run_until(3, 5 * ROUND_S)
    assert {cut.contribution.steps for cuts in world.books.cuts.values() for cut in cuts.values()} == {4}


def test_who_lost_its_work_but_not_its_used_lease_is_not_stuck() -> None:
    """As a damaged disk leaves it: a lone peer without slots, work and contribution would wait for ever."""
    world = World(1, config=round_config(lease_steps=4)).run_until(2, 3 * ROUND_S)
    replica, trainer = world.life(0).replica, world.life(0).shop.trainer
    replica.leases.take(replica.leases.remaining)
    trainer.begin()
    assert replica.leases.remaining == (0 if replica.work.steps or replica.pending else 4)
    replica.work.steps = replica.work.tokens = 0
    trainer.begin()
    assert replica.leases.remaining == 4


@SEEDS
def test_who_is_left_out_again_and_again_hands_in_two_rounds_at_most(seed: int) -> None:
    """Its blob reaches nobody for long: what it did is withdrawn, goes into the next cut, and that one waits too."""
    config = round_config(local_steps=3, exchange_deadline_s=5.0)
    world = World(3, seed, (Withhold((2,), 30.0, 200.0),), config=config)
    world.run_for(200.0)
    made = [cut.contribution.steps for cut in world.books.cuts[world.peers[2].id].values()]
    assert world.fired() and max(made) == 6 and world.life(2).replica.work.steps <= 3
    world.settle(4, 5 * ROUND_S)
    listed = [event for _, event in sorted(commits(world).items())]
    assert all(names(world, event) == "abc" for event in listed[-2:])


# ---------------------------------------------------------------- slow, leaving, joining


@SEEDS
def test_a_slow_member_is_left_out_and_listed_later(seed: int) -> None:
    world = World(3, seed).run_until(1, 2 * ROUND_S)
    leader = world.leader().peer
    slow = next(peer for peer in world.peers if peer is not leader)
    fault = Slow(slow.number, 30.0, world.now_s, 300.0)
    world.fate.schedule(fault)
    world.run_until(12, 300)
    assert world.fired((fault,))
    listed = [names(world, event) for _, event in sorted(commits(world).items())]
    assert "abc".replace(slow.name, "") in listed  # the deadline passed without it
    assert sum(slow.name in one for one in listed[2:]) >= 3  # and its work went into the next rounds
    assert not world.of_kind(ViewChanged)


@SEEDS
@pytest.mark.parametrize("number", [0, 1, 2])
def test_who_says_goodbye_is_not_waited_for(number: int, seed: int) -> None:
    world = World(3, seed, (Leave(number, 40.0),)).settle(3, 3 * ROUND_S + ALONE_S)
    assert world.fired()
    assert len(world.lives()) == 2


@SEEDS
def test_a_joiner_is_admitted_and_then_leads(seed: int) -> None:
    world = World(2, seed, (Join(45.0),)).settle(3, 4 * ROUND_S)
    joiner = world.peers[2]
    assert joiner.id in world.life(0).machine.chain.roster
    world.crash(world.peers[0], None)
    world.crash(world.peers[1], None)
    world.run_until(world.life(2).machine.chain.version + 2, 3 * TAKE_OVER_S + ALONE_S + 2 * ROUND_S)
    assert world.life(2).machine.is_leader


@SEEDS
def test_a_joiner_goes_on_although_every_member_died_before_it_was_admitted(seed: int) -> None:
    world = World(1, seed, (Join(40.0),)).run_for(43.0)
    assert world.life(1).machine.chain.version > 0 and not world.life(1).machine.may_train
    world.crash(world.peers[0], None)
    world.run_until(world.life(1).machine.chain.version + 2, TAKE_OVER_S + 2 * ALONE_S + 3 * ROUND_S)


@pytest.mark.parametrize("apart_s", [0.0, 0.1, 1.0, 5.0, 20.0])
def test_two_that_start_alone_become_one_swarm(apart_s: float) -> None:
    world = World(2, config=round_config(min_peers=1), starts_s=(0.5, 0.5 + apart_s))
    world.run_until(6, 8 * ROUND_S)
    assert names(world, commits(world)[max(commits(world))]) == "ab"
    if apart_s <= 1.0:
        assert not forks(world)


# ---------------------------------------------------------------- crashes


@SEEDS
@pytest.mark.parametrize("back_after_s", [None, 3.0, 60.0])
@pytest.mark.parametrize("phase", list(Phase))
def test_a_leader_dies_in_each_phase(phase: Phase, back_after_s: float | None, seed: int) -> None:
    world = World(3, seed, (StrikeLeader(2, phase, back_after_s),)).run_for(70.0)
    assert world.fired()
    highest = max(life.machine.chain.version for life in world.lives())
    assert highest >= 3, world.describe()  # a take-over and a round fit in between
    world.run_for(back_after_s or 0.0)
    world.run_until(highest + 2, TAKE_OVER_S + 3 * ROUND_S)
    assert len(world.lives()) == (2 if back_after_s is None else 3)
    assert not any(event.minority for event in commits(world).values())


@SEEDS
@pytest.mark.parametrize("phase", list(Phase))
def test_a_leader_of_long_rounds_dies(phase: Phase, seed: int) -> None:
    """A member hears little of the others while it is led: whoever takes over must not think itself alone for that."""
    config = round_config(train_deadline_s=100.0, min_peers=5)
    world = World(5, seed, (StrikeLeader(1, phase),), config, discovers_for_s=30.0).run_for(300.0)
    assert world.fired()
    world.run_until(3, 200.0)
    assert not any(event.minority for event in commits(world).values())
    assert not forks(world)
    assert names(world, commits(world)[3]) == "".join(sorted(life.peer.name for life in world.lives()))


@SEEDS
def test_a_dead_leader_costs_one_silence(seed: int) -> None:
    """Whoever takes over does not wait for it once more."""
    world = World(3, seed, (StrikeLeader(1, Phase.HINTED),), discovers_for_s=10.0).run_until(1, 2 * ROUND_S)
    while not world.fired():
        world.run_for(0.1)
    world.run_until(2, TAKE_OVER_S)


@SEEDS
@pytest.mark.parametrize("back_s", [38.0, 48.0, 90.0])
def test_a_member_dies_and_comes_back(back_s: float, seed: int) -> None:
    world = World(3, seed, (Crash(1, 36.0, back_s),)).settle(3, 5 * ROUND_S)
    assert world.fired()
    assert world.peers[1].id in world.life(0).machine.chain.roster
    assert not forks(world)


@SEEDS
@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("for_s", [4.0, 15.0, 60.0])
def test_a_leader_freezes_and_thaws(phase: Phase, for_s: float, seed: int) -> None:
    world = World(3, seed, (StrikeLeader(2, phase, for_s, freeze=True),)).run_for(70.0)
    assert world.fired()
    assert max(life.machine.chain.version for life in world.lives()) >= 3, world.describe()
    world.run_for(for_s)
    world.run_until(max(life.machine.chain.version for life in world.lives()) + 2, TAKE_OVER_S + 3 * ROUND_S)
    assert len(world.lives()) == 3


@SEEDS
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_peer_freezes_and_thaws(number: int, seed: int) -> None:
    world = World(3, seed, (Freeze(number, 33.0, 75.0),)).settle(3, TAKE_OVER_S + 5 * ROUND_S)
    assert world.fired()
    assert not any(event.minority for event in commits(world).values())


@SEEDS
@pytest.mark.parametrize("number", range(5))
def test_all_die_and_one_returns(number: int, seed: int) -> None:
    faults = tuple(Crash(one, 50.0 + one / 10, 60.0 if one == number else None) for one in range(5))
    world = World(5, seed, faults).settle(3, 4 * TAKE_OVER_S + ALONE_S + 4 * ROUND_S)
    assert world.fired() and len(world.lives()) == 1


@SEEDS
def test_all_die_and_all_return(seed: int) -> None:
    faults = tuple(Crash(one, 50.0 + one / 10, 60.0 + 3 * one) for one in range(5))
    world = World(5, seed, faults).settle(3, TAKE_OVER_S + 6 * ROUND_S)
    assert world.fired()


@SEEDS
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_head_that_could_not_be_written_is_reached_later(number: int, seed: int) -> None:
    world = World(3, seed, (DiskFull(number, 20.0, 50.0),)).settle(3, 4 * ROUND_S)
    assert world.fired()


# ---------------------------------------------------------------- links


@SEEDS
def test_a_short_partition_makes_no_fork(seed: int) -> None:
    world = World(5, seed, (Partition((3, 4), 30.0, 55.0),)).settle(3, TAKE_OVER_S + 5 * ROUND_S)
    assert world.fired()
    assert not forks(world) and not any(event.minority for event in commits(world).values())


@SEEDS
@pytest.mark.parametrize("to_s", [60.0, 100.0, 200.0])
def test_a_partition_heals(to_s: float, seed: int) -> None:
    world = World(5, seed, (Partition((3, 4), 30.0, to_s),)).settle(3, TAKE_OVER_S + 6 * ROUND_S)
    assert world.fired()
    assert names(world, commits(world)[max(commits(world))]) == "abcde" or world.run_until(
        max(commits(world)) + 3, 5 * ROUND_S
    )


@SEEDS
def test_a_fork_of_one_commit_is_undone(seed: int) -> None:
    """Both halves of a pair commit alone once; then the lighter one undoes and hands its work in again."""
    world = World(2, seed, (Partition((1,), 30.0, 90.0),))
    while not forks(world):
        world.run_for(0.5)
        assert world.now_s < 200, world.describe()
    world.settle(3, TAKE_OVER_S + 5 * ROUND_S)
    assert world.fired()
    assert names(world, commits(world)[max(commits(world))]) == "ab"


@SEEDS
def test_one_link_is_cut_between_members(seed: int) -> None:
    world = World(3, seed, (Partition((1,), 30.0, 120.0, other=(2,)),)).settle(3, TAKE_OVER_S + 5 * ROUND_S)
    assert world.fired()
    assert not forks(world)


@SEEDS
def test_a_weak_link_to_the_leader_does_not_make_a_leader(seed: int) -> None:
    """Views change on silence; one who alone was cut off finds the others in their view and comes back to it."""
    world = World(5, seed).run_until(2, 3 * ROUND_S)
    leader = world.leader().peer
    weak = next(peer for peer in world.peers if peer is not leader)
    cut = Partition((weak.number,), world.now_s, world.now_s + 40.0)
    world.fate.schedule(cut)
    world.settle(3, 5 * ROUND_S)
    assert world.fired((cut,))
    assert {event.view for _, _, event in world.of_kind(RoundCommitted)} == {0}
    assert not forks(world)


@SEEDS
def test_lost_and_doubled_messages(seed: int) -> None:
    world = World(5, seed, (Lossy(0.1, 0.1, 10.0, 200.0),)).run_for(200.0)
    assert world.fired()
    assert max(life.machine.chain.version for life in world.lives()) >= 200 / ROUND_S, world.describe()
    world.settle(2, 4 * ROUND_S)
    assert not forks(world)
