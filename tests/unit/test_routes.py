"""Messages between two peers that cannot reach each other, over a third: whole stacks over the network in memory."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peer.forwarding import Forwarding
from peer.reach import Reach
from peer.routes import Routes
from peer.serve import Server
from swarm.address import Address
from swarm.errors import NetworkError, RemoteError, TimedOut, Unreachable
from swarm.identity import PeerId
from swarm.messages import (
    MAX_FORWARDED_BYTES,
    Activity,
    Contribution,
    Forward,
    GetBlob,
    GetManifest,
    Goodbye,
    ManifestBytes,
    PeerStatus,
    Refused,
    open_message,
    seal_message,
)
from swarm.round.presence import Presence
from tests.unit.message_examples import RUN, example_of
from tests.unit.small_swarm import Host, SmallSwarm, run_clean
from tests.unit.test_node import until

GOODBYE = Goodbye("bye", 1)


class Homes:
    """`one` and `other` reach nobody but `third`, to whom both are connected."""

    def __init__(self, hosts: list[Host]) -> None:
        self.one, self.other, self.third = hosts
        self.taken: list[tuple[PeerId, Any]] = []
        self.other.server.connect(lambda sender, message, raw: self.taken.append((sender, message)), list)
        presence = Presence(self.one.id, 6.0, 1.0)
        presence.attest((self.third.id,))
        self.routes = Routes(self.one.transport, self.one.key, RUN, 0)
        self.routes.learn_from(presence)

    @classmethod
    async def raised(cls, folder: Path) -> Homes:
        swarm = SmallSwarm(folder)
        hosts = [swarm.host(number) for number in (1, 2, 3)]
        for home in hosts[:2]:
            await home.transport.connect(hosts[2].transport.addresses()[0], timeout_s=5)
        return cls(hosts)

    def sealed(self, message: object) -> bytes:
        return seal_message(self.one.key, RUN, message)

    async def forward(self, inner: bytes, *, number: int = 1, by: Host | None = None) -> bytes:
        """What `third` answers to a forward that `one` signed, sent by it or by another."""
        raw = self.sealed(Forward(self.other.id, number, inner))
        return await (by or self.one).transport.request(self.third.id, raw, timeout_s=5)


def refusal_of(answer: bytes) -> str:
    _, message = open_message(answer, run=RUN)
    assert isinstance(message, Refused)
    return message.reason


def test_a_message_and_a_question_go_by_one_hop_and_the_answer_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        homes = await Homes.raised(tmp_path)
        assert await homes.routes.request(homes.other.id, homes.sealed(GOODBYE), timeout_s=5) == b""
        assert homes.taken == [(homes.one.id, GOODBYE)], "in the name of its author"
        asker = replace(homes.one.asker, transport=homes.routes)
        assert await asker.ask(homes.other.id, GetManifest(), timeout_s=5) == ManifestBytes(b"manifest")

    run_clean(main())


def test_without_a_third_that_is_connected_nobody_is_reached(tmp_path: Path) -> None:
    async def main() -> None:
        homes = await Homes.raised(tmp_path)
        await homes.other.transport.close()
        with pytest.raises(Unreachable, match="is not connected here"):
            await homes.routes.request(homes.other.id, homes.sealed(GOODBYE), timeout_s=5)

    run_clean(main())


def test_a_third_that_is_silent_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public peer whose line was cut looked connected for a minute, and each message waited for it first."""

    async def main() -> None:
        homes = await Homes.raised(tmp_path)
        asked: list[PeerId] = []
        dead = PeerId(bytes(32))
        presence = Presence(homes.one.id, 6.0, 1.0)
        presence.attest((dead, homes.third.id))
        homes.routes.learn_from(presence)
        real = homes.one.transport.request

        async def request(to: PeerId, payload: bytes, *, timeout_s: float) -> bytes:
            if to == dead:
                asked.append(to)
                raise TimedOut(f"{to} did not answer within {timeout_s:g} s")
            return await real(to, payload, timeout_s=timeout_s)

        monkeypatch.setattr(homes.one.transport, "request", request)
        for _ in range(3):
            assert await homes.routes.request(homes.other.id, homes.sealed(GOODBYE), timeout_s=5) == b""
        assert len(asked) == 1

    run_clean(main())


