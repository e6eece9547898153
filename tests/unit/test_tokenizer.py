"""Tokenizers of every kind: the library's ids however long a text is, and no separator but at a document's end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.data import pieces
from peer.data.pieces import encode_whole
from peer.data.tokenizer import ByteTokenizer, FileTokenizer, load_tokenizer
from swarm.errors import DataError
from tests.unit import tokenizer_kinds as kinds

SPELLED_OUT = ["the </s> of it", "a<|endoftext|>b", "</s>", "</s></s> x", "[SEP] and [UNK]", "<eos>", " </s>\n</s>"]


@pytest.fixture(scope="module", params=kinds.KINDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kinds.saved(kinds.KINDS[request.param](), tmp_path_factory.mktemp("kind") / "tokenizer.json")


def library_of(path: Path) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer.from_file(str(path))
    library.encode_special_tokens = True
    return library


def texts_of_words() -> st.SearchStrategy[str]:
    """Long texts with runs of spaces and line ends, letters that the tokenizers never saw, and letters in two parts."""
    word = st.sampled_from(
        [*kinds.WORDS, "läßt", "日本語", "e\u0301", "\u0301", "💚", "xq", "12345678", "...", "'s", "<", "▁"]
    )
    between = st.sampled_from([" ", " ", " ", "  ", "     ", "\n", "\n\n", "\r\n", "\t", "", ""])
    return st.lists(st.tuples(word, between), max_size=600).map(lambda parts: "".join(map("".join, parts)))


@given(text=texts_of_words())
@settings(deadline=None, max_examples=25)
def test_ids_of_pieces_are_those_of_the_whole(path: Path, text: str) -> None:
    library = library_of(path)
    whole = library.encode(text, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_LETTERS", 600)
        patch.setattr(pieces, "OVERLAP_LETTERS", 240)
        assert FileTokenizer(path).encode([text])[0].tolist() == whole
        assert [ids.tolist() for ids in encode_whole(library, [text, "", text])] == [whole, [], whole]


class Recorder:
    """The library, which notes the longest text that it was given at once."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._library = library
        self.longest = 0

    def _seen(self, texts: list[str]) -> list[str]:
        self.longest = max(self.longest, *map(len, texts))
        return texts

    def encode_batch(self, texts: list[str], add_special_tokens: bool) -> Any:
        return self._library.encode_batch(self._seen(texts), add_special_tokens=add_special_tokens)

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
        return self._library.encode_batch_fast(self._seen(texts), add_special_tokens=add_special_tokens)


def test_a_text_of_300_kb_is_never_encoded_at_once(path: Path) -> None:
    library = library_of(path)
    text = " ".join(kinds.corpus() * 33)
    assert len(text) > 300_000
    recorder = Recorder(library)
    (ids,) = encode_whole(recorder, [text])  # type: ignore[arg-type]
    assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
    assert recorder.longest <= pieces.PIECE_LETTERS


@pytest.mark.parametrize("text", ["a" * 150_000, " " * 150_000, "日本" * 70_000], ids=["a word", "a gap", "unknown"])
def test_a_text_that_nothing_divides_gets_the_library_s_ids_too(path: Path, text: str) -> None:
    assert FileTokenizer(path).encode([text])[0].tolist() == library_of(path).encode(text, add_special_tokens=False).ids


def test_no_text_holds_a_separator(path: Path) -> None:
    tokenizer, library = FileTokenizer(path), library_of(path)
    for text, ids in zip(SPELLED_OUT, tokenizer.encode(SPELLED_OUT), strict=True):
        assert tokenizer.separator not in ids
        if tokenizer.separator not in (plain := library.encode(text, add_special_tokens=False).ids):
            assert ids.tolist() == plain  # only what would fake an end is encoded otherwise


def test_the_kind_that_fakes_an_end_by_itself_is_among_them(tmp_path: Path) -> None:
    path = kinds.saved(kinds.unigram(), tmp_path / "tokenizer.json")
    tokenizer = FileTokenizer(path)
    assert tokenizer.separator in library_of(path).encode("the </s> of", add_special_tokens=False).ids
    assert tokenizer.separator not in tokenizer.encode(["the </s> of"])[0]


