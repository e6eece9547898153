"""The golden probe passes on every CPU setting, and fails where arithmetic differs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from swarm.allreduce import outer, probe
from swarm.allreduce.probe import GOLDEN, probe_digests, run_probe
from tests.unit.in_other_settings import capabilities, outputs


@pytest.fixture
def settings_of_this_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


def test_this_machine_passes() -> None:
    result = run_probe()
    assert result.passed and result.reason == "" and set(probe_digests()) == set(GOLDEN)


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads_passes(threads: int, settings_of_this_thread: None) -> None:
    torch.set_num_threads(threads)
    assert run_probe().passed


def test_every_cpu_capability_passes() -> None:
    found = outputs("from swarm.allreduce.probe import run_probe; print(run_probe())")
    assert len(found) >= max(2, len(capabilities()))
    assert set(found.values()) == {"ProbeResult(passed=True, reason='')\n"}


def test_flushed_denormals_are_found(settings_of_this_thread: None) -> None:
    if not torch.set_flush_denormal(True):
        assert run_probe().passed, "a CPU that cannot flush them has nothing to find"
        return
    result = run_probe()
    assert not result.passed and "flushed to zero" in result.reason


def test_flushed_denormals_would_change_the_bits(settings_of_this_thread: None) -> None:
    """So the vector holds enough of them, and the check for them guards something."""
    if torch.set_flush_denormal(True):
        torch.set_num_threads(1)
        assert probe_digests() != GOLDEN


def test_fused_operations_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused(config: object, anchor_U: Tensor, buffers_U: object, scalars: object, mean_U: Tensor) -> object:
        return anchor_U.add(mean_U, alpha=-0.7), ()

    monkeypatch.setattr(probe, "_OUTERS", probe._OUTERS[:1])
    monkeypatch.setattr(probe, "GOLDEN", {"outer sgd": GOLDEN["outer sgd"]})
    assert run_probe().passed
    monkeypatch.setattr(probe, "outer_step", fused)
    result = run_probe()
    assert not result.passed and "outer sgd" in result.reason and outer.outer_step is not fused


def test_a_device_that_is_not_there_has_a_reason() -> None:
    result = run_probe("no-such-device" if torch.cuda.is_available() else "cuda")
    assert not result.passed and result.reason


@pytest.mark.gpu
def test_the_gpu_passes() -> None:
    assert run_probe("cuda").passed
