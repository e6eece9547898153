"""What the tests with real processes share: the embedded text, packed once per session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def text_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of text and tokens that all peers of a session may share."""
    return tmp_path_factory.mktemp("cache")
