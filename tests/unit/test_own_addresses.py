"""What is given as --listen and --announce: used as others read it, or refused in one line; never dropped in silence."""

from __future__ import annotations

import pytest

from peer.own_addresses import announceable, announced, listening_port, refuse_wrong_addresses
from swarm.address import MAX_ADDRESS_BYTES, parse_address
from swarm.errors import ConfigError
from swarm.identity import Keypair
from swarm.messages import MAX_ADDRESSES

ME = Keypair.from_seed(b"a" * 32).peer_id
OTHER = Keypair.from_seed(b"b" * 32).peer_id
PUBLIC = "/ip4/203.0.113.7/tcp/4001"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (PUBLIC, PUBLIC),
        (f"{PUBLIC}/p2p/{ME.base58}", PUBLIC),
        ("/ip4/192.168.1.7/tcp/1", "/ip4/192.168.1.7/tcp/1"),
        ("/dns4/Peer.Example.ORG/tcp/4001", "/dns4/peer.example.org/tcp/4001"),
        ("/ip6/2001:DB8:0:0:0:0:0:1/tcp/4001", "/ip6/2001:db8::1/tcp/4001"),
    ],
)
def test_what_is_announced_is_what_others_read(text: str, read: str) -> None:
    assert announced((text, text), ME, local=False) == (read,)
    told = announceable((f"{read}/p2p/{ME.base58}",), local=False)
    assert [str(parse_address(one)) for one in told] == [f"{read}/p2p/{ME.base58}"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{PUBLIC}/p2p/{OTHER.base58}", f"the id of another peer, this one is {ME.base58}"),
        (f"{PUBLIC}/p2p/x", "peer id"),
        ("/ip4/203.0.113.7/udp/4001/quic-v1", "give a TCP address like"),
        ("/dnsaddr/example.org/tcp/4001", "'dnsaddr' is not a kind of host"),
        ("/dnsaddr/example.org", "give a TCP address like"),
        ("203.0.113.7:4001", "give a TCP address like"),
        ("", "give a TCP address like"),
        ("/ip4/203.0.113.7/tcp/0", "'0' is not a TCP port"),
        ("/IP4/203.0.113.7/tcp/4001", "'IP4' is not a kind of host"),
        ("/dns4/bücher.example/tcp/4001", "begins with xn--"),
        (f"/dns4/{'a' * 60}.{'b' * 60}/tcp/4001", f"at most {MAX_ADDRESS_BYTES} bytes"),
        ("/ip4/0.0.0.0/tcp/4001", "other machines cannot dial it"),
        ("/ip4/127.0.0.1/tcp/4001", "other machines cannot dial it"),
        ("/ip6/fe80::1/tcp/4001", "other machines cannot dial it"),
    ],
)
def test_what_others_cannot_read_or_dial_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=r"^--announce") as caught:
        announced((PUBLIC, text), ME, local=False)
    said = str(caught.value)
    assert why in said and text[:200] in said and "\n" not in said


def test_within_one_machine_only_its_own_addresses_are_of_use() -> None:
    assert announced(("/ip4/127.0.0.1/tcp/4001",), ME, local=True) == ("/ip4/127.0.0.1/tcp/4001",)
    with pytest.raises(ConfigError, match=r"peers on this machine \(--local\) cannot dial it"):
        announced((PUBLIC,), ME, local=True)


def test_there_are_at_most_as_many_as_a_status_holds() -> None:
    many = tuple(f"/ip4/203.0.113.{number}/tcp/4001" for number in range(1, MAX_ADDRESSES + 2))
    assert announced(many[:-1], ME, local=False) == many[:-1]
    with pytest.raises(ConfigError, match=f"at most {MAX_ADDRESSES}"):
        announced(many, ME, local=False)


def test_before_its_id_is_known_any_will_do() -> None:
    assert announced((f"{PUBLIC}/p2p/{OTHER.base58}",), None, local=False) == (PUBLIC,)
    with pytest.raises(ConfigError, match="at most"):  # as long as it will be
        announced((f"/dns4/{'a' * 60}.{'b' * 30}/tcp/4001",), None, local=False)


@pytest.mark.parametrize(
    "listen",
    [
        *("", "4001", "/ip4/127.0.0.1", "/ip4/localhost/tcp/0", "/ip4/127.0.0.1/udp/0", "/ip4/1.2.3.4/tcp/70000"),
        *("/dns4/localhost/tcp/4001", "/ip4/127.0.0.1/tcp/４００１", f"/ip4/127.0.0.1/tcp/4001/p2p/{ME.base58}"),
        "x" * 100_000,
    ],
)
def test_a_wrong_place_to_listen_is_one_line(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"^listen address .*give one like /ip4/0\.0\.0\.0/tcp/4001") as caught:
        refuse_wrong_addresses((listen,), (), None, local=False)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


def test_a_place_to_listen_must_be_of_this_machine_and_may_leave_the_port_open() -> None:
    assert listening_port("/ip6/::1/tcp/0") == ("::1", 0)
    refuse_wrong_addresses(("/ip4/127.0.0.1/tcp/0", "/ip4/0.0.0.0/tcp/1"), (), None, local=False)
    with pytest.raises(ConfigError, match=r"cannot listen at /ip4/203\.0\.113\.7/tcp/"):
        refuse_wrong_addresses(("/ip4/203.0.113.7/tcp/4001",), (), None, local=False)
