"""Windows: cut as an independent reference cuts them, alike in every process, refused when the data are others."""

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zstandard

from peer.data import windows
from peer.data.background import BackgroundWindows
from peer.data.embedded import build_embedded_blob, embedded_path, parse_embedded_blob
from peer.data.tokens import Counts
from peer.data.windows import TokenRuns, describe_data, open_windows
from swarm.config import DataConfig, SourceConfig
from swarm.digest import Digest, blob_digest
from swarm.errors import DataError, TimedOut
from swarm.permutation import permute

SMALL = DataConfig(sequence_length=16, eval_windows=4, seed=3)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": f"document {n} " + "some words " * (n % 30)}) for n in range(400)]
    path.write_text("\n".join(lines))
    return path


def test_runs_are_cut_as_the_reference_cuts_them() -> None:
    arrays = [np.arange(50, dtype=np.uint8), np.arange(3, dtype=np.uint8), np.arange(100, 125, dtype=np.uint16)]
    runs = TokenRuns(arrays, 8)
    reference = [
        array[start : start + 9].tolist()
        for array in arrays
        for start in range(0, len(array), 8)
        if start + 9 <= len(array)
    ]
    assert runs.num_windows == len(reference)
    taken = runs.take(list(range(runs.num_windows)))
    assert taken.dtype == np.int64 and taken.tolist() == reference
    assert runs.take([]).shape == (0, 9)
    for wrong in (-1, runs.num_windows):
        with pytest.raises(IndexError):
            runs.take([wrong])


def test_embedded_windows_are_the_text_in_the_shared_order(tmp_path: Path) -> None:
    config = describe_data(SMALL, None, None, tmp_path)
    text = parse_embedded_blob(build_embedded_blob())
    assert config.num_windows == (len(text.train) - 1) // 16
    assert config.num_heldout_windows == (len(text.heldout) - 1) // 16
    found = open_windows(config, None, None, tmp_path)
    for slot in (0, 5, config.num_windows + 5):
        done_passes, place = divmod(slot, config.num_windows)
        start = 16 * permute(place, config.num_windows, 3 + done_passes)
        assert bytes(found.train([slot])[0].astype(np.uint8)) == text.train[start : start + 17]
    assert bytes(found.heldout([2])[0].astype(np.uint8)) == text.heldout[32:49]
    assert Counts.total(found.sources).tokens == len(text.train) + len(text.heldout)
    with pytest.raises(IndexError):
        found.heldout([config.num_heldout_windows])
    found.close()
    with pytest.raises(IndexError):
        found.train([0])


def test_a_second_start_reads_the_embedded_text_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = describe_data(SMALL, None, None, tmp_path)
    monkeypatch.setattr("peer.data.embedded.build_embedded_blob", None)  # whoever builds it again fails
    assert open_windows(config, None, None, tmp_path).num_windows == config.num_windows


