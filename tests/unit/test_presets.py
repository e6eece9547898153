"""Presets hold together, and their models have the published numbers of parameters."""

from __future__ import annotations

import pytest

from peer.model import count_parameters
from swarm.config_check import problems_of
from swarm.errors import ConfigError
from swarm.presets import PRESETS, preset_config

PUBLISHED = {  # of the checkpoints on their makers' pages; GPT-J's includes the bias of its head
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "gpt-neox-20b": 20_554_567_680,
    "gpt-j-6b": 6_050_882_784,
    # 1,235,814,400 is published for Llama 3.2 1B, whose head is its embedding; here the head is a tensor of its own.
    "llama-1b": 1_235_814_400 + 128_256 * 2048,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    assert count_parameters(PRESETS[name].model) == PUBLISHED[name]


def test_the_two_small_ones_are_small() -> None:
    assert 0.5e6 < count_parameters(PRESETS["tiny"].model) < 1.5e6
    assert 8e6 < count_parameters(PRESETS["small"].model) < 12e6


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_holds_together(name: str) -> None:
    assert problems_of(PRESETS[name]) == []
    assert PRESETS[name].name == name


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean `pythia-70m`"):
        preset_config("pythia-70")
    with pytest.raises(ConfigError, match="unknown preset"):
        preset_config(("tiny",))
