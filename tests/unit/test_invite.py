"""Invites and addresses: what is encoded comes back, and no text does more than raise an error of ours."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.address import Scope, nobody_answers, parse_address, worth_dialling
from swarm.digest import Digest, digest_of
from swarm.errors import ConfigError, MalformedBytes
from swarm.identity import PeerId
from swarm.invite import MAX_ADDRESSES, MAX_MEMBERS, Invite, choose_addresses

PEER = PeerId(bytes(range(32)))
RUN = Digest(bytes(range(100, 132)))
LAN = f"/ip4/192.168.1.7/tcp/4001/p2p/{PEER.base58}"
PUBLIC = f"/ip6/2001:db8::1/tcp/65535/p2p/{PEER.base58}"
NAMED = f"/dns4/seed.example.org/tcp/1/p2p/{PeerId(bytes(32)).base58}"
INVITE = Invite(RUN, (LAN, PUBLIC, NAMED))

hosts = st.one_of(
    st.builds(lambda n: f"/ip4/{ipaddress.IPv4Address(n)}", st.integers(0, 2**32 - 1)),
    st.builds(lambda n: f"/ip6/{ipaddress.IPv6Address(n)}", st.integers(0, 2**128 - 1)),
    st.builds(
        lambda kind, host: f"/{kind}/{host}",
        st.sampled_from(["dns", "dns4", "dns6"]),
        st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5}){0,2}", fullmatch=True),
    ),
)
addresses = st.builds(
    lambda host, port, peer: f"{host}/tcp/{port}/p2p/{PeerId(peer).base58}",
    hosts,
    st.integers(1, 65535),
    st.binary(min_size=32, max_size=32),
)


@given(addresses)
def test_an_address_is_its_own_text(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        LAN[1:],
        LAN + "/",
        LAN.replace("/tcp/", "/udp/"),
        LAN.replace("192.168.1.7", "192.168.1.256"),
        LAN.replace("192.168.1.7", "192.168.01.7"),
        LAN.replace("4001", "0"),
        LAN.replace("4001", "65536"),
        LAN.replace("4001", "+4001"),
        LAN.replace("4001", "٤٠٠١"),
        LAN.replace("ip4", "ip5"),
        LAN[: LAN.index("/p2p")],
        LAN[:-1],
        LAN.replace(PEER.base58, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"),
        PUBLIC.replace("2001:db8::1", "fe80::1%eth0"),
        NAMED.replace("seed.example.org", "seed..org"),
        NAMED.replace("seed.example.org", "-seed.org"),
        NAMED.replace("seed.example.org", "seed org"),
        NAMED.replace("seed.example.org", "a" * 200),
    ],
)
def test_a_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(MalformedBytes):
        parse_address(text)


@given(st.text() | st.from_regex(r"/(ip4|ip6|dns)/[^/]*/tcp/[^/]*/p2p/[^/]*", fullmatch=True))
def test_any_text_is_an_address_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(MalformedBytes):
        parse_address(text)


@given(st.binary(min_size=32, max_size=32), st.lists(addresses, min_size=1, max_size=MAX_ADDRESSES))
def test_an_invite_comes_back(run: bytes, some: list[str]) -> None:
    invite = Invite(Digest(run), tuple(some))
    assert Invite.parse(invite.encode()) == invite


def test_an_invite_is_one_plain_word_and_peers_share_their_id() -> None:
    token = INVITE.encode()
    assert re.fullmatch(r"barnraise1-[a-z2-7]+", token)
    assert len(Invite(RUN, (LAN, PUBLIC)).encode()) < 200


def test_an_invite_survives_mail_and_terminal() -> None:
    token = INVITE.encode()
    wrapped = "\r\n".join(token[i : i + 40] for i in range(0, len(token), 40))
    for text in (f"  {token}\n", wrapped, token.upper(), f'"{token}"', f"`{token}`", f"<{token}>", "\t".join(token)):
        assert Invite.parse(text) == INVITE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("hello", "is not an invite"),
        ("magnet:?xt=urn:btih:c12fe1c06bba254a9dc9f519b335aa7c1367a88a", "is not an invite"),
        ("barnraise0-aaaa", "is not an invite"),
        ("barnraise-aaaa", "is not an invite"),
        ("barnraise1-", "cut short or mistyped"),
        ("barnraise1-1890", "cut short or mistyped"),
        ("barnraise2-aaaa", "update barnraise"),
        ("a" * 100_000, "at most"),
    ],
)
def test_what_is_no_invite_gets_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Invite.parse(text)
    assert "\n" not in str(caught.value)


def test_every_cut_and_every_single_typing_error_is_noticed() -> None:
    token = INVITE.encode()
    begin = len("barnraise1-")
    for length in range(begin, len(token)):
        with pytest.raises(ConfigError):
            Invite.parse(token[:length])
    for position in range(begin, len(token)):
        other = "a" if token[position] != "a" else "b"
        with pytest.raises(ConfigError):
            Invite.parse(token[:position] + other + token[position + 1 :])


def test_an_invite_holds_1_to_16_readable_addresses() -> None:
    for some in ((), (LAN,) * (MAX_ADDRESSES + 1), ("/ip4/1.2.3.4/tcp/1",)):
        with pytest.raises(ConfigError):
            Invite(RUN, some)


@given(st.text() | st.from_regex(r"barnraise[0-9]*-[a-z2-7]*", fullmatch=True))
def test_any_text_is_an_invite_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(ConfigError):
        Invite.parse(text)


@given(st.binary(max_size=300))
def test_any_body_behind_a_right_checksum_is_an_invite_or_an_error_of_ours(body: bytes) -> None:
    letters = base64.b32encode(digest_of("invite", body).raw[:4] + body).decode().rstrip("=").lower()
    with contextlib.suppress(ConfigError):
        Invite.parse("barnraise1-" + letters)


@pytest.mark.parametrize(
    ("host", "scope"),
    [
        ("ip4/127.0.0.1", Scope.MACHINE),
        ("ip6/::1", Scope.MACHINE),
        ("ip4/0.0.0.0", Scope.MACHINE),
        ("dns4/localhost", Scope.MACHINE),
        ("ip4/192.168.1.7", Scope.NETWORK),
        ("ip4/10.99.0.10", Scope.NETWORK),
        ("ip4/100.72.0.1", Scope.NETWORK),
        ("ip6/fd00::1", Scope.NETWORK),
        ("ip6/::ffff:192.168.1.7", Scope.NETWORK),
        ("ip4/203.0.113.7", Scope.ANYWHERE),
        ("ip6/2001:db8::1", Scope.ANYWHERE),
        ("dns4/seed.example.org", Scope.ANYWHERE),
    ],
)
def test_an_address_tells_from_where_it_can_be_dialled(host: str, scope: Scope) -> None:
    assert parse_address(f"/{host}/tcp/1/p2p/{PEER.base58}").scope is scope


def member(number: int, *hosts: str) -> list[str]:
    return [f"/ip4/{host}/tcp/4001/p2p/{PeerId(bytes([number]) * 32).base58}" for host in hosts]


def test_an_invite_names_those_who_were_dialled_and_no_address_that_only_few_can_dial() -> None:
    reachable, behind_nat = member(1, "192.168.1.7", "203.0.113.7"), member(2, "192.168.2.2", "203.0.113.9")
    chosen, note = choose_addresses([reachable, ["no address"]], [behind_nat])
    assert (chosen, note) == ((reachable[1],), "")
    chosen, note = choose_addresses([], [behind_nat])
    assert chosen == (behind_nat[1],) and "nobody is known to have dialled" in note


def test_private_addresses_are_in_an_invite_only_where_there_are_no_others_and_that_is_said() -> None:
    lan, machine = member(1, "192.168.1.7"), member(2, "127.0.0.1")
    assert choose_addresses([lan], [member(2, "203.0.113.9")])[0] == tuple(lan), "that nobody has dialled is no better"
    chosen, note = choose_addresses([machine], [lan])
    assert chosen == tuple(lan) and "same local network" in note
    chosen, note = choose_addresses([], [machine])
    assert chosen == tuple(machine) and "only this machine" in note
    assert choose_addresses([[]], []) == ((), "")


def test_many_members_share_the_room_of_an_invite() -> None:
    members = [member(number, *(f"203.0.113.{host}" for host in range(8))) for number in range(1, 20)]
    chosen, _ = choose_addresses(members, [])
    assert len({parse_address(one).peer for one in chosen}) == MAX_MEMBERS
    assert len(Invite(RUN, chosen).addresses) == MAX_ADDRESSES


HERE = LAN.replace("192.168.1.7", "127.0.0.1")
HERE_TOO = f"/dns4/localhost/tcp/1/p2p/{PEER.base58}"


def test_the_loopback_of_somebody_else_is_not_dialled() -> None:
    assert worth_dialling([HERE, LAN, HERE_TOO, "no address", LAN, PUBLIC]) == (LAN, PUBLIC)
    assert worth_dialling([HERE, HERE_TOO, HERE]) == (HERE, HERE_TOO), "that machine may be this one"
    assert worth_dialling([]) == ()


def test_what_is_told_when_nobody_answers_names_the_reasons_and_what_to_do() -> None:
    said = nobody_answers({LAN: "connection refused", PUBLIC: "no answer within 10 s"})
    assert said.startswith(
        "nobody answers at /ip4/192.168.1.7/tcp/4001 (connection refused), "
        "/ip6/2001:db8::1/tcp/65535 (no answer within 10 s); are those peers running?"
    )
    assert "same machine" not in said and "same machine" in nobody_answers({HERE: "connection refused"})
    many = {LAN.replace("4001", str(port)): "no answer" for port in range(1, 17)}
    assert "(no answer) and 12 more; " in nobody_answers(many)
    assert "no address is known" in nobody_answers({})
