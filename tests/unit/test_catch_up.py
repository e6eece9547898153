"""Catching up: by the log from any of our last heads, never against the voters or to something forged; else by the snapshot
that they, or most of the strangers that were asked, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peer.catch_up import Catcher, CatchUpFailed, Target, fetch_reported, states_of
from peer.fetch import Fetcher
from peer.handoff import AdoptState, ApplyCommits
from swarm.chain import ChainState
from swarm.errors import NetworkError
from swarm.identity import PeerId
from swarm.messages import Commit, StateRecord
from swarm.round.catch_up import CatchUpRequest
from swarm.round.root import root_at
from tests.unit.message_examples import keypair
from tests.unit.small_swarm import (
    LEASE_SIZE,
    STATE,
    VERIFIER,
    Host,
    SmallSwarm,
    log_of,
    richer,
    roots_along,
    run_clean,
    state_at,
    status_at,
)

AUTHORS = [keypair(2), keypair(3)]


def catcher_of(me: Host) -> Catcher:
    return Catcher(me.asker, Fetcher(me.asker, me.store), VERIFIER, LEASE_SIZE)


def request_of(
    me: Host,
    peers: Sequence[Host],
    chains: Sequence[ChainState],
    commits: Sequence[Commit] = (),
    stands: Mapping[PeerId, ChainState] | None = None,
    **changes: Any,
) -> CatchUpRequest:
    """Of one at the last of these heads, with these commits between them. `stands`: where it knows voters to stand."""
    roots = tuple(reversed(roots_along(chains, commits[: len(chains) - 1])))[:3]
    known = {peer: chain.head for peer, chain in (stands or {}).items()} | {me.id: chains[-1].head}
    own = tuple(reversed(chains))[:3]
    return CatchUpRequest(me.id, tuple(one.id for one in peers), own, roots, known, **changes)


def serve(host: Host, chain: ChainState, commits: Sequence[Commit], num_units: int = 2) -> StateRecord:
    host.server.log = tuple(commits)
    host.server.state = state_at(chain, [host.store], num_units=num_units)
    host.server.connect(lambda *_: None, list, lambda: status_at(host.id, chain))
    return host.server.state


@pytest.mark.parametrize("behind", [1, 2, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_by_the_log_from_each_of_our_last_heads(tmp_path: Path, behind: int, whole: bool) -> None:
    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        chains, commits = log_of(4, AUTHORS, [donor.store])
        state = serve(donor, chains[-1], commits)
        own = chains[: 5 - behind]
        stands = dict.fromkeys((key.peer_id for key in AUTHORS), chains[-1])
        request = request_of(me, [donor], own, commits, stands, whole=whole)
        target = await catcher_of(me).find(request)
        if whole:
            assert isinstance(target.order, AdoptState) and target.how == "snapshot"
            assert target.order.record == state and not target.order.keep_progress
            assert all(me.store.has(unit.root) for unit in state.units)
            return
        roots = roots_along(chains, commits)[5 - behind :]
        assert target.order == ApplyCommits(own[-1].head, commits[4 - behind :], roots, caught_up=True)
        assert target.how == "log"
        entries = [entry for commit in commits[4 - behind :] for entry in commit.commit.entries]
        assert all(me.store.read(entry.root, check=True) for entry in entries)
        assert target.num_bytes == sum(len(me.store.read(entry.root)) for entry in entries)

    run_clean(main())


def test_over_from_a_fork_by_an_earlier_head(tmp_path: Path) -> None:
    """Our newest head is on a fork of one voter, the other stands elsewhere; the donor's log reaches the one before it."""

    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        chains, commits = log_of(3, AUTHORS, [donor.store])
        fork, forked = log_of(1, AUTHORS[1:], [me.store], chains[1], salt=b"fork")
        serve(donor, chains[-1], commits)
        request = request_of(me, [donor], [*chains[:2], fork[1]], [commits[0], *forked])
        target = await catcher_of(me).find(request)
        assert target.order == ApplyCommits(chains[1].head, commits[1:], roots_along(chains, commits)[2:], True)

    run_clean(main())


