"""A peer's home: the folder with its identity, the run's manifest, state, blobs, checkpoints and address book.

DATA/runs/<run>/<name>/     default homes, one per run and peer; DATA/last names the one used last
identity.key  run.manifest  listen  options.json  incarnation  state/  blobs/  checkpoints/  peers.book  lock
damaged-1/ ...              state and blobs that could not be taken up again, for people to look at
DATA/cache/                 text and tokens, shared by all runs
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from peer.disk import disk_errors, make_folder, sweep, sync, write_whole
from swarm.data_folder import DATA_ENV, data_folder
from swarm.digest import Digest
from swarm.errors import BadSignature, ConfigError, MalformedBytes, StateError
from swarm.identity import Keypair, PeerId, load_or_create_keypair, store_keypair
from swarm.manifest import Manifest
from swarm.schema import MAX_NAME_BYTES

MAX_DEFAULT_HOMES: Final = 64  # peers of one run and user on one machine
_IDENTITY: Final = "identity.key"
_MANIFEST: Final = "run.manifest"
_LISTEN: Final = "listen"
OPTIONS: Final = "options.json"
_INCARNATION: Final = "incarnation"
_PARTIAL: Final = ".part"
_DAMAGED: Final = "damaged-"


def cache_folder() -> Path:
    """Text and tokens, shared by all runs of this user."""
    return data_folder() / "cache"


def refuse_unwritable_data_folder() -> None:
    """Makes the folder for texts and homes; raises ConfigError or StateError if nothing can be written there."""
    folder = data_folder()
    try:
        make_folder(folder)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = "cannot be written by this user"
    except StateError as error:
        writable, reason = False, str(error).removeprefix(f"{folder}: ")
    if not writable:
        raise StateError(f"{folder}: {reason}; set {DATA_ENV} to a folder of your own")


def refuse_unfit_home(path: Path) -> None:
    """Raises ConfigError for a --home that is no folder, or that this user cannot make or write."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise ConfigError(f"--home {path}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--home {path}: {there} cannot be written by this user; name another folder")


def run_folder(run: Digest) -> Path:
    """The default homes of one run."""
    return data_folder() / "runs" / run.hex()[:16]


class HomeInUse(StateError):
    """Another process holds the lock of this home."""


