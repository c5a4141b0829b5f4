"""What all tests share: the environment that a supervisor gives its worker processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import S3, Postgres, running_postgres, running_s3
from worker.orders import ENVIRONMENT

# Read when torch is loaded, so it has to be set before any test imports it.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
if "PYTEST_XDIST_WORKER" in os.environ:  # every core has a process of tests already
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the whole session; each test makes databases of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="pm-pg-") as folder,
        running_postgres(Path(folder) / "data") as one,
    ):
        yield one


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 API over HTTP for the whole session; each test makes buckets of its own."""
    with running_s3() as one:
        yield one
