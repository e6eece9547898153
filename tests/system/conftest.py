"""What the tests with real processes share: one text, packed once, and one process that has loaded torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.system.launcher import Launcher


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with contextlib.closing(Launcher(tmp_path_factory.mktemp("launcher"))) as launcher:
        yield launcher
