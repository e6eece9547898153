"""What a run's config must fulfil beyond each field's own limits: fields that have to fit each other, and sizes that exist.

A manifest arrives from strangers, so every number that later becomes an allocation has a ceiling here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

from swarm.chain import MAX_ENTRIES
from swarm.config import ModelConfig, RoundConfig, RunConfig, Section
from swarm.errors import MalformedBytes
from swarm.identity import PeerId

# Each is several times the largest model that volunteers could train; beyond it stands a typing error or an attack.
_MODEL_LIMITS: Final = {
    "vocab_size": 2**20,
    "hidden_size": 2**15,
    "num_layers": 2**9,
    "num_heads": 2**10,
    "intermediate_size": 2**17,
    "max_positions": 2**18,
}
_MAX_LIST: Final = 64  # maintainers, sources
_MAX_NAME: Final = 64
_MAX_TOKEN_LETTERS: Final = 256
_MAX_INT: Final = 2**63 - 1  # what the wire and every language's signed integer hold
_MAX_DEADLINE_S: Final = 7 * 86_400.0
_HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def problems_of(config: RunConfig) -> list[str]:
    """One line for each thing that is wrong with a config whose fields are valid one by one; empty when it is fine."""
    numbers = list(_number_problems("", config))
    if numbers:
        return numbers  # the others would stumble over the same values
    return [
        *_model_problems(config.model),
        *_data_problems(config),
        *_optimizer_problems(config),
        *_round_problems(config.round),
        *_signer_problems(config),
    ]


def _number_problems(where: str, value: Any) -> Iterator[str]:
    if isinstance(value, Section):
        for name in type(value).model_fields:
            yield from _number_problems(f"{where}.{name}".lstrip("."), getattr(value, name))
    elif isinstance(value, tuple):
        for index, one in enumerate(value):
            yield from _number_problems(f"{where}[{index}]", one)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where} = {value}: a finite number is due"
    elif isinstance(value, int) and abs(value) > _MAX_INT:
        yield f"{where} = {value}: at most {_MAX_INT} is allowed"


def _model_problems(model: ModelConfig) -> Iterator[str]:
    for name, limit in _MODEL_LIMITS.items():
        if getattr(model, name) > limit:
            yield f"model.{name} = {getattr(model, name)}: at most {limit} is allowed"
    if model.hidden_size % model.num_heads:
        yield (
            f"model.hidden_size = {model.hidden_size}: must be divisible by model.num_heads = {model.num_heads}; "
            "every head gets an equal share"
        )
        return
    head_size = model.hidden_size // model.num_heads
    if model.rope_theta <= 0:
        yield f"model.rope_theta = {model.rope_theta}: must be greater than 0"
    if not 0 < model.norm_epsilon < 1:
        yield f"model.norm_epsilon = {model.norm_epsilon}: must lie between 0 and 1"
    if model.family == "llama":
        if head_size % 2:
            yield f"model.hidden_size / model.num_heads = {head_size}: llama rotates pairs, so it must be even"
        if model.num_kv_heads is not None and model.num_heads % model.num_kv_heads:
            yield f"model.num_kv_heads = {model.num_kv_heads}: must divide model.num_heads = {model.num_heads}"
        return
    if model.num_kv_heads is not None:
        yield f"model.num_kv_heads = {model.num_kv_heads}: only family llama has it; leave it out for {model.family}"
    rotating = int(head_size * model.rotary_fraction)
    if rotating < 2 or rotating % 2:
        yield (
            f"model.rotary_fraction = {model.rotary_fraction}: rotates {rotating} of a head's {head_size} dimensions; "
            "an even number of at least 2 is due"
        )
    if model.family == "gptj" and model.rope_theta != 10_000.0:
        yield f"model.rope_theta = {model.rope_theta}: family gptj knows only 10000"


def _data_problems(config: RunConfig) -> Iterator[str]:
    data, model = config.data, config.model
    if data.sequence_length > model.max_positions:
        yield f"data.sequence_length = {data.sequence_length}: at most model.max_positions = {model.max_positions}"
    if data.tokenizer == "bytes":
        if model.vocab_size < 256:
            yield f"model.vocab_size = {model.vocab_size}: the tokenizer `bytes` needs at least 256"
    elif not _HEX_DIGEST.fullmatch(data.tokenizer):
        yield f"data.tokenizer = {data.tokenizer[:70]!r}: must be `bytes` or the 64 hex digits of a tokenizer's digest"
    if len(data.separator) > _MAX_TOKEN_LETTERS:
        yield f"data.separator: {len(data.separator)} letters; the name of a token has at most {_MAX_TOKEN_LETTERS}"
    if 0 < data.num_heldout_windows < data.eval_windows:
        yield (
            f"data.eval_windows = {data.eval_windows}: at most data.num_heldout_windows = {data.num_heldout_windows}"
        )
    if len(data.sources) > _MAX_LIST:
        yield f"data.sources: {len(data.sources)} of them where at most {_MAX_LIST} are allowed"
    names = [source.name for source in data.sources]
    if len(set(names)) != len(names):
        yield "data.sources: two have the same name"
    for source in data.sources:
        yield from _name_problems("data.sources.name", source.name)
        if source.digest and not _HEX_DIGEST.fullmatch(source.digest):
            yield f"data.sources.digest = {source.digest[:70]!r}: 64 hex digits are due, or nothing"


def _optimizer_problems(config: RunConfig) -> Iterator[str]:
    inner = config.inner
    if inner.final_learning_rate > inner.learning_rate:
        yield (
            f"inner.final_learning_rate = {inner.final_learning_rate}: "
            f"at most inner.learning_rate = {inner.learning_rate}"
        )
    if inner.warmup_tokens > inner.decay_tokens:
        yield f"inner.warmup_tokens = {inner.warmup_tokens}: at most inner.decay_tokens = {inner.decay_tokens}"
    for name, betas in (("inner", inner.betas), ("outer", config.outer.betas)):
        if max(betas) >= 1:
            yield f"{name}.betas = {list(betas)}: each must be less than 1"
    if config.outer.momentum >= 1:
        yield f"outer.momentum = {config.outer.momentum}: must be less than 1, or it never forgets"


def _round_problems(config: RoundConfig) -> Iterator[str]:
    for name in ("train_deadline_s", "exchange_deadline_s", "heartbeat_s", "leader_timeout_s"):
        if getattr(config, name) > _MAX_DEADLINE_S:
            yield f"round.{name} = {getattr(config, name)}: at most {_MAX_DEADLINE_S:.0f} seconds, a week"
    if config.leader_timeout_s < 2 * config.heartbeat_s:
        yield (
            f"round.leader_timeout_s = {config.leader_timeout_s}: at least twice round.heartbeat_s = "
            f"{config.heartbeat_s}, or one lost heartbeat unseats a leader"
        )
    if 0 < config.lease_steps < config.local_steps:
        yield (
            f"round.lease_steps = {config.lease_steps}: at least round.local_steps = {config.local_steps}, "
            "or no lease is enough for a round"
        )
    if config.max_listed > MAX_ENTRIES:
        yield f"round.max_listed = {config.max_listed}: at most {MAX_ENTRIES}, which is what one commit carries"
    if config.exchange_deadline_s < config.heartbeat_s:
        yield (
            f"round.exchange_deadline_s = {config.exchange_deadline_s}: at least round.heartbeat_s = "
            f"{config.heartbeat_s}, or nobody hears of a blob in time"
        )


def _signer_problems(config: RunConfig) -> Iterator[str]:
    yield from _name_problems("name", config.name)
    if config.genesis_digest and not _HEX_DIGEST.fullmatch(config.genesis_digest):
        yield f"genesis_digest = {config.genesis_digest[:70]!r}: 64 hex digits are due, or nothing"
    if len(config.maintainers) > _MAX_LIST:
        yield f"maintainers: {len(config.maintainers)} of them where at most {_MAX_LIST} are allowed"
        return
    if len(set(config.maintainers)) != len(config.maintainers):
        yield "maintainers: one is named twice"
    for text in config.maintainers:
        try:
            PeerId.from_base58(text)
        except MalformedBytes as error:
            yield f"maintainers: {error}"
    if config.threshold > len(config.maintainers):
        yield f"threshold = {config.threshold}: there are only {len(config.maintainers)} maintainers"
    if config.maintainers and config.threshold == 0:
        yield "threshold = 0: with maintainers at least 1 of them must sign"


def _name_problems(where: str, name: str) -> Iterator[str]:
    if not 1 <= len(name) <= _MAX_NAME or not name.isprintable():
        yield f"{where} = {name[: _MAX_NAME + 1]!r}: 1 to {_MAX_NAME} printable letters are due"