@pytest.mark.parametrize("stands", [2, 1, 0])
def test_voters_are_asked_where_they_stand_over_the_network(tmp_path: Path, stands: int) -> None:
    """Of three voters one leads us away, another is asked or has said it before; the third is we."""

    async def main() -> None:
        swarm = SmallSwarm(tmp_path)
        me, donor, other = await swarm.hosts(3)
        keys = [host.key for host in (me, donor, other)]
        chains, commits = log_of(3, keys, [donor.store])
        fork, forked = log_of(1, keys[1:], [donor.store], chains[2], salt=b"fork")
        serve(donor, fork[-1], (*commits[:2], *forked))
        serve(other, fork[-1] if stands else chains[3], ())
        if stands == 2:
            other.server.connect(lambda *_: None, list)  # as one that has just begun
        known = {donor.id: fork[-1], other.id: fork[-1]} if stands == 2 else {}
        request = request_of(me, [donor], chains, commits, known)
        if not stands:
            with pytest.raises(CatchUpFailed, match="1 of 3 voters stand there, 2 with us") as raised:
                await catcher_of(me).find(request)
            assert raised.value.is_refused
            return
        target = await catcher_of(me).find(request)
        assert isinstance(target.order, ApplyCommits) and target.order.commits == forked

    run_clean(main())


def test_a_log_that_leads_nowhere_new_or_that_fewer_voters_follow_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        keys = [me.key, keypair(4), donor.key]
        chains, commits = log_of(3, keys, [donor.store])
        heavy, fork = log_of(4, keys[2:], [donor.store], chains[2], salt=b"fork")
        request = request_of(me, [donor], chains, commits, {keypair(4).peer_id: chains[3]})
        for chain, log, reason in (
            (heavy[-1], (*commits[:2], *fork), "0 of 3 voters stand there, 2 with us"),
            (chains[1], commits[:1], "which we have"),
            (chains[3], commits, "which we have"),
        ):
            serve(donor, chain, log)
            with pytest.raises(CatchUpFailed, match=rf"{reason}.*nobody has a state that ranks above ours") as raised:
                await catcher_of(me).find(request)
            assert raised.value.is_refused

    run_clean(main())


def test_what_is_not_had_is_not_refused(tmp_path: Path) -> None:
    """It may well be where the swarm is: its head counts as lost where nobody gives us its blobs."""

    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        chains, commits = log_of(3, AUTHORS, [])
        serve(donor, chains[-1], commits)
        donor.server.state = state_at(chains[-1], [], salt=b"not there")
        with pytest.raises(CatchUpFailed, match=r"no holder left.*no holder left") as raised:
            await catcher_of(me).find(request_of(me, [donor], chains[:2], commits))
        assert not raised.value.is_refused

    run_clean(main())


def test_a_barred_head_is_refused_whatever_it_weighs(tmp_path: Path) -> None:
    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        chains, commits = log_of(3, AUTHORS, [donor.store])
        serve(donor, chains[-1], commits)
        own = replace(chains[1], barred=(chains[-1].head,))
        with pytest.raises(CatchUpFailed, match="barred"):
            await catcher_of(me).find(request_of(me, [donor], [chains[0], own], commits))

    run_clean(main())


def _more_tokens(commit: Commit) -> Commit:
    entries = tuple(replace(entry, tokens=10**6) for entry in commit.commit.entries)
    return replace(commit, commit=replace(commit.commit, entries=entries))


