"""Fixtures of the acceptance tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.farm import Farm


@pytest.fixture
def farm() -> Iterator[Farm]:
    """A home of its own (a short path: sockets live in it) whose processes end with the test."""
    with tempfile.TemporaryDirectory(prefix="pm-", ignore_cleanup_errors=True) as folder:
        farm = Farm(Path(folder) / "home")
        try:
            yield farm
        finally:
            farm.close()