@dataclass(slots=True)
class Home:
    """One peer's folder, locked by this process until `release`."""

    path: Path
    note: str = ""  # what people should know about how it was chosen
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def book(self) -> Path:
        return self.path / "peers.book"

    @property
    def set_aside(self) -> list[Path]:
        """Folders with what was found damaged, the newest last."""
        numbered = [path for path in self.path.glob(f"{_DAMAGED}*") if path.name[len(_DAMAGED) :].isdecimal()]
        return sorted(numbered, key=lambda path: int(path.name[len(_DAMAGED) :]))

    def set_state_aside(self) -> Path:
        """Moves the damaged state to a new folder of its own, which is returned. Raises StateError."""
        last = self.set_aside[-1:]
        number = int(last[0].name[len(_DAMAGED) :]) + 1 if last else 1
        folder = self.path / f"{_DAMAGED}{number}"
        make_folder(folder)
        with disk_errors(self.state):
            self.state.rename(folder / self.state.name)
            sync(folder)
            sync(self.path)
        return folder

    def keypair(self) -> Keypair:
        """This peer's identity, made on first use."""
        return load_or_create_keypair(self.path / _IDENTITY)

    def known_id(self) -> PeerId | None:
        """The id of this peer, if it has one already. Raises StateError when its key is damaged."""
        return self.keypair().peer_id if (self.path / _IDENTITY).exists() else None

    def manifest(self) -> Manifest | None:
        """The run this home belongs to; None for a new home. Raises StateError when the file is damaged."""
        path = self.path / _MANIFEST
        if not path.exists():
            return None
        with disk_errors(path):
            raw = path.read_bytes()
        try:
            return Manifest.from_bytes(raw)
        except (MalformedBytes, BadSignature) as error:
            raise StateError(f"{path}: {error}; remove it and join again with the invite") from None

    def adopt(self, keypair: Keypair) -> None:
        """Makes that key this peer's identity, unless it has one. Raises StateError."""
        path = self.path / _IDENTITY
        if not path.exists():
            store_keypair(path, keypair)

    def keep_manifest(self, manifest: Manifest) -> None:
        _write(self.path / _MANIFEST, manifest.to_bytes())

    def listen(self) -> tuple[str, ...]:
        """Where this peer listened the last time: others know it by that port."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return tuple((self.path / _LISTEN).read_text().split())
        return ()

    def own_addresses(self) -> tuple[str, ...]:
        """Where this peer can be dialled from this very machine, while it runs."""
        peer_id = self.keypair().peer_id.base58
        here = (one.replace("/0.0.0.0/", "/127.0.0.1/") for one in self.listen() if not one.endswith("/tcp/0"))
        return tuple(f"{one}/p2p/{peer_id}" for one in here)

    def keep_listen(self, addresses: tuple[str, ...]) -> None:
        _write(self.path / _LISTEN, "\n".join(addresses).encode())

    def remember_as_last(self) -> None:
        """`run_peer.py` without arguments comes back to this home."""
        make_folder(data_folder())
        path = data_folder() / "last"  # of all homes: others may write it at this very moment
        write_whole(path, str(self.path.resolve()).encode(), path.with_name(f"last.{os.getpid()}{_PARTIAL}"))

    def options(self) -> str:
        """What `keep_options` kept; "" for nothing."""
        path = self.path / OPTIONS
        with disk_errors(path):
            return path.read_text(errors="replace") if path.exists() else ""

    def keep_options(self, text: str) -> None:
        _write(self.path / OPTIONS, text.encode())

    def next_incarnation(self, last: int) -> int:
        """The number of this life of the peer's, kept before it is used: one more than in the life before, of which the
        saved state says `last`. Only a first life takes it from the clock, so that one whose files were lost counts on from
        there. Raises StateError."""
        path, known = self.path / _INCARNATION, last
        with contextlib.suppress(OSError, ValueError):
            known = max(known, int(path.read_text()))
        number = known + 1 if known else int(time.time())
        _write(path, str(number).encode())
        return number

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _write(path: Path, content: bytes) -> None:
    write_whole(path, content, path.with_name(path.name + _PARTIAL))


def open_home(path: Path) -> Home:
    """That folder, made and locked; raises HomeInUse when another process uses it."""
    make_folder(path)
    with disk_errors(path):
        lock = open(path / "lock", "a+")  # noqa: SIM115  held until release
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read(32).strip()
        lock.close()
        who = f"process {owner}" if owner else "another process"
        raise HomeInUse(f"{path} is in use by {who}; stop it, or give this peer its own --home") from None
    except OSError as error:
        lock.close()
        raise StateError(
            f"{path / 'lock'} cannot be locked: {error.strerror}; choose a --home on a local disk"
        ) from None
    try:
        with disk_errors(path):
            lock.seek(0)
            lock.truncate()
            lock.write(str(os.getpid()))
            lock.flush()
        sweep(path, f"*{_PARTIAL}")
    except StateError:
        with contextlib.suppress(OSError):
            lock.close()
        raise
    return Home(path, _lock=lock)


def open_default_home(run: Digest, name: str | None) -> Home:
    """The first free default home of a run; says so when it is not the first. A name asked for must be free."""
    folder = run_folder(run)
    if name is not None:
        return open_home(folder / safe_name(name))
    for number in range(1, MAX_DEFAULT_HOMES + 1):
        try:
            home = open_home(folder / f"peer-{number}")
        except HomeInUse:
            continue
        if number > 1:
            home.note = f"peer-{number - 1} is running already: this one is peer-{number}, at home in {home.path}"
        return home
    raise StateError(f"{folder}: all {MAX_DEFAULT_HOMES} default homes are in use; give this peer its own --home")


def last_home() -> Path | None:
    """The home used last, if it still holds a run."""
    with contextlib.suppress(OSError, UnicodeDecodeError, ConfigError):
        named = (data_folder() / "last").read_text().strip()
        path = Path(named)
        if named and (path / _MANIFEST).exists():
            return path
    return None


def safe_name(name: str) -> str:
    """A name fit for a folder and a screen; raises ConfigError."""
    if not (0 < len(name) <= 40 and all(letter.isalnum() or letter in "-_." for letter in name) and name[0] != "."):
        raise ConfigError(f"--name {name[:60]!r}: 1 to 40 letters, digits, '-', '_' or '.', not starting with a dot")
    if (num_bytes := len(name.encode())) > MAX_NAME_BYTES:
        raise ConfigError(f"--name {name!r}: {num_bytes} bytes in UTF-8, at most {MAX_NAME_BYTES}; take a shorter one")
    return name
