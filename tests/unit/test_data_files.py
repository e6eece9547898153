"""Text files to token arrays: the same from every packing, after every interruption, and in bounded memory."""

import errno
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import zstandard
from tokenizers import models, pre_tokenizers, trainers

from peer.data import files, tokens
from peer.data.cache import no_progress, writing
from peer.data.files import TextReader, find_files, source_digest
from peer.data.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer, load_tokenizer
from peer.data.tokens import Counts, TokenSet, token_dtype, tokenized
from swarm.errors import DataError, StateError

NAMES = ("Books", "Code", "Web")


def _documents(count: int = 300) -> list[dict[str, object]]:
    return [
        {
            "text": f"Document {number} läßt grüßen.\n" + f"word{number % 7} " * (number % 40),
            "meta": {"pile_set_name": NAMES[number % 3]},
        }
        for number in range(count)
    ]


def _lines(documents: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    made.train_from_iterator([str(document["text"]) for document in _documents(50)], trainer)
    made.enable_truncation(5)  # a saved tokenizer may carry such settings; they must not cut documents
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def _tokenize(path: Path, cache: Path, tokenizer: Tokenizer, progress=no_progress) -> TokenSet:
    found = find_files(path)
    return tokenized(found, source_digest(found, cache, no_progress), tokenizer, cache, progress)


def _arrays(made: TokenSet) -> list[bytes]:
    return [array.tobytes() for array in (made.train, *made.heldout_tiers)]


def test_zst_and_plain_give_the_same_arrays(tmp_path: Path, tokenizer_path: Path) -> None:
    raw = _lines(_documents())
    (tmp_path / "a.jsonl").write_bytes(raw)
    packer = zstandard.ZstdCompressor()
    half = raw.index(b"\n", len(raw) // 2) - 10  # two frames, cut inside a line
    (tmp_path / "b.jsonl.zst").write_bytes(packer.compress(raw[:half]) + packer.compress(raw[half:]))
    for tokenizer in (ByteTokenizer(), FileTokenizer(tokenizer_path)):
        plain = _tokenize(tmp_path / "a.jsonl", tmp_path / "cache", tokenizer)
        packed = _tokenize(tmp_path / "b.jsonl.zst", tmp_path / "cache", tokenizer)
        assert _arrays(plain) == _arrays(packed)
        assert plain.num_items == 300 and plain.num_malformed == 0


def test_arrays_hold_every_document_once_with_separators(tmp_path: Path) -> None:
    documents = _documents()
    (tmp_path / "a.jsonl").write_bytes(_lines(documents))
    made = _tokenize(tmp_path / "a.jsonl", tmp_path / "cache", ByteTokenizer())
    parts = [part for array in (made.train, *made.heldout_tiers) for part in array.tobytes().split(b"\0")]
    assert sorted(part.decode() for part in parts if part) == sorted(str(document["text"]) for document in documents)
    heldout = sum(map(len, made.heldout_tiers)) / (len(made.train) + sum(map(len, made.heldout_tiers)))
    assert 0.1 < heldout < 0.3  # 20 % in all tiers
    for name in NAMES:
        expected = sum(
            len(str(document["text"]).encode()) + 1
            for document in documents
            if document["meta"] == {"pile_set_name": name}
        )
        assert made.sources[name].tokens == expected


def test_a_tokenizer_file_is_followed_and_documents_cannot_fake_an_end(tmp_path: Path, tokenizer_path: Path) -> None:
    tokenizer = FileTokenizer(tokenizer_path)
    text = "a <|endoftext|> b " + "long " * 50_000  # in more than one piece
    (ids,) = tokenizer.encode([text])
    assert tokenizer.separator not in ids and len(ids) > 50_000
    library = tokenizers.Tokenizer.from_file(str(tokenizer_path))
    assert library.decode(ids.tolist()).replace("Ġ", " ").replace(" ", "").startswith("a<|endoftext|>b")
    library.no_truncation()
    short = "Document 7 läßt grüßen.\n word1 word2"
    assert tokenizer.encode([short, ""])[0].tolist() == library.encode(short, add_special_tokens=False).ids
    assert tokenizer.encode([short, ""])[1].size == 0


def test_the_separator_and_small_vocabularies() -> None:
    assert [token_dtype(size).itemsize for size in (256, 257, 65536, 65537)] == [1, 2, 2, 4]


class _Kill(Exception):
    pass


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".txt"])
def test_interrupted_anywhere_the_arrays_come_out_the_same(
    tmp_path: Path, tokenizer_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for part in range(2):
        documents = [*_documents(120)[part * 60 :][:60], {"text": 5}]
        raw = _lines(documents) if suffix != ".txt" else "\n\n".join(str(one["text"]) for one in documents).encode()
        packed = zstandard.ZstdCompressor().compress(raw) if suffix.endswith("zst") else raw
        (folder / f"{part}{suffix}").write_bytes(packed)
    monkeypatch.setattr(tokens, "_BATCH_LETTERS", 700)
    monkeypatch.setattr(tokens, "_JOURNAL_LETTERS", 1500)
    monkeypatch.setattr(files, "TXT_DOCUMENT_LETTERS", 200)
    tokenizer = FileTokenizer(tokenizer_path)
    whole = _tokenize(folder, tmp_path / "whole", tokenizer)
    kills, cache = 0, tmp_path / "killed"
    while True:
        reports = 0

        def progress(fraction: float, what: str) -> None:
            nonlocal reports
            reports += 1
            if reports > 5:
                raise _Kill

        try:
            killed = _tokenize(folder, cache, tokenizer, progress)
            break
        except _Kill:
            kills += 1
            assert kills < 100
            for path in cache.glob("tokens-*/*.tokens"):  # a batch that reached the disk and not the journal
                with path.open("ab") as file:
                    file.write(b"torn")
            assert not list(cache.glob("tokens-*/tokens.json"))
    assert kills > 3
    assert _arrays(killed) == _arrays(whole)
    assert killed.sources == whole.sources
    assert (killed.num_items, killed.faults) == (whole.num_items, whole.faults)
    assert killed.num_malformed == (0 if suffix == ".txt" else 2)


_TOKENIZE_AND_HANG = """
import sys
from pathlib import Path
from peer.data import tokens
from peer.data.cache import no_progress
from peer.data.files import find_files, source_digest
from peer.data.tokenizer import ByteTokenizer

tokens._BATCH_LETTERS, tokens._JOURNAL_LETTERS = 500, 1500
reports = 0

def progress(fraction, what):
    global reports
    reports += 1
    if reports == 8:
        print("half-way", flush=True)
        sys.stdin.read()

found = find_files(Path(sys.argv[1]))
cache = Path(sys.argv[2])
tokens.tokenized(found, source_digest(found, cache, no_progress), ByteTokenizer(), cache, progress)
"""


def test_a_killed_process_leaves_what_the_next_one_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    path.write_bytes(_lines(_documents()))
    arguments = [sys.executable, "-c", _TOKENIZE_AND_HANG, str(path), str(cache)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "half-way\n"
        process.kill()
    (journal,) = cache.glob("tokens-*/journal.json")
    assert 0 < json.loads(journal.read_text())["num_items"] < 300
    resumed_at = []
    opened = TextReader.__init__
    monkeypatch.setattr(
        TextReader, "__init__", lambda self, *place: (resumed_at.append(place[1]), opened(self, *place))[1]
    )
    assert _arrays(_tokenize(path, cache, ByteTokenizer())) == _arrays(
        _tokenize(path, tmp_path / "whole", ByteTokenizer())
    )
    assert resumed_at[0] > 0 and resumed_at[1] == 0


def test_a_finished_source_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_lines(_documents()))
    first = _tokenize(path, tmp_path / "cache", ByteTokenizer())
    monkeypatch.setattr(files, "blake3", None)  # whoever hashes a file fails
    found = find_files(path)
    digest = source_digest(found, tmp_path / "cache", no_progress)
    monkeypatch.undo()
    assert digest == source_digest(found, tmp_path / "elsewhere", no_progress)
    monkeypatch.setattr(tokens, "_make", None)
    assert _arrays(_tokenize(path, tmp_path / "cache", ByteTokenizer())) == _arrays(first)


@pytest.mark.parametrize("damage", ["cut", "gone", "journal"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_lines(_documents()))
    first = _arrays(_tokenize(path, tmp_path / "cache", ByteTokenizer()))
    (folder,) = (tmp_path / "cache").glob("tokens-*")
    if damage == "cut":
        (folder / "train.tokens").write_bytes(first[0][:-5])
    elif damage == "gone":
        (folder / "train.tokens").unlink()
    else:
        (folder / "tokens.json").write_text('{"layout": 2, "lengths": [')
        (folder / "journal.json").write_text('{"layout": 2, "lengths": [9999999, 0, 0, 0, 0, 0]}')
    assert _arrays(_tokenize(path, tmp_path / "cache", ByteTokenizer())) == first


def test_malformed_lines_are_counted_named_and_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    bad = [
        b"{not json",
        b"[1, 2]",
        b'{"text": 7}',
        b'{"text": "\\ud800"}',
        b'{"text": "' + b"x" * 5000 + b'"}',
        b"[" * 900,
        b"\xff\xfe",
    ]
    good = [b'{"text": "one"}', b"", b'{"text": "two", "meta": 3}', b'{"text": ""}']
    (tmp_path / "mixed.jsonl").write_bytes(b"\n".join([*bad, *good]))
    made = _tokenize(tmp_path / "mixed.jsonl", tmp_path / "cache", ByteTokenizer())
    assert (made.num_malformed, made.sources["mixed"].documents) == (len(bad), 2)
    assert [fault.split(":")[0] for fault in made.faults] == [f"mixed.jsonl line {line}" for line in range(1, 8)]
    assert "longer than 1000 bytes" in made.faults[4]
    assert made.sources == {"mixed": Counts(documents=2, num_bytes=6, tokens=8)}
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join(bad))
    with pytest.raises(DataError, match=r"7 malformed lines, the first: bad\.jsonl line 1"):
        _tokenize(tmp_path / "bad.jsonl", tmp_path / "cache", ByteTokenizer())


def test_broken_zstd_is_a_line_that_names_the_file(tmp_path: Path) -> None:
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(_lines(_documents()))
    (tmp_path / "a.jsonl.zst").write_bytes(packed[: len(packed) // 2] + b"????" + packed[len(packed) // 2 + 4 :])
    with pytest.raises(DataError, match=r"a\.jsonl\.zst: broken"):
        _tokenize(tmp_path / "a.jsonl.zst", tmp_path / "cache", ByteTokenizer())


def test_memory_stays_bounded_however_large_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 16)
    monkeypatch.setattr(files, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(tokens, "_BATCH_LETTERS", 1 << 16)
    with zstandard.open(tmp_path / "big.jsonl.zst", "wb") as file:
        for number in range(1000):
            file.write(json.dumps({"text": f"{number} " * 2000}).encode() + b"\n")
        file.write(b'{"text": "')
        for _ in range(160):  # one line of 10 MB
            file.write(b"x" * (1 << 16))
        file.write(b'"}\n')
    tracemalloc.start()
    try:
        made = _tokenize(tmp_path / "big.jsonl.zst", tmp_path / "cache", ByteTokenizer())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (made.num_items, made.num_malformed) == (1001, 1)
    assert len(made.train) > 5 << 20
    # 4 MiB to hash in, then blocks, batches and their copies of 64 KiB each; the text has 17 MiB
    assert peak < 6 << 20


@pytest.mark.parametrize(
    "text", ["word " * 60_000, "äöü" * 60_000, "line of text\n" * 20_000, "short", "p\n\n" * 50_000]
)
def test_txt_is_cut_into_documents_that_join_to_the_whole(tmp_path: Path, text: str) -> None:
    (tmp_path / "book.txt").write_text(text)
    (file,) = find_files(tmp_path)
    with TextReader(file) as reader:
        items = list(reader.items())
    assert "".join(item.text for item in items) == text
    assert all(len(item.text) <= 64 << 10 for item in items)
    assert [item.line for item in items] == list(range(1, len(items) + 1))
    for item in items[:3]:  # and reading goes on behind any of them
        with TextReader(file, item.offset, item.line) as reader:
            assert list(reader.items()) == items[item.line :]


def test_a_source_is_named_by_content_and_by_names_inside_a_folder(tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        return source_digest(find_files(path), tmp_path / "cache", no_progress).hex()

    for folder in ("one", "two", "other"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    for folder in ("one", "two"):
        (tmp_path / folder / "a.txt").write_text("a")
        (tmp_path / folder / "sub" / "b.txt").write_text("b")
    (tmp_path / "other" / "renamed.txt").write_text("a")
    (tmp_path / "one" / "README.md").write_text("not text of a kind that is read")
    (tmp_path / "one" / ".hidden.txt").write_text("hidden")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert (
        digest(tmp_path / "one" / "a.txt") == digest(tmp_path / "other" / "renamed.txt") == digest(tmp_path / "other")
    )
    (tmp_path / "two" / "sub" / "b.txt").rename(tmp_path / "two" / "sub" / "c.txt")
    assert digest(tmp_path / "one") != digest(tmp_path / "two")
    before = digest(tmp_path / "one")
    (tmp_path / "one" / "a.txt").write_text("A changed")
    assert digest(tmp_path / "one") != before


def test_text_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_lines(_documents()))

    def grow(fraction: float, what: str) -> None:
        with path.open("ab") as file:
            file.write(b'{"text": "more"}\n')

    with pytest.raises(DataError, match="changed while"):
        _tokenize(path, tmp_path / "cache", ByteTokenizer(), grow)


def test_lines_for_missing_and_wrong_files(tmp_path: Path, tokenizer_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"\.jsonl\.zst"):
        find_files(tmp_path)
    (tmp_path / "x.csv").write_text("1")
    with pytest.raises(DataError, match="not a kind"):
        find_files(tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        load_tokenizer("", tmp_path / "x.csv")
    with pytest.raises(DataError, match="no tokenizer can be read"):
        load_tokenizer("", tmp_path / "nowhere")
    with pytest.raises(DataError, match="plain bytes"):
        load_tokenizer("bytes", tokenizer_path)
    with pytest.raises(DataError, match="--tokenizer"):
        load_tokenizer("ab" * 32, None)
    mine = FileTokenizer(tokenizer_path).digest
    with pytest.raises(DataError, match=f"{mine[:12]}.*abababababab"):
        load_tokenizer("ab" * 32, tokenizer_path)


def test_a_cache_that_cannot_be_written_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_lines(_documents()))
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(StateError, match="cannot be written"):
        _tokenize(path, tmp_path / "cache", ByteTokenizer())
    with pytest.raises(StateError, match="the disk is full; make room"), writing(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_many_sources_are_counted_together_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MAX_SOURCES", 2)
    lines = [{"text": "abc", "meta": {"pile_set_name": f"source {number}" + "x" * 100}} for number in range(5)]
    (tmp_path / "a.jsonl").write_bytes(_lines(lines))
    made = _tokenize(tmp_path / "a.jsonl", tmp_path / "cache", ByteTokenizer())
    assert sorted(one.tokens for one in made.sources.values()) == [4, 4, 12]
    assert max(map(len, made.sources)) == 64
    assert np.array_equal(np.unique(made.train), [0, 97, 98, 99]) or not len(made.train)
