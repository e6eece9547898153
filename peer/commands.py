"""Commands as people have to type them here: what is printed runs as printed, in this folder, with nothing activated."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

_SCRIPT = "run_peer.py"


def is_script() -> bool:
    """Whether this process was started by the script of a checkout, which an installed wheel does not have."""
    return Path(sys.argv[0]).name == _SCRIPT


def peer_command(*words: object) -> str:
    """The command that runs a peer, as this process was started: `run_peer.py` of a checkout, or `barnraise peer`."""
    return _line([*([_short(sys.executable), sys.argv[0]] if is_script() else [*_barnraise(), "peer"]), *words])


def barnraise_command(*words: object) -> str:
    """Any other command."""
    return _line([*_barnraise(), *words])


def _barnraise() -> list[str]:
    own = Path(sys.prefix) / "bin" / "barnraise"
    found = shutil.which("barnraise")
    if found is not None and Path(found).resolve() == own.resolve():
        return ["barnraise"]
    return [_short(str(own))] if own.exists() else [_short(sys.executable), "-m", "peer"]


def _short(path: str) -> str:
    """A path below the current folder without the folder's own."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):  # the folder is gone
        return path
    return path if relative.startswith(os.pardir) else relative


def _line(words: list[object]) -> str:
    return shlex.join(map(str, words))
