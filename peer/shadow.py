"""A guard against another package named `swarm`: that name is taken on the package index, and would shadow ours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def check_own_swarm() -> None:
    """Ends the process with one line when `import swarm` would load something else than this project's package."""
    own = Path(__file__).resolve().parent.parent / "swarm"
    spec = importlib.util.find_spec("swarm")
    found = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
    if found != own:
        sys.stderr.write(
            f"barnraise: another package named `swarm` stands in the way: {found or 'nothing importable'}; "
            f"ours is {own}. Install barnraise into a virtual environment of its own.\n"
        )
        raise SystemExit(2)
