"""What people give as text: read as it is meant, or refused in a line that says what to do; and what was left out is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from peer.data import windows
from peer.data.files import TextReader, find_files
from peer.data.windows import describe_data, open_windows, refuse_other_text
from swarm.config import DataConfig, RunConfig
from swarm.errors import DataError
from swarm.presets import preset_config
from tests.unit import tokenizer_kinds as kinds

SMALL = DataConfig(kind="files", sequence_length=16, eval_windows=4)
PARAGRAPH = " ".join(kinds.WORDS * 5) + "\n"
BOOK = "\n".join(f"Chapter {number}\n{PARAGRAPH * 20}" for number in range(40))  # a document each


def described(path: Path, config: DataConfig = SMALL, tokenizer: Path | None = None) -> tuple[DataConfig, list[str]]:
    """The data section of a run on that text, and the lines that `new` prints of it."""
    told: list[str] = []
    return describe_data(config, path, tokenizer, path.parent / "cache", say=told.append), told


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


# ---------------------------------------------------------------- lines


def test_lines_that_are_left_out_are_counted_and_shown(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mixed.jsonl", [f"{n} {PARAGRAPH}" for n in range(40)])
    bad = [
        b'{"content": "another key"}',
        b'{"text": null}',
        b'{"text": "half \\ud83d of a pair"}',
        b'{"text": "caf\xe9"}',
        b'{"text": "cut off',
    ]
    with path.open("ab") as file:
        file.write(b"\n".join(bad))
    config, told = described(path)
    assert told[1:] == [
        "5 of 45 lines left out, the first of each kind:",
        '  mixed.jsonl line 41: no "text" that is a string',
        "  mixed.jsonl line 43: half of a surrogate pair in the text",
        "  mixed.jsonl line 44: not UTF-8: byte 0xe9 at byte 13 of the line",
        "  mixed.jsonl line 45: not JSON: Unterminated string starting at: line 1 column 10 (char 9) (the file may be "
        "cut off there)",
    ]
    assert open_windows(config, path, None, tmp_path / "cache").notes == tuple(told[1:])  # a peer says it, too


def test_a_text_too_short_still_tells_what_was_left_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "short.jsonl", ["short", "too"])
    with path.open("a") as file:
        file.write("[]\n")
    told: list[str] = []
    with pytest.raises(DataError, match="too little text"):
        describe_data(SMALL, path, None, tmp_path / "cache", say=told.append)
    assert told == [
        "short: 2 documents, 8 bytes, 10 tokens",
        "1 of 3 lines left out, the first of each kind:",
        '  short.jsonl line 3: no "text" that is a string',
    ]


def test_documents_bytes_and_tokens_are_told_for_each_source(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    names = ["Books", "Books", "Code"] * 40
    lines = [{"text": f"{n} läßt {PARAGRAPH}", "meta": {"pile_set_name": name}} for n, name in enumerate(names)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = {name: sum(len(str(one["text"]).encode()) for one in lines if name in str(one["meta"])) for name in names}
    both = sum(sizes.values())
    assert described(path)[1] == [
        f"Books: 80 documents, {sizes['Books']:,} bytes, {sizes['Books'] + 80:,} tokens",
        f"Code: 40 documents, {sizes['Code']:,} bytes, {sizes['Code'] + 40:,} tokens",
        f"all together: 120 documents, {both:,} bytes, {both + 120:,} tokens",
    ]


def test_many_sources_are_told_in_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    lines = [{"text": f"{n} {PARAGRAPH}", "meta": {"pile_set_name": f"source {n % 20}"}} for n in range(100)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = described(path)[1]
    assert len(told) == 10 and told[8].startswith("12 more: 60 documents, ")


# ---------------------------------------------------------------- encodings and line ends


def documents(path: Path) -> list[str]:
    (file,) = find_files(path)
    with TextReader(file) as reader:
        return [item.text for item in reader.items()]


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_documents_end_at_blank_lines_whatever_ends_a_line(tmp_path: Path, line_end: str) -> None:
    (tmp_path / "lf.txt").write_bytes(BOOK.encode())
    (tmp_path / "other.txt").write_bytes(BOOK.replace("\n", line_end).encode())
    assert documents(tmp_path / "other.txt") == documents(tmp_path / "lf.txt")
    assert len(documents(tmp_path / "lf.txt")) == 40
    assert "".join(documents(tmp_path / "other.txt")) == BOOK


def test_a_byte_order_mark_of_utf_8_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PARAGRAPH, encoding="utf-8-sig")
    assert documents(tmp_path / "a.txt") == [PARAGRAPH]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n" + json.dumps({"text": "two"}), "utf-8-sig")
    assert documents(tmp_path / "a.jsonl") == ["one", "two"]


@pytest.mark.parametrize("encoding", ["latin1", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "other.txt"
    path.write_bytes(("Les élèves ont mangé à la forêt.\n" * 2000).encode(encoding))
    with pytest.raises(
        DataError, match=r"other\.txt: \d+ bytes up to there are not UTF-8 .* document 1, .*at most one in 1000.*iconv"
    ):
        described(path)
    assert not list((tmp_path / "cache").glob("tokens-*/tokens.json"))


def test_a_few_wrong_bytes_are_replaced_counted_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    raw = BOOK.encode()
    path.write_bytes(raw[:50_000] + b"caf\xe9 \0" + raw[50_000:])
    _, told = described(path)
    assert told[1].startswith("2 bytes that are not UTF-8 text replaced by U+FFFD, the first in book.txt document 3, ")
    assert "caf\ufffd" in told[1]
    assert "".join(documents(path)).count("\ufffd") == 2


def test_wrong_bytes_are_counted_alike_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.data.tokens._BATCH_LETTERS", 20_000)
    monkeypatch.setattr("peer.data.tokens._JOURNAL_LETTERS", 20_000)
    path = tmp_path / "book.txt"
    raw = BOOK.encode()
    path.write_bytes(b"\xe9 " + raw + b" \xe9")

    def stop(fraction: float, what: str) -> None:
        if what.startswith("tokenizing") and fraction > 0.4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        describe_data(SMALL, path, None, tmp_path / "cache", stop)
    assert list((tmp_path / "cache").glob("tokens-*/journal.json"))
    resumed, told = described(path)
    whole, told_at_once = describe_data(SMALL, path, None, tmp_path / "other", say=(lines := []).append), lines
    assert resumed == whole and told == told_at_once and told[1].startswith("2 bytes ")


# ---------------------------------------------------------------- documents


@pytest.mark.parametrize("text", [PARAGRAPH * n for n in range(100, 130)])
def test_one_huge_document_is_called_that(tmp_path: Path, text: str) -> None:
    """Which half it falls into depends on its digest."""
    path = write_jsonl(tmp_path / "one.jsonl", [text])
    with pytest.raises(
        DataError, match=r"all text is one document: held-out documents are whole ones: .*more documents"
    ):
        described(path)


def test_little_text_is_called_that_however_few_its_documents(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too little text: .*give more text"):
        described(write_jsonl(tmp_path / "one.jsonl", [PARAGRAPH[:100]]))


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_no_separator_is_inside_of_a_document(tmp_path: Path, with_tokenizer: bool) -> None:
    tokenizer = kinds.saved(kinds.unigram(), tmp_path / "tokenizer.json") if with_tokenizer else None
    path = write_jsonl(tmp_path / "nul.jsonl", [f"{n}\0 a </s> b {PARAGRAPH}" for n in range(40)])
    config, _ = described(path, tokenizer=tokenizer)
    assert config.separator == ("</s>" if with_tokenizer else "")
    (folder,) = (tmp_path / "cache").glob("tokens-*")
    ids = np.concatenate([np.fromfile(one, np.uint8) for one in folder.glob("*.tokens")])
    assert (ids == (1 if with_tokenizer else 0)).sum() == 40


def test_a_named_separator_goes_into_the_manifest_and_has_tokens_of_its_own(tmp_path: Path) -> None:
    made = kinds.byte_level(kinds.DEEPSEEK_END)
    made.add_special_tokens(["</s>"])
    tokenizer = kinds.saved(made, tmp_path / "tokenizer.json")
    path = write_jsonl(tmp_path / "text.jsonl", [f"{n} {PARAGRAPH}" for n in range(40)])
    own, _ = described(path, SMALL.model_copy(update={"separator": kinds.DEEPSEEK_END}), tokenizer)
    usual, _ = described(path, SMALL, tokenizer)
    assert (own.separator, usual.separator) == (kinds.DEEPSEEK_END, "</s>")
    for config, number in ((own, 0), (usual, made.token_to_id("</s>"))):
        found = open_windows(config, path, tokenizer, tmp_path / "cache")
        assert number in found.train(range(found.num_windows))
    with pytest.raises(DataError, match=r"data\.separator = '</s>': plain bytes have none"):
        described(path, SMALL.model_copy(update={"separator": "</s>"}))
    with pytest.raises(DataError, match=r"data\.separator = '</s>'"):
        describe_data(DataConfig(separator="</s>"), None, None, tmp_path / "cache")


def test_dropout_is_told(tmp_path: Path) -> None:
    tokenizer = kinds.saved(kinds.byte_level(), tmp_path / "tokenizer.json", dropout=0.1)
    path = write_jsonl(tmp_path / "text.jsonl", [f"{n} {PARAGRAPH}" for n in range(40)])
    assert described(path, tokenizer=tokenizer)[1][1:] == [
        "the tokenizer's dropout 0.1 is off: all peers must get the same tokens"
    ]


# ---------------------------------------------------------------- what lies beside


def test_what_lies_beside_the_text_is_not_read_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [f"{n} {PARAGRAPH}" for n in range(40)])
    (folder / "License to raise a barn.txt").write_text(PARAGRAPH)
    beside = "README.txt readme_de.txt LICENSE.txt SHA256SUMS SHA256SUMS.txt md5sums.txt a.jsonl.sha256 book.md5.txt"
    for name in [*beside.split(), *(f"{n}.parquet" for n in range(5)), "notes.md", ".hidden"]:
        (folder / name).write_text("1234 not a text")
    assert [file.name for file in find_files(folder)] == ["License to raise a barn.txt", "a.jsonl"]
    assert described(folder)[1][3] == (
        "beside the text, not read: SHA256SUMS, notes.md, 5 files .parquet, a.jsonl.sha256, 6 files .txt"
    )
    assert find_files(folder / "README.txt")  # who names it means it


def test_a_folder_without_text_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("about the data")
    (tmp_path / "a.parquet").touch()
    with pytest.raises(
        DataError, match=r"no text there that ends with one of .*; there are a\.parquet, README\.txt; give"
    ):
        find_files(tmp_path)


# ---------------------------------------------------------------- before torch


def run_on(data: DataConfig) -> RunConfig:
    return preset_config("tiny").model_copy(update={"data": data})


def test_another_text_or_tokenizer_is_refused_early(tmp_path: Path) -> None:
    tokenizer = kinds.saved(kinds.byte_level(), tmp_path / "tokenizer.json")
    other = kinds.saved(kinds.unigram(), tmp_path / "other.json")
    path = write_jsonl(tmp_path / "text.jsonl", [f"{n} {PARAGRAPH}" for n in range(40)])
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [f"{n} {PARAGRAPH}" for n in range(39, -1, -1)])
    assert path.stat().st_size == wrong.stat().st_size
    data, cache = described(path, tokenizer=tokenizer)[0], tmp_path / "cache"
    run = preset_config("tiny").model_copy(update={"data": data})
    roomy = run.model_copy(update={"model": run.model.model_copy(update={"vocab_size": 400})})
    refuse_other_text(roomy, path, tokenizer, cache)
    for config, text, its_tokenizer, because in (
        (roomy, wrong, tokenizer, "wrong data"),
        (roomy, path, other, "wrong tokenizer"),
        (run, path, tokenizer, "vocab_size to 400"),
        (run_on(DataConfig()), path, None, "leave out --data"),
        (None, tokenizer, None, "not a kind of text"),
        (None, path, path, "not a tokenizer.json"),
    ):
        with pytest.raises(DataError, match=because):
            refuse_other_text(config, text, its_tokenizer, cache)
    refuse_other_text(None, path, tokenizer, cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_SOON_HASHED_BYTES", 10)  # too large to be hashed at once: its size tells
        refuse_other_text(roomy, wrong, tokenizer, cache)
        wrong.write_text("another size")
        with pytest.raises(DataError, match="wrong data: the digest of its 12 bytes is another one"):
            refuse_other_text(roomy, wrong, tokenizer, cache)


_NEW = """
import sys
from pathlib import Path
from peer.main import make_run, run_peer
from peer.options import PeerOptions
config, data, tokenizer, home = map(Path, sys.argv[2:6])
if sys.argv[1] == "new":
    code = make_run(config, home / "m", home=home, data=data, tokenizer=tokenizer, port=0, local=True)
