"""The model of a run: transformers classes built from the manifest, cut into units, and version 0 of their parameters.

    N = elements of the flat vector of all parameters

Three families, one table. A parameter has two names: the one in this process (`lm_head.weight`) and the published one in
checkpoint files (`embed_out.weight`), which other releases of transformers share. Whatever peers must agree on, the order
inside a unit and the random stream of version 0, goes by the published name. transformers takes seconds to import, so it is
imported where a model is first built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from swarm.allreduce.layout import ModelLayout, build_layout
from swarm.config import ModelConfig
from swarm.digest import Digest, blob_digest, digest_of
from swarm.errors import LocalError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INITIAL_STD: Final = 0.02
_STREAM_CHUNK: Final = 1 << 20  # elements drawn at a time: 16 MiB of random words


@dataclass(frozen=True, slots=True)
class _Family:
    """How one transformers family is taken apart. Names are those of this process."""

    class_name: str
    attention: str  # transformers has no `sdpa` for GPT-J
    blocks: str  # parameters `<blocks>.<index>.` belong to unit `index`
    first: tuple[str, ...]  # prefixes of what belongs to the first unit
    last: tuple[str, ...]  # and to the last
    residual_outputs: tuple[str, ...]  # endings of the projections that write into the residual stream
    published: tuple[tuple[str, str], ...] = ()  # prefix here -> prefix in files, where they differ


_FAMILIES: Final = {
    "gpt_neox": _Family(
        class_name="GPTNeoXForCausalLM",
        attention="sdpa",
        blocks="gpt_neox.layers",
        first=("gpt_neox.embed_in.",),
        last=("gpt_neox.final_layer_norm.", "lm_head.", "embed_out."),
        residual_outputs=("attention.dense.weight", "mlp.dense_4h_to_h.weight"),
        published=(("lm_head.", "embed_out."),),
    ),
    "gptj": _Family(
        class_name="GPTJForCausalLM",
        attention="eager",
        blocks="transformer.h",
        first=("transformer.wte.",),
        last=("transformer.ln_f.", "lm_head."),
        residual_outputs=("attn.out_proj.weight", "mlp.fc_out.weight"),
    ),
    "llama": _Family(
        class_name="LlamaForCausalLM",
        attention="sdpa",
        blocks="model.layers",
        first=("model.embed_tokens.",),
        last=("model.norm.", "lm_head."),
        residual_outputs=("self_attn.o_proj.weight", "mlp.down_proj.weight"),
    ),
}


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The model's `config.json` without anything that depends on the release of transformers that reads or writes it.

    Rotary settings are given in the form of release 5 and in that of release 4. No token begins or ends a text:
    which one does is the tokenizer's affair, and a checkpoint names it.
    """
    head_size = config.hidden_size // config.num_heads
    common: dict[str, Any] = {
        "architectures": [_FAMILIES[config.family].class_name],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "initializer_range": _INITIAL_STD,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    if config.family == "gptj":
        return common | {
            "n_positions": config.max_positions,
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.intermediate_size,
            "rotary_dim": int(head_size * config.rotary_fraction),
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_epsilon,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    common |= {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "attention_dropout": 0.0,
    }
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.family == "llama":
        return common | {
            "num_key_value_heads": config.num_kv_heads or config.num_heads,
            "head_dim": head_size,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_epsilon,
            "attention_bias": False,
            "mlp_bias": False,
            "rope_parameters": rope,
            "rope_theta": config.rope_theta,
        }
    return common | {
        "hidden_act": "gelu",
        "hidden_dropout": 0.0,
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": True,
        "rope_parameters": rope | {"partial_rotary_factor": config.rotary_fraction},
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rope_theta,
    }


def build_model(
    config: ModelConfig, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The model with all parameters zero, in training mode, without a key-value cache; load an anchor into it.

    Draws no random numbers. Buffers are computed on the CPU whatever the device, and rotary ones stay fp32, so that every
    peer has the same. Not for use in two threads at once: transformers' switch for initialization is global.
    """
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = _construct(config, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    nn.Module.to(model, device)
    model.train()
    return model


def meta_model(config: ModelConfig) -> PreTrainedModel:
    """The model without memory, on the meta device: for its names, shapes and layout. 20 billion parameters take seconds."""
    with torch.device("meta"):
        return _construct(config, torch.float32)


def count_parameters(config: ModelConfig) -> int:
    """How many parameters the model has; embedding and head count as two tensors, as they are here."""
    return sum(parameter.numel() for parameter in meta_model(config).parameters())


def _construct(config: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    import transformers

    # Its advice is for people who call it; ours read the peer's own log.
    chatter: Any = transformers.utils.logging
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    family = _FAMILIES[config.family]
    model_class = getattr(transformers, family.class_name)
    settings = model_class.config_class(**hf_config(config))
    settings.use_cache = False
    model: PreTrainedModel = model_class._from_config(settings, dtype=dtype, attn_implementation=family.attention)
    return model


def published_name(family: str, name: str) -> str:
    """A parameter's name in checkpoint files, from its name in this process."""
    for here, there in _FAMILIES[family].published:
        if name.startswith(here):
            return there + name.removeprefix(here)
    return name


def layout_of(model: nn.Module) -> ModelLayout:
    """The layout of a model of one of the three families: a unit per block, tensors sorted by published name.

    The order does not depend on that of a class's constructor, and is the one in which safetensors files store equal
    dtypes: a unit's file is a header and the unit's flat vector. Raises LocalError for a parameter that fits nowhere.
    """
    family_name = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if family_name not in _FAMILIES:
        raise LocalError(f"no units are known for model type {family_name!r}; known are {', '.join(_FAMILIES)}")
    family = _FAMILIES[family_name]
    num_units = len(model.get_submodule(family.blocks))  # type: ignore[arg-type]  # a ModuleList
    units: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(num_units)]
    for name, parameter in model.named_parameters():
        units[_unit_of(family, name, num_units)].append((name, tuple(parameter.shape)))
    return build_layout([sorted(unit, key=lambda one: published_name(family_name, one[0])) for unit in units])


def _unit_of(family: _Family, name: str, num_units: int) -> int:
    if name.startswith(family.blocks + "."):
        return int(name.removeprefix(family.blocks + ".").partition(".")[0])
    if name.startswith(family.first):
        return 0
    if name.startswith(family.last):
        return num_units - 1
    raise LocalError(f"parameter {name} belongs to no unit")


def initial_parameters(config: ModelConfig, seed: int, layout: ModelLayout) -> Tensor:
    """Version 0: (N,) fp32, the same bits on every machine, from the manifest's seed.

    Matrices are normal(0, 0.02), those that write into the residual stream narrower by sqrt(2 * layers) (GPT-2); norms are 1
    and biases 0. Each parameter has a stream of its own, keyed by its published name. A draw is the sum of eight 16-bit
    uniforms, shifted and scaled: normal but for lighter tails (excess kurtosis -0.15, nothing beyond 4.9 deviations), and
    made of integer operations and one fp32 product, where an exact normal needs logarithms, which round differently
    between machines, and an algorithm that numpy does not promise to keep.
    """
    family = _FAMILIES[config.family]
    flat_N = np.empty(layout.numel, dtype=np.float32)
    for slot, place in layout.placed():
        if slot.name.endswith(".bias"):
            flat_N[place] = 0.0
        elif len(slot.shape) == 1:
            flat_N[place] = 1.0
        else:
            narrower = math.sqrt(2 * config.num_layers) if slot.name.endswith(family.residual_outputs) else 1.0
            _draw(flat_N[place], seed, published_name(config.family, slot.name), _INITIAL_STD / narrower)
    return torch.from_numpy(flat_N)


def _draw(out: NDArray[np.float32], seed: int, name: str, std: float) -> None:
    key = digest_of("initial", seed.to_bytes(8, "little"), name.encode()).raw[:16]
    philox = np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64))
    scale = np.float32(std / math.sqrt(8 * (2**32 - 1) / 12))  # a 16-bit uniform has variance (2**32 - 1) / 12
    for start in range(0, len(out), _STREAM_CHUNK):
        chunk = out[start : start + _STREAM_CHUNK]
        words = philox.random_raw(2 * len(chunk))
        centred = _sums_of_eight(words) - np.int64(4 * 65_535)
        np.multiply(centred.astype(np.float32), scale, out=chunk)  # below 2**19: exact in fp32


def _sums_of_eight(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each pair of 64-bit words the sum of its eight 16-bit parts."""
    low = np.uint64(0x0000_FFFF_0000_FFFF)
    quarters = (words & low) + ((words >> np.uint64(16)) & low)  # two lanes of 32 bits
    pairs = quarters[0::2] + quarters[1::2]
    return ((pairs >> np.uint64(32)) + (pairs & np.uint64(0xFFFF_FFFF))).astype(np.int64)


def genesis_digest(flat_N: Tensor) -> Digest:
    """The digest of version 0: of the little-endian fp32 bytes of an (N,) CPU vector."""
    if flat_N.dtype != torch.float32 or not flat_N.is_contiguous():
        raise LocalError(f"version 0 is contiguous fp32, not {flat_N.dtype}")
    return blob_digest(flat_N.numpy().astype("<f4", copy=False).data)
