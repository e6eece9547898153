"""The tokenizer of a checkpoint: transformers gets the ids of training from it, and evaluations what they need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from peer.checkpoint import write_checkpoint
from peer.data.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer
from peer.model import build_model, initial_parameters, layout_of
from peer.tokenizer_file import TokenizerFile, byte_tokenizer_file, trained_tokenizer_file
from swarm.config import DataConfig, ModelConfig, RunConfig
from tests.unit import tokenizer_kinds as kinds

SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "max_positions": 64}
TEXTS = [
    "the barn was raised",
    " two  spaces\tand\r\n",
    "Größe 数 🙂 \x7f Ā",
    "",
    "a</s>b <|endoftext|> <s> <unk>",
    "before\0after",
    " ".join(kinds.WORDS),
]
BYTES = byte_tokenizer_file()


@dataclass(frozen=True)
class Pulled:
    """A checkpoint folder, and what its run was trained with."""

    folder: Path
    tokenizer: Tokenizer
    file: TokenizerFile


def pulled(folder: Path, family: str, tokenizer: Tokenizer, file: TokenizerFile) -> Pulled:
    model = ModelConfig(family=family, vocab_size=tokenizer.vocab_size, **SIZES)  # type: ignore[arg-type]
    layout = layout_of(build_model(model))
    config = RunConfig(model=model, data=DataConfig(sequence_length=32))
    write_checkpoint(folder, config, layout, initial_parameters(model, 3, layout), file)
    return Pulled(folder, tokenizer, file)


def with_all_that_training_leaves_out(made: Library, path: Path, begin: str, end: str) -> Path:
    """As published ones are: with tokens in front and behind, a cut, and a padding; and with dropout."""
    names = [(name, made.token_to_id(name)) for name in {begin, end}]
    made.post_processor = processors.TemplateProcessing(f"{begin} $A {end}", special_tokens=names)
    made.enable_truncation(4)
    made.enable_padding(length=32, pad_id=made.token_to_id(end), pad_token=end)
    return kinds.saved(made, path, dropout=0.5)


@pytest.fixture(scope="module", params=["bytes", "neox", "llama"])
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pulled:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bytes":
        return pulled(folder / "c", "gpt_neox", ByteTokenizer(), BYTES)
    if request.param == "neox":
        family, end = "gpt_neox", "<|endoftext|>"
        path = with_all_that_training_leaves_out(kinds.byte_level(), folder / "t.json", end, end)
    else:
        family, end = "llama", "</s>"
        path = with_all_that_training_leaves_out(kinds.llama2(), folder / "t.json", "<s>", end)
    return pulled(folder / "c", family, FileTokenizer(path, end), trained_tokenizer_file(path.read_bytes(), end))


def test_transformers_gets_the_ids_of_training_by_default(one: Pulled) -> None:
    theirs = AutoTokenizer.from_pretrained(one.folder)
    ours = [ids.tolist() for ids in one.tokenizer.encode(TEXTS)]
    assert theirs(TEXTS)["input_ids"] == ours
    assert [theirs.encode(text) for text in TEXTS] == ours
    assert len(theirs) == one.tokenizer.vocab_size
    assert one.file.separator_id == one.tokenizer.separator


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_of_every_kind(kind: str, tmp_path: Path) -> None:
    """`unigram` and `word level` know `</s>` as a word of their own: only a text that spells that out differs."""
    path = kinds.saved(kinds.KINDS[kind](), tmp_path / "t.json")
    ours = FileTokenizer(path)
    file = trained_tokenizer_file(path.read_bytes(), ours.separator_name)
    theirs = AutoTokenizer.from_pretrained(pulled(tmp_path / "c", "llama", ours, file).folder)
    assert theirs.eos_token_id == ours.separator and len(theirs) == ours.vocab_size
    for text in (text for text in TEXTS if kind not in ("unigram", "word level") or "</s>" not in text):
        assert theirs.encode(text) == ours.encode([text])[0].tolist()


def test_all_files_name_the_separator(one: Pulled) -> None:
    def read(name: str) -> dict[str, Any]:
        return dict(json.loads((one.folder / name).read_text()))

    separator = one.tokenizer.separator
    config, generation = read("config.json"), read("generation_config.json")
    assert (config["bos_token_id"], config["eos_token_id"]) == (separator, separator)
    assert {generation[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")} == {separator}
    theirs = AutoTokenizer.from_pretrained(one.folder)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (separator, separator, separator)
    assert (
        theirs.decode([separator]) == one.file.separator and theirs.decode([separator], skip_special_tokens=True) == ""
    )


def test_what_it_measures_a_likelihood_with(one: Pulled) -> None:
    """Rolling and conditional, as lm-eval does: a text behind a prefix token, and a batch of unequal lengths."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(one.folder), AutoTokenizer.from_pretrained(one.folder)
    texts = ["the barn", "the barn was raised by"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    rows = [torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text)]]) for text in texts]
    with torch.no_grad():
        assert all(torch.isfinite(model(row, labels=row).loss) for row in rows)
        together = model(**batch).logits
        for number, row in enumerate(rows):
            length = row.shape[1] - 1
            alone = model(row[:, 1:]).logits
            # Sums in another order: 1e-5 is some 100 roundings of values around 1.
            assert torch.allclose(together[number, :length], alone[0], atol=1e-5)


def test_generation_stops_at_the_separator(one: Pulled) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(one.folder), AutoTokenizer.from_pretrained(one.folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # all tokens are alike, and the first of them wins
    prompt = tokenizer(["the barn", "was"], return_tensors="pt", padding=True, padding_side="left")
    made = model.generate(**prompt, do_sample=False, max_new_tokens=5)[:, prompt["input_ids"].shape[1] :]
    assert made.tolist() == ([[0], [0]] if tokenizer.eos_token_id == 0 else [[0] * 5] * 2)


def test_the_embedding_of_the_separator_goes_on_learning(one: Pulled) -> None:
    model = AutoModelForCausalLM.from_pretrained(one.folder)
    assert model.get_input_embeddings().padding_idx is None


def test_its_bytes_follow_from_the_file_alone_and_it_is_fit_for_a_run(tmp_path: Path) -> None:
    path = with_all_that_training_leaves_out(kinds.llama2(), tmp_path / "t.json", "<s>", "</s>")
    made = trained_tokenizer_file(path.read_bytes(), "</s>")
    assert trained_tokenizer_file(path.read_bytes(), "</s>") == made
    assert trained_tokenizer_file(made.content, "</s>") == made
    (tmp_path / "exported.json").write_bytes(made.content)
    again, first = FileTokenizer(tmp_path / "exported.json"), FileTokenizer(path)
    assert [ids.tolist() for ids in again.encode(TEXTS)] == [ids.tolist() for ids in first.encode(TEXTS)]
    assert (again.separator, again.notes) == (first.separator, ())


@given(st.text())
@settings(deadline=None)
def test_every_text_becomes_its_bytes(text: str) -> None:
    (ids,) = ByteTokenizer().encode([text])
    assert _LIBRARY.encode(text).ids == ids.tolist()
    assert _LIBRARY.decode(ids.tolist()) == text.replace("\0", "\ufffd")


_LIBRARY = Library.from_str(BYTES.content.decode())
_LIBRARY.encode_special_tokens = True
