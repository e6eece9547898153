"""The example configs load, and are what their comments say."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from swarm.config_file import load_config
from swarm.presets import PRESETS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_it_loads_and_builds_on_the_preset_that_it_names(path: Path) -> None:
    config = load_config(path)
    preset = tomllib.loads(path.read_text())["preset"]
    assert config.model == PRESETS[preset].model
    assert not config.genesis_digest, "`barnraise new` fills that in"


def test_tiny_needs_nothing_but_python() -> None:
    config = load_config(EXAMPLES / "tiny.toml")
    assert (config.data.kind, config.data.tokenizer, config.round.min_peers) == ("embedded", "bytes", 1)


def test_the_larger_one_is_for_files_with_a_tokenizer() -> None:
    config = load_config(EXAMPLES / "pile-pythia-160m.toml")
    assert config.data.kind == "files"
    assert [source.name for source in config.data.sources] == ["pile"]
    assert config.model.vocab_size > 256
    assert config.inner.batch_windows * config.data.sequence_length == 65_536