FORGERIES = {
    "more tokens than announced": _more_tokens,
    "another's announcement": lambda c: replace(c, announcements=c.announcements[::-1]),
    "no announcements": lambda c: replace(c, announcements=(), holders=()),
    "a broken signature": lambda c: replace(c, announcements=(c.announcements[0][:-1] + b"\0", c.announcements[1])),
    "no votes": lambda c: replace(c, votes=None),
    "votes that others signed": lambda c: replace(c, votes=replace(c.votes, signatures=c.votes.signatures[::-1])),
    "entries out of order": lambda c: replace(c, commit=replace(c.commit, entries=c.commit.entries[::-1])),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_commit_is_refused_and_the_next_peer_asked(tmp_path: Path, forge: object) -> None:
    async def main() -> None:
        me, honest, liar = await SmallSwarm(tmp_path).hosts(3)
        chains, commits = log_of(3, AUTHORS, [honest.store, liar.store])
        serve(honest, chains[-1], commits)
        serve(liar, chains[-1], (*commits[:2], forge(commits[2])))  # type: ignore[operator]
        request = request_of(me, [liar, honest], chains[:2], commits, dict.fromkeys((honest.id, liar.id), chains[-1]))
        target = await catcher_of(me).find(request)
        roots = roots_along(chains, commits)[2:]
        assert target.order == ApplyCommits(chains[1].head, commits[1:], roots, caught_up=True)
        serve(honest, chains[1], ())
        liar.server.state = None
        with pytest.raises(CatchUpFailed):
            await catcher_of(me).find(request)

    run_clean(main())


async def _snapshot(
    me: Host, peers: Sequence[Host], chains: Sequence[ChainState], commits: Sequence[Commit] = (), **changes: Any
) -> Target:
    return await catcher_of(me).find(request_of(me, peers, chains, commits, **changes))


def test_strangers_of_whom_more_than_half_report_a_state_win_over_a_richer_one(tmp_path: Path) -> None:
    async def main() -> None:
        me, liar, *honest = await SmallSwarm(tmp_path).hosts(4)
        chains, _ = log_of(2, AUTHORS, [])
        state, _ = [serve(one, chains[-1], ()) for one in honest]
        serve(liar, richer(chains[-1], 10**9), ())
        target = await _snapshot(me, [liar, *honest], chains[:1], is_among_strangers=True)
        assert target.order == AdoptState(state, root_at(chains[-1]), keep_progress=True)
        assert target.how == "snapshot, on the word of strangers"
        honest[0].server.state = None
        with pytest.raises(CatchUpFailed, match="no state is that of most of the 2 who answered") as raised:
            await _snapshot(me, [liar, *honest], chains[:1], is_among_strangers=True)
        assert raised.value.is_refused

    run_clean(main())


def test_voters_that_report_a_state_win_over_one_with_a_richer_one(tmp_path: Path) -> None:
    async def main() -> None:
        me, liar, *honest = await SmallSwarm(tmp_path).hosts(4)
        keys = [me.key, liar.key, *(one.key for one in honest)]
        chains, commits = log_of(8, keys, [])
        state, _ = [serve(one, chains[-1], ()) for one in honest]
        serve(liar, richer(chains[-1], 10**9), ())
        target = await _snapshot(me, [liar, *honest], chains[:4], commits)
        root = roots_along(chains, commits)[3]
        assert target.order == AdoptState(state, root, keep_progress=True) and target.how == "snapshot", "two of four"

    run_clean(main())


def test_a_donor_that_reports_what_is_not_there_keeps_us_from_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        me, liar, honest = await SmallSwarm(tmp_path).hosts(3)
        chains, commits = log_of(8, [me.key, liar.key, honest.key], [])
        state = serve(honest, chains[-1], ())
        liar.server.state = state_at(richer(chains[-1], 10**9), [])  # ranks higher, and has no blobs
        target = await _snapshot(me, [liar, honest], chains[:4], commits)
        assert isinstance(target.order, AdoptState) and target.order.record == state

    run_clean(main())


def test_who_begins_takes_the_state_that_more_than_half_of_those_who_answer_report(tmp_path: Path) -> None:
    async def main() -> None:
        me, liar, *honest = await SmallSwarm(tmp_path).hosts(4)
        chains, _ = log_of(2, AUTHORS, [])
        fetcher = Fetcher(me.asker, me.store)
        state, _ = [serve(one, chains[-1], ()) for one in honest]
        serve(liar, richer(chains[-1], 10**9), ())
        record, num_bytes = await fetch_reported(fetcher, await states_of(me.asker, [liar.id, *(h.id for h in honest)]))
        assert record == state and num_bytes == sum(unit.num_bytes for unit in state.units)
        assert all(me.store.has(unit.root) for unit in state.units)
        with pytest.raises(NetworkError, match="no state is that of most of the 2 who answered"):
            await fetch_reported(fetcher, await states_of(me.asker, [liar.id, honest[0].id]))
        with pytest.raises(NetworkError, match="nobody has a state"):
            await fetch_reported(fetcher, {})
        liar.server.state = state_at(richer(chains[-1], 10**9), [], salt=b"not there")
        with pytest.raises(NetworkError, match="no holder left"):
            await fetch_reported(fetcher, await states_of(me.asker, [liar.id]))

    run_clean(main())


def test_a_state_of_another_size_is_not_even_fetched(tmp_path: Path) -> None:
    """A liar's blobs may be as long as it likes: they would fill the disk."""

    async def main() -> None:
        me, liar = await SmallSwarm(tmp_path).hosts(2)
        chains, _ = log_of(2, AUTHORS, [])
        units = state_at(chains[0], [], num_units=2).units
        serve(liar, chains[-1], (), num_units=3)
        with pytest.raises(CatchUpFailed, match="nobody has a state"):
            await _snapshot(me, [liar], chains[:1], units=units, is_among_strangers=True)
        serve(liar, chains[-1], ())
        target = await _snapshot(me, [liar], chains[:1], units=units, is_among_strangers=True)
        assert isinstance(target.order, AdoptState)

    run_clean(main())


def test_a_refused_state_gives_way_to_others_while_there_are_any(tmp_path: Path) -> None:
    """Ours is wrong, and two voters have another one each."""

    async def main() -> None:
        me, first, second = await SmallSwarm(tmp_path).hosts(3)
        chains, commits = log_of(3, [me.key, first.key, second.key], [])
        request = request_of(me, [first, second], chains, commits, whole=True, digest=STATE)
        bad = first.server.state = state_at(chains[-1], [first.store], salt=b"bad")
        good = second.server.state = state_at(chains[-1], [second.store], salt=b"good")
        catcher = catcher_of(me)
        found = [await catcher.find(request)]
        catcher.refuse(bad)
        found.append(await catcher.find(request))
        catcher.refuse(good)
        found.append(await catcher.find(request))
        orders = [AdoptState(one, request.roots[0], keep_progress=False) for one in (bad, good, bad)]
        assert [one.order for one in found] == orders

    run_clean(main())


def test_what_was_fetched_stays_until_the_trainer_used_it(tmp_path: Path) -> None:
    async def main() -> None:
        me, donor = await SmallSwarm(tmp_path).hosts(2)
        chains, commits = log_of(2, AUTHORS, [donor.store])
        serve(donor, chains[-1], commits)
        me.store.put(b"unneeded")
        await catcher_of(me).find(request_of(me, [donor], chains[:1], is_among_strangers=True))
        assert me.store.collect() == 1  # a save of the trainer, before it looks at the order
        assert all(me.store.has(entry.root) for commit in commits for entry in commit.commit.entries)

    run_clean(main())


def test_nobody_there_says_each_reason(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = SmallSwarm(tmp_path)
        me, gone, empty = await swarm.hosts(3)
        swarm.net.kill(gone.id)
        with pytest.raises(CatchUpFailed) as raised:
            await catcher_of(me).find(request_of(me, [gone, empty], log_of(0, AUTHORS, [])[0]))
        assert str(gone.id) in str(raised.value) and "no state yet" in str(raised.value)

    run_clean(main())
