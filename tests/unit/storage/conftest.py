"""A home of its own for every test, and a clock that only moves when told."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.settings import Settings
from tests.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no setting from outside."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("HOME", "DATABASE_URL", "REDIS_URL", "STORE_URL", "MODELS", "LEASE"):
        monkeypatch.delenv(f"PROMPTMILL_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a home that is not there yet."""
    return Settings(home=tmp_path / "home")
