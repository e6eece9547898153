"""How a peer comes to its run: each way in, and each wrong way refused with its home free again."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.address_book import AddressBook
from peer.entrance import enter, read_config, refuse_wrong_text
from peer.home import Home, HomeInUse, open_home
from peer.options import PeerOptions
from peer.screen import Screen
from swarm import wire
from swarm.data_folder import DATA_ENV
from swarm.errors import ConfigError, DataError, StateError
from swarm.invite import Invite
from swarm.manifest import Manifest, sign_manifest
from swarm.presets import preset_config
from tests.unit.message_examples import AUTHOR, keypair

ADDRESS = f"/ip4/10.0.0.1/tcp/4001/p2p/{keypair(3).peer_id.base58}"
OTHER = f"/ip4/10.0.0.2/tcp/4001/p2p/{keypair(4).peer_id.base58}"


def manifest_named(name: str) -> Manifest:
    config = preset_config("tiny")
    data = config.data.model_copy(update={"num_windows": 1000, "num_heldout_windows": 100})
    return sign_manifest(config.model_copy(update={"name": name, "data": data, "genesis_digest": "ab" * 32}), [AUTHOR])


@pytest.fixture
def screen() -> Screen:
    return Screen(quiet=True, json_events=None)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_ENV, str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "run.manifest"
    path.write_bytes(manifest_named("one").to_bytes())
    return path


def test_a_manifest_starts_a_run_and_its_home_resumes_it(tmp_path: Path, screen: Screen, config_path: Path) -> None:
    home = tmp_path / "home"
    entered = enter(PeerOptions(config=config_path, home=home), screen)
    assert entered.is_new and entered.run == manifest_named("one").run_id and entered.bootstrap == ()
    entered.home.release()
    Path(home / "peers.book").unlink(missing_ok=True)
    resumed = enter(PeerOptions(home=home), screen)
    assert not resumed.is_new and resumed.manifest == entered.manifest
    with pytest.raises(HomeInUse):
        enter(PeerOptions(home=home), screen)
    resumed.home.release()


def test_alone_it_resumes_the_last_run_beside_a_peer_that_is_in_it(screen: Screen, config_path: Path) -> None:
    first = enter(PeerOptions(config=config_path), screen)
    first.home.keep_listen(("/ip4/0.0.0.0/tcp/4321",))
    first.home.remember_as_last()
    second = enter(PeerOptions(), screen)
    assert second.home.path != first.home.path and second.run == first.run
    assert f"/ip4/127.0.0.1/tcp/4321/p2p/{first.home.keypair().peer_id.base58}" in second.bootstrap
    assert second.home.note
    second.home.release()
    first.home.release()
    again = enter(PeerOptions(), screen)
    assert again.home.path.resolve() == first.home.path.resolve()
    again.home.release()


def test_an_invite_brings_its_addresses_and_those_of_the_book(tmp_path: Path, screen: Screen) -> None:
    run = manifest_named("one").run_id
    (tmp_path / "home").mkdir()
    book = AddressBook(tmp_path / "home" / "peers.book")
    from peer.data.cache import write_atomically

    assert book.addresses() == ()
    write_atomically(tmp_path / "home" / "peers.book", wire.encode([OTHER, ADDRESS]))
    entered = enter(PeerOptions(join=Invite(run, (ADDRESS,)).encode(), home=tmp_path / "home"), screen)
    assert (entered.run, entered.manifest, entered.bootstrap) == (run, None, (ADDRESS, OTHER))
    entered.home.release()


def test_a_loopback_address_of_the_invite_or_the_book_is_used_where_there_is_no_other(
    tmp_path: Path, screen: Screen
) -> None:
    run, here = manifest_named("one").run_id, ADDRESS.replace("10.0.0.1", "127.0.0.1")
    options = PeerOptions(join=Invite(run, (here,)).encode(), home=tmp_path / "home")
    for known, used in (([], (here,)), ([OTHER, here], (OTHER,))):
        (tmp_path / "home").mkdir(exist_ok=True)
        (tmp_path / "home" / "peers.book").write_bytes(wire.encode(known))
        entered = enter(options, screen)
        assert entered.bootstrap == used
        entered.home.release()


def test_a_home_of_another_run_is_refused_and_free_again(tmp_path: Path, screen: Screen, config_path: Path) -> None:
    home = open_home(tmp_path / "home")
    home.keep_manifest(manifest_named("two"))
    home.release()
    invite = Invite(manifest_named("one").run_id, (ADDRESS,)).encode()
    for options in (PeerOptions(join=invite, home=home.path), PeerOptions(config=config_path, home=home.path)):
        with pytest.raises(StateError, match="belongs to run"):
            enter(options, screen)
        open_home(home.path).release()
    assert Home(home.path).manifest() == manifest_named("two")


def test_a_damaged_manifest_in_a_home_is_refused_and_the_home_free_again(tmp_path: Path, screen: Screen) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "run.manifest").write_bytes(b"\x93damaged")
    with pytest.raises(StateError, match=r"run\.manifest"):
        enter(PeerOptions(home=home), screen)
    open_home(home).release()


def test_a_text_is_compared_with_the_run_that_is_known(tmp_path: Path, screen: Screen, config_path: Path) -> None:
    """The run there is trained on the text that comes with Python."""
    text = tmp_path / "own.txt"
    text.write_text("my own text")
    entered = enter(PeerOptions(config=config_path, home=tmp_path / "home"), screen)
    entered.home.remember_as_last()
    entered.home.release()
    invite = Invite(entered.run, (ADDRESS,)).encode()
    for known in (PeerOptions(data=text, home=tmp_path / "home"), PeerOptions(data=text, config=config_path)):
        with pytest.raises(DataError, match="leave out --data"):
            refuse_wrong_text(known, screen)
    with pytest.raises(DataError, match="leave out --data"):
        refuse_wrong_text(PeerOptions(data=text), screen)  # the last run is resumed
    refuse_wrong_text(PeerOptions(data=text, join=invite, home=tmp_path / "other"), screen)
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        refuse_wrong_text(PeerOptions(tokenizer=text, join=invite), screen)


@pytest.mark.parametrize("content", [None, b"", b"\x93\x01", b"unknown_key = 1\n", b"[model\n", b"\xff\xfe"])
def test_a_bad_config_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    if content == b"":
        read_config(path)  # all of it has defaults
        return
    with pytest.raises(ConfigError):
        read_config(path)


def test_a_bad_invite_is_refused_before_a_home_is_made(data: Path, screen: Screen) -> None:
    with pytest.raises(ConfigError):
        enter(PeerOptions(join="not an invite"), screen)
    assert not data.exists()
