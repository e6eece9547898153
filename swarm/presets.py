"""Run configs to start from: two small ones to try things out, and the published sizes of three model families.

Model sizes and vocabularies (padded as published) are those of the models' own config files; learning rates are the
published ones of pre-training (Pythia: arXiv 2304.01373; GPT-NeoX-20B: arXiv 2204.06745; GPT-J: its training config;
llama-1b, for which none is published, has that of pythia-1b). Text for the large ones is the maintainer's to name: their
tokenizer and sources are filled in when the run is made.
"""

from __future__ import annotations

import difflib
from types import MappingProxyType
from typing import Final

from swarm.config import (
    CheckpointConfig,
    DataConfig,
    InnerConfig,
    ModelConfig,
    RoundConfig,
    RunConfig,
)
from swarm.errors import ConfigError

_VOLUNTEER_UPLOAD_BITS_PER_S: Final = 50e6  # of volunteers with 50 to 200 Mbit/s, the slowest whom a round waits for


def _neox(hidden_size: int, num_layers: int, num_heads: int, vocab_size: int = 50_304) -> ModelConfig:
    return ModelConfig(
        family="gpt_neox",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=4 * hidden_size,
        max_positions=2048,
        rotary_fraction=0.25,
    )


_GPT_J: Final = ModelConfig(
    family="gptj",
    vocab_size=50_400,
    hidden_size=4096,
    num_layers=28,
    num_heads=16,
    intermediate_size=16_384,
    max_positions=2048,
    rotary_fraction=0.25,  # 64 of 256 dimensions
)

# Llama 3.2 1B, with two differences: its embedding and head are one tensor there and two here, and its rotary frequencies are
# stretched there for texts beyond 8192 tokens, which is where positions end here.
_LLAMA_1B: Final = ModelConfig(
    family="llama",
    vocab_size=128_256,
    hidden_size=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    intermediate_size=8192,
    max_positions=8192,
    rope_theta=500_000.0,
)


def _volunteers(name: str, model: ModelConfig, billions: float, learning_rate: float) -> RunConfig:
    """A run of volunteers at home.

    An int8 pseudo-gradient has one byte a parameter: 8e9 bits for a billion, 160 s at 50 Mbit/s. The exchange may take four
    times one such upload (everyone's blob has to reach everyone, fast uplinks relay), and training lasts six times as
    long as that, so that cards stand idle for a seventh of the time at the very worst.
    """
    one_upload_s = billions * 8e9 / _VOLUNTEER_UPLOAD_BITS_PER_S
    exchange_s = max(60.0, round(4 * one_upload_s))
    return RunConfig(
        name=name,
        model=model,
        data=DataConfig(kind="files", sequence_length=2048, eval_windows=64),
        inner=InnerConfig(
            learning_rate=learning_rate,
            final_learning_rate=learning_rate / 10,
            warmup_tokens=3 * 10**9,  # 1 % of the tokens, as published
            decay_tokens=300 * 10**9,
            betas=(0.9, 0.95),
            weight_decay=0.1,
            batch_windows=32,  # 65,536 tokens in an inner step
        ),
        round=RoundConfig(
            train_deadline_s=max(600.0, 6 * exchange_s),
            exchange_deadline_s=exchange_s,
            heartbeat_s=5.0,
            leader_timeout_s=30.0,
        ),
    )


_TINY: Final = RunConfig(
    name="tiny",
    model=ModelConfig(hidden_size=128, num_layers=4, num_heads=4, intermediate_size=512, max_positions=512),
    data=DataConfig(sequence_length=128, eval_windows=8),
    inner=InnerConfig(learning_rate=2e-3, final_learning_rate=2e-4, decay_tokens=2**24, batch_windows=8),
    round=RoundConfig(train_deadline_s=20.0, exchange_deadline_s=15.0, heartbeat_s=0.5, leader_timeout_s=4.0),
    checkpoint=CheckpointConfig(every=100),
)

_SMALL: Final = RunConfig(
    name="small",
    model=ModelConfig(hidden_size=384, num_layers=6, num_heads=6, intermediate_size=1536, max_positions=1024),
    data=DataConfig(sequence_length=256, eval_windows=16),
    inner=InnerConfig(learning_rate=1e-3, final_learning_rate=1e-4, decay_tokens=2**28, batch_windows=16),
    round=RoundConfig(train_deadline_s=60.0, exchange_deadline_s=30.0, heartbeat_s=1.0, leader_timeout_s=6.0),
    checkpoint=CheckpointConfig(every=500),
)

PRESETS: Final = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            _TINY,
            _SMALL,
            _volunteers("pythia-70m", _neox(512, 6, 8), 0.070, 1.0e-3),
            _volunteers("pythia-160m", _neox(768, 12, 12), 0.162, 6.0e-4),
            _volunteers("pythia-410m", _neox(1024, 24, 16), 0.405, 3.0e-4),
            _volunteers("pythia-1b", _neox(2048, 16, 8), 1.012, 3.0e-4),
            _volunteers("pythia-1.4b", _neox(2048, 24, 16), 1.415, 2.0e-4),
            _volunteers("pythia-2.8b", _neox(2560, 32, 32), 2.775, 1.6e-4),
            _volunteers("gpt-neox-20b", _neox(6144, 44, 64, vocab_size=50_432), 20.555, 0.97e-4),
            _volunteers("gpt-j-6b", _GPT_J, 6.051, 1.2e-4),
            _volunteers("llama-1b", _LLAMA_1B, 1.498, 3.0e-4),
        )
    }
)


def preset_config(name: object) -> RunConfig:
    """The preset of that name; raises ConfigError that names the nearest one."""
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(PRESETS)}"
    raise ConfigError(f"unknown preset {str(name)[:60]!r}; {hint}")