def test_a_separator_that_is_a_plain_added_token_is_not_found_in_a_text(tmp_path: Path) -> None:
    made = kinds.byte_level("<pad>")
    made.add_tokens(["<eos>"])
    path = kinds.saved(made, tmp_path / "tokenizer.json")
    assert library_of(path).encode("a <eos> b").tokens[2] == "<eos>"
    tokenizer = FileTokenizer(path)
    assert tokenizer.separator_name == "<eos>" and tokenizer.separator not in tokenizer.encode(["a <eos> b"])[0]


def test_a_separator_that_merges_lead_to_is_not_made_of_a_text(tmp_path: Path) -> None:
    vocabulary = {"<": 0, "/": 1, "s": 2, ">": 3, "</": 4, "s>": 5, "</s>": 6, "t": 7}
    merges = [["<", "/"], ["s", ">"], ["</", "s>"]]
    path = kinds.saved(
        tokenizers.Tokenizer(tokenizers.models.BPE()), tmp_path / "t.json", vocab=vocabulary, merges=merges
    )
    assert library_of(path).encode("t</s>").ids == [7, 6]
    assert FileTokenizer(path).encode(["t</s>"])[0].tolist() == [7, 4, 5]


def test_a_tokenizer_that_ends_texts_at_unknown_words_is_refused(tmp_path: Path) -> None:
    path = kinds.saved(kinds.word_level("<|endoftext|>"), tmp_path / "tokenizer.json")
    assert FileTokenizer(path).encode(["the barn"])[0].size == 2
    with pytest.raises(DataError, match=r"cannot keep documents apart.*'<\|endoftext\|>'.*'the bern'.*data\.separator"):
        FileTokenizer(path).encode(["the bern"])
    assert FileTokenizer(path, "</s>").encode(["the bern"])[0].size == 2


def test_bytes_hold_no_zero_byte() -> None:
    (ids,) = ByteTokenizer().encode(["before\0after"])
    assert ids.tobytes().decode() == "before\ufffdafter"


def test_dropout_is_off_and_told(tmp_path: Path) -> None:
    made, text = kinds.byte_level(), " ".join(kinds.WORDS)
    path = kinds.saved(made, tmp_path / "tokenizer.json", dropout=0.5)
    tokenizer = FileTokenizer(path)
    expected = made.encode(text).ids
    assert len({tuple(library_of(path).encode(text).ids) for _ in range(5)}) > 1  # what every peer would get for itself
    assert all(tokenizer.encode([text])[0].tolist() == expected for _ in range(5))
    assert tokenizer.notes == ("the tokenizer's dropout 0.5 is off: all peers must get the same tokens",)
    assert FileTokenizer(kinds.saved(made, tmp_path / "plain.json")).notes == ()


def test_the_separator_can_be_named(tmp_path: Path) -> None:
    path = kinds.saved(kinds.byte_level(kinds.DEEPSEEK_END), tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer("", path, kinds.DEEPSEEK_END)
    assert (tokenizer.separator, tokenizer.separator_name) == (0, kinds.DEEPSEEK_END)
    assert tokenizer.separator not in tokenizer.encode([f"x {kinds.DEEPSEEK_END} y"])[0]
    with pytest.raises(
        DataError, match=rf"no end-of-text token .*\[data\] separator.*candidates: {kinds.DEEPSEEK_END}"
    ):
        load_tokenizer("", path)
    with pytest.raises(DataError, match=rf"no token '<\|end_of_sentence\|>'.*candidates: {kinds.DEEPSEEK_END}$"):
        load_tokenizer("", path, "<|end_of_sentence|>")
    with pytest.raises(DataError, match=r"data\.separator = '</s>': plain bytes have none"):
        load_tokenizer("bytes", None, "</s>")


def test_ids_and_vocabulary_are_those_of_the_file(path: Path) -> None:
    tokenizer, vocabulary = FileTokenizer(path), library_of(path).get_vocab()
    assert tokenizer.vocab_size == 1 + max(vocabulary.values())
    assert tokenizer.separator == vocabulary[tokenizer.separator_name]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": 3}', b"[" * 5000, b'{"version": "1.0"}'])
def test_what_is_no_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json: [^\n]*$"):
        FileTokenizer(path)


def test_old_and_new_forms_of_merges_give_the_same(tmp_path: Path) -> None:
    made = kinds.byte_level()
    table = json.loads(made.to_str())["model"]
    path = kinds.saved(made, tmp_path / "old.json", merges=[" ".join(pair) for pair in table["merges"]])
    text = " ".join(kinds.WORDS)
    assert np.array_equal(FileTokenizer(path).encode([text])[0], made.encode(text).ids)
