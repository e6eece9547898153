"""p2pd as a child of ours: it says what is wrong, dies when we die, is replaced when it dies. And the noticeboard over it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from hivemind.dht.routing import DHTID
from hivemind.utils.serializer import MSGPackSerializer

from peer.daemon import Daemon
from peer.network import MAX_DEATHS, Network, NetworkConfig
from peer.own_addresses import check_port_free, listening_port
from peer.socket_dir import SocketDirectory, remove_stale
from swarm.dht.records import prefix_of, record_key
from swarm.digest import digest_of
from swarm.errors import ConfigError, MalformedBytes, StateError, Unreachable
from swarm.identity import Keypair, PeerId
from swarm.messages import Goodbye, seal_message
from tests.unit.test_dht_records import sealed

pytestmark = pytest.mark.system
RUN = digest_of("a run for tests")
ALICE, BOB, CAROL = (Keypair.from_seed(letter * 32) for letter in (b"a", b"b", b"c"))
WAIT_S = 30.0  # for what takes a fraction of a second on an idle machine


@pytest.fixture
def sockets_parent() -> Iterator[Path]:
    """A folder with a name short enough for sockets, which must be empty again in the end."""
    with tempfile.TemporaryDirectory(prefix="bn") as name:
        yield Path(name)
        assert list(Path(name).iterdir()) == []


@pytest.fixture
def dead_address() -> Iterator[Callable[[], str]]:
    """Makes addresses where nobody listens, on ports that nobody else can get meanwhile."""
    silent: list[socket.socket] = []

    def make() -> str:
        silent.append(socket.socket())
        silent[-1].bind(("127.0.0.1", 0))
        return f"/ip4/127.0.0.1/tcp/{silent[-1].getsockname()[1]}/p2p/{Keypair.generate().peer_id.base58}"

    yield make
    for one in silent:
        one.close()


def is_gone(pid: int) -> bool:
    """Whether the process is dead, be it that nobody has buried it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not happened():  # noqa: ASYNC110  # another process's doing: no event to wait on
            await asyncio.sleep(0.02)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        await main()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(all_of_it())


async def echo(_: PeerId, payload: bytes) -> bytes:
    return payload


PARENT = """
import asyncio, sys, threading
from pathlib import Path
from peer.network import Network, NetworkConfig
from swarm.digest import digest_of
from swarm.identity import Keypair

async def main():
    config = NetworkConfig(sockets_parent=Path(sys.argv[1]))
    async with Network(Keypair.generate(), digest_of("a run for tests"), config) as network:
        print(network.daemon_pid, flush=True)
        if sys.argv[2] == "forgets":
            loop.stop()  # the thread ends without a goodbye, the process does not
        await asyncio.Event().wait()

loop = asyncio.new_event_loop()
def network_thread():
    task = loop.create_task(main())
    loop.run_forever()

thread = threading.Thread(target=network_thread)
thread.start()
thread.join()
print("the thread has ended", flush=True)
threading.Event().wait()
"""