else:
    code = run_peer(PeerOptions(config=config, data=data, tokenizer=tokenizer, home=home, local=True))
print(code, sorted({"torch", "hivemind"} & set(sys.modules)))
"""


@pytest.mark.parametrize("command", ["new", "peer"])
@pytest.mark.parametrize("wrong", ["text", "tokenizer"])
def test_a_wrong_text_or_tokenizer_is_refused_before_torch_is_loaded(tmp_path: Path, command: str, wrong: str) -> None:
    (tmp_path / "run.toml").write_text('preset = "tiny"\n[data]\nkind = "files"\n[model]\nvocab_size = 512\n')
    text = write_jsonl(tmp_path / "text.jsonl", ["one", "two"] if wrong == "text" else [PARAGRAPH] * 99)
    special = "<|endoftext|>" if wrong == "text" else "<pad>"
    tokenizer = kinds.saved(kinds.byte_level(special), tmp_path / "tokenizer.json")
    arguments = [command, tmp_path / "run.toml", text, tokenizer, tmp_path / "home"]
    done = subprocess.run(
        [sys.executable, "-c", _NEW, *map(str, arguments)],
        env={"BARNRAISE_DATA": str(tmp_path / "data"), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1:] == ["2 []"], done
    (line,) = done.stderr.splitlines()
    assert ("too little text" if wrong == "text" else "has no end-of-text token") in line
