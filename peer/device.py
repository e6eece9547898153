"""Which device a peer trains on, and what to tell people about it.

Notable: NVIDIA's library counts all cards of the machine, torch only those that CUDA_VISIBLE_DEVICES leaves, so a card is
looked up by its UUID and never by its number.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml
import torch

from swarm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceLoad:
    """A GPU's momentary readings; None where the driver does not tell."""

    utilization: float | None  # 0 .. 1, of the last moments
    power_watts: float | None
    used_bytes: int | None
    total_bytes: int | None


def choose_device(requested: str | None) -> tuple[torch.device, str]:
    """Returns the device to train on, and why, for people. Raises ConfigError as `resolve_device` does."""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return resolve_device(requested, names)


def resolve_device(
    requested: str | None,  # None or "auto", "cpu", "cuda", "cuda:N"
    gpu_names: Sequence[str],  # of the CUDA devices, by index
) -> tuple[torch.device, str]:
    """Returns the device that is meant, and why, for people: the first GPU, or the CPU where there is none.

    Raises ConfigError for a device that is unknown or not there, with a list of what there is.
    """
    asked = (requested or "auto").strip().lower()
    if asked == "cpu":
        return torch.device("cpu"), "cpu, as asked"
    if asked == "auto" and not gpu_names:
        return torch.device("cpu"), "cpu: no CUDA device is there"
    if asked in ("auto", "cuda") and gpu_names:
        others = f", the first of {len(gpu_names)}" if len(gpu_names) > 1 else ""
        return torch.device("cuda:0"), f"cuda:0 ({gpu_names[0]}{others})"
    for index, name in enumerate(gpu_names):
        if asked == f"cuda:{index}":
            return torch.device(asked), f"{asked} ({name}), as asked"
    there = ", ".join(["cpu", *(f"cuda:{index} ({name})" for index, name in enumerate(gpu_names))])
    hint = "" if gpu_names else "; for an NVIDIA card, its driver and a CUDA build of torch are needed"
    raise ConfigError(f"no such device {requested!r}: choose auto or one of {there}{hint}")


def describe_device(device: torch.device) -> str:
    """Returns one line for people: a GPU's name and memory, or the CPU's name and cores."""
    if device.type != "cuda":
        return f"{_cpu_name()}, {usable_cores()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory"
    properties = torch.cuda.get_device_properties(device)
    if (load := device_load(device)) is None or load.total_bytes is None or load.used_bytes is None:
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    free_bytes = load.total_bytes - load.used_bytes
    return f"{properties.name}, {load.total_bytes / 2**30:.0f} GiB, {free_bytes / 2**30:.1f} GiB free"


def device_load(device: torch.device) -> DeviceLoad | None:
    """Returns a GPU's load as its driver reports it; None on a CPU and where NVIDIA's library is not there."""
    if device.type != "cuda":
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        memory = pynvml.nvmlDeviceGetMemoryInfo(card)
        return DeviceLoad(
            utilization=_reading(lambda: pynvml.nvmlDeviceGetUtilizationRates(card).gpu / 100),
            power_watts=_reading(lambda: pynvml.nvmlDeviceGetPowerUsage(card) / 1000),
            used_bytes=int(memory.used),
            total_bytes=int(memory.total),
        )
    except pynvml.NVMLError:
        return None  # a driver that hides the card: torch's own figures must do
    finally:
        pynvml.nvmlShutdown()


def usable_cores() -> int:
    """Returns the cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _reading(read: Callable[[], float]) -> float | None:
    try:
        return read()
    except pynvml.NVMLError:
        return None  # laptops and older cards do not report everything


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
