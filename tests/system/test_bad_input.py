"""What people get wrong, one after the other: each costs one clear line on stderr and an exit code, never a traceback.

Runs are forks of a process that has loaded torch already (`launcher.py`): on two slow cores loading is all they take.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from swarm.digest import digest_of
from swarm.identity import Keypair, load_or_create_keypair
from swarm.invite import Invite
from tests.system.launcher import Launcher
from tests.system.swarm_of_processes import GENEROUS_S, PeerProcess, SwarmOfProcesses

pytestmark = pytest.mark.system


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str


class PeerCommand:
    """Runs the peer command in a swarm's folder, to its end."""

    def __init__(self, swarm: SwarmOfProcesses) -> None:
        self._swarm = swarm

    def run(self, *arguments: str | Path, file_limit: int | None = None) -> Result:
        swarm = self._swarm
        out, err = swarm.folder / "run.out", swarm.folder / "run.err"
        process = swarm.launcher.start(
            [str(one) for one in arguments], swarm.environment, swarm.folder, out=out, err=err, file_limit=file_limit
        )
        code = process.wait(GENEROUS_S)
        return Result(code, out.read_text(), err.read_text())

    def refuses(self, *arguments: str | Path, because: str, file_limit: int | None = None) -> None:
        """The run must end with one line that holds those words."""
        check_refused(self.run(*arguments, file_limit=file_limit), because)


def check_refused(result: Result, because: str) -> None:
    told = f"exit code {result.code}\n--- stderr\n{result.err}\n--- stdout\n{result.out}"
    assert result.code == 2, told
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("barnraise: ") and len(lines[0]) < 1000, told
    assert because in lines[0], told
    assert "Traceback" not in result.out, told


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[SwarmOfProcesses]:
    """One peer that waits for two others, which never come."""
    with SwarmOfProcesses(tmp_path_factory.mktemp("bad"), launcher) as swarm:
        swarm.found("p1").invite()
        yield swarm


@pytest.fixture(scope="module")
def peer(swarm: SwarmOfProcesses) -> PeerCommand:
    return PeerCommand(swarm)


@pytest.fixture(scope="module")
def invite(swarm: SwarmOfProcesses) -> str:
    return swarm.peer("p1").invite()


@pytest.fixture(scope="module")
def trained(swarm: SwarmOfProcesses, peer: PeerCommand) -> Path:
    """The home of a peer that has trained alone up to version 2; copy it."""
    config = swarm.folder / "alone.toml"
    config.write_text(swarm.config.read_text().replace("min_peers = 3", "min_peers = 1"))
    home = swarm.folder / "trained"
    result = peer.run("--config", config, "--home", home, "--local", "--rounds", "2")
    assert result.code == 0 and result.err == "", result
    return home


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "home"))


@pytest.fixture
def dead_address() -> Iterator[str]:
    with socket.socket() as silent:  # bound and not listening: nobody else gets this port meanwhile
        silent.bind(("127.0.0.1", 0))
        yield f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{Keypair.generate().peer_id.base58}"


# ---------------------------------------------------------------- invites


@pytest.mark.parametrize("text", ["hello", "barnraise1-", "barnraise9-abc", "", "barnraise1-\x1b[31m!!", "x" * 100_000])
def test_malformed_invite(peer: PeerCommand, text: str) -> None:
    peer.refuses("--join", text, because="invite")


def test_mistyped_invite(peer: PeerCommand, invite: str) -> None:
    letter = "a" if invite[40] != "a" else "b"
    peer.refuses("--join", invite[:40] + letter + invite[41:], because="checksum")


def test_invite_of_a_run_nobody_there_knows(peer: PeerCommand, invite: str) -> None:
    foreign = Invite(digest_of("some other run"), Invite.parse(invite).addresses).encode()
    peer.refuses("--join", foreign, "--local", because="nobody has the manifest of run")


def test_nobody_reachable(peer: PeerCommand, dead_address: str) -> None:
    lonely = Invite(digest_of("a run"), (dead_address,)).encode()
    peer.refuses("--join", lonely, "--local", because="nobody answers")


def test_an_invite_and_a_new_run_at_once(peer: PeerCommand, invite: str, swarm: SwarmOfProcesses) -> None:
    peer.refuses("--join", invite, "--config", swarm.config, because="--join enters a run that is there")


