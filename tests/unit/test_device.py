"""The choice of a device is a function of what was asked and what is there."""

from __future__ import annotations

import pytest
import torch

from peer.device import choose_device, describe_device, device_load, resolve_device, usable_cores
from swarm.errors import ConfigError

TWO = ["RTX 4090", "RTX 3060"]


@pytest.mark.parametrize(
    ("requested", "gpus", "expected"),
    [
        (None, [], "cpu"),
        ("auto", [], "cpu"),
        ("auto", TWO, "cuda:0"),
        (None, TWO, "cuda:0"),
        ("cpu", TWO, "cpu"),
        ("CUDA", TWO, "cuda:0"),
        ("cuda:1", TWO, "cuda:1"),
    ],
)
def test_resolves(requested: str | None, gpus: list[str], expected: str) -> None:
    device, reason = resolve_device(requested, gpus)
    assert device == torch.device(expected) and reason.startswith(expected)


@pytest.mark.parametrize(
    ("requested", "gpus"),
    [("cuda", []), ("cuda:2", TWO), ("cuda:-1", TWO), ("cuda:01", TWO), ("tpu", TWO), ("gpu", []), ("cuda:x", TWO)],
)
def test_absent_or_unknown_devices_are_refused_with_a_list(requested: str, gpus: list[str]) -> None:
    with pytest.raises(ConfigError, match="no such device") as caught:
        resolve_device(requested, gpus)
    message = str(caught.value)
    assert requested in message and "cpu" in message and "\n" not in message
    assert all(f"cuda:{index} ({name})" in message for index, name in enumerate(gpus))


def test_cpu_of_this_machine_is_described() -> None:
    device, _ = choose_device("cpu")
    assert f"{usable_cores()} cores" in describe_device(device) and "\n" not in describe_device(device)
    assert device_load(device) is None
