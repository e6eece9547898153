"""Whether an address is answered by the peer it names: asked of a real p2pd, and of listeners that are something else."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import math
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from peer.daemon import Daemon
from peer.dial_probe import HELLO, MAX_HANDSHAKE_BYTES, SIGNED_HEAD, SIGNED_KEY, answers
from peer.socket_dir import SocketDirectory
from swarm.address import Address, parse_address
from swarm.identity import Keypair, PeerId

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning"),
]
ALICE, BOB = (Keypair.from_seed(letter * 32) for letter in (b"a", b"b"))
GENEROUS_S = 30.0
BRIEF_S = 0.2
KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC_KEY = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
Listener = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def sockets_parent() -> Iterator[Path]:
    """A folder with a name short enough for sockets, which must be empty again in the end."""
    with tempfile.TemporaryDirectory(prefix="bn") as name:
        yield Path(name)
        assert list(Path(name).iterdir()) == []


@pytest.fixture
def certificates() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bn") as name:
        yield Path(name)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        before = len(os.listdir("/proc/self/fd"))
        await main()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await asyncio.sleep(0)  # an aborted connection's socket is closed in the loop's next turn
        assert len(os.listdir("/proc/self/fd")) <= before

    asyncio.run(all_of_it())


def local(port: int, peer: PeerId = ALICE.peer_id) -> Address:
    return Address("ip4", "127.0.0.1", port, peer)


@asynccontextmanager
async def listening(listener: Listener) -> AsyncIterator[Address]:
    """The address of a listener, which is given up once it has been tried."""
    tasks: list[asyncio.Task[None]] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def serve() -> None:
            try:
                with contextlib.suppress(OSError, EOFError):
                    await listener(reader, writer)
            finally:
                writer.transport.abort()

        tasks.append(asyncio.create_task(serve()))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield local(server.sockets[0].getsockname()[1])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def extension(named: PeerId, signer: Keypair, head: bytes = SIGNED_HEAD, key: bytes = PUBLIC_KEY) -> bytes:
    """What a certificate says of its peer, as the specification writes it."""
    public = bytes.fromhex("08011220") + named.raw
    signature = signer.sign(head + key)
    body = bytes([4, len(public)]) + public + bytes([4, len(signature)]) + signature
    return bytes([0x30, len(body)]) + body


def tls_listener(folder: Path, said: bytes | None, *, filling: bytes = b"") -> Listener:
    """Speaks TLS as libp2p does, with a certificate that says this of its peer, or nothing, and something else."""
    name = x509.Name([])
    day = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 1, day, day + datetime.timedelta(days=36500))
    if said is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(SIGNED_KEY, said), critical=True)
    if filling:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), filling), critical=False
        )
    path = folder / "both.pem"
    private = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + builder.sign(KEY, SHA256()).public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.set_alpn_protocols(["libp2p"])

    async def listener(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(HELLO)) == HELLO
        writer.write(HELLO)
        await writer.start_tls(context)

    return listener


def answered_by(listener: Listener, *, timeout_s: float = math.inf) -> bool:
    """Whether a listener passes for Alice. Without a time limit nothing but the answer itself ends it."""
    told: list[bool] = []

    async def main() -> None:
        async with listening(listener) as address:
            told.append(await answers(address, timeout_s=timeout_s))

    run(main)
    return told[0]


def test_a_daemon_answers_for_its_own_id_alone_and_says_nothing_of_it(sockets_parent: Path) -> None:
    async def main() -> None:
        sockets = SocketDirectory(sockets_parent)
        daemon = await Daemon.start(ALICE, ("/ip4/127.0.0.1/tcp/0",), sockets)
        try:
            _, (found,) = await daemon.control.identify()
            for text in (found, found.replace("/ip4/127.0.0.1/", "/dns4/localhost/")):
                assert await answers(parse_address(f"{text}/p2p/{ALICE.peer_id.base58}"), timeout_s=GENEROUS_S)
                assert not await answers(parse_address(f"{text}/p2p/{BOB.peer_id.base58}"), timeout_s=GENEROUS_S)
            daemon.kill()
            assert (await daemon.wait_died()).endswith(found)  # which it says at its start
        finally:
            await daemon.stop()
            sockets.remove()

    run(main)


def test_nobody_answers_at_a_closed_port_or_an_unknown_name() -> None:
    async def main() -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # and never listens: nobody else gets the port meanwhile
            assert not await answers(local(silent.getsockname()[1]), timeout_s=GENEROUS_S)
        assert not await answers(Address("dns", "a..b", 1, ALICE.peer_id), timeout_s=GENEROUS_S)

    run(main)


def test_who_says_nothing_does_not_answer() -> None:
    async def listener(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    assert not answered_by(listener, timeout_s=BRIEF_S)


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", HELLO[:20] + b"\x03na\n", HELLO + b"\0" * 64]
)
def test_who_says_something_else_does_not_answer(said: bytes) -> None:
    async def listener(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        if said:
            await asyncio.Event().wait()

    assert not answered_by(listener)


def test_a_certificate_without_an_end_is_not_waited_for(certificates: Path) -> None:
    assert not answered_by(
        tls_listener(certificates, extension(ALICE.peer_id, ALICE), filling=bytes(MAX_HANDSHAKE_BYTES))
    )


def test_a_listener_of_our_own_passes_for_whoever_signed_its_key(certificates: Path) -> None:
    assert answered_by(tls_listener(certificates, extension(ALICE.peer_id, ALICE)))


@pytest.mark.parametrize(
    "said",
    [
        None,
        b"",
        extension(BOB.peer_id, BOB),
        extension(ALICE.peer_id, BOB),
        extension(BOB.peer_id, ALICE),
        extension(ALICE.peer_id, ALICE, head=b""),
        extension(ALICE.peer_id, ALICE, key=bytes(91)),  # of another certificate
        extension(ALICE.peer_id, ALICE)[:-1],
        extension(ALICE.peer_id, ALICE) + b"\0",
    ],
)
def test_a_certificate_that_the_peer_has_not_signed_does_not_do(said: bytes | None, certificates: Path) -> None:
    assert not answered_by(tls_listener(certificates, said))


def test_a_cancelled_try_leaves_nothing_open() -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def listener(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await asyncio.Event().wait()

        async with listening(listener) as address:
            task = asyncio.create_task(answers(address, timeout_s=GENEROUS_S))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)