@contextmanager
def parent(sockets_parent: Path, manner: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a network in a thread of its own, and the process id of its daemon."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(sockets_parent), manner],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()
        remove_stale(sockets_parent)


def wait_gone(pid: int) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_gone(pid):
        assert time.monotonic() < deadline_s, f"{pid} lives on"
        time.sleep(0.02)


def test_p2pd_dies_with_its_parent_and_the_next_peer_sweeps(sockets_parent: Path) -> None:
    with parent(sockets_parent, "stays") as (process, daemon_pid):
        assert not is_gone(daemon_pid)
        assert remove_stale(sockets_parent) == 0  # of a living owner
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
        wait_gone(daemon_pid)
        assert remove_stale(sockets_parent) == 1


def test_p2pd_dies_with_the_thread_that_started_it(sockets_parent: Path) -> None:
    with parent(sockets_parent, "forgets") as (process, daemon_pid):
        assert process.stdout is not None
        assert process.stdout.readline() == "the thread has ended\n"
        wait_gone(daemon_pid)
        assert process.poll() is None


def test_stop_leaves_nothing_behind(sockets_parent: Path) -> None:
    async def main() -> None:
        async with Network(ALICE, RUN, NetworkConfig(sockets_parent=sockets_parent)) as network:
            pid = network.daemon_pid
            assert pid is not None and os.getsid(pid) == pid != os.getsid(0)  # out of the terminal's reach
            (folder,) = os.listdir(sockets_parent)
            assert os.stat(sockets_parent / folder).st_mode & 0o777 == 0o700
            assert "id" not in os.listdir(sockets_parent / folder)  # the private key lies about no longer than needed
        assert not psutil.pid_exists(pid)  # reaped, too

    run(main)


def test_stop_is_idempotent_and_does_not_wait_for_a_frozen_daemon(sockets_parent: Path) -> None:
    async def main() -> None:
        sockets = SocketDirectory(sockets_parent)
        daemon = await Daemon.start(ALICE, ("/ip4/127.0.0.1/tcp/0",), sockets)
        os.kill(daemon.pid, signal.SIGSTOP)
        await daemon.stop()
        await daemon.stop()
        assert not psutil.pid_exists(daemon.pid)
        assert "SIGKILL" in await daemon.wait_died()
        sockets.remove()
        sockets.remove()

    run(main)


def test_a_killed_p2pd_is_replaced_at_the_same_address(sockets_parent: Path) -> None:
    async def main() -> None:
        config = NetworkConfig(sockets_parent=sockets_parent)
        async with Network(ALICE, RUN, config) as alice:
            joining = NetworkConfig(sockets_parent=sockets_parent, bootstrap=alice.addresses)
            async with Network(BOB, RUN, joining) as bob:
                alice.transport.serve(echo)
                bob.transport.serve(echo)
                before, pid = bob.addresses, bob.daemon_pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await until(lambda: bob.num_restarts == 1)
                assert bob.addresses == before and bob.daemon_pid != pid
                assert await bob.transport.request(ALICE.peer_id, b"there", timeout_s=WAIT_S) == b"there"
                assert await alice.transport.request(BOB.peer_id, b"back", timeout_s=WAIT_S) == b"back"
                assert await bob.board.publish(BOB.peer_id, sealed(BOB))
                assert [record.status.peer for record in await alice.board.read()] == [BOB.peer_id]

    run(main)


def test_a_frozen_p2pd_is_replaced(sockets_parent: Path) -> None:
    async def main() -> None:
        config = NetworkConfig(sockets_parent=sockets_parent, tend_every_s=2.0)
        async with Network(ALICE, RUN, config) as alice:
            assert alice.daemon_pid is not None
            os.kill(alice.daemon_pid, signal.SIGSTOP)
            await until(lambda: alice.num_restarts == 1)

    run(main)


def test_a_daemon_that_keeps_dying_ends_the_network_with_a_reason(sockets_parent: Path) -> None:
    async def main() -> None:
        with pytest.raises(Unreachable, match=f"died {MAX_DEATHS} times within 60 s.*SIGKILL"):
            async with Network(ALICE, RUN, NetworkConfig(sockets_parent=sockets_parent)) as network:
                for deaths in range(MAX_DEATHS):
                    await until(lambda deaths=deaths: network.num_restarts == deaths)  # type: ignore[misc]
                    assert network.daemon_pid is not None
                    os.kill(network.daemon_pid, signal.SIGKILL)
                await asyncio.Event().wait()

    run(main)


def test_what_goes_wrong_inside_comes_out_as_it_is(sockets_parent: Path) -> None:
    async def main() -> None:
        with pytest.raises(KeyError, match="mine"):
            async with Network(ALICE, RUN, NetworkConfig(sockets_parent=sockets_parent)):
                raise KeyError("mine")

    run(main)


def test_a_port_in_use_is_named(sockets_parent: Path) -> None:
    async def main() -> None:
        async with Network(ALICE, RUN, NetworkConfig(sockets_parent=sockets_parent)) as alice:
            listen = alice.addresses[0].partition("/p2p/")[0]
            port = listen.rpartition("/")[2]
            with pytest.raises(StateError, match=f"port {port} is taken at 127.0.0.1.*another port"):
                async with Network(BOB, RUN, NetworkConfig(sockets_parent=sockets_parent, listen=(listen,))):
                    pass
        check_port_free(listen)

    run(main)


@pytest.mark.parametrize(
    "listen", ["", "/ip4/127.0.0.1", "/ip4/localhost/tcp/0", "/ip4/127.0.0.1/udp/0", "/ip4/1.2.3.4/tcp/70000"]
)
def test_a_bad_listening_address_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match="listen address"):
        listening_port(listen)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_dead_bootstrap_addresses_are_skipped_wherever_they_stand(
    place: int, sockets_parent: Path, dead_address: Callable[[], str]
) -> None:
    async def main() -> None:
        async with Network(ALICE, RUN, NetworkConfig(sockets_parent=sockets_parent)) as alice:
            addresses = [dead_address(), dead_address()]
            addresses.insert(place, alice.addresses[0])
            config = NetworkConfig(sockets_parent=sockets_parent, bootstrap=tuple(addresses))
            async with Network(BOB, RUN, config) as bob:
                alice.transport.serve(echo)
                assert await bob.transport.request(ALICE.peer_id, b"hi", timeout_s=WAIT_S) == b"hi"
                assert bob.board.num_neighbours == 1

    run(main)


