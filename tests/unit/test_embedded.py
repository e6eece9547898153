"""The embedded text: the same blob at every call, files held out whole, and a parser that hostile bytes cannot harm."""

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.data import embedded
from peer.data.embedded import build_embedded_blob, embedded_path, load_embedded_blob, parse_embedded_blob
from swarm import wire
from swarm.digest import blob_digest
from swarm.errors import DataError, MalformedBytes, RemoteError


def _library(folder: Path, num_files: int = 200) -> Path:
    for number in range(num_files):
        path = folder / ("" if number % 2 else "package") / f"m{number:03}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# module {number}\n")
    return folder


def _pack(index: object, bodies: bytes) -> bytes:
    packed = wire.encode(index)
    return struct.pack(">I", len(packed)) + packed + bodies


def test_this_python_gives_the_same_blob_twice_and_both_halves() -> None:
    blob = build_embedded_blob()
    assert blob == build_embedded_blob()
    assert len(blob) <= embedded.MAX_BLOB_BYTES
    text = parse_embedded_blob(blob)
    assert 0.01 < len(text.heldout) / len(text.train) < 0.15
    assert text.train.endswith(b"\0") and text.heldout.endswith(b"\0")


def test_files_come_sorted_whole_and_on_one_side(tmp_path: Path) -> None:
    library = _library(tmp_path)
    text = parse_embedded_blob(build_embedded_blob(library))
    train, heldout = text.train.split(b"\0"), text.heldout.split(b"\0")
    assert len(train) + len(heldout) == 202  # each half ends with a separator
    assert not set(train) & set(heldout) - {b""}
    numbers = [int(part.split()[-1]) for part in train if part]
    assert numbers == sorted(numbers, key=lambda number: (number % 2 == 0, number))  # "m..." before "package/..."
    (library / "m999.py").write_text("# another release adds a file\n")
    again = parse_embedded_blob(build_embedded_blob(library))
    assert set(heldout) <= set(again.heldout.split(b"\0"))


def test_what_is_no_plain_text_of_the_library_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("good")
    for name in ("test/a.py", "site-packages/b.py", "_sysconfigdata_x.py", "data.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("bad")
    (tmp_path / "latin.py").write_bytes(b"\xe9")
    (tmp_path / "zero.py").write_bytes(b"a\0b")
    (tmp_path / "empty.py").write_bytes(b"")
    (tmp_path / "link.py").symlink_to(tmp_path / "good.py")
    text = parse_embedded_blob(build_embedded_blob(tmp_path))
    assert text.train + text.heldout == b"good\0"


def test_the_blob_stays_below_its_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MAX_INDEX_BYTES", 1000)
    monkeypatch.setattr(embedded, "MAX_BLOB_BYTES", 1000 + 4 + 100)
    (tmp_path / "a.py").write_bytes(b"a" * 60)
    (tmp_path / "b.py").write_bytes(b"b" * 60)
    (tmp_path / "c.py").write_bytes(b"c" * 40)
    text = parse_embedded_blob(build_embedded_blob(tmp_path))
    assert sorted((text.train + text.heldout).split(b"\0")) == [b"", b"a" * 60, b"c" * 40]


def test_no_library_is_a_line_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        build_embedded_blob(tmp_path)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\0\1",
        b"\xff\xff\xff\xff" + bytes(100),
        _pack(7, b""),
        _pack([["a", 1]], b""),
        _pack([["a", 1]], b"xy"),
        _pack([["a", 0]], b""),
        _pack([["a", -1]], b""),
        _pack([["a", True]], b"x"),
        _pack([["a", 2**63]], b"x"),
        _pack([["a", 1, 1]], b"x"),
        _pack([[b"a", 1]], b"x"),
        _pack([["b", 1], ["a", 1]], b"xy"),
        _pack([["a", 1], ["a", 1]], b"xy"),
        _pack([["a" * 300_000, 1]], b"x"),
    ],
)
def test_malformed_blobs_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedBytes):
        parse_embedded_blob(raw)


def test_a_blob_beyond_the_cap_is_refused_unread() -> None:
    with pytest.raises(MalformedBytes, match="at most"):
        parse_embedded_blob(bytes(embedded.MAX_BLOB_BYTES + 1))


_GOOD = _pack([["a", 3], ["b", 4], ["c/d", 5]], b"xxxyyyyzzzzz")


@given(st.integers(0, len(_GOOD) * 8 - 1), st.integers(0, len(_GOOD)))
def test_damaged_blobs_raise_or_parse_within_their_size(bit: int, length: int) -> None:
    flipped = bytearray(_GOOD)
    flipped[bit // 8] ^= 1 << bit % 8
    for raw in (bytes(flipped), _GOOD[:length], bytes(flipped[:length]), _GOOD + _GOOD[:length]):
        try:
            text = parse_embedded_blob(raw)
        except MalformedBytes:
            continue
        assert len(text.train) + len(text.heldout) <= len(raw)


@given(st.binary(max_size=200))
def test_any_bytes_raise_or_parse(raw: bytes) -> None:
    for candidate in (raw, struct.pack(">I", len(raw)) + raw):
        with contextlib.suppress(MalformedBytes):
            parse_embedded_blob(candidate)


def test_a_joiner_with_another_python_fetches_once(tmp_path: Path) -> None:
    theirs = build_embedded_blob(_library(tmp_path / "theirs"))
    mine = _library(tmp_path / "mine", 150)
    digest, asked = blob_digest(theirs), []

    def fetch(wanted):
        asked.append(wanted)
        return theirs

    cache = tmp_path / "cache"
    assert load_embedded_blob(digest, cache, fetch, mine) == theirs
    assert load_embedded_blob(digest, cache, None, mine) == theirs
    assert asked == [digest]
    embedded_path(cache, digest).write_bytes(theirs[:-1] + b"?")  # a damaged cache is made anew
    assert load_embedded_blob(digest, cache, fetch, mine) == theirs
    assert len(asked) == 2


def test_equal_pythons_need_no_fetch(tmp_path: Path) -> None:
    library = _library(tmp_path / "library")
    blob = build_embedded_blob(library)
    assert load_embedded_blob(blob_digest(blob), tmp_path / "cache", None, library) == blob
    assert embedded_path(tmp_path / "cache", blob_digest(blob)).read_bytes() == blob


def test_without_peers_the_line_names_both_digests_and_a_liar_is_caught(tmp_path: Path) -> None:
    library = _library(tmp_path / "library")
    wanted, have = blob_digest(b"another"), blob_digest(build_embedded_blob(library))
    with pytest.raises(DataError, match=f"{wanted}.*{have}"):
        load_embedded_blob(wanted, tmp_path / "cache", None, library)
    with pytest.raises(RemoteError, match=str(wanted)):
        load_embedded_blob(wanted, tmp_path / "cache", lambda _: b"lies", library)
    assert not embedded_path(tmp_path / "cache", wanted).exists()
