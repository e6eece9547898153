"""Catching up: by the log from any of our last heads, never to something worse or forged; else by the likeliest snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from peer.catch_up import Catcher, CatchUpFailed, Target, fetch_best_state, states_of
from peer.fetch import Fetcher
from peer.handoff import AdoptState, ApplyCommits
from swarm.chain import ChainState
from swarm.errors import NetworkError
from swarm.messages import Commit, StateRecord
from swarm.round.catch_up import CatchUpRequest
from tests.unit.message_examples import keypair
from tests.unit.small_swarm import (
    LEASE_SIZE,
    Host,
    SmallSwarm,
    log_of,
    open_sealed,
    richer,
    run_clean,
    state_at,
)

AUTHORS = [keypair(2), keypair(3)]


def catcher_of(me: Host) -> Catcher:
    return Catcher(me.asker, Fetcher(me.asker, me.store), open_sealed, LEASE_SIZE)


def serve(host: Host, chain: ChainState, commits: Sequence[Commit], num_units: int = 2) -> StateRecord:
    host.server.log = tuple(commits)
    host.server.state = state_at(chain, [host.store], num_units=num_units)
    return host.server.state


@pytest.mark.parametrize("behind", [1, 2, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_by_the_log_from_each_of_our_last_heads(tmp_path: Path, behind: int, whole: bool) -> None:
    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        chains, commits = log_of(4, AUTHORS, [donor.store])
        state = serve(donor, chains[-1], commits)
        own = tuple(reversed(chains[: 5 - behind]))[:3]
        target = await catcher_of(me).find(CatchUpRequest((donor.id,), own, whole=whole))
        if whole:
            assert target.order == AdoptState(state, keep_progress=False) and target.how == "snapshot"
            assert all(me.store.has(unit.root) for unit in state.units)
            return
        assert target.order == ApplyCommits(own[0].head, commits[4 - behind :], caught_up=True)
        assert target.how == "log"
        entries = [entry for commit in commits[4 - behind :] for entry in commit.commit.entries]
        assert all(me.store.read(entry.root, check=True) for entry in entries)
        assert target.num_bytes == sum(len(me.store.read(entry.root)) for entry in entries)

    run_clean(main())


def test_over_from_a_fork_by_an_earlier_head(tmp_path: Path) -> None:
    """Our newest head is on a lighter fork; the donor's log reaches the one before it."""

    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        chains, commits = log_of(3, AUTHORS, [donor.store])
        fork, _ = log_of(1, AUTHORS[:1], [me.store], chains[1], salt=b"fork")
        serve(donor, chains[-1], commits)
        target = await catcher_of(me).find(CatchUpRequest((donor.id,), (fork[1], chains[1], chains[0])))
        assert target.order == ApplyCommits(chains[1].head, commits[1:], caught_up=True)

    run_clean(main())


def test_a_log_that_leads_nowhere_better_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        chains, commits = log_of(3, AUTHORS, [donor.store])
        light, fork = log_of(1, AUTHORS[:1], [donor.store], chains[1], salt=b"fork")
        for chain, log in ((light[1], (commits[0], *fork)), (chains[1], commits[:1]), (chains[3], commits)):
            serve(donor, chain, log)
            with pytest.raises(CatchUpFailed, match=r"no better than ours.*nobody has a state that ranks above ours"):
                await catcher_of(me).find(CatchUpRequest((donor.id,), tuple(reversed(chains))))

    run_clean(main())


def test_a_barred_head_is_refused_whatever_it_weighs(tmp_path: Path) -> None:
    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        chains, commits = log_of(3, AUTHORS, [donor.store])
        serve(donor, chains[-1], commits)
        own = replace(chains[1], barred=(chains[-1].head,))
        with pytest.raises(CatchUpFailed, match="barred"):
            await catcher_of(me).find(CatchUpRequest((donor.id,), (own,)))

    run_clean(main())


def _more_tokens(commit: Commit) -> Commit:
    entries = tuple(replace(entry, tokens=10**6) for entry in commit.commit.entries)
    return replace(commit, commit=replace(commit.commit, entries=entries))


