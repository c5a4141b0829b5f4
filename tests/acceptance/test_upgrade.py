"""A rolling upgrade: old and new workers side by side, and an old one that the schema leaves behind."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from storage.records import JobStatus, Worker
from storage.version import promptmill_version
from tests.acceptance.farm import Farm, wait_until
from tests.acceptance.next_version import NEXT, VERSION, make_next_version
from tests.servers import Postgres, RedisServer, running_redis

JOBS = 60
OLD = promptmill_version()
NEWER = (sys.executable, "-P", "-m", "producer.cli")


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def rolling(request: pytest.FixtureRequest, postgres: Postgres, redis_server: RedisServer) -> Iterator[Farm]:
    """A farm on either database, with this version's schema."""
    with tempfile.TemporaryDirectory(prefix="pm-", ignore_cleanup_errors=True) as folder:
        servers = {}
        if request.param == "PostgreSQL":
            servers = {
                "PROMPTMILL_DATABASE_URL": postgres.make_database("rolling"),
                "PROMPTMILL_REDIS_URL": redis_server.url,
            }
        farm = Farm(Path(folder) / "home", **servers)
        assert farm.run("db", "upgrade").returncode == 0
        yield farm
        farm.close()
    postgres.drop_database("rolling")


@pytest.fixture
def newer(tmp_path: Path) -> dict[str, str]:
    """The environment of the next version."""
    return make_next_version(tmp_path / "newer")


def versions(farm: Farm) -> dict[str, Worker]:
    """Return the live workers by their version."""
    return {worker.version: worker for worker in farm.workers()}


def rendered_by(farm: Farm, submission: str, worker: Worker) -> int:
    """How many pictures are of this incarnation."""
    done = farm.store().jobs(submission, statuses=(JobStatus.SUCCEEDED,))
    return sum(job.incarnation == worker.incarnation for job in done)


def test_an_old_worker_and_a_new_one_finish_one_submission(rolling: Farm, newer: dict[str, str]) -> None:
    """The database is upgraded while the old one renders; killed, it starts again on the new schema."""
    farm = rolling
    old = farm.start_worker("--name", "old")
    submission = farm.submit(JOBS, "--steps", "20")
    farm.wait_for(submission, 3)
    farm.store().pause(submission)  # what is left is for both, however long the new one takes to start
    assert farm.count(submission, JobStatus.SUCCEEDED, JobStatus.RUNNING) < JOBS
    upgraded = farm.run_program(*NEWER, "db", "upgrade", **newer)
    assert upgraded.returncode == 0, upgraded.stderr
    assert f"to schema {NEXT}" in upgraded.stderr
    new = farm.start_program(*NEWER, "worker", "start", "--model", "demo", "--name", "new", **newer)
    wait_until(
        lambda: {OLD, VERSION} <= {one.version for one in farm.workers() if one.state == "ready"},
        what="both versions are ready",
    )
    resumed = farm.run("resume", submission)
    assert resumed.returncode == 0, "an old command writes to the new schema"
    killed = versions(farm)[OLD]
    os.kill(killed.pid, signal.SIGKILL)
    wait_until(
        lambda: versions(farm).get(OLD, killed).incarnation != killed.incarnation,
        what="the old version starts again",
    )
    farm.wait_for(submission, JOBS)
    jobs = farm.audit(submission, JOBS)
    by = {job.incarnation for job in jobs}
    told = {worker.incarnation: worker.version for worker in farm.store().workers()}
    assert {told[incarnation] for incarnation in by if incarnation} == {OLD, VERSION}
    assert {job.failures for job in jobs} == {0}
    listed = farm.run("status", submission)
    assert listed.returncode == 0, "an old command reads the new schema"
    assert [farm.stop(process) for process in (old, new)] == [0, 0]


def test_a_worker_that_is_too_old_for_the_schema_says_so_and_stops(farm: Farm, newer: dict[str, str]) -> None:
    """One that runs finishes what it renders, and ends; another one does not start; nothing is lost."""
    old = farm.start_worker()
    submission = farm.submit(20, "--steps", "40")
    farm.wait_for(submission, 2)
    upgraded = farm.run_program(*NEWER, "db", "upgrade", **newer)
    assert upgraded.returncode == 0, upgraded.stderr
    with closing(sqlite3.connect(farm.settings.database_path, timeout=60)) as connection, connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'oldest_worker'", [VERSION])
    assert old.wait(timeout=300) == 3
    said = f"This worker is promptmill {OLD}; the database asks for {VERSION} or newer: upgrade it."
    assert f"Error: {said}" in farm.output(old)
    again = farm.run("worker", "start")
    assert again.returncode == 3
    assert f"has schema {NEXT}, newer than this promptmill's" in again.stderr
    done = farm.run_program(*NEWER, "status", submission, "--json", **newer)
    counts = json.loads(done.stdout)["submission"]["counts"]
    assert (counts["running"], counts["failed"]) == (0, 0)
    assert counts["succeeded"] + counts["waiting"] + counts["queued"] == 20
