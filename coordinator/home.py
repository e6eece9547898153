"""Where a monitor keeps what it remembers of a run: `history.sqlite`, its `key`, and `run` (the run id in hex)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarm.data_folder import data_folder
from swarm.digest import Digest
from swarm.errors import ConfigError, StateError
from swarm.identity import Keypair, load_or_create_keypair
from swarm.invite import Invite

_RUN: Final = "run"


@dataclass(frozen=True, slots=True)
class Home:
    """A run that can be watched from here."""

    directory: Path
    run: Digest
    addresses: tuple[str, ...]  # of the invite; there may be more in the history's address book
    keypair: Keypair

    @property
    def history(self) -> Path:
        return self.directory / "history.sqlite"


def default_root() -> Path:
    """The folder that holds a home for each run. Raises ConfigError."""
    return data_folder() / "monitor"


def open_home(invite_text: str | None, directory: Path | None, root: Path | None = None) -> Home:
    """The home for an invite; without one, `directory`, or the home that was used last. Raises ConfigError, StateError."""
    invite = Invite.parse(invite_text) if invite_text else None
    if directory is None:
        root = root or default_root()
        directory = root / invite.run.hex()[:16] if invite else _used_last(root)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--home {directory} is not a directory")
    known = _run_in(directory)
    if invite is None and known is None:
        raise ConfigError(f"no run is known in {directory}; pass the invite that the run's starter printed")
    if invite is not None and known is not None and known != invite.run:
        raise ConfigError(f"{directory} belongs to run {known}, the invite to run {invite.run}; choose another --home")
    run = invite.run if invite else known
    assert run is not None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _RUN).write_text(run.hex() + "\n")  # its time says which home was used last
        keypair = load_or_create_keypair(directory / "key")
    except OSError as error:
        raise StateError(f"{directory}: {error.strerror or error}; choose another --home") from None
    return Home(directory, run, invite.addresses if invite else (), keypair)


def _run_in(directory: Path) -> Digest | None:
    try:
        return Digest.from_hex((directory / _RUN).read_text().strip())
    except (OSError, ValueError):
        return None


def _used_last(root: Path) -> Path:
    found = sorted(root.glob(f"*/{_RUN}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError("no invite was given and no run was watched from here before; pass the run's invite")
    return found[-1].parent
