"""What a peer prints of itself, and the invites that are made from its home."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peer.address_book import AddressBook, Known
from peer.entrance import Entrance
from peer.home import Home, open_home
from peer.introduction import Introduction
from peer.invitation import invitation
from peer.main import print_invite
from peer.options import PeerOptions
from peer.screen import Screen
from swarm.address import Address, parse_address
from swarm.errors import ConfigError
from swarm.identity import PeerId
from swarm.invite import Invite
from swarm.messages import PeerStatus
from swarm.presets import preset_config
from swarm.round.facts import Figures, Measured
from swarm.round.participant import Participant
from tests.unit.message_examples import RUN, example_of, keypair
from tests.unit.test_entrance import manifest_named
from tests.unit.test_reachability import a_participant, hear

ME, MEMBER, HIDDEN = (keypair(number).peer_id for number in (1, 2, 3))


def at(peer: PeerId, host: str) -> str:
    return f"/ip4/{host}/tcp/4001/p2p/{peer.base58}"


class StubTransport:
    def __init__(self, *reached: str) -> None:
        self.known: dict[PeerId, Address] = {parse_address(one).peer: parse_address(one) for one in reached}


class StubNetwork:
    """What an introduction asks of a network."""

    def __init__(self, addresses: tuple[str, ...], *reached: str) -> None:
        self.addresses = addresses
        self.listening = ("/ip4/0.0.0.0/tcp/4001",)
        self.transport = StubTransport(*reached)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = open_home(tmp_path / "home")
    home.adopt(keypair(1))
    home.keep_manifest(manifest_named("one"))
    yield home
    home.release()


def introduced(
    home: Home, network: Any, capsys: pytest.CaptureFixture[str], *, local: bool = False, **options: Any
) -> tuple[Any, str]:
    screen = Screen(quiet=False, json_events=None)
    entrance = Entrance(home, RUN, None, (), is_new=False)
    introduction = Introduction(screen, entrance, ME, network, local=local)
    introduction.introduce(preset_config("tiny"), "cpu", PeerOptions(**options))
    assert screen.printer.drain(60.0)
    return introduction, " ".join(capsys.readouterr().out.split())


def test_whoever_joins_a_run_on_files_is_told_what_it_needs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"data": Path("/data/pile 1.jsonl.zst"), "tokenizer": Path("neox.json")}
    _, shown = introduced(home, StubNetwork((at(ME, "127.0.0.1"),)), capsys, local=True, **files)
    assert re.search(r"--join barnraise1-\S+ --data 'pile 1.jsonl.zst' --tokenizer neox.json --local \(with the", shown)


def look(introduction: Introduction, participant: Participant) -> None:
    """Looks now, and waits until all is on the screen."""
    introduction._due_s = 0.0
    introduction.look(participant)
    assert introduction._screen.printer.drain(60.0)


def invite_in(text: str) -> tuple[str, ...]:
    found = re.search(r"barnraise1-[a-z2-7]+", text)
    assert found is not None
    return Invite.parse(found.group()).addresses


def test_a_private_address_is_not_called_reachable(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    network = StubNetwork((at(ME, "192.168.1.5"),), at(MEMBER, "203.0.113.2"))
    _, shown = introduced(home, network, capsys)
    assert "listening /ip4/192.168.1.5/tcp/4001 (whether others can dial it shows within a minute)" in shown
    assert "reachable" not in shown
    assert invite_in(shown) == (at(MEMBER, "203.0.113.2"),), "others could not dial this one"
    assert f"barnraise invite --home {home.path}" in shown


def test_where_only_private_addresses_are_known_that_is_said(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    _, shown = introduced(home, StubNetwork((at(ME, "192.168.1.5"),)), capsys)
    assert invite_in(shown) == (at(ME, "192.168.1.5"),) and "same local network" in shown


def test_in_a_local_run_every_peer_invites_to_itself(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    network = StubNetwork((at(ME, "127.0.0.1"),), at(MEMBER, "127.0.0.1"))
    _, shown = introduced(home, network, capsys, local=True)
    assert invite_in(shown) == (at(ME, "127.0.0.1"), at(MEMBER, "127.0.0.1"))
    assert "only this machine" not in shown and "within a minute" not in shown


def test_later_its_home_makes_an_invite_of_those_who_can_be_dialled_while_it_runs(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    network = StubNetwork((at(ME, "203.0.113.1"), at(ME, "192.168.1.5")))
    introduction, _ = introduced(home, network, capsys)
    participant = a_participant()
    hear(participant, 2, "203.0.113.2", (ME,))
    hear(participant, 3, "192.168.7.2", (MEMBER, ME))
    look(introduction, participant)
    introduction.book.note([heard.status for heard in participant.presence.roll.all()])
    assert "reachable from outside at /ip4/203.0.113.1/tcp/4001" in capsys.readouterr().out
    assert print_invite(Home(home.path)) == 0
    out, err = capsys.readouterr()
    assert Invite.parse(out).addresses == (at(ME, "203.0.113.1"), at(MEMBER, "203.0.113.2"))
    assert Invite.parse(out).run == manifest_named("one").run_id and err == ""


def test_a_change_of_address_is_on_the_screen_and_in_the_next_invite(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    network = StubNetwork((at(ME, "203.0.113.1"),))
    introduction, _ = introduced(home, network, capsys)
    network.addresses = (at(ME, "203.0.113.99"),)
    participant = a_participant()
    hear(participant, 2, "203.0.113.2", (ME,))
    look(introduction, participant)
    introduction.book.note([])
    shown = capsys.readouterr().out
    assert "addresses that others are told of this peer are now: /ip4/203.0.113.99/tcp/4001" in shown
    assert "reachable from outside at /ip4/203.0.113.99/tcp/4001" in shown
    assert print_invite(Home(home.path)) == 0
    assert Invite.parse(capsys.readouterr().out).addresses == (at(ME, "203.0.113.99"),)


def test_a_relay_that_was_reached_is_in_the_invite(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    relay = keypair(7).peer_id
    network = StubNetwork((at(ME, "192.168.1.5"),), at(relay, "203.0.113.7"))
    introduction, _ = introduced(home, network, capsys)
    participant = a_participant()
    participant.step(Measured(Figures(dialled=(relay,))), 101.0)
    look(introduction, participant)
    introduction.book.note([])
    capsys.readouterr()
    assert print_invite(Home(home.path)) == 0
    assert Invite.parse(capsys.readouterr().out).addresses == (at(relay, "203.0.113.7"),)


def test_a_home_without_a_run_or_an_address_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_invite(Home(tmp_path)) == 2
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="start the peer first"):
        invitation(RUN, ME, Known())


def test_before_a_book_is_kept_the_invite_holds_where_the_peer_listens(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.keep_listen(("/ip4/192.168.1.5/tcp/4001",))
    status = replace(example_of(PeerStatus), peer=HIDDEN, addresses=(at(HIDDEN, "192.168.9.9"),))
    AddressBook(home.book).note([status])
    assert print_invite(Home(home.path)) == 0
    out, err = capsys.readouterr()
    assert Invite.parse(out).addresses == (at(ME, "192.168.1.5"), at(HIDDEN, "192.168.9.9"))
    assert "same local network" in err
