"""What every test session does: GPU tests run where there is a GPU, and nothing of ours may survive a test session."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# CI judges a change by the same examples every time; everybody else's runs go on looking for new ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects GPU tests on a machine without CUDA; they are named in the summary line as deselected."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if torch.cuda.is_available():
        return
    config.hook.pytest_deselected(items=gpu)
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--libp2p", action="store_true", help="run tests/libp2p, and nothing else")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """hivemind and libp2p register the same protobuf symbols: their tests run in two processes (`make test`)."""
    if collection_path.is_dir() and collection_path.parent == Path(__file__).parent:
        return (collection_path.name == "libp2p") != bool(config.getoption("--libp2p")) or None
    return None