def test_only_dead_bootstrap_addresses_are_each_named(sockets_parent: Path, dead_address: Callable[[], str]) -> None:
    async def main() -> None:
        dead = (dead_address(), dead_address())
        with pytest.raises(Unreachable) as caught:
            async with Network(ALICE, RUN, NetworkConfig(sockets_parent=sockets_parent, bootstrap=dead)):
                pass
        tried = [f"{address.partition('/p2p/')[0]} (connection refused)" for address in dead]
        assert str(caught.value).startswith(
            f"nobody answers at {tried[0]}, {tried[1]}; such an address leads to a peer on"
        )

    run(main)


def test_who_only_dials_out_is_reached_over_its_own_connections(sockets_parent: Path) -> None:
    async def main() -> None:
        async with Network(ALICE, RUN, NetworkConfig(sockets_parent=sockets_parent)) as alice:
            by_name = alice.addresses[0].replace("/ip4/127.0.0.1/", "/dns4/localhost/")
            config = NetworkConfig(sockets_parent=sockets_parent, listen=(), bootstrap=(by_name,))
            async with Network(BOB, RUN, config) as bob:
                bob.transport.serve(echo)
                assert bob.addresses == ()
                assert await alice.transport.request(BOB.peer_id, b"hi", timeout_s=WAIT_S) == b"hi"

    run(main)


def test_cancelling_the_body_stops_everything(sockets_parent: Path) -> None:
    async def main() -> None:
        inside = asyncio.Event()

        async def body() -> None:
            async with Network(ALICE, RUN, NetworkConfig(sockets_parent=sockets_parent)):
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)


def test_a_malformed_bootstrap_address_starts_nothing(sockets_parent: Path) -> None:
    async def main() -> None:
        with pytest.raises(MalformedBytes):
            async with Network(ALICE, RUN, NetworkConfig(sockets_parent=sockets_parent, bootstrap=("nonsense",))):
                pass

    run(main)


def test_peers_find_each_others_records_and_forged_ones_get_nowhere(sockets_parent: Path) -> None:
    async def main() -> None:
        config = NetworkConfig(sockets_parent=sockets_parent)
        async with Network(ALICE, RUN, config) as alice:
            joining = NetworkConfig(sockets_parent=sockets_parent, bootstrap=alice.addresses)
            async with Network(BOB, RUN, joining) as bob, Network(CAROL, RUN, joining) as carol:
                for network, keypair in ((alice, ALICE), (bob, BOB), (carol, CAROL)):
                    assert await network.board.publish(keypair.peer_id, sealed(keypair, beat=1))
                    assert await network.board.publish(keypair.peer_id, sealed(keypair, beat=2))
                everybody = sorted(keypair.peer_id for keypair in (ALICE, BOB, CAROL))
                for network in (alice, bob, carol):
                    records = await network.board.read()
                    assert [(record.status.peer, record.status.beat) for record in records] == [
                        (peer, 2) for peer in everybody
                    ]
                await forge(carol, bob)
                assert [record.status.beat for record in await alice.board.read()] == [2, 2, 2]
                assert bob.board.num_rejected >= 4

    run(main)


async def forge(forger: Network, victim: Network) -> None:
    """Offers the victim's node records that it must not keep, past every check of our own node."""
    protocol = forger.board._live().protocol
    to = victim.board._live().p2p.peer_id
    dumps = MSGPackSerializer.dumps
    key = record_key(RUN, prefix_of(ALICE.peer_id))
    soon, never = time.time() + 60.0, time.time() + 1e9
    for name, value, expiration_s in (
        (key, sealed(CAROL, beat=9), soon),  # not Alice's
        (key, seal_message(ALICE, RUN, Goodbye("bye", 1)), soon),
        (key, sealed(ALICE, beat=1), never),  # genuine, but it would displace all to come
        ("somewhere else", sealed(ALICE, beat=1), soon),
        (key, b"junk", soon),
    ):
        accepted = await protocol.call_store(
            to, [DHTID.generate(name)], [dumps(value)], [expiration_s], subkeys=[ALICE.peer_id.base58]
        )
        assert accepted == [False]
