"""The walls of the house, read off the source: who imports whom, where time and chance may enter, and how big things are.

An exception needs a line below with its reason; the lists should be empty.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

MAX_FILE_LINES: Final = 450
MAX_FUNCTION_LINES: Final = 80
MAX_PARAMETERS: Final = 7  # and self or cls

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("swarm", "peer", "coordinator")
HEAVY: Final = ("torch", "hivemind", "transformers", "bitsandbytes")


@dataclass(frozen=True)
class Source:
    """One file of ours."""

    path: str
    tree: ast.Module
    num_lines: int


@cache
def sources() -> tuple[Source, ...]:
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            text = file.read_text()
            found.append(Source(file.relative_to(ROOT).as_posix(), ast.parse(text), text.count("\n")))
    assert len(found) > 30, "the tree was found"
    return tuple(found)


def under(*places: str) -> list[Source]:
    return [one for one in sources() if one.path.startswith(places)]


def imports(source: Source) -> Iterator[str]:
    """Every module named in an import, wherever it stands, with the names taken from it: `a.b`, `a.b.c`."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reaches(module: str, *names: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def calls(source: Source) -> Iterator[tuple[str, ast.Call]]:
    """Every call by its written name: `time.time`, `torch.load`."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN: Final = [
    ("swarm/", ("peer", "coordinator")),
    ("peer/", ("coordinator",)),
    ("coordinator/", ("peer", *HEAVY, "swarm.allreduce")),
    ("swarm/net/", ("hivemind", "libp2p")),
    ("swarm/round/", ("random", "time", "datetime", "asyncio", "trio", "torch", "secrets", "logging")),
    ("swarm/chain.py", ("random", "time", "datetime")),
    ("swarm/allreduce/", ("random", "time", "datetime", "hivemind", "peer")),
    ("", ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")),
]


@pytest.mark.parametrize(
    ("place", "names"), FORBIDDEN, ids=lambda one: one or "everywhere" if isinstance(one, str) else ""
)
def test_imports_keep_their_direction(place: str, names: tuple[str, ...]) -> None:
    wrong = [f"{one.path}: {module}" for one in under(place) for module in imports(one) if reaches(module, *names)]
    assert not wrong


def test_torch_stays_in_the_numeric_files() -> None:
    light = [one for one in under("swarm/") if not one.path.startswith("swarm/allreduce/")]
    wrong = [
        f"{one.path}: {name}" for one in light for name in imports(one) if reaches(name, *HEAVY, "swarm.allreduce")
    ]
    assert not wrong, "the protocol runs without torch: a monitor has none"


def test_the_two_engines_stay_in_their_shells() -> None:
    wrong = [one.path for one in under("swarm/", "peer/") for name in imports(one) if reaches(name, "libp2p")]
    wrong += [one.path for one in under("swarm/", "coordinator/") for name in imports(one) if reaches(name, "hivemind")]
    assert not wrong


def test_importing_the_coordinator_and_the_protocol_imports_nothing_heavy() -> None:
    """What `ast` cannot see: imports of imports."""
    files = [one.path for one in under("coordinator/", "swarm/") if not one.path.startswith("swarm/allreduce/")]
    modules = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files]
    modules = [name for name in modules if not name.endswith("__main__")]
    snippet = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
    snippet += f"print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", snippet], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "[]\n"


def test_time_and_chance_are_arguments() -> None:
    banned = ("time.time", "time.monotonic", "datetime.now", "datetime.datetime.now", "os.urandom", "uuid.uuid4")
    pure = under("swarm/round/", "swarm/chain.py", "swarm/allreduce/")
    assert not [f"{one.path}: {name}" for one in pure for name, _ in calls(one) if name in banned]
    # Elsewhere in the protocol chance has a seed: the generators that a whole process shares have none.
    shared = [(one.path, name) for one in under("swarm/") for name, _ in calls(one) if reaches(name, "random")]
    assert {name for _, name in shared} <= {"random.Random"}, shared


def test_nothing_executable_is_loaded() -> None:
    for one in sources():
        for name, call in calls(one):
            if name in ("torch.load", "load") and "torch" in name:
                safe = [key.value for key in call.keywords if key.arg == "weights_only"]
                assert safe and isinstance(safe[0], ast.Constant) and safe[0].value is True, f"{one.path}: torch.load"
            assert name not in ("eval", "exec", "__import__", "torch.jit.load"), f"{one.path}: {name}"
        assert not [name for name in imports(one) if name == "torch.load"], f"{one.path}: write torch.load in full"


BANNED_KERNELS: Final = (
    "addcmul",
    "addcdiv",
    "lerp",
    "compile",
    "pow",
    "exp",
    "log",
    "norm",
    "std",
    "matmul",
    "randn",
    "rand",
    "topk",
)


def test_shared_arithmetic_uses_only_what_rounds_alike_everywhere() -> None:
    """Decode, mean and outer step: no fused or reassociated operation, and no scaled addition."""
    for one in under("swarm/allreduce/codec.py", "swarm/allreduce/mean.py", "swarm/allreduce/outer.py"):
        for name, call in calls(one):
            last = name.rsplit(".", 1)[-1].rstrip("_")
            assert last not in BANNED_KERNELS and "foreach" not in last, f"{one.path}:{call.lineno}: {name}"
            scaled = [key.arg for key in call.keywords if key.arg in ("alpha", "value")]
            assert not scaled, f"{one.path}:{call.lineno}: {name}({scaled[0]}=...) is a fused multiply-add"


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def commands(source: Source) -> set[str]:
    """Functions that are commands of a command line, whose parameters are its options: `@app.command()` or as a call."""
    found = set()
    for node in functions(source):
        makers = [one.func if isinstance(one, ast.Call) else one for one in node.decorator_list]
        if any(isinstance(one, ast.Attribute) and one.attr == "command" for one in makers):
            found.add(node.name)
    for _, call in calls(source):  # app.command("peer")(peer)
        made_by = call.func.func if isinstance(call.func, ast.Call) else None
        if isinstance(made_by, ast.Attribute) and made_by.attr == "command":
            found |= {one.id for one in call.args if isinstance(one, ast.Name)}
    return found


def test_files_are_short() -> None:
    assert not {one.path: one.num_lines for one in sources() if one.num_lines > MAX_FILE_LINES}


def test_functions_are_short() -> None:
    long = {}
    for one in sources():
        for node in functions(one):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                long[f"{one.path}:{node.name}"] = lines
    assert not long


def test_functions_take_few_parameters() -> None:
    many = {}
    for one in sources():
        for node in functions(one):
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if count > MAX_PARAMETERS and node.name not in commands(one):
                many[f"{one.path}:{node.name}"] = count
    assert not many


def test_every_file_says_what_is_here() -> None:
    empty = [one.path for one in sources() if one.tree.body and not ast.get_docstring(one.tree)]
    assert not empty
