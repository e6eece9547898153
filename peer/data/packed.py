"""Packed files, `.zst` and `.gz`, as streams of bytes that say whether they came to their end or were cut off.

Both kinds may hold several frames (members of a .gz) one after the other, as parallel packers write them; they are read
as one. A file that ends inside a frame was cut off, most often in a download. The libraries tell that of a .gz only.
"""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, BinaryIO, Final, cast

import zstandard

PACKED_SUFFIXES: Final = (".zst", ".gz")
BROKEN: Final = (zstandard.ZstdError, zlib.error, gzip.BadGzipFile)  # what reading a damaged file raises
# `zstd --long=31`, the most that the zstd command packs with: so much memory is taken while such a file is read.
MAX_WINDOW_BYTES: Final = 1 << 31
_BLOCK_BYTES: Final = 1 << 20
_MAX_HEADER_BYTES: Final = 18  # of a frame
_SKIPPABLE: Final = range(0x184D2A50, 0x184D2A60)  # magic numbers of frames that hold no data
_BLOCK_HEADER_BYTES: Final = 3
_CHECKSUM_BYTES: Final = 4
_RUN_LENGTH: Final = 1  # the type of a block that is one byte on disk, however long


class PackedStream(io.BufferedReader):
    """The unpacked bytes of a file; `cut_off` is known once they are read to their end."""

    def __init__(self, raw: BinaryIO, suffix: str) -> None:
        """Reads `raw`, whose name ends with `suffix`, from its start."""
        if suffix.endswith(".gz"):
            self._source: _Members | None = _Members(raw)
            self._whole = raw.seek(0, io.SEEK_END) > 0
            raw.seek(0)
            super().__init__(self._source, _BLOCK_BYTES)
        else:
            self._source = None
            self._whole = _all_frames_end(raw)
            unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
            frames: Any = unpacker.stream_reader(raw, read_across_frames=True)
            super().__init__(frames, _BLOCK_BYTES)

    @property
    def cut_off(self) -> bool:
        """Whether the file ends in the midst of a frame."""
        return not self._whole or (self._source is not None and self._source.cut_off)


class _Members(io.RawIOBase):
    """The members of a .gz. Ends where the file does, in the midst of a member too."""

    def __init__(self, raw: BinaryIO) -> None:
        self._members = gzip.GzipFile(fileobj=raw, mode="rb")
        self.cut_off = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._members.read1(len(buffer))  # `read` would lose what comes before the place of the cut
        except EOFError:
            self.cut_off = True
            return 0
        buffer[: len(found)] = found
        return len(found)


def _all_frames_end(raw: BinaryIO) -> bool:
    """Whether the last frame of a .zst ends where the file does; from the sizes of its blocks alone. Leaves `raw` at 0.

    What is no frame at all is left to the unpacker to complain about.
    """
    size = raw.seek(0, io.SEEK_END)
    file = io.BufferedReader(cast(io.RawIOBase, raw), _MAX_HEADER_BYTES)
    try:
        at = 0
        while at < size:
            file.seek(at)
            header = file.read(_MAX_HEADER_BYTES)
            if int.from_bytes(header[:4], "little") in _SKIPPABLE:
                at += 8 + int.from_bytes(header[4:8], "little")
                continue
            try:
                frame = zstandard.get_frame_parameters(header)
                at += zstandard.frame_header_size(header)
            except zstandard.ZstdError:
                return len(header) == _MAX_HEADER_BYTES  # else it is the header that is cut in two
            at = _end_of_blocks(file, at, size) + _CHECKSUM_BYTES * frame.has_checksum
        return at == size > 0
    finally:
        file.detach()
        raw.seek(0)


def _end_of_blocks(file: BinaryIO, at: int, size: int) -> int:
    """Where the last block of a frame ends whose first one begins at `at`; beyond `size` if it is cut off."""
    while at + _BLOCK_HEADER_BYTES <= size:
        file.seek(at)
        header = int.from_bytes(file.read(_BLOCK_HEADER_BYTES), "little")
        is_last, kind, num_bytes = header & 1, header >> 1 & 3, header >> 3
        at += _BLOCK_HEADER_BYTES + (1 if kind == _RUN_LENGTH else num_bytes)
        if is_last:
            return at
    return size + 1