def test_another_pythons_text_is_fetched_from_peers(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    for number in range(200):
        (tmp_path / "library" / f"m{number}.py").write_text(f"# {number} of a newer release\n" * 20)
    blob = build_embedded_blob(tmp_path / "library")
    text = parse_embedded_blob(blob)
    source = SourceConfig(name="newer", digest=blob_digest(blob).hex(), num_bytes=len(blob))
    numbers = {"num_windows": (len(text.train) - 1) // 16, "num_heldout_windows": (len(text.heldout) - 1) // 16}
    config = SMALL.model_copy(update={"sources": (source,), **numbers})
    with pytest.raises(DataError, match=source.digest[:12]):
        open_windows(config, None, None, tmp_path / "cache")
    found = open_windows(config, None, None, tmp_path / "cache", fetch_blob={blob_digest(blob): blob}.__getitem__)
    assert found.num_windows == numbers["num_windows"]
    assert embedded_path(tmp_path / "cache", Digest.from_hex(source.digest)).read_bytes() == blob


def test_packed_and_plain_files_give_the_same_windows(tmp_path: Path, corpus: Path) -> None:
    packed = tmp_path / "packed.jsonl.zst"
    packed.write_bytes(zstandard.ZstdCompressor().compress(corpus.read_bytes()))
    taken = []
    for path in (corpus, packed):
        config = describe_data(SMALL, path, None, tmp_path / "cache")
        assert (config.kind, config.tokenizer, config.sources[0].name) == ("files", "bytes", path.name)
        found = open_windows(config, path, None, tmp_path / "cache")
        assert found.num_windows == config.num_windows and found.num_heldout_windows >= SMALL.eval_windows
        taken.append((found.train(range(50)).tolist(), found.heldout(range(4)).tolist()))
    assert taken[0] == taken[1]


def test_every_window_comes_once_a_pass(tmp_path: Path, corpus: Path) -> None:
    config = describe_data(SMALL, corpus, None, tmp_path / "cache")
    found = open_windows(config, corpus, None, tmp_path / "cache")
    first = found.train(range(config.num_windows))
    second = found.train(range(config.num_windows, 2 * config.num_windows))
    assert not np.array_equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())


_SCRIPT = """
import hashlib, sys
from pathlib import Path
from peer.data.windows import open_windows
from swarm.config import DataConfig
found = open_windows(DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), None, Path(sys.argv[3]))
print(hashlib.sha256(found.train(range(200)).tobytes() + found.heldout(range(4)).tobytes()).hexdigest())
"""


def test_order_is_equal_in_another_process_with_its_own_cache(tmp_path: Path, corpus: Path) -> None:
    config = describe_data(SMALL, corpus, None, tmp_path / "cache")
    found = open_windows(config, corpus, None, tmp_path / "cache")
    mine = hashlib.sha256(found.train(range(200)).tobytes() + found.heldout(range(4)).tobytes()).hexdigest()
    arguments = [sys.executable, "-c", _SCRIPT, config.model_dump_json(), str(corpus), str(tmp_path / "other-cache")]
    theirs = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    assert theirs.stdout.strip() == mine


def test_few_documents_give_up_a_larger_share(tmp_path: Path, corpus: Path) -> None:
    few = describe_data(SMALL, corpus, None, tmp_path / "cache")
    many = describe_data(SMALL.model_copy(update={"eval_windows": 200}), corpus, None, tmp_path / "cache")
    assert few.num_heldout_windows < 200 <= many.num_heldout_windows
    assert few.num_windows > many.num_windows
    with pytest.raises(DataError, match=r"too little text: \d+ tokens .* 100000 are to be evaluated on"):
        describe_data(SMALL.model_copy(update={"eval_windows": 100_000}), corpus, None, tmp_path / "cache")


def test_a_wrong_manifest_or_wrong_data_is_one_clear_line(tmp_path: Path, corpus: Path) -> None:
    cache = tmp_path / "cache"
    config = describe_data(SMALL, corpus, None, cache)
    other = tmp_path / "other.jsonl"
    other.write_bytes(corpus.read_bytes() + b'\n{"text": "one more"}')
    others = describe_data(SMALL, other, None, cache).sources[0].digest
    with pytest.raises(DataError, match=f"wrong data.*{others[:12]}.*{config.sources[0].digest[:12]}"):
        open_windows(config, other, None, cache)
    with pytest.raises(DataError, match="--data"):
        open_windows(config, None, None, cache)
    with pytest.raises(DataError, match="no such file"):
        open_windows(config, tmp_path / "nowhere", None, cache)
    with pytest.raises(DataError, match="--tokenizer"):
        open_windows(config.model_copy(update={"tokenizer": "ab" * 32}), corpus, None, cache)
    with pytest.raises(DataError, match="vocab_size to 256"):
        open_windows(config, corpus, None, cache, vocab_size=255)
    with pytest.raises(DataError, match="the text gives"):
        open_windows(config.model_copy(update={"num_windows": config.num_windows + 1}), corpus, None, cache)
    with pytest.raises(DataError, match="0 training windows"):
        open_windows(config.model_copy(update={"num_windows": 0}), corpus, None, cache)
    with pytest.raises(DataError, match="0 sources"):
        open_windows(config.model_copy(update={"sources": ()}), corpus, None, cache)
    with pytest.raises(DataError, match="not 64 hex"):
        open_windows(config.model_copy(update={"sources": (SourceConfig(name="x"),)}), corpus, None, cache)
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(DataError, match="empty"):
        describe_data(SMALL, empty, None, cache)
    embedded = describe_data(SMALL, None, None, cache)
    with pytest.raises(DataError, match="leave out --data"):
        open_windows(embedded, corpus, None, cache)


def test_wrong_data_is_refused_before_it_is_tokenized(tmp_path: Path, corpus: Path, monkeypatch) -> None:
    config = describe_data(SMALL, corpus, None, tmp_path / "cache")
    with corpus.open("ab") as file:
        file.write(b'\n{"text": "one more"}')
    monkeypatch.setattr(windows, "tokenized", None)
    with pytest.raises(DataError, match="wrong data"):
        open_windows(config, corpus, None, tmp_path / "cache")


def test_background_hands_over_windows_errors_and_progress(tmp_path: Path, corpus: Path) -> None:
    config = describe_data(SMALL, corpus, None, tmp_path / "cache")
    go_on = threading.Event()

    def open_them(progress):
        assert go_on.wait(30)
        return open_windows(config, corpus, None, tmp_path / "new-cache", progress=progress)

    opening = BackgroundWindows(open_them)
    assert not opening.done
    with pytest.raises(TimedOut):
        opening.result(timeout_s=0)
    go_on.set()
    assert opening.result(30).num_windows == config.num_windows
    assert opening.done and opening.progress[1].startswith("tokenizing")
    opening.close()

    failing = BackgroundWindows(lambda progress: open_windows(config, tmp_path / "nowhere", None, tmp_path))
    with pytest.raises(DataError, match="no such file"):
        failing.result(30)
    failing.close()


def test_closing_stops_the_thread_at_its_next_report() -> None:
    reported, closed = threading.Event(), threading.Event()

    def open_them(progress):
        progress(0.5, "half")
        reported.set()
        assert closed.wait(30)
        progress(0.6, "more")
        raise AssertionError("the thread went on after close")

    opening = BackgroundWindows(open_them)
    assert reported.wait(30)
    opening.close(timeout_s=0)
    closed.set()
    with pytest.raises(TimedOut, match="closed"):
        opening.result(30)
    opening.close()
    assert opening.progress == (0.5, "half")
