"""The demo empties its own folder and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.demo import make_empty
from swarm.errors import ConfigError


def test_only_what_a_demo_made_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "a" / "demo-out"
    make_empty(out)
    (out / "peer-1").mkdir()
    (out / "peer-1" / "blob").write_text("x")
    make_empty(out)
    assert [path.name for path in out.iterdir()] == [".barnraise-demo"]


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    make_empty(tmp_path)
    assert (tmp_path / ".barnraise-demo").exists()


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name in ("thesis.tex", "b", "c", "d"):
        (tmp_path / name).write_text("years of work")
    with pytest.raises(ConfigError, match=r"b, c, d \.\.\."):
        make_empty(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(ConfigError, match="name a folder"):
        make_empty(tmp_path / "thesis.tex")
