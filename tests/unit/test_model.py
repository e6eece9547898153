"""Models are built as the manifest says, cut into units, and version 0 has the same bits everywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from peer.model import build_model, count_parameters, genesis_digest, initial_parameters, layout_of, published_name
from swarm.allreduce.layout import flatten, unflatten_into
from swarm.config import ModelConfig
from swarm.digest import digest_of
from swarm.errors import LocalError

CONFIGS = {
    "gpt_neox": ModelConfig(hidden_size=32, num_layers=3, num_heads=4, intermediate_size=64, max_positions=64),
    "gptj": ModelConfig(
        family="gptj",
        hidden_size=32,
        num_layers=3,
        num_heads=2,
        intermediate_size=64,
        max_positions=64,
    ),
    "llama": ModelConfig(
        family="llama",
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=64,
        max_positions=64,
    ),
}
families = pytest.mark.parametrize("family", CONFIGS)


@families
def test_units_are_blocks_with_embedding_first_and_head_last(family: str) -> None:
    layout = layout_of(build_model(CONFIGS[family]))
    names = [{published_name(family, slot.name) for slot in unit.tensors} for unit in layout.units]
    embedding, norm, head = {
        "gpt_neox": ("gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.bias", "embed_out.weight"),
        "gptj": ("transformer.wte.weight", "transformer.ln_f.bias", "lm_head.bias"),
        "llama": ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
    }[family]
    assert len(layout.units) == 3
    assert embedding in names[0] and {norm, head} <= names[2]
    middle = names[1]
    for unit, found in enumerate(names):
        assert {name.replace(".1.", f".{unit}.") for name in middle} <= found
    assert len(names[0]) == len(middle) + 1
    assert layout.numel == count_parameters(CONFIGS[family])


@families
def test_tensors_lie_in_the_order_of_their_published_names(family: str) -> None:
    for unit in layout_of(build_model(CONFIGS[family])).units:
        names = [published_name(family, slot.name) for slot in unit.tensors]
        assert names == sorted(names)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_vector_goes_in_and_comes_out(family: str, dtype: torch.dtype) -> None:
    model = build_model(CONFIGS[family], dtype=dtype)
    layout, parameters = layout_of(model), dict(model.named_parameters())
    flat_N = initial_parameters(CONFIGS[family], 0, layout).to(dtype)
    unflatten_into(layout, flat_N, parameters)
    assert torch.equal(flatten(layout, parameters, dtype), flat_N)


@families
def test_a_fresh_model_has_the_loss_of_a_guess_and_gradients_everywhere(family: str) -> None:
    model = build_model(CONFIGS[family])
    layout = layout_of(model)
    unflatten_into(layout, initial_parameters(CONFIGS[family], 0, layout), dict(model.named_parameters()))
    tokens = torch.arange(64).view(1, 64) * 37 % 256
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    # log(256) = 5.545; logits of a fresh model have a standard deviation of about 0.02 * sqrt(32) = 0.11
    assert abs(loss.item() - np.log(256)) < 0.1
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@families
def test_causal_and_without_dropout(family: str) -> None:
    model = build_model(CONFIGS[family])
    layout = layout_of(model)
    unflatten_into(layout, initial_parameters(CONFIGS[family], 0, layout), dict(model.named_parameters()))
    assert model.training
    tokens = torch.arange(16).view(1, 16)
    other = tokens.clone()
    other[0, 8:] = 200
    with torch.no_grad():
        first, second, third = model(tokens).logits, model(tokens).logits, model(other).logits
    assert torch.equal(first, second)
    assert torch.allclose(first[:, :8], third[:, :8], atol=1e-6) and not torch.allclose(first[:, 8:], third[:, 8:])


def test_building_draws_no_random_numbers_and_starts_at_zero() -> None:
    before = torch.random.get_rng_state()
    model = build_model(CONFIGS["gpt_neox"])
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(not parameter.any() for parameter in model.parameters())


def test_rotary_frequencies_stay_fp32() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model = build_model(CONFIGS["gpt_neox"], dtype=dtype)
        assert model.gpt_neox.rotary_emb.inv_freq.dtype == torch.float32
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_version_0_has_the_distribution_that_it_says() -> None:
    config = ModelConfig(hidden_size=256, num_layers=2, num_heads=4, intermediate_size=1024)
    layout = layout_of(build_model(config))
    flat_N = initial_parameters(config, 5, layout)
    tensors = {slot.name: flat_N[place].view(slot.shape) for slot, place in layout.placed()}
    assert (tensors["gpt_neox.layers.0.input_layernorm.weight"] == 1).all()
    assert (tensors["gpt_neox.layers.0.attention.dense.bias"] == 0).all()
    for name, std in (("mlp.dense_h_to_4h.weight", 0.02), ("mlp.dense_4h_to_h.weight", 0.01)):
        values = tensors[f"gpt_neox.layers.1.{name}"].double().flatten() / std
        n = len(values)
        # Five standard errors of each estimate; for a normal x they are sqrt(1/n), sqrt(2/n) and sqrt(96/n) for the mean of
        # x, x^2 and x^4, and a little less here.
        assert abs(values.mean()) < 5 / n**0.5
        assert abs(values.var() - 1) < 5 * (2 / n) ** 0.5
        # A uniform has an excess kurtosis of -1.2, the sum of eight an eighth of that, and no value beyond 8 half-widths.
        assert abs((values**4).mean() - (3 - 1.2 / 8)) < 5 * (96 / n) ** 0.5
        assert 3.5 < values.abs().max() < 8 * 0.5 / (8 / 12) ** 0.5
        lag = (values[1:] * values[:-1]).mean()
        assert abs(lag) < 5 / n**0.5


def test_version_0_is_a_plain_sum_of_eight_words_of_philox() -> None:
    """Against Python integers, element by element."""
    config = CONFIGS["llama"]
    layout = layout_of(build_model(config))
    slot, place = next((slot, place) for slot, place in layout.placed() if slot.name == "model.embed_tokens.weight")
    key = digest_of("initial", (9).to_bytes(8, "little"), slot.name.encode()).raw[:16]
    philox = np.random.Philox(key=int.from_bytes(key, "little"))
    scale = np.float32(0.02 / (8 * (2**32 - 1) / 12) ** 0.5)
    drawn = initial_parameters(config, 9, layout)[place]
    for element in range(100):
        words = [int(word) for word in philox.random_raw(2)]
        total = sum(word >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48))
        assert drawn[element].item() == np.float32(total - 4 * 65_535) * scale


def test_version_0_depends_on_the_seed_and_nothing_else() -> None:
    config = CONFIGS["gpt_neox"]
    layout = layout_of(build_model(config))
    first = genesis_digest(initial_parameters(config, 1, layout))
    torch.manual_seed(123)
    assert genesis_digest(initial_parameters(config, 1, layout)) == first
    assert genesis_digest(initial_parameters(config, 2, layout)) != first


_PRINT_DIGEST = """
import torch
from peer.model import build_model, genesis_digest, initial_parameters, layout_of
from swarm.config import ModelConfig
torch.set_num_threads({threads})
config = ModelConfig(hidden_size=32, num_layers=3, num_heads=4, intermediate_size=64, max_positions=64)
print(genesis_digest(initial_parameters(config, 7, layout_of(build_model(config)))).hex())
"""
# Recorded: what a run's manifest promises must stay true in later releases.
GENESIS_7 = "877b22016fc82c61d104f299361760322cba5c351eabb5a349e30d8f1752b621"


@pytest.mark.parametrize(("threads", "capability"), [(1, "default"), (2, "avx2")])
def test_version_0_is_the_same_whatever_the_threads_and_the_processor(threads: int, capability: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PRINT_DIGEST.format(threads=threads)],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == GENESIS_7


def test_importing_does_not_import_transformers() -> None:
    code = "import sys, peer.model, peer.checkpoint; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_unknown_model_is_a_bug() -> None:
    with pytest.raises(LocalError):
        layout_of(torch.nn.Linear(2, 2))
