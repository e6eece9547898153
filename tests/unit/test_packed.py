"""Packed text: read whatever packed it, refused when it was cut off at any byte, and said plainly."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import zstandard

from peer.data.files import Item, TextReader, find_files
from peer.data.packed import MAX_WINDOW_BYTES, PackedStream
from swarm.errors import DataError

SKIPPABLE: Final = struct.pack("<II", 0x184D2A53, 5) + b"aside"


def lines(count: int) -> list[bytes]:
    chance = random.Random(9)
    return [json.dumps({"text": f"{n} {chance.randbytes(30).hex()}"}).encode() + b"\n" for n in range(count)]


def one_frame(parts: list[bytes]) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(b"".join(parts))


def streamed(parts: list[bytes]) -> bytes:
    """Without its size in front, and in several blocks, one of them all of one byte."""
    packer = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    packed = b"".join(packer.compress(part) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for part in parts)
    return packed + packer.compress(b" " * 300_000) + packer.flush()


def frames(parts: list[bytes]) -> bytes:
    return SKIPPABLE + SKIPPABLE.join(one_frame([part]) for part in parts)


def members(parts: list[bytes]) -> bytes:
    return b"".join(gzip.compress(part, mtime=0) for part in parts)


def one_member(parts: list[bytes]) -> bytes:
    return gzip.compress(b"".join(parts), mtime=0)


PACKINGS: Final = [
    (one_frame, ".jsonl.zst"),
    (streamed, ".jsonl.zst"),
    (frames, ".jsonl.zst"),
    (members, ".jsonl.gz"),
    (one_member, ".jsonl.gz"),
]
Pack = Callable[[list[bytes]], bytes]


def items(path: Path) -> list[Item]:
    (file,) = find_files(path)
    with TextReader(file) as reader:
        return list(reader.items())


@pytest.mark.parametrize(("pack", "suffix"), PACKINGS)
def test_every_packing_gives_the_lines(tmp_path: Path, pack: Pack, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pack(lines(20)))
    found = items(path)
    assert [item.text.split()[0] for item in found if item.text] == [str(n) for n in range(20)]
    (file,) = find_files(path)
    with TextReader(file, found[6].offset, found[6].line) as reader:
        assert list(reader.items()) == found[7:]


@pytest.mark.parametrize(("pack", "suffix"), PACKINGS)
def test_cut_off_at_any_byte_is_refused(tmp_path: Path, pack: Pack, suffix: str) -> None:
    packed, path = pack(lines(6)), tmp_path / f"a{suffix}"
    seams = set()  # between two whole frames nothing shows that others followed
    if pack in (frames, members):
        seams = {len(pack(lines(6)[:count])) for count in range(1, 7)}
    if pack is frames:
        seams |= {len(SKIPPABLE), *(seam + len(SKIPPABLE) for seam in seams)}
    for length in range(len(packed)):
        path.write_bytes(packed[:length])
        if length in seams:
            items(path)
            continue
        # Of a .gz a single byte of a member's two magic ones is left: not known to be one.
        with pytest.raises(
            DataError, match=r"(cut off after document \d+|Not a gzipped file .*); fetch the file again"
        ):
            items(path)


@pytest.mark.parametrize(("pack", "suffix"), [(frames, ".jsonl.zst"), (members, ".jsonl.gz")])
def test_the_last_whole_document_is_named(tmp_path: Path, pack: Pack, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pack(lines(400))[: len(pack(lines(240))) + 40])
    with pytest.raises(DataError, match="cut off after document 240; fetch the file again"):
        items(path)


def long_window(log: int) -> bytes:
    settings = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return packer.compress(b"".join(lines(20))) + packer.flush()


def test_what_zstd_long_made_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    for log in (27, 28, 30):  # 31 as well, at 2 GiB of memory for the packer of this test
        path.write_bytes(long_window(log))
        assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 1 << log
        assert len(items(path)) == 20
    assert MAX_WINDOW_BYTES == 1 << 31


def test_a_gz_that_is_damaged_or_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    packed = bytearray(one_member(lines(50)))
    packed[len(packed) // 2] ^= 0xFF
    for content in (bytes(packed), b"no gz at all", one_member(lines(3)) + b"trailing"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.jsonl\.gz: broken behind line \d+: .*; fetch the file again"):
            items(path)


def test_the_stream_says_at_its_end_whether_it_is_whole() -> None:
    for suffix, pack in ((".zst", one_frame), (".gz", one_member)):
        for content, cut_off in ((pack(lines(3)), False), (pack(lines(3))[:-1], True), (b"", True)):
            stream = PackedStream(io.BytesIO(content), suffix)
            stream.read()
            assert stream.cut_off is cut_off
