"""Every test of the sentinel has a cache of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
