"""Whether an address can be dialled from here: p2pd cannot tell of a peer that it is connected to, as it then dials nobody.

A connection of our own, begun as any libp2p connection over TLS (libp2p's specs: multistream-select, tls), and given up once
the other side has proved who it is. It does so in its first flight, before it wants to know who asks.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ObjectIdentifier, load_der_x509_certificate

from swarm.address import Address, HostKind
from swarm.errors import MalformedBytes, RemoteError
from swarm.identity import SIGNATURE_BYTES, PeerId

SIGNED_KEY: Final = ObjectIdentifier("1.3.6.1.4.1.53594.1.1")  # the certificate's extension
SIGNED_HEAD: Final = b"libp2p-tls-handshake:"  # before the certificate's key, in what the peer signs
HELLO: Final = b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n"  # a listener that speaks TLS says the same
MAX_HANDSHAKE_BYTES: Final = 1 << 14  # a certificate of p2pd's is 350 bytes
# SEQUENCE { OCTET STRING protobuf PublicKey {Type: Ed25519, Data: 32 bytes}, OCTET STRING 64 bytes }
_KEY_HEAD: Final = bytes.fromhex("3068042408011220")
_SIGNATURE_HEAD: Final = bytes.fromhex("0440")
_FAMILIES: Final[dict[HostKind, socket.AddressFamily]] = {
    "ip4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
}


async def answers(address: Address, *, timeout_s: float) -> bool:
    """Whether a new TCP connection to the address is answered, within so long, by the peer that the address names."""
    try:
        async with asyncio.timeout(timeout_s):
            family = _FAMILIES[address.host_kind]
            reader, writer = await asyncio.open_connection(address.host, address.port, family=family)
            try:
                certificate = await _certificate(reader, writer)
            finally:
                writer.transport.abort()
        return is_of(address.peer, certificate)
    except (OSError, EOFError, ValueError, RemoteError):  # TimeoutError, SSLError and gaierror are OSErrors
        return False


async def _certificate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The certificate, in DER, whose key the other side has just signed with. Raises OSError, EOFError or MalformedBytes."""
    writer.write(HELLO)
    rest = HELLO
    while rest:
        said = await _read(reader, len(rest))
        if not rest.startswith(said):
            raise MalformedBytes("it does not speak multistream-select, or no TLS")
        rest = rest[len(said) :]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = _context().wrap_bio(incoming, outgoing)
    room = MAX_HANDSHAKE_BYTES
    while True:
        try:
            tls.do_handshake()
            return tls.getpeercert(binary_form=True) or b""
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
        said = await _read(reader, room)
        room -= len(said)
        incoming.write(said)


async def _read(reader: asyncio.StreamReader, most: int) -> bytes:
    """Some bytes; raises EOFError when there are none, or may be none any more."""
    said = await reader.read(most)
    if not said:
        raise EOFError
    return said


def _context() -> ssl.SSLContext:
    """TLS as libp2p has it. No authority vouches for a key: `is_of` looks at the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["libp2p"])
    return context


def is_of(peer: PeerId, certificate: bytes) -> bool:
    """Whether the peer has signed the key of this certificate; raises BadSignature if another one did in its name."""
    try:
        parsed = load_der_x509_certificate(certificate)
        signed = parsed.extensions.get_extension_for_oid(SIGNED_KEY).value.public_bytes()
        key = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception:  # the parser has a dozen kinds for what can be wrong with a certificate
        return False
    said, signature = signed[:-SIGNATURE_BYTES], signed[-SIGNATURE_BYTES:]
    if said != _KEY_HEAD + peer.raw + _SIGNATURE_HEAD:
        return False
    peer.verify(signature, SIGNED_HEAD + key)
    return True