def test_a_third_passes_on_what_comes_from_its_author_alone_and_is_not_too_long(tmp_path: Path) -> None:
    async def main() -> None:
        homes = await Homes.raised(tmp_path)
        with pytest.raises(Unreachable):  # closed unanswered
            await homes.forward(homes.sealed(GOODBYE), by=homes.other)
        assert "are passed on" in refusal_of(await homes.forward(bytes(MAX_FORWARDED_BYTES)))
        assert not homes.taken

    run_clean(main())


def test_a_receiver_takes_each_number_once_and_only_what_its_author_signed(tmp_path: Path) -> None:
    async def main() -> None:
        homes = await Homes.raised(tmp_path)
        raw = homes.sealed(Forward(homes.other.id, 1, homes.sealed(GOODBYE)))
        assert await homes.third.transport.request(homes.other.id, raw, timeout_s=5) == b""
        of_third = seal_message(homes.third.key, RUN, GOODBYE)
        in_a_forward = homes.sealed(Forward(homes.other.id, 9, homes.sealed(GOODBYE)))
        blob = homes.sealed(GetBlob(example_of(Contribution).root))
        wrong = [
            raw,
            *(
                homes.sealed(Forward(homes.other.id, 2 + n, inner))
                for n, inner in enumerate((of_third, in_a_forward, blob))
            ),
        ]
        for one in wrong:
            with pytest.raises(Unreachable):
                await homes.third.transport.request(homes.other.id, one, timeout_s=5)
        assert homes.taken == [(homes.one.id, GOODBYE)]

    run_clean(main())


def test_what_anybody_may_pass_on_goes_by_one_hop_too(tmp_path: Path) -> None:
    """A leader behind NAT names to one member what another one has announced: the receiver refused it each time."""

    async def main() -> None:
        homes = await Homes.raised(tmp_path)
        named = replace(example_of(Contribution), author=homes.third.id)
        sealed = seal_message(homes.third.key, RUN, named)
        assert await homes.routes.request(homes.other.id, sealed, timeout_s=5) == b""
        assert homes.taken == [(homes.one.id, named)]
        with pytest.raises(Unreachable, match="did not take it"):
            await homes.routes.request(homes.other.id, seal_message(homes.third.key, RUN, GOODBYE), timeout_s=5)
        assert len(homes.taken) == 1, "others speak for themselves"

    run_clean(main())