# ---------------------------------------------------------------- options and configs


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("[model]\nhiden_size = 32", "unknown key `model.hiden_size`; did you mean `hidden_size`?"),
        ('preset = "tyni"', "tiny"),
        ("[round]\nlocal_steps = -1", "round.local_steps = -1"),
        ("not = = toml", "not TOML"),
        ("\x00\x01\x02", "not TOML"),
        ("\x93 a list in msgpack's form", "TOML"),
    ],
)
def test_bad_config(peer: PeerCommand, tmp_path: Path, text: str, because: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    peer.refuses("--config", path, "--home", tmp_path / "home", "--local", because=because)
    assert not (tmp_path / "home").exists()


def test_no_config_there(peer: PeerCommand, tmp_path: Path) -> None:
    peer.refuses("--config", tmp_path / "nothing.toml", because="No such file or directory")


@pytest.mark.parametrize("damage", ["trailing bytes", "a byte less", "a flipped bit"])
def test_damaged_manifest(peer: PeerCommand, swarm: SwarmOfProcesses, tmp_path: Path, damage: str) -> None:
    good = (swarm.peer("p1").home / "run.manifest").read_bytes()
    flipped = bytearray(good)
    flipped[len(flipped) // 2] ^= 1
    path = tmp_path / "run.manifest"
    path.write_bytes({"trailing bytes": good + b"x", "a byte less": good[:-1]}.get(damage, bytes(flipped)))
    peer.refuses("--config", path, "--home", tmp_path / "home", "--local", because="not a manifest")


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_no_such_device(peer: PeerCommand, swarm: SwarmOfProcesses, tmp_path: Path, device: str) -> None:
    peer.refuses("--config", swarm.config, "--home", tmp_path, "--device", device, because=f"no such device '{device}'")


@pytest.mark.parametrize("listen", ["4001", "/ip4/0.0.0.0/udp/4001", "/ip4/203.0.113.7/tcp/0"])
def test_cannot_listen_there(peer: PeerCommand, swarm: SwarmOfProcesses, tmp_path: Path, listen: str) -> None:
    peer.refuses("--config", swarm.config, "--home", tmp_path, "--local", "--listen", listen, because=listen)


@pytest.mark.parametrize("announce", ["/ip4/203.0.113.7/udp/4001", "/ip4/127.0.0.1/tcp/4001"])
def test_others_cannot_dial_that(peer: PeerCommand, swarm: SwarmOfProcesses, tmp_path: Path, announce: str) -> None:
    peer.refuses("--config", swarm.config, "--home", tmp_path / "home", "--announce", announce, because=announce)
    assert not (tmp_path / "home").exists()


def test_port_taken(peer: PeerCommand, swarm: SwarmOfProcesses, tmp_path: Path, invite: str) -> None:
    port = Invite.parse(invite).addresses[0].split("/")[4]
    listen = f"/ip4/127.0.0.1/tcp/{port}"
    peer.refuses("--config", swarm.config, "--home", tmp_path, "--listen", listen, because=f"port {port} is taken")


@pytest.mark.parametrize("name", ["../up", "", "two words", "x" * 41])
def test_bad_name(peer: PeerCommand, name: str) -> None:
    peer.refuses("--name", name, because="--name")


def test_events_that_cannot_be_written(peer: PeerCommand, tmp_path: Path) -> None:
    peer.refuses("--json-events", tmp_path, because="--json-events")
    (tmp_path / "file").touch()
    peer.refuses("--json-events", tmp_path / "file" / "events", because="--json-events")


# ---------------------------------------------------------------- text


def test_missing_text(peer: PeerCommand, tmp_path: Path, swarm: SwarmOfProcesses) -> None:
    peer.refuses("--data", tmp_path / "nothing.jsonl", because="there is no such file or folder")
    config = tmp_path / "run.toml"
    config.write_text(swarm.config.read_text().replace("[data]", '[data]\nkind = "files"'))
    peer.refuses("--config", config, "--home", tmp_path / "home", because="--data PATH")


def test_wrong_text_and_wrong_tokenizer(
    peer: PeerCommand, tmp_path: Path, swarm: SwarmOfProcesses, invite: str
) -> None:
    texts = {"one": "A barn is raised by neighbours. ", "other": "A barn is razed by a storm. "}
    for name, text in texts.items():
        documents = (json.dumps({"text": f"{number}: {text * 20}"}) for number in range(200))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(documents))
        (tmp_path / f"{name}.json").write_text(letter_tokenizer(text))
    config = tmp_path / "run.toml"
    config.write_text(swarm.config.read_text().replace("[data]", '[data]\nkind = "files"'))
    right = ("--data", tmp_path / "one.jsonl", "--tokenizer", tmp_path / "one.json")
    taken = Invite.parse(invite).addresses[0].partition("/p2p/")[0]
    port_taken = ("--listen", taken)  # the run is made, and goes no further
    peer.refuses("--config", config, "--home", tmp_path / "first", *right, *port_taken, because="is taken")
    manifest = tmp_path / "first" / "run.manifest"
    begin = ("--config", manifest, "--home", tmp_path / "second", "--local")
    wrong_text = ("--data", tmp_path / "other.jsonl", "--tokenizer", tmp_path / "one.json")
    peer.refuses(*begin, *wrong_text, because="wrong data")
    wrong_tokenizer = ("--data", tmp_path / "one.jsonl", "--tokenizer", tmp_path / "other.json")
    peer.refuses(*begin, *wrong_tokenizer, because="tokenizer")
    peer.refuses(*begin, "--data", tmp_path / "one.jsonl", because="tokenizer")


def test_text_for_a_run_that_has_its_own(peer: PeerCommand, invite: str, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("my own text " * 1000)
    joins = ("--join", invite, "--local", "--home", tmp_path / "home")
    peer.refuses(*joins, "--data", tmp_path / "own.txt", because="leave out --data")


def letter_tokenizer(text: str) -> str:
    """A tokenizer.json of single letters."""
    letters = ["<|endoftext|>", "?", *sorted(set(text))]
    model = {"type": "WordLevel", "vocab": {letter: place for place, letter in enumerate(letters)}, "unk_token": "?"}
    split = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    return json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": model})


# ---------------------------------------------------------------- homes and disks


def test_home_in_use(peer: PeerCommand, swarm: SwarmOfProcesses, invite: str) -> None:
    running = swarm.peer("p1")
    taken = f"is in use by process {running.process.pid}"
    peer.refuses("--home", running.home, because=taken)
    peer.refuses("--home", running.home, "--join", invite, because=taken)


def test_home_of_another_run(peer: PeerCommand, swarm: SwarmOfProcesses, invite: str, copied: Path) -> None:
    peer.refuses("--home", copied, "--join", invite, because="belongs to run")
    peer.refuses("--home", copied, "--config", swarm.config, because="belongs to run")


def test_home_that_cannot_be_written(peer: PeerCommand, swarm: SwarmOfProcesses, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "home", Path("/proc/barnraise")):
        peer.refuses("--config", swarm.config, "--home", home, because=str(home))


def test_damaged_manifest_at_home(peer: PeerCommand, copied: Path) -> None:
    (copied / "run.manifest").write_bytes(b"\x93 no")
    peer.refuses("--home", copied, because="remove it and join again")


def test_damaged_identity(peer: PeerCommand, copied: Path) -> None:
    (copied / "identity.key").write_bytes(b"no key")
    peer.refuses("--home", copied, because="identity.key")


def test_one_damaged_state_file_costs_one_generation(peer: PeerCommand, copied: Path) -> None:
    damage(newest_states(copied)[0])
    result = peer.run("--home", copied, "--local", "--rounds", "3")
    assert result.code == 0 and result.err == "", result
    assert "is damaged" in result.out and "falling back to" in result.out
    assert "version     3" in result.out


def test_no_whole_state_file(peer: PeerCommand, copied: Path) -> None:
    for path in newest_states(copied):
        damage(path)
    peer.refuses("--home", copied, "--local", because="no state file is whole")


def test_a_damaged_blob_of_the_newest_state(peer: PeerCommand, copied: Path) -> None:
    from peer.saved import Generations  # without torch

    newest, before = Generations(copied / "state").kept()
    for root in newest.blobs() - before.blobs():
        damage(copied / "blobs" / root.hex())
    result = peer.run("--home", copied, "--local", "--rounds", "3")
    assert result.code == 0 and result.err == "", result
    assert "falling back to" in result.out
    newest, before = Generations(copied / "state").kept()
    for root in newest.blobs() | before.blobs():
        damage(copied / "blobs" / root.hex())
    peer.refuses("--home", copied, "--local", because="no state file is whole")


def test_disk_that_takes_no_more_at_the_start(
    peer: PeerCommand, copied: Path, tmp_path: Path, swarm: SwarmOfProcesses
) -> None:
    begin = ("--config", swarm.folder / "alone.toml", "--local", "--home", tmp_path / "new")
    peer.refuses(*begin, file_limit=64 << 10, because="File too large")  # the anchor alone has 131 KiB
    result = peer.run("--home", copied, "--local", "--rounds", "2")
    assert result.code == 0, result


def test_disk_that_is_full_in_the_midst_of_training(swarm: SwarmOfProcesses, copied: Path) -> None:
    full = PeerProcess(swarm, "full")
    swarm.peers["full"] = full
    shutil.move(copied, full.home)
    full.start()
    full.wait_version(3)
    resource.prlimit(full.process.pid, resource.RLIMIT_FSIZE, (64 << 10, resource.RLIM_INFINITY))
    assert full.wait_ended() == 2, full.story()
    check_refused(Result(2, full.out, full.err), "File too large")
    reached = full.version
    seen = len(full.events())
    full.start("--rounds", str(reached + 1))
    assert full.wait_event("PeerStarted", after=seen)["version"] >= reached
    assert full.wait_ended() == 0, full.story()


def test_events_onto_a_full_disk_are_given_up_and_training_goes_on(peer: PeerCommand, copied: Path) -> None:
    result = peer.run("--home", copied, "--local", "--rounds", "3", "--json-events", "/dev/full")
    assert result.code == 0 and result.err == "", result
    assert "No space left on device; no more events are written" in result.out
    assert "version     3" in result.out


def test_nothing_of_a_refused_run_is_left(swarm: SwarmOfProcesses, peer: PeerCommand) -> None:
    names = [process.name() for process in swarm.processes()]
    assert names.count("p2pd") == 1, names  # that of p1
    assert len(list(swarm.temporary.glob("barnraise-net-*"))) == 1
    assert load_or_create_keypair(swarm.peer("p1").home / "identity.key").peer_id.base58 == swarm.peer("p1").peer_id


def newest_states(home: Path) -> list[Path]:
    found = sorted((home / "state").glob("*.state"), reverse=True)
    assert len(found) == 2
    return found


def damage(path: Path) -> None:
    """Flips a byte in the middle."""
    with path.open("r+b") as file:
        file.seek(os.fstat(file.fileno()).st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
