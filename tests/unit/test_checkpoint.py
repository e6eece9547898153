"""Checkpoints load with transformers bit for bit, are the same bytes from every writer, and appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from peer.checkpoint import read_parameters, write_checkpoint
from peer.model import build_model, initial_parameters, layout_of
from peer.tokenizer_file import byte_tokenizer_file
from swarm.allreduce.layout import ModelLayout, flatten, unflatten_into
from swarm.config import DataConfig, ModelConfig, RunConfig
from swarm.digest import blob_digest
from swarm.errors import DataError, LocalError, StateError

SIZES = {"hidden_size": 32, "num_layers": 3, "num_heads": 2, "intermediate_size": 48, "max_positions": 64}
CONFIGS = {
    family: RunConfig(model=ModelConfig(family=family, **SIZES), data=DataConfig(sequence_length=32))
    for family in ("gpt_neox", "gptj", "llama")
}
families = pytest.mark.parametrize("family", CONFIGS)
NEOX = CONFIGS["gpt_neox"]
BYTES = byte_tokenizer_file()


def _anchor(config: RunConfig, seed: int = 3) -> tuple[ModelLayout, torch.Tensor]:
    layout = layout_of(build_model(config.model))
    return layout, initial_parameters(config.model, seed, layout)


@families
def test_transformers_loads_it_bit_for_bit(family: str, tmp_path: Path) -> None:
    config = CONFIGS[family]
    layout, anchor = _anchor(config)
    write_checkpoint(tmp_path / "c", config, layout, anchor, BYTES)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    assert torch.equal(flatten(layout, dict(loaded.named_parameters())), anchor)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}

    ours = build_model(config.model)
    unflatten_into(layout, anchor, dict(ours.named_parameters()))
    tokens = torch.arange(32).view(1, 32)
    with torch.no_grad():
        assert torch.equal(ours.eval()(tokens).logits, loaded.eval()(tokens).logits)
        assert loaded.generate(tokens, min_new_tokens=3, max_new_tokens=3, do_sample=False).shape == (1, 35)


@families
def test_it_reads_back_what_it_wrote(family: str, tmp_path: Path) -> None:
    layout, anchor = _anchor(CONFIGS[family])
    write_checkpoint(tmp_path / "c", CONFIGS[family], layout, anchor, BYTES)
    assert torch.equal(read_parameters(tmp_path / "c", layout), anchor)


def test_two_writers_write_the_same_bytes(tmp_path: Path) -> None:
    layout, anchor = _anchor(NEOX)
    files = write_checkpoint(tmp_path / "a", NEOX, layout, anchor, BYTES)
    assert write_checkpoint(tmp_path / "b" / "deep", NEOX, layout, anchor.clone(), BYTES) == files
    assert [file.name for file in files] == sorted(path.name for path in (tmp_path / "a").iterdir())
    for file in files:
        raw = (tmp_path / "a" / file.name).read_bytes()
        assert (len(raw), blob_digest(raw)) == (file.num_bytes, file.root)
    other = write_checkpoint(tmp_path / "c", NEOX, layout, anchor * 2, BYTES)
    assert {one.name for one in set(files) - set(other)} == {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}


def test_a_unit_file_ends_with_the_units_flat_vector(tmp_path: Path) -> None:
    layout, anchor = _anchor(NEOX)
    write_checkpoint(tmp_path / "c", NEOX, layout, anchor, BYTES)
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())["weight_map"]
    seen = set()
    for unit in layout.units:
        name = f"model-0000{unit.index + 1}-of-00003.safetensors"
        raw = (tmp_path / "c" / name).read_bytes()
        assert raw.endswith(anchor[layout.slice_of(unit.index)].numpy().tobytes())
        with safe_open(tmp_path / "c" / name, framework="pt") as file:
            assert {key for key, where in index.items() if where == name} == set(file.keys())
            seen |= set(file.keys())
    assert seen == set(index) and "embed_out.weight" in seen


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, anchor = _anchor(NEOX)
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left on device"):
        write_checkpoint(tmp_path / "c", NEOX, layout, anchor, BYTES)
    assert len(calls) == 3 and list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten_but_a_dead_writers_remains_are(tmp_path: Path) -> None:
    layout, anchor = _anchor(NEOX)
    (tmp_path / ".c.partial").mkdir()
    (tmp_path / ".c.partial" / "config.json").write_text("half")
    (tmp_path / "c").mkdir()
    files = write_checkpoint(tmp_path / "c", NEOX, layout, anchor, BYTES)
    with pytest.raises(StateError, match="already holds something"):
        write_checkpoint(tmp_path / "c", NEOX, layout, anchor * 2, BYTES)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert len(list((tmp_path / "c").iterdir())) == len(files)


def test_an_anchor_of_another_shape_or_type_is_a_bug(tmp_path: Path) -> None:
    layout, anchor = _anchor(NEOX)
    for wrong in (anchor[1:], anchor.double()):
        with pytest.raises(LocalError):
            write_checkpoint(tmp_path / "c", NEOX, layout, wrong, BYTES)


# ---- starting from somebody else's checkpoint


def test_a_foreign_tied_bf16_checkpoint_is_untied(tmp_path: Path) -> None:
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    layout = layout_of(build_model(CONFIGS["llama"].model))
    read = read_parameters(tmp_path / "theirs", layout)
    tensors = {slot.name: read[place].view(slot.shape) for slot, place in layout.placed()}
    assert torch.equal(tensors["lm_head.weight"], theirs.model.embed_tokens.weight.float())
    assert torch.equal(tensors["model.norm.weight"], theirs.model.norm.weight.float())
    for name, parameter in theirs.named_parameters():
        assert torch.equal(tensors[name], parameter.float()), name


def test_a_checkpoint_that_does_not_fit_gets_one_clear_line(tmp_path: Path) -> None:
    layout, anchor = _anchor(NEOX)
    with pytest.raises(DataError, match=r"config\.json: cannot be read"):
        read_parameters(tmp_path, layout)
    write_checkpoint(tmp_path / "c", NEOX, layout, anchor, BYTES)
    larger = layout_of(build_model(NEOX.model.model_copy(update={"intermediate_size": 52})))
    with pytest.raises(DataError, match="dense_4h_to_h"):
        read_parameters(tmp_path / "c", larger)
    deeper = layout_of(build_model(NEOX.model.model_copy(update={"num_layers": 4})))
    with pytest.raises(DataError, match="has no tensor"):
        read_parameters(tmp_path / "c", deeper)
    victim = tmp_path / "c" / "model-00002-of-00003.safetensors"
    victim.write_bytes(victim.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        read_parameters(tmp_path / "c", layout)
    save_file({"x": torch.zeros(1)}, victim)
    with pytest.raises(DataError, match="cannot be read"):
        read_parameters(tmp_path / "c", layout)
    (tmp_path / "c" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(DataError, match="weight_map"):
        read_parameters(tmp_path / "c", layout)
    (tmp_path / "c" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="'bert'"):
        read_parameters(tmp_path / "c", layout)
