"""What `--config` names: a config as TOML, or a finished manifest. Reads without torch, so that mistakes show at once."""

from __future__ import annotations

from pathlib import Path

from swarm.config import RunConfig
from swarm.config_file import load_config
from swarm.errors import ConfigError, RemoteError
from swarm.manifest import Manifest


def read_run_file(path: Path) -> RunConfig | Manifest:
    """The config or manifest in that file; raises ConfigError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    if raw[:1] and raw[0] & 0xF0 == 0x90:  # a msgpack list: never the first byte of TOML
        try:
            return Manifest.from_bytes(raw)
        except RemoteError as error:
            raise ConfigError(f"--config {path}: not a manifest of this build: {error}") from None
    return load_config(path)