def test_whoever_is_connected_is_asked_straight(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = SmallSwarm(tmp_path)
        one, other = await swarm.hosts(2)
        routes = Routes(one.transport, one.key, RUN, 0)
        presence = Presence(one.id, 6.0, 1.0)
        presence.attest((swarm.host(3).id,))
        routes.learn_from(presence)
        asked: list[PeerId] = []

        async def handle(remote: PeerId, payload: bytes) -> bytes:
            asked.append(remote)
            return b""

        other.transport.serve(handle)
        await routes.request(other.id, b"x", timeout_s=5)
        assert asked == [one.id]

    run_clean(main())


def test_a_blob_is_not_asked_of_a_dead_carrier_while_another_one_is_there(tmp_path: Path) -> None:
    """Its author behind NAT is connected to a relay, and once was to a public peer that has died: that cost 5 s a request."""

    async def main() -> None:
        swarm = SmallSwarm(tmp_path)
        one, relay = await swarm.hosts(2)
        author, dead = swarm.host(3).id, swarm.host(4).id
        presence = Presence(one.id, 6.0, 1.0)
        presence.attest((relay.id, dead))
        told = replace(example_of(PeerStatus), peer=author, addresses=(), dialled=(dead, relay.id))
        presence.hear(told, b"", 0.0, age_s=0.0)
        routes = Routes(one.transport, one.key, RUN, 0)
        routes.learn_from(presence)
        assert await routes.within_reach([author]) == [dead, relay.id], "nobody knows yet"
        with pytest.raises(Unreachable):
            await routes.request(dead, b"x", timeout_s=0.1)
        assert await routes.within_reach([author]) == [relay.id]
        assert await routes.within_reach([dead]) == [dead], "somebody must be asked"

    run_clean(main())


def test_who_passes_something_wrong_on_is_not_blamed_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        homes = await Homes.raised(tmp_path)
        refused: list[PeerId] = []
        homes.other.server.on_refused = lambda peer, why: refused.append(peer)
        with contextlib.suppress(NetworkError, RemoteError):  # in whichever way the third is told
            await homes.forward(b"no message")
        assert refused == [homes.one.id]

    run_clean(main())


def test_a_server_without_forwarding_passes_nothing_on(tmp_path: Path) -> None:
    async def main() -> None:
        homes = await Homes.raised(tmp_path)
        third = homes.third
        third.transport.serve(Server(third.key, RUN, b"", third.store).handle)
        with pytest.raises(Unreachable):
            await homes.forward(homes.sealed(GOODBYE))
        third.transport.serve(
            Server(third.key, RUN, b"", third.store, forwarding=Forwarding(third.transport, RUN)).handle
        )
        assert await homes.forward(homes.sealed(GOODBYE), number=2) == b""

    run_clean(main())


class Dials:
    """Stands for the participant, and answers dials of some."""

    def __init__(self, host: Host, others: list[Host]) -> None:
        self.me, self.members = self, tuple(one.id for one in others)
        self.peer = host.id
        self.presence = Presence(host.id, 6.0, 1.0)
        self.answering = set(self.members)
        self.tried: list[PeerId] = []
        for beat, other in enumerate(others, 1):
            status = replace(
                example_of(PeerStatus),
                peer=other.id,
                beat=beat,
                activity=Activity.TRAINING,
                addresses=other.transport.addresses(),
            )
            self.presence.hear(status, b"", 0.0)

    async def __call__(self, address: Address, *, timeout_s: float) -> bool:
        self.tried.append(address.peer)
        return address.peer in self.answering


def test_one_dial_in_vain_gives_nobody_up_and_a_second_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that answered late once was out of all lists for a while: nobody fetched there what a home had announced."""
    monkeypatch.setattr("peer.reach.SECOND_TRY_S", 0.2)
    monkeypatch.setattr("peer.reach.LOOK_EVERY_S", 0.01)

    async def main() -> None:
        swarm = SmallSwarm(tmp_path)
        me, other = (swarm.host(number) for number in (1, 2))
        dials = Dials(me, [other])
        reach = Reach(dials, me.transport, {}, dials)  # type: ignore[arg-type]
        running = asyncio.create_task(reach.run())
        await until(lambda: bool(reach.dialled))
        dials.answering.discard(other.id)
        await other.transport.close()
        count = len(dials.tried)
        await until(lambda: len(dials.tried) > count)
        assert reach.dialled == (other.id,)
        await until(lambda: len(dials.tried) > count + 1)
        await until(lambda: reach.dialled == ())
        running.cancel()
        await asyncio.wait([running])

    run_clean(main())


def test_reach_names_who_answered_a_dial_and_connects_to_them(tmp_path: Path) -> None:
    async def main() -> None:
        swarm = SmallSwarm(tmp_path)
        me, *others = [swarm.host(number) for number in range(1, 5)]
        dials = Dials(me, others)
        dials.answering.discard(others[0].id)
        reach = Reach(dials, me.transport, {}, dials)  # type: ignore[arg-type]
        running = asyncio.create_task(reach.run())
        while len(await me.transport.connected()) < 2:  # noqa: ASYNC110  what is waited for has no event of its own
            await asyncio.sleep(0.01)
        assert set(reach.dialled) == {one.id for one in others[1:]} == set(await me.transport.connected())
        assert sorted(dials.tried) == sorted(one.id for one in others), "who does not answer is left alone for a while"
        running.cancel()
        await asyncio.wait([running])

    run_clean(main())
