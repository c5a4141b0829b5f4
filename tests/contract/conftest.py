"""The implementations that the contract tests run against, each from nothing for every test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest

from storage.database import upgrade
from storage.imagestore import FsspecImageStore, ImageStore
from storage.jobstore import JobStore
from storage.settings import Settings
from storage.sqljobstore import (
    base,
    claiming,
    dispatching,
    keeping,
    liveness,
    progress,
    reading,
    steering,
    submitting,
)
from storage.stores import open_job_store
from tests.servers import S3, Postgres

JOB_STORES = ("sqlite", "postgresql")
IMAGE_STORES = ("local", "memory", "s3")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "DATABASE_URL", "REDIS_URL", "STORE_URL", "MODELS", "LEASE"):
        monkeypatch.delenv(f"PROMPTMILL_{name}", raising=False)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the whole schema and nothing in it: migrations run once, tests copy it."""
    settings = Settings(home=tmp_path_factory.mktemp("migrated"))
    upgrade(settings)
    return settings.database_path


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Postgres:
    """A PostgreSQL server whose database `migrated` has the whole schema and nothing in it."""
    url = postgres.make_database("migrated")
    upgrade(Settings(home=tmp_path_factory.mktemp("home"), database_url=url))
    return postgres


@pytest.fixture(params=JOB_STORES)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings that name a database which holds nothing but the schema."""
    home = tmp_path / "home"
    home.mkdir()
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), home / "promptmill.db")
        yield Settings(home=home)
        return
    server = request.getfixturevalue("migrated_postgres")
    yield Settings(home=home, database_url=server.make_database("contract", template="migrated"))
    server.drop_database("contract")


@pytest.fixture
def open_another(settings: Settings) -> Iterator[Callable[[], JobStore]]:
    """Open the same database once more, as another process would."""
    opened: list[JobStore] = []

    def open_one() -> JobStore:
        opened.append(open_job_store(settings))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def job_store(open_another: Callable[[], JobStore]) -> JobStore:
    """A job store with nothing in it."""
    return open_another()


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let seconds pass on the clock that the job store writes into rows."""
    ahead = timedelta()

    def later(seconds: float) -> None:
        nonlocal ahead
        ahead += timedelta(seconds=seconds)

    for module in (base, claiming, dispatching, keeping, liveness, progress, reading, steering, submitting):
        if hasattr(module, "now"):
            monkeypatch.setattr(module, "now", lambda: datetime.now(UTC) + ahead)
    return later


@pytest.fixture
def s3_url(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder in an empty bucket."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3.make_bucket("pictures")
    yield "s3://pictures/images"
    s3.drop_bucket("pictures")


@pytest.fixture(params=IMAGE_STORES)
def image_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageStore]:
    """An image store with nothing in it."""
    if request.param == "local":
        yield FsspecImageStore(f"file://{tmp_path / 'images'}")
        return
    if request.param == "s3":
        yield FsspecImageStore(request.getfixturevalue("s3_url"))
        return
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield FsspecImageStore("memory://images")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
