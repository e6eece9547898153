"""The golden probe: a fixed vector through decode, mean and each outer optimizer must give known bits on this machine.

Peers agree only as long as everyone's arithmetic rounds alike. A device, a build of torch or a thread setting that does
not (flushed denormals, fused or approximate operations) is found here at the start, not by differing digests later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from swarm.allreduce.codec import Int8Codec, RawCodec, bytes_of
from swarm.allreduce.mean import weighted_mean
from swarm.allreduce.outer import OuterState, initial_outer_state, next_scalars, outer_step
from swarm.config import OuterConfig
from swarm.digest import digest_of

_SIZE: Final = 100_003  # enough for several threads of torch; no multiple of any vector width
_BLOCK: Final = 4096
_STEPS: Final = 2
_TOKENS: Final = (16_777_217, 3, 65_521)  # the first is rounded to fp32
_OUTERS: Final = (
    OuterConfig(optimizer="sgd", learning_rate=0.7, weight_decay=0.01),
    OuterConfig(optimizer="nesterov", learning_rate=0.7, momentum=0.9, weight_decay=0.0),
    OuterConfig(optimizer="adamw", learning_rate=0.003, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.1),
)
GOLDEN: Final = {
    "decode raw": "56de0245e311c81d88fc61905bdd8b775991096f8b8987d87fba07b91df2d365",
    "decode int8": "05f91d4415e7ad7b27be83375e77dbe1c553925fed51cbc8874c2c18dab91d92",
    "mean": "9b937b226a21bbc04718d987976411a1e6614263087510fa40cb0e4cc5a17995",
    "outer sgd": "52104da43ac25144d1786a2b278c15cf462bfabbe512d566fedaa5fb445adeaa",
    "outer nesterov": "cc25df93dd2448797a7aa78838049b2da327d2ce3d3eee0bf1a764d2e17c6fdf",
    "outer adamw": "cc6cd8fb60dee683e829867eac37eaf864a15ede45081545c9df84b8ed040c89",
}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Whether a device may apply commits, and why not."""

    passed: bool
    reason: str  # "" when it passed


def run_probe(device: str | torch.device = "cpu") -> ProbeResult:
    """Runs the probe in the calling thread, which must be the one that will apply commits."""
    try:
        if not _denormals_survive(device):
            return ProbeResult(False, f"{device}: numbers below 1.2e-38 are flushed to zero")
        found = probe_digests(device)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # torch's words for a device that fails, and for one it was not built for
        return ProbeResult(False, f"{device}: {str(error).splitlines()[0][:200]}")
    wrong = [name for name, digest in GOLDEN.items() if found[name] != digest]
    if wrong:
        return ProbeResult(False, f"{device}: {', '.join(wrong)} do not give the same bits as the reference")
    return ProbeResult(True, "")


def probe_digests(device: str | torch.device = "cpu") -> dict[str, str]:
    """The digest, in hex, of every part of the probe on a device."""
    raw = RawCodec().decode(_raw_payload(), _SIZE)
    int8 = Int8Codec(_BLOCK).decode(_int8_payload(), _SIZE)
    decoded = [one.to(device) for one in (raw, int8, raw.flip(0))]
    mean_N = weighted_mean(decoded, _TOKENS)
    found = {"decode raw": _hex(raw), "decode int8": _hex(int8), "mean": _hex(mean_N)}
    for config in _OUTERS:
        found[f"outer {config.optimizer}"] = _hex(*_outer(config, decoded[1], mean_N))
    return found


def _outer(config: OuterConfig, anchor_N: Tensor, mean_N: Tensor) -> tuple[Tensor, ...]:
    """The anchor and buffers after two steps, the second with a mean of its own."""
    state = initial_outer_state(config, anchor_N)
    for step in range(_STEPS):
        scalars = next_scalars(config, state.scalars)
        step_mean_N = mean_N.flip(0) if step else mean_N
        anchor_N, buffers = outer_step(config, anchor_N, state.buffers, scalars, step_mean_N)
        state = OuterState(buffers, scalars)
    return anchor_N, *state.buffers


def _numbers(multiplier: int, modulus: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A fixed sequence in [0, modulus), by integers alone: a random generator differs between machines."""
    return (np.arange(1, _SIZE + 1, dtype=np.int64) * multiplier) % modulus


def _raw_payload() -> bytes:
    """fp32 numbers of both signs by their bits: exponents from 2^-30 to 2^1, whole mantissas, each 17th denormal."""
    mantissa, exponent, sign = _numbers(7_368_787, 1 << 23), 97 + _numbers(7919, 32), _numbers(104_729, 2)
    exponent[::17] = 0
    return (sign << 31 | exponent << 23 | mantissa).astype("<u4").tobytes()


def _int8_payload() -> bytes:
    """Steps around 2^-10 with whole mantissas, one of them denormal, and all integers from -127 to 127."""
    blocks = -(-_SIZE // _BLOCK)
    scales = (117 << 23) + _numbers(6_700_417, 1 << 23)[:blocks]
    scales[3] = 12345
    return scales.astype("<u4").tobytes() + (_numbers(7919, 255) - 127).astype("i1").tobytes()


def _hex(*vectors: Tensor) -> str:
    return digest_of("probe", *(bytes_of(vector.cpu()) for vector in vectors)).hex()


def _denormals_survive(device: str | torch.device) -> bool:
    """Whether this thread keeps numbers below the smallest normal one, in and out of an operation."""
    bits = torch.tensor([1, 1 << 23], dtype=torch.int32)  # the smallest number, and the smallest normal one
    numbers = bits.view(torch.float32).to(device)
    results = torch.cat([numbers[:1] * 2.0, numbers[1:] * 0.5]).cpu()
    return results.view(torch.int32).tolist() == [2, 1 << 22]
