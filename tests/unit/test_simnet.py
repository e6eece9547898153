"""The network in memory keeps the Transport promise, and its faults do what their names say; all in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from swarm.errors import LocalError, TimedOut, Unreachable
from swarm.identity import Keypair, PeerId
from swarm.net.clock import VirtualTimeLoop, run_virtual
from swarm.net.simnet import SimNet, SimTransport
from tests.contract.transport_contract import CHECKS, Check, Meeting


def key(number: int) -> Keypair:
    return Keypair.from_seed(bytes([number]) * 32)


class AsyncioRuntime:
    """What the contract needs of asyncio."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def gather(self, jobs: list[Callable[[], Awaitable[Any]]]) -> list[Any]:
        return list(await asyncio.gather(*(job() for job in jobs)))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(check: Check) -> None:
    async def main() -> None:
        net = SimNet(seed=1)
        dead = f"/ip4/10.9.9.9/tcp/4001/p2p/{key(9).peer_id.base58}"
        await check(Meeting(net.transport(key(1)), net.transport(key(2)), AsyncioRuntime(), dead))

    run_virtual(main())


async def _echo(asker: PeerId, payload: bytes) -> bytes:
    return payload


async def _two_who_met(net: SimNet) -> tuple[SimTransport, SimTransport]:
    a, b = net.transport(key(1)), net.transport(key(2))
    b.serve(_echo)
    await a.connect(b.addresses()[0], timeout_s=5)
    return a, b


async def _later(seconds: float, then: Callable[[], None]) -> None:
    await asyncio.sleep(seconds)
    then()


def _cut(net: SimNet, b: PeerId) -> tuple[Callable[[], None], Callable[[], None]]:
    a = key(1).peer_id
    return lambda: net.cut(a, b), lambda: net.heal(a, b)


def _freeze(net: SimNet, b: PeerId) -> tuple[Callable[[], None], Callable[[], None]]:
    return lambda: net.freeze(b), lambda: net.thaw(b)


@pytest.mark.parametrize("fault", [_cut, _freeze], ids=["cut", "freeze"])
def test_a_stopped_way_costs_the_timeout_and_comes_back(fault: Callable[..., Any]) -> None:
    async def main() -> None:
        net = SimNet(seed=1)
        a, b = await _two_who_met(net)
        stop, go_on = fault(net, b.peer_id)
        now_s = asyncio.get_running_loop().time
        stop()
        asked_s = now_s()
        with pytest.raises(TimedOut):
            await a.request(b.peer_id, b"x", timeout_s=7)
        assert now_s() - asked_s == pytest.approx(7)
        async with asyncio.TaskGroup() as tasks:  # what is under way arrives once the way is open
            tasks.create_task(_later(3, go_on))
            assert await a.request(b.peer_id, b"late", timeout_s=7) == b"late"

    run_virtual(main())


def test_a_killed_peer_is_unreachable_and_may_come_back() -> None:
    async def main() -> None:
        net = SimNet(seed=1)
        a, b = await _two_who_met(net)
        async with asyncio.TaskGroup() as tasks:
            net.freeze(b.peer_id)
            tasks.create_task(_later(1, lambda: net.kill(b.peer_id)))
            with pytest.raises(Unreachable):
                await a.request(b.peer_id, b"x", timeout_s=60)
        again = net.transport(key(2))
        again.serve(_echo)
        with pytest.raises(Unreachable):  # a new process: nobody is connected to it
            await a.request(b.peer_id, b"x", timeout_s=5)
        await a.connect(again.addresses()[0], timeout_s=5)
        assert await a.request(b.peer_id, b"x", timeout_s=5) == b"x"

    run_virtual(main())


def test_who_cannot_be_dialled_can_dial_and_be_asked_then() -> None:
    async def main() -> None:
        net = SimNet(seed=1)
        home, server = net.transport(key(1), dialable=False), net.transport(key(2))
        home.serve(_echo)
        assert home.addresses() == ()
        await home.connect(server.addresses()[0], timeout_s=5)
        assert await server.request(home.peer_id, b"hello", timeout_s=5) == b"hello"

    run_virtual(main())


def test_bytes_queue_at_the_uplink() -> None:
    async def main() -> float:
        net = SimNet(seed=1, latency_s=0.01, bandwidth=1e6)
        a, b = await _two_who_met(net)
        began_s = asyncio.get_running_loop().time()
        await asyncio.gather(*(a.request(b.peer_id, bytes(500_000), timeout_s=60) for _ in range(4)))
        return asyncio.get_running_loop().time() - began_s

    # 2 MB up at 1 MB/s, the echo of the last half megabyte behind it (the others overlap), two latencies of 10 to 15 ms
    assert 2.5 + 0.02 <= run_virtual(main()) <= 2.5 + 0.03 + 1e-6


def test_the_same_seed_takes_the_same_time() -> None:
    async def main(seed: int) -> float:
        a, b = await _two_who_met(SimNet(seed))
        for _ in range(5):
            await a.request(b.peer_id, b"x", timeout_s=5)
        return asyncio.get_running_loop().time()

    assert run_virtual(main(3)) == run_virtual(main(3)) != run_virtual(main(4))


def _run(main: Coroutine[Any, Any, None]) -> VirtualTimeLoop:
    loop = VirtualTimeLoop()
    loop.run_until_complete(main)
    loop.close()
    return loop


def test_virtual_time_leaps_to_the_next_timer() -> None:
    async def main() -> None:
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))

    assert _run(main()).time() == pytest.approx(7200)


def test_a_loop_that_waits_for_nothing_says_so() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    loop = VirtualTimeLoop()
    stuck = loop.create_task(main())
    with pytest.raises(LocalError, match="deadlock"):
        loop.run_until_complete(stuck)
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(stuck)
    loop.close()
