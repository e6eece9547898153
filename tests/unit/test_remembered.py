"""The plain command resumes a run as it was started; what is given anew counts, and is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.home import Home
from peer.options import PeerOptions
from peer.remembered import recall
from swarm.errors import StateError

ANNOUNCED = ("/dns4/a.example/tcp/4001",)


def test_what_was_given_once_holds_until_something_else_is_given(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first = PeerOptions(
        data=tmp_path / "text", announce=ANNOUNCED, max_upload_mbit=20.0, device="cpu", join="barnraise1-x", rounds=3
    )
    assert recall(home, first) == (first, "")
    plain, shown = recall(home, PeerOptions())
    assert plain == PeerOptions(data=tmp_path / "text", announce=ANNOUNCED, max_upload_mbit=20.0, device="cpu")
    assert shown == (
        f"--data {tmp_path / 'text'}, --device cpu, --announce /dns4/a.example/tcp/4001, --max-upload-mbit 20.0"
    )
    changed, shown = recall(home, PeerOptions(data=tmp_path / "elsewhere"))
    assert changed.data == tmp_path / "elsewhere" and "--data" not in shown
    assert recall(home, PeerOptions())[0].data == tmp_path / "elsewhere"


def test_a_relative_path_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recall(Home(tmp_path), PeerOptions(data=Path("text")))
    monkeypatch.chdir("/")
    assert recall(Home(tmp_path), PeerOptions())[0].data == tmp_path / "text"


def test_loopback_ends_with_an_address_to_listen_at(tmp_path: Path) -> None:
    home = Home(tmp_path)
    recall(home, PeerOptions(local=True))
    assert recall(home, PeerOptions())[0].local
    assert not recall(home, PeerOptions(listen=("/ip4/0.0.0.0/tcp/4001",)))[0].local
    assert not recall(home, PeerOptions())[0].local


@pytest.mark.parametrize("text", ["{", "[]", '{"local": 1}', '{"max_upload_mbit": "fast"}', '{"announce": 3}'])
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.keep_options(text)
    with pytest.raises(StateError, match=r"options\.json cannot be read; remove it"):
        recall(home, PeerOptions())
