"""Options that a home remembers, so that the plain command resumes a run as it was started."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from peer.home import OPTIONS, Home
from peer.options import PeerOptions
from swarm.errors import StateError

# What is true of this machine and this peer, from start to start. The others are for one start alone.
_REMEMBERED: Final = ("data", "tokenizer", "device", "announce", "local", "max_upload_mbit", "max_disk_gb")
_PATHS: Final = ("data", "tokenizer")


def recall(home: Home, given: PeerOptions) -> tuple[PeerOptions, str]:
    """The options with what that home remembers in the place of what was not given, and which those are, for people.

    What was given is remembered from now on. Raises StateError.
    """
    known = _known(home)
    if given.listen and not given.local:
        known.pop("local", None)  # whoever names an address to listen at is loopback's own judge
    default = PeerOptions()
    said = {name: getattr(given, name) for name in _REMEMBERED if getattr(given, name) != getattr(default, name)}
    recalled = {name: value for name, value in known.items() if name not in said}
    whole = {**recalled, **said}
    home.keep_options(json.dumps({name: _to_json(value) for name, value in whole.items()}, indent=1) + "\n")
    shown = ", ".join(f"--{name.replace('_', '-')} {_shown(value)}".strip() for name, value in recalled.items())
    return replace(given, **recalled), shown


def _known(home: Home) -> dict[str, Any]:
    try:
        found: dict[str, Any] = dict(json.loads(home.options() or "{}").items())
        values: dict[str, Any] = {name: _from_json(name, found[name]) for name in _REMEMBERED if name in found}
    except (ValueError, TypeError, AttributeError):
        raise StateError(f"{home.path / OPTIONS} cannot be read; remove it and give the options again") from None
    return values


def _to_json(value: Any) -> Any:
    return str(value.absolute()) if isinstance(value, Path) else value


def _from_json(name: str, value: Any) -> Any:
    kinds = {field.name: field.default for field in fields(PeerOptions)}
    if name in _PATHS:
        return Path(value)
    if name == "announce":
        return tuple(map(str, value))
    if name == "device":
        return str(value)
    wanted: type[Any] = type(kinds[name])
    if not isinstance(value, int | float) or isinstance(value, bool) != (wanted is bool):
        raise TypeError(name)
    return wanted(value)


def _shown(value: Any) -> str:
    if value is True:
        return ""
    return " ".join(value) if isinstance(value, tuple) else str(value)
