"""`swarm/PROTOCOL.md` against the code: every message with its fields, every activity, every limit with its value."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import swarm
from swarm.config import RoundConfig
from swarm.messages import PURPOSES, Activity

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "swarm" / "PROTOCOL.md").read_text()
# Whoever adds a limit to one of these says on the page what it is for.
LIMITS_OF = ("swarm.wire", "swarm.messages", "swarm.status", "swarm.chain", "swarm.envelope", "swarm.net.transport")


def section(heading: str) -> str:
    """The text under a heading of the second level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, heads and rules left out; back quotes are stripped."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_every_message_is_there_with_its_fields() -> None:
    told = {purpose: (kind, fields) for purpose, kind, fields, *_ in rows(section("Messages"))}
    due = {
        purpose: (kind.__name__, ", ".join(field.name for field in dataclasses.fields(kind)) or "none")
        for purpose, kind in PURPOSES.items()
    }
    assert told == due


def test_every_activity_is_there() -> None:
    states, moves = section("What a peer is doing").split("Legal moves:")
    assert {row[0] for row in rows(states)} == {str(one) for one in Activity}
    named = set(re.findall(r"`([a-z]+)`", moves))
    assert named <= {str(one) for one in Activity}


def test_the_deadlines_are_the_defaults() -> None:
    told = {name: value for name, value, _ in rows(section("Deadlines of a run"))}
    assert told == {name: str(field.default) for name, field in RoundConfig.model_fields.items()}


def _limits(start: str, stop: str) -> list[tuple[str, float]]:
    text = section("Limits")
    part = text[text.index(start) :]
    part = part[: part.index(stop)] if stop else part
    return [(name, float(value)) for name, value, _ in rows(part)]


def _constants_of_swarm() -> dict[str, dict[str, object]]:
    """module -> constants that it defines itself."""
    found: dict[str, dict[str, object]] = {}
    for info in pkgutil.walk_packages(swarm.__path__, "swarm."):
        module = importlib.import_module(info.name)
        assert module.__file__ is not None
        own = _assigned(Path(module.__file__))
        found[info.name] = {name: getattr(module, name) for name in own if name.isupper() and hasattr(module, name)}
    return found


def _assigned(path: Path) -> dict[str, ast.expr]:
    """Names assigned at the top of a file, with what they are assigned."""
    found: dict[str, ast.expr] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
        elif isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_every_limit_of_swarm_has_its_value() -> None:
    constants = _constants_of_swarm()
    for cited, value in _limits("In `swarm`", "In `peer`"):
        place, _, name = cited.rpartition(".")
        found = {
            module: owned[name]
            for module, owned in constants.items()
            if name in owned and module.endswith(f".{place}" if place else "")
        }
        assert found, f"{cited} is nowhere in swarm"
        assert set(found.values()) == {value}, f"{cited} is {value} on the page and {found} in the code"


def test_every_limit_of_peer_has_its_value() -> None:
    """Read, not imported: these files need a network library that must not share a process with the other one."""
    assigned = {path: _assigned(path) for path in sorted((ROOT / "peer").glob("*.py"))}
    for cited, value in _limits("In `peer`", ""):
        found = {path.name: ast.literal_eval(owned[cited]) for path, owned in assigned.items() if cited in owned}
        assert found, f"{cited} is nowhere in peer"
        assert set(found.values()) == {value}, f"{cited} is {value} on the page and {found} in the code"


@pytest.mark.parametrize("module", LIMITS_OF)
def test_no_limit_of_the_wire_is_left_out(module: str) -> None:
    cited = {name.rpartition(".")[2] for name, _ in _limits("In `swarm`", "In `peer`")}
    owned = {name for name in _constants_of_swarm()[module] if name.startswith("MAX_")}
    assert owned <= cited
