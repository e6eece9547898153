"""How a pseudo-gradient becomes bytes: one `Codec` interface, per-unit payloads, and the blob that carries them.

N = elements of the flat parameter vector, U = elements of one unit, K = blocks of a unit.

Decoding uses only operations that round the same on every machine (products of fp32 tensors), because everyone decodes
the same bytes and must get the same bits. Encoding happens once, at the author.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from swarm import wire
from swarm.config import CodecConfig
from swarm.digest import DIGEST_BYTES, Digest, blob_digest
from swarm.errors import LocalError, MalformedBytes

_MAGIC: Final = b"brncntr1"
_MAX_HEADER_BYTES: Final = 256 << 10  # 1024 units of about 50 bytes, with room
_INT8_STEPS: Final = 127
_SMALLEST_STEP: Final = float(
    np.finfo(np.float32).tiny
)  # below it numbers lose bits, and a peer might flush them to zero
_LARGEST_STEP: Final = float(np.nextafter(np.finfo(np.float32).max / np.float32(_INT8_STEPS), np.float32(0)))


class Codec(Protocol):
    """Vectors to bytes and back. `decode(encode(x))` is what was really sent; its author subtracts that from x."""

    @property
    def name(self) -> str: ...

    def encode(self, vector_U: Tensor) -> bytes:
        """The payload of a finite CPU vector of fp32 (or fp64, rounded to fp32 first). Raises LocalError: not finite."""
        ...

    def decode(self, payload: bytes | memoryview, num_elements: int) -> Tensor:
        """(U,) fp32 on the CPU, the same bits on every machine. Raises MalformedBytes: wrong length, or not finite."""
        ...


def bytes_of(vector: Tensor) -> bytes:
    """The little-endian bytes of a CPU vector."""
    array = vector.detach().contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def vector_from(raw: bytes | memoryview, dtype: torch.dtype = torch.float32) -> Tensor:
    """A CPU vector from its little-endian bytes; its own memory."""
    kind = {torch.float32: "<f4", torch.float64: "<f8", torch.int8: "i1"}[dtype]
    return torch.from_numpy(np.frombuffer(raw, dtype=kind).astype(kind[-2:], copy=True))


class RawCodec:
    """fp32 as it is: the oracle of every other codec."""

    name = "raw"

    def encode(self, vector_U: Tensor) -> bytes:
        return bytes_of(_finite_fp32(vector_U))

    def decode(self, payload: bytes | memoryview, num_elements: int) -> Tensor:
        _check_payload_length(payload, 4 * num_elements)
        vector_U = vector_from(payload)
        _check_finite(vector_U)
        return vector_U


class Int8Codec:
    """8 bits an element, one fp32 scale a block: the absolute maximum of a block is 127 steps.

    The error of an element is at most half a step of its block. A block all below 127 times the smallest normal number
    (1.5e-36) is sent as zeros.
    """

    name = "int8"

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def encode(self, vector_U: Tensor) -> bytes:
        num_blocks = self._num_blocks(vector_U.numel())
        padded = torch.zeros(num_blocks * self._block_size, dtype=torch.float32)
        padded[: vector_U.numel()] = _finite_fp32(vector_U)
        blocks_KB = padded.view(num_blocks, self._block_size)
        scale_K = blocks_KB.abs().amax(dim=1) * float(np.float32(1) / np.float32(_INT8_STEPS))
        scale_K.clamp_(max=_LARGEST_STEP)  # 127 steps of it are finite again
        # What is too small for a step is sent as zeros; the residual keeps it.
        scale_K = torch.where(scale_K >= _SMALLEST_STEP, scale_K, torch.zeros_like(scale_K))
        divisor_K = torch.where(scale_K > 0, scale_K, torch.full_like(scale_K, torch.inf))
        steps_KB = torch.round(blocks_KB / divisor_K.unsqueeze(1)).clamp_(-_INT8_STEPS, _INT8_STEPS)
        return bytes_of(scale_K) + bytes_of(steps_KB.to(torch.int8).view(-1)[: vector_U.numel()])

    def decode(self, payload: bytes | memoryview, num_elements: int) -> Tensor:
        num_blocks = self._num_blocks(num_elements)
        _check_payload_length(payload, 4 * num_blocks + num_elements)
        view = memoryview(payload)
        scale_K = vector_from(view[: 4 * num_blocks])
        _check_finite(scale_K)
        steps = torch.zeros(num_blocks * self._block_size, dtype=torch.float32)
        steps[:num_elements] = vector_from(view[4 * num_blocks :], torch.int8).to(torch.float32)
        vector_U = (steps.view(num_blocks, self._block_size) * scale_K.unsqueeze(1)).view(-1)[:num_elements]
        _check_finite(vector_U)
        return vector_U.contiguous()

    def _num_blocks(self, num_elements: int) -> int:
        return -(-num_elements // self._block_size)


def make_codec(config: CodecConfig) -> Codec:
    """The codec that a manifest names."""
    match config.name:
        case "raw":
            return RawCodec()
        case "int8":
            return Int8Codec(config.block_size)


def _check_payload_length(payload: bytes | memoryview, due: int) -> None:
    if len(payload) != due:
        raise MalformedBytes(f"a payload of {len(payload)} bytes where {due} are due")


def _finite_fp32(vector_U: Tensor) -> Tensor:
    rounded_U = vector_U.to(torch.float32)
    if not bool(torch.isfinite(rounded_U).all()):
        raise LocalError("a pseudo-gradient holds values that are not finite in fp32")
    return rounded_U


def _check_finite(vector: Tensor) -> None:
    if not bool(torch.isfinite(vector).all()):
        raise MalformedBytes("a payload holds a value that is not finite")


@dataclass(frozen=True, slots=True)
class UnitPayload:
    """Where one unit's payload lies in a contribution blob, and its digest."""

    offset: int
    num_bytes: int
    digest: Digest


