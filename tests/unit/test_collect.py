"""The collector keeps a view right within 5 s, whatever single peers do. In memory, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from coordinator.archive import Archive
from coordinator.collect import Collector
from coordinator.summary import Summary, summarize
from coordinator.view import SwarmView, fold
from swarm.events import PeerJoined
from swarm.identity import Keypair
from swarm.messages import Activity, GetEvents, GetPeers, Peers, PeerStatus
from tests.unit.fake_swarm import RUN, FakePeer, FakeSwarm, a_digest, a_status, fresh


class Watch:
    """A collector at work, with the view it makes."""

    def __init__(self, swarm: FakeSwarm, path: Path) -> None:
        self._since_s = 1e6 * (1 + path.exists())  # trio's clock begins anew with each run, the wall clock does not
        self.view = SwarmView(RUN)
        self.archive = Archive(path, RUN)
        transport = swarm.transport()
        self.collector = Collector(transport, RUN, self.archive, self._take, self.wall_s, transport.keypair)

    def _take(self, item: Any) -> None:
        self.view = fold(self.view, item)

    def now(self) -> Summary:
        return summarize(self.view, self.wall_s())

    def wall_s(self) -> float:
        return self._since_s + trio.current_time()

    def live(self) -> set[str]:
        return {row.seen.status.name for row in self.now().rows if row.is_live}


def watching(tmp_path: Path, swarm: FakeSwarm, job: Callable[[Watch], Awaitable[None]], *, at: list[str]) -> None:
    @asynccontextmanager
    async def open_watch() -> Any:
        watch = Watch(swarm, tmp_path / "history.sqlite")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.collector.run, at)
            yield watch
            nursery.cancel_scope.cancel()
        watch.archive.close()

    async def main() -> None:
        async with open_watch() as watch:
            await job(watch)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_it_learns_everybody_from_one_address_among_dead_ones(tmp_path: Path) -> None:
    swarm = FakeSwarm(5)
    dead = f"/ip4/10.0.0.9/tcp/9/p2p/{Keypair.from_seed(b'x' * 32).peer_id.base58}"

    async def job(watch: Watch) -> None:
        await trio.sleep(2.0)
        assert watch.live() == {f"peer{number}" for number in range(5)}
        assert watch.collector.tried == {dead: "10.0.0.9:9: connection refused"}

    watching(tmp_path, swarm, job, at=[dead, swarm.peers[3].address])


def test_a_change_is_seen_within_5_seconds(tmp_path: Path) -> None:
    swarm = FakeSwarm(3)

    async def job(watch: Watch) -> None:
        await trio.sleep(3.0)
        for peer in swarm.peers:
            peer.beat(version=8, head=a_digest("head 8"), state_digest=a_digest("state 8"))
        swarm.peers[1].tell(0.0, PeerJoined(swarm.peers[2].peer_id, "peer2"))
        await trio.sleep(2.0)
        assert watch.now().version == 8
        assert [text for _, text, _ in watch.now().notes] == [f"peer2 ({swarm.peers[2].peer_id}) joined"]

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_a_frozen_peer_delays_nobody_and_comes_back(tmp_path: Path) -> None:
    swarm = FakeSwarm(12)

    async def job(watch: Watch) -> None:
        await trio.sleep(3.0)
        for peer in swarm.peers[:10]:
            peer.frozen = True
        await trio.sleep(5.5)
        assert watch.live() == {"peer10", "peer11"}
        for peer in swarm.peers[10:]:
            peer.beat(version=9)
        await trio.sleep(2.0)
        assert watch.now().version == 9
        for peer in swarm.peers[:10]:
            peer.frozen = False
        await trio.sleep(8.0)
        assert len(watch.live()) == 12

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_a_killed_peer_goes_and_a_restarted_one_returns_within_5_seconds(tmp_path: Path) -> None:
    swarm = FakeSwarm(3)

    async def job(watch: Watch) -> None:
        await trio.sleep(3.0)
        victim = swarm.peers[1]
        victim.tell(1.0, PeerJoined(swarm.peers[0].peer_id, "before the kill"))
        await trio.sleep(2.0)
        victim.up = False
        await trio.sleep(5.2)
        assert watch.live() == {"peer0", "peer2"}
        assert "refused" in next(row.seen.trouble for row in watch.now().rows if not row.is_live)
        victim.up, victim.port = True, 5555  # at another port, with its events counted anew
        victim.events.clear()
        victim.tell(2.0, PeerJoined(swarm.peers[2].peer_id, "after the kill"))
        victim.beat(incarnation=2, addresses=(victim.address,))
        await trio.sleep(5.0)
        assert watch.live() == {"peer0", "peer1", "peer2"}
        told = [told.event.name for told in watch.archive.events(10) if isinstance(told.event, PeerJoined)]
        assert told == ["before the kill", "after the kill"]

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def forged_status(liar: FakePeer, victim: FakePeer) -> bytes:
    true = victim.sealed_status()
    return liar.seal(Peers(1, fresh(liar.sealed_status(), true[:-1] + bytes([true[-1] ^ 1]))))


def test_liars_are_counted_asked_rarely_and_harm_nobody(tmp_path: Path) -> None:
    swarm = FakeSwarm(6)
    honest, *liars = swarm.peers
    lies: list[Callable[[FakePeer, Any], bytes]] = [
        lambda liar, message: b"\xc1" * 40,
        lambda liar, message: forged_status(liar, honest),
        lambda liar, message: honest.seal(Peers(1, fresh(honest.sealed_status()))),  # somebody else's signature
        lambda liar, message: liar.seal(Peers(1, fresh(honest.sealed_status()))),  # another's status as its own
        lambda liar, message: liar.seal(GetPeers(0)),
    ]

    def lying(liar: FakePeer, lie: Callable[[FakePeer, Any], bytes]) -> Callable[[Any], Awaitable[bytes | None]]:
        async def answer(message: Any) -> bytes:
            return lie(liar, message)

        return answer

    for liar, lie in zip(liars, lies, strict=True):
        liar.fault = lying(liar, lie)

    async def job(watch: Watch) -> None:
        await trio.sleep(60.0)
        assert "peer0" in watch.live()
        bad = {row.seen.status.name: row.seen.num_bad for row in watch.now().rows}
        assert bad["peer0"] == 0
        assert all(bad[f"peer{number}"] >= 1 for number in range(1, 6))
        for liar in liars:
            assert liar.asked.total() <= 6, "a liar is asked more and more rarely"
        assert honest.asked["GetPeers"] >= 50
        assert any("sent wrong bytes" in text for _, text, _ in watch.now().notes)

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_bad_events_cost_only_their_teller(tmp_path: Path) -> None:
    swarm = FakeSwarm(2)
    swarm.peers[1].events.append(b"\x93\x01\x02\x03")

    async def job(watch: Watch) -> None:
        await trio.sleep(10.0)
        assert list(watch.archive.events(10)) == []
        assert watch.view.peers[swarm.peers[1].peer_id].num_bad >= 1

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_an_older_beat_never_replaces_a_newer(tmp_path: Path) -> None:
    swarm = FakeSwarm(2)
    stale = swarm.peers[1].sealed_status()

    async def tell_stale(message: Any) -> bytes | None:
        if isinstance(message, GetPeers):
            return swarm.peers[0].seal(Peers(2, fresh(swarm.peers[0].sealed_status(), stale)))
        return None

    async def job(watch: Watch) -> None:
        await trio.sleep(2.0)
        swarm.peers[0].fault = tell_stale
        swarm.peers[1].beat(activity=Activity.PENDING)
        await trio.sleep(5.0)
        assert watch.view.peers[swarm.peers[1].peer_id].status.activity is Activity.PENDING

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_the_address_book_and_the_history_survive_a_restart(tmp_path: Path) -> None:
    swarm = FakeSwarm(3)
    swarm.peers[2].tell(5.0, PeerJoined(swarm.peers[0].peer_id, "peer0"))

    async def first(watch: Watch) -> None:
        await trio.sleep(3.0)

    async def second(watch: Watch) -> None:
        await trio.sleep(0.001)  # less than any answer takes
        assert len(watch.view.peers) == 3, "remembered before anybody answered"
        await trio.sleep(2.0)
        assert watch.live() == {"peer1", "peer2"}
        assert len(watch.now().notes) == 1

    watching(tmp_path, swarm, first, at=[swarm.peers[0].address])
    swarm.peers[0].up = False  # the one that the invite names is gone
    watching(tmp_path, swarm, second, at=[swarm.peers[0].address])


def test_many_peers_are_seen_through_a_sample(tmp_path: Path) -> None:
    swarm = FakeSwarm(1)
    crowd: list[tuple[PeerStatus, bytes]] = []
    for number in range(300):
        keypair = Keypair.from_seed(number.to_bytes(32, "big"))
        address = f"/ip4/10.0.0.1/tcp/{10_000 + number}/p2p/{keypair.peer_id.base58}"
        status = a_status(keypair.peer_id, name=f"n{number}", addresses=(address,))
        crowd.append((status, FakePeer(keypair, 10_000 + number, status).sealed_status()))
    (teller,) = swarm.peers

    async def pages(message: Any) -> bytes | None:
        if isinstance(message, GetPeers):
            known = fresh(teller.sealed_status(), *(sealed for _, sealed in crowd))
            return teller.seal(Peers(len(known), known[message.offset : message.offset + 64]))
        assert isinstance(message, GetEvents)
        return None

    teller.fault = pages

    async def job(watch: Watch) -> None:
        await trio.sleep(6.0)
        assert len(watch.view.peers) == 301
        assert len(watch.collector._targets) <= 64

    watching(tmp_path, swarm, job, at=[teller.address])


def test_settled_when_everybody_answered_or_failed(tmp_path: Path) -> None:
    swarm = FakeSwarm(4)
    swarm.peers[2].beat()
    swarm.peers[2].up = False  # told of by the others, not there

    async def job(watch: Watch) -> None:
        with trio.fail_after(8.0):
            await watch.collector.settled()
        assert len(watch.now().rows) == 4
        assert {"peer0", "peer1", "peer3"} <= watch.live()

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def behind_nat(swarm: FakeSwarm, number: int, *thirds: int) -> FakePeer:
    """That peer, which nobody can dial, and which is connected to these."""
    peer = swarm.peers[number]
    peer.is_behind_nat = True
    for third in thirds:
        swarm.peers[third].connected.add(peer.peer_id)
    return peer


def test_a_peer_behind_nat_is_asked_by_a_hop_and_counts_as_live(tmp_path: Path) -> None:
    """A leader behind NAT, of whom others hear little, once counted as gone, and its tokens a second with it."""
    swarm = FakeSwarm(4)
    leader = behind_nat(swarm, 3, 1)
    leader.beat(dialled=(swarm.peers[1].peer_id,))
    leader.tell(5.0, PeerJoined(swarm.peers[0].peer_id, "told by the leader"))

    async def job(watch: Watch) -> None:
        with trio.fail_after(8.0):
            await watch.collector.settled()
        assert watch.live() == {"peer0", "peer1", "peer2", "peer3"}
        assert watch.now().tokens_per_s == 4000.0
        row = next(row for row in watch.now().rows if row.peer == leader.peer_id)
        assert (row.seen.through, row.is_dialable) == (swarm.peers[1].peer_id, False)
        assert [told.event for told in watch.archive.events(1)] == [
            PeerJoined(swarm.peers[0].peer_id, "told by the leader")
        ]
        for version in range(8, 12):
            leader.beat(version=version)
            await trio.sleep(2.0)
            assert watch.view.peers[leader.peer_id].status.version == version
        assert swarm.peers[2].asked["Forward"] == 0, "who has been dialled by it is asked first"

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_another_third_is_found_and_a_dead_peer_behind_nat_is_gone_within_5_seconds(tmp_path: Path) -> None:
    swarm = FakeSwarm(4)
    hidden = behind_nat(swarm, 3, 1, 2)

    async def job(watch: Watch) -> None:
        await trio.sleep(6.0)
        first = watch.view.peers[hidden.peer_id].through
        (through,) = (peer for peer in swarm.peers if peer.peer_id == first)
        through.up = False
        await trio.sleep(5.0)
        assert hidden.status.name in watch.live() and through.status.name not in watch.live()
        assert watch.view.peers[hidden.peer_id].through not in (None, first)
        hidden.up = False
        await trio.sleep(5.0)
        assert hidden.status.name not in watch.live()

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_a_peer_whose_port_is_forwarded_later_is_dialled_again(tmp_path: Path) -> None:
    swarm = FakeSwarm(2)
    hidden = behind_nat(swarm, 1, 0)

    async def job(watch: Watch) -> None:
        await trio.sleep(6.0)
        assert watch.view.peers[hidden.peer_id].through == swarm.peers[0].peer_id
        hidden.is_behind_nat = False
        await trio.sleep(70.0)
        assert watch.view.peers[hidden.peer_id].through is None
        assert hidden.status.name in watch.live()

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_a_third_that_answers_in_anothers_name_is_not_believed(tmp_path: Path) -> None:
    swarm = FakeSwarm(3)
    hidden = behind_nat(swarm, 2, 0)
    liar = swarm.peers[1]
    hidden.beat(dialled=(liar.peer_id,))
    forged = liar.seal(Peers(1, fresh(hidden.sealed_status())))
    liar.passes_on = lambda forward: forged

    async def job(watch: Watch) -> None:
        await trio.sleep(6.0)
        assert liar.asked["Forward"] > 0
        assert watch.view.peers[hidden.peer_id].through == swarm.peers[0].peer_id
        assert watch.view.peers[hidden.peer_id].num_bad == 0, "it did nothing wrong"

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_many_peers_behind_nat_stay_within_what_a_third_passes_on(tmp_path: Path) -> None:
    swarm = FakeSwarm(30)
    for number in range(1, 30):
        behind_nat(swarm, number, 0)

    async def job(watch: Watch) -> None:
        await trio.sleep(30.0)
        for _ in range(10):
            assert len(watch.live()) == 30
            await trio.sleep(3.0)
        assert swarm.peers[0].refused == 0 and swarm.peers[0].asked["Forward"] > 100

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_numbers_of_hops_rise_over_a_restart(tmp_path: Path) -> None:
    """Each counts once at its receiver, which would take the questions of the next process for old ones."""
    swarm = FakeSwarm(2)
    hidden = behind_nat(swarm, 1, 0)

    async def job(watch: Watch) -> None:
        await trio.sleep(6.0)
        assert hidden.status.name in watch.live()

    for _ in range(2):
        watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_news_of_a_clock_that_is_fast_come_now(tmp_path: Path) -> None:
    swarm = FakeSwarm(1)
    swarm.peers[0].tell(4e9, PeerJoined(swarm.peers[0].peer_id, "from the future"))

    async def job(watch: Watch) -> None:
        await trio.sleep(3.0)
        ((at_s, _, _),) = watch.now().notes
        assert at_s <= watch.wall_s()

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])


def test_a_relay_has_no_status_and_passes_on(tmp_path: Path) -> None:
    """It takes no part in the run: it is no peer of the table, and no liar either."""
    swarm = FakeSwarm(3)
    relay, *members = swarm.peers
    for number in (1, 2):
        behind_nat(swarm, number, 0)

    async def statuses_of_others(message: Any) -> bytes | None:
        if isinstance(message, GetPeers):
            return relay.seal(Peers(2, fresh(*(one.sealed_status() for one in members))))
        return None

    relay.fault = statuses_of_others
    for member in members:
        member.others = members

    async def job(watch: Watch) -> None:
        await trio.sleep(8.0)
        assert watch.live() == {"peer1", "peer2"} and watch.now().notes == ()
        assert {row.seen.through for row in watch.now().rows} == {relay.peer_id}
        assert relay.asked["Forward"] > 2

    watching(tmp_path, swarm, job, at=[relay.address])


def test_a_flood_of_ids_costs_no_more_than_the_view_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each id that was ever told of stayed in two tables of the collector and one of the history."""
    swarm = FakeSwarm(2)
    monkeypatch.setattr("coordinator.collect.MAX_PEERS", 200)
    monkeypatch.setattr("coordinator.archive.MAX_STATUSES", 200)
    flood = [Keypair.from_seed(number.to_bytes(32, "big")) for number in range(1, 500)]

    async def job(watch: Watch) -> None:
        await trio.sleep(3.0)
        for one in flood:
            watch.collector._take(a_status(one.peer_id, beat=9), b"sealed", direct=False)
        assert len(watch.collector._heard) == 200
        assert {one.peer_id for one in swarm.peers} <= watch.collector._heard.keys(), "who is asked directly stays"
        assert len(watch.archive.statuses()) == 200
        (count,) = watch.archive._db.execute("SELECT count(*) FROM statuses").fetchone()
        assert count <= 200 + 64
        await trio.sleep(3.0)
        assert watch.live() >= {one.status.name for one in swarm.peers}

    watching(tmp_path, swarm, job, at=[swarm.peers[0].address])
