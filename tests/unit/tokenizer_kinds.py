"""Small tokenizers of each kind that is in common use, trained here, as the text of a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

_PHRASE: Final = (
    "the barn was raised by neighbours who came with hammers and bread before noon and sang while they worked until the "
    "roof stood against rain; children carried nails, 1234 of them, and nobody counted what it had cost in 1897 (much)."
)
WORDS: Final = tuple(_PHRASE.split())
SPECIAL: Final = ["<unk>", "<s>", "</s>"]
DEEPSEEK_END: Final = "<｜end▁of▁sentence｜>"
# Digits by threes, line ends kept together, a word with the mark in front of it.
_LLAMA3: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def corpus() -> list[str]:
    return [" ".join(WORDS[start:] + WORDS[:start]) + "\n" for start in range(len(WORDS))]


def byte_level(special: str = "<|endoftext|>", **settings: Any) -> Tokenizer:
    """As GPT-2's; `settings` are the model's."""
    made = Tokenizer(models.BPE(**settings))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=400, special_tokens=[special], initial_alphabet=alphabet)
    )
    return made


def _trimmed() -> Tokenizer:
    """With a space in front of a text, and offsets that leave spaces out."""
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


def _llama3() -> Tokenizer:
    made = byte_level(ignore_merges=True)
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return made


def _sentencepiece(**settings: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True, **settings))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback = [f"<0x{number:02X}>" for number in range(256)]
    made.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL, *fallback]))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def llama2() -> Tokenizer:
    """As Llama 2's: the whole text is one word, with "▁" in front."""
    return _sentencepiece()


def _mistral() -> Tokenizer:
    made = _sentencepiece()
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made


def unigram() -> Tokenizer:
    """As T5's: a text that spells `</s>` gets the separator's id from the library."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    pieces = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    made.train_from_iterator(corpus(), pieces)
    return made


def _word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(corpus(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"]))
    return made


def word_level(unknown: str = "<unk>") -> Tokenizer:
    """Whole words between spaces; what it does not know is `unknown`."""
    made = Tokenizer(models.WordLevel(unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = list(dict.fromkeys([unknown, "</s>"]))
    made.train_from_iterator(corpus(), trainers.WordLevelTrainer(special_tokens=special))
    return made


def with_plain_marks() -> Tokenizer:
    """As GPT-NeoX's: runs of spaces are added tokens that are not special and not in the model's vocabulary."""
    made = byte_level()
    made.add_tokens(["    ", "  "])
    return made


KINDS: Final[dict[str, Callable[[], Tokenizer]]] = {
    "byte level": byte_level,
    "trimmed": _trimmed,
    "llama 3": _llama3,
    "llama 2": llama2,
    "mistral": _mistral,
    "unigram": unigram,
    "word piece": _word_piece,
    "word level": word_level,
    "plain marks": with_plain_marks,
}


def saved(made: Tokenizer, path: Path, **of_the_model: Any) -> Path:
    """Writes the tokenizer.json, with settings of its model that the library would not write; returns `path`."""
    table = json.loads(made.to_str())
    table["model"].update(of_the_model)
    path.write_text(json.dumps(table))
    return path