def pack_contribution(codec: Codec, first_unit: int, payloads: Sequence[bytes]) -> bytes:
    """The blob of a contribution to units [first_unit, first_unit + len(payloads)): a header, then the payloads."""
    header = wire.encode([codec.name, first_unit, [[len(one), blob_digest(one).raw] for one in payloads]])
    return b"".join([_MAGIC, len(header).to_bytes(4, "little"), header, *payloads])


class Blob(Protocol):
    """The bytes of a blob, of which parts are read as they are needed: `bytes`, a view, or a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes | memoryview: ...


def read_contribution(blob: Blob, codec: Codec, first_unit: int, num_units: int) -> tuple[UnitPayload, ...]:
    """Where the units' payloads lie; raises MalformedBytes unless the blob is laid out as `pack_contribution` does it.

    The units' digests are not compared here: hashing is for whoever takes the blob in.
    """
    start = bytes(blob[: len(_MAGIC) + 4])
    if len(start) < len(_MAGIC) + 4 or not start.startswith(_MAGIC):
        raise MalformedBytes("not a contribution")
    header_bytes = int.from_bytes(start[len(_MAGIC) :], "little")
    body = len(start) + header_bytes
    if header_bytes > _MAX_HEADER_BYTES or body > len(blob):
        raise MalformedBytes(f"a contribution header of {header_bytes} bytes")
    header = wire.decode(bytes(blob[len(start) : body]), max_bytes=_MAX_HEADER_BYTES)
    match header:
        case [codec.name, int(first), [*units]] if (
            first == first_unit and not isinstance(first, bool) and len(units) == num_units
        ):
            pass
        case _:
            raise MalformedBytes(f"not a {codec.name} contribution to units [{first_unit}, {first_unit + num_units})")
    found, offset = [], body
    for unit in units:
        match unit:
            case [int(num_bytes), bytes(digest)] if (
                len(digest) == DIGEST_BYTES and 0 <= num_bytes <= len(blob) - offset and not isinstance(num_bytes, bool)
            ):
                found.append(UnitPayload(offset, num_bytes, Digest(digest)))
                offset += num_bytes
            case _:
                raise MalformedBytes("a unit of a contribution is its length and its digest, within the blob")
    if offset != len(blob):
        raise MalformedBytes(f"{len(blob) - offset} bytes behind a contribution")
    return tuple(found)