FORGERIES = {
    "more tokens than announced": _more_tokens,
    "another's announcement": lambda c: replace(c, announcements=c.announcements[::-1]),
    "no announcements": lambda c: replace(c, announcements=(), holders=()),
    "a broken signature": lambda c: replace(c, announcements=(c.announcements[0][:-1] + b"\0", c.announcements[1])),
    "entries out of order": lambda c: replace(c, commit=replace(c.commit, entries=c.commit.entries[::-1])),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_commit_is_refused_and_the_next_peer_asked(tmp_path: Path, forge: object) -> None:
    async def main() -> None:
        me, honest, liar = await SmallSwarm(tmp_path).hosts(3)
        chains, commits = log_of(2, AUTHORS, [honest.store, liar.store])
        serve(honest, chains[-1], commits)
        serve(liar, chains[-1], (commits[0], forge(commits[1])))  # type: ignore[operator]
        target = await catcher_of(me).find(CatchUpRequest((liar.id, honest.id), (chains[0],)))
        assert target.order == ApplyCommits(chains[0].head, commits, caught_up=True)
        serve(honest, chains[0], ())
        liar.server.state = None
        with pytest.raises(CatchUpFailed):
            await catcher_of(me).find(CatchUpRequest((liar.id, honest.id), (chains[0],)))

    run_clean(main())


async def _snapshot(me: Host, peers: Sequence[Host], own: ChainState, record: StateRecord | None = None) -> Target:
    units = () if record is None else record.units
    return await catcher_of(me).find(CatchUpRequest(tuple(one.id for one in peers), (own,), units=units))


def test_the_snapshot_with_most_votes_wins_over_a_richer_one(tmp_path: Path) -> None:
    async def main() -> None:
        me, liar, *honest = await SmallSwarm(tmp_path).hosts(4)
        chains, _ = log_of(2, AUTHORS, [])
        states = [serve(one, chains[-1], ()) for one in honest]
        serve(liar, richer(chains[-1], 10**9), ())
        target = await _snapshot(me, [liar, *honest], chains[0])
        assert target.order == AdoptState(states[0], keep_progress=True)

    run_clean(main())


def test_a_donor_that_reports_what_is_not_there_keeps_us_from_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        me, liar, honest = await SmallSwarm(tmp_path).hosts(3)
        chains, _ = log_of(2, AUTHORS, [])
        state = serve(honest, chains[-1], ())
        liar.server.state = state_at(richer(chains[-1], 10**9), [])  # ranks higher, and has no blobs
        assert (await _snapshot(me, [liar, honest], chains[0])).order == AdoptState(state, keep_progress=True)
        with pytest.raises(NetworkError, match="no holder left"):
            await fetch_best_state(Fetcher(me.asker, me.store), await states_of(me.asker, [liar.id]))

    run_clean(main())


def test_a_state_of_another_size_is_not_even_fetched(tmp_path: Path) -> None:
    """A liar's blobs may be as long as it likes: they would fill the disk."""

    async def main() -> None:
        me, liar = await SmallSwarm(tmp_path).hosts(2)
        chains, _ = log_of(2, AUTHORS, [])
        own = state_at(chains[0], [], num_units=2)
        serve(liar, chains[-1], (), num_units=3)
        with pytest.raises(CatchUpFailed, match="nobody has a state"):
            await _snapshot(me, [liar], chains[0], own)
        serve(liar, chains[-1], ())
        assert (await _snapshot(me, [liar], chains[0], own)).how == "snapshot"

    run_clean(main())


def test_a_refused_state_gives_way_to_others_while_there_are_any(tmp_path: Path) -> None:
    async def main() -> None:
        me, first, second = await SmallSwarm(tmp_path).hosts(3)
        chains, _ = log_of(2, AUTHORS, [])
        bad, good = serve(first, chains[2], ()), serve(second, chains[1], ())
        catcher = catcher_of(me)
        found = [await catcher.find(CatchUpRequest((first.id, second.id), (chains[0],)))]
        catcher.refuse(bad)
        found.append(await catcher.find(CatchUpRequest((first.id, second.id), (chains[0],))))
        catcher.refuse(good)
        found.append(await catcher.find(CatchUpRequest((first.id, second.id), (chains[0],))))
        assert [one.order for one in found] == [AdoptState(one, keep_progress=True) for one in (bad, good, bad)]

    run_clean(main())


def test_what_was_fetched_stays_until_the_trainer_used_it(tmp_path: Path) -> None:
    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        chains, commits = log_of(2, AUTHORS, [donor.store])
        serve(donor, chains[-1], commits)
        me.store.put(b"unneeded")
        await catcher_of(me).find(CatchUpRequest((donor.id,), (chains[0],)))
        assert me.store.collect() == 1  # a save of the trainer, before it looks at the order
        assert all(me.store.has(entry.root) for commit in commits for entry in commit.commit.entries)

    run_clean(main())


def test_nobody_there_says_each_reason(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = SmallSwarm(tmp_path)
        me, gone, empty = await swarm.hosts(3)
        swarm.net.kill(gone.id)
        with pytest.raises(CatchUpFailed) as raised:
            await catcher_of(me).find(CatchUpRequest((gone.id, empty.id), tuple(log_of(0, AUTHORS, [])[0])))
        assert str(gone.id) in str(raised.value) and "no state yet" in str(raised.value)

    run_clean(main())
