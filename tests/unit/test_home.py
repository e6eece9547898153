"""Homes: one process each, found again, and each failure one clear line."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peer.home import (
    MAX_DEFAULT_HOMES,
    Home,
    HomeInUse,
    last_home,
    open_default_home,
    open_home,
    refuse_unfit_home,
    refuse_unwritable_data_folder,
    run_folder,
    safe_name,
)
from swarm.config import RunConfig
from swarm.data_folder import DATA_ENV, data_folder
from swarm.errors import ConfigError, StateError
from swarm.identity import Keypair
from swarm.manifest import Manifest, sign_manifest
from tests.unit.message_examples import AUTHOR, RUN

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_ENV, str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    from swarm.presets import preset_config

    config: RunConfig = preset_config("tiny")
    source = config.data.model_copy(update={"num_windows": 1000, "num_heldout_windows": 100})
    return sign_manifest(config.model_copy(update={"data": source, "genesis_digest": "ab" * 32}), [AUTHOR])


def test_each_life_has_the_next_number_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It followed the clock: one that was ahead for a day made a peer count from there."""
    monkeypatch.setattr(time, "time", lambda: 1000.9)
    home = Home(tmp_path)
    assert [home.next_incarnation(0) for _ in range(3)] == [1000, 1001, 1002]
    monkeypatch.setattr(time, "time", lambda: 9e9)
    assert home.next_incarnation(1002) == 1003, "before the state of the last life was saved"
    (tmp_path / "incarnation").unlink()
    assert home.next_incarnation(1003) == 1004, "of a home of an older release"
    (tmp_path / "incarnation").write_text("torn")
    assert home.next_incarnation(0) == 9_000_000_000, "nothing is known any more"


def test_a_home_in_use_names_its_process_and_is_free_again_afterwards(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    with pytest.raises(HomeInUse, match=str(os.getpid())):
        open_home(tmp_path / "home")
    home.release()
    home.release()  # idempotent
    open_home(tmp_path / "home").release()


def test_a_killed_process_leaves_its_home_free(tmp_path: Path) -> None:
    hold = "import sys, pathlib; from peer.home import open_home; home = open_home(pathlib.Path(sys.argv[1]))"
    wait = "print('held', flush=True); input()"
    command = [sys.executable, "-c", f"{hold}; {wait}", str(tmp_path / "home")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(HomeInUse, match=f"process {other.pid}"):
            open_home(tmp_path / "home")
        other.kill()
    open_home(tmp_path / "home").release()


def test_default_homes_are_taken_in_turn_and_that_is_said() -> None:
    first, second = open_default_home(RUN, None), open_default_home(RUN, None)
    assert (first.path.name, second.path.name) == ("peer-1", "peer-2")
    assert first.note == "" and "peer-1 is running already" in second.note
    first.release()
    again = open_default_home(RUN, None)
    assert again.path == first.path
    named = open_default_home(RUN, "anna")
    with pytest.raises(HomeInUse):
        open_default_home(RUN, "anna")
    for home in (second, again, named):
        home.release()


def test_a_folder_that_cannot_be_made_is_not_taken_for_one_in_use(data: Path) -> None:
    run_folder(RUN).parent.mkdir(parents=True)
    run_folder(RUN).write_text("a file where a folder should be")
    with pytest.raises(StateError) as raised:
        open_default_home(RUN, None)
    assert not isinstance(raised.value, HomeInUse) and str(MAX_DEFAULT_HOMES) not in str(raised.value)


def test_what_a_home_keeps_comes_back(tmp_path: Path, manifest: Manifest) -> None:
    home = open_home(tmp_path / "home")
    assert home.manifest() is None and home.listen() == ()
    home.keep_manifest(manifest)
    home.keep_listen(("/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001"))
    assert home.manifest() == manifest
    assert home.listen() == ("/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001")
    assert home.keypair().peer_id == home.keypair().peer_id
    home.release()


def test_the_key_is_readable_by_its_owner_alone_and_an_adopted_one_replaces_none(tmp_path: Path) -> None:
    home, key = open_home(tmp_path / "home"), Keypair.generate()
    home.adopt(key)
    home.adopt(Keypair.generate())
    assert home.keypair().peer_id == key.peer_id
    assert stat.S_IMODE((home.path / "identity.key").stat().st_mode) == 0o600
    home.release()


def test_a_damaged_manifest_is_one_line(tmp_path: Path, manifest: Manifest) -> None:
    home = open_home(tmp_path / "home")
    (home.path / "run.manifest").write_bytes(manifest.to_bytes()[:-3])
    with pytest.raises(StateError, match=r"run\.manifest"):
        home.manifest()
    (home.path / "run.manifest").unlink()
    (home.path / "run.manifest").mkdir()
    with pytest.raises(StateError, match=r"run\.manifest"):
        home.manifest()
    home.release()


def test_the_last_home_is_remembered_while_it_holds_a_run(
    data: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert last_home() is None
    home = open_home(tmp_path / "home")
    home.remember_as_last()
    assert last_home() is None
    home.keep_manifest(manifest)
    assert last_home() == home.path.resolve()
    home.release()
    (data / "last").write_text("")
    monkeypatch.chdir(home.path)  # an empty name is no folder, not even the present one
    assert last_home() is None


@pytest.mark.parametrize("name", ["a", "peer-1", "Ännchen_2.x", "x" * 40])
def test_good_names(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "a b", "a\n", "x" * 41, "\x1b[31m"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        safe_name(name)


def nobody(uid: int) -> None:
    """The system's table of users, in a container for instance."""
    raise KeyError(uid)


def test_without_a_home_of_the_user_one_line_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (DATA_ENV, "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(ConfigError, match=f"HOME names no folder.*{DATA_ENV}"):
        data_folder()
    assert last_home() is None


def test_a_data_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "data", Path("/proc/barnraise")):
        monkeypatch.setenv(DATA_ENV, str(place))
        with pytest.raises(StateError, match=f"^{place}: .*; set {DATA_ENV} to a folder of your own$"):
            refuse_unwritable_data_folder()
    monkeypatch.setenv(DATA_ENV, str(tmp_path / "data" / "deep"))
    refuse_unwritable_data_folder()


def test_a_home_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    refuse_unfit_home(tmp_path)
    refuse_unfit_home(tmp_path / "not" / "yet")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"file is a file; name a folder"):
            refuse_unfit_home(path)


def test_a_wrong_home_is_told_at_once(tmp_path: Path) -> None:
    """It was found out after the text was read and the model made."""
    (tmp_path / "file").write_text("x")
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "run_peer.py", "--local", "--home", str(tmp_path / "file")],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    lines = [line for line in said.stderr.splitlines() if not line.startswith("import time:")]
    assert said.returncode == 2 and len(lines) == 1 and "is a file; name a folder" in lines[0]
    assert not any(line.split("|")[-1].strip() == "torch" for line in said.stderr.splitlines())
