"""What is installed from a wheel: it holds all that runs, and the commands that it prints are there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the wheel in it; what the wheel needs lies in this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building writes beside what it builds
    source.mkdir()
    for name in ("swarm", "peer", "coordinator"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", folder, source], check=True, timeout=300)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (wheel,) = folder.glob("barnraise-*.whl")
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", *offline, wheel], check=True, timeout=300)
    (packages,) = (folder / "env" / "lib").glob("python3*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin"


def run(scripts: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs what was typed or printed, in a folder that holds nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"BARNRAISE_DATA": str(folder / "data"), "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*words], capture_output=True, text=True, timeout=300, cwd=folder, env=environment)


def test_what_it_prints_can_be_typed(scripts: Path, tmp_path: Path) -> None:
    own = str(scripts / "barnraise")
    config = tmp_path / "run.toml"
    config.write_text('preset = "tiny"\n')
    made = run(scripts, tmp_path, own, "new", "run.toml", "--local", "--home", str(tmp_path / "home"))
    assert (made.returncode, made.stderr) == (0, "")
    (printed,) = re.findall(r"start the first peer: +(.*)", made.stdout)
    words = shlex.split(printed)
    assert words[1:] == ["peer", "--home", str(tmp_path / "home"), "--local"]
    begun = run(scripts, tmp_path, *words, "--rounds", "1", "--listen", "nowhere")
    assert begun.returncode == 2 and "'nowhere'" in begun.stderr  # it got as far as its own options
    manifest = run(scripts, tmp_path, own, "new", "run.manifest")
    (other,) = re.findall(r"start it with: (.*)", manifest.stderr)
    assert shlex.split(other)[1:] == ["peer", "--config", "run.manifest"]
    shown = run(scripts, tmp_path, *shlex.split(other)[:2], "--help")
    assert shown.returncode == 0 and "barnraise peer --join" in shown.stdout
    assert "run_peer.py" not in made.stdout + manifest.stderr + shown.stdout


@pytest.mark.parametrize("command", ["peer", "new", "invite", "demo", "relay", "monitor", "status", "pull"])
def test_every_command_is_there(scripts: Path, tmp_path: Path, command: str) -> None:
    shown = run(scripts, tmp_path, str(scripts / "barnraise"), command, "--help")
    assert (shown.returncode, shown.stderr) == (0, "") and "Usage: " in shown.stdout
    assert "run_peer.py" not in shown.stdout


def test_the_page_that_says_how_to_install_it_names_what_the_lock_replaces() -> None:
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    readme = (ROOT / "README.md").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert lock["fastecdsa"] != "2.3.2" and f"the lock names {lock['fastecdsa']}" in readme
    first = readme.index("pip install --no-deps -r requirements.lock")
    assert readme.index(f"pip install --no-deps barnraise-{version}-py3-none-any.whl") > first
