"""PostgreSQL, Redis and S3 as servers of their own, and several workers: what a farm is."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.imagestore import picture_key
from storage.records import JobStatus, Worker, WorkerState
from tests.acceptance.farm import Farm, wait_until
from tests.servers import S3, Postgres, RedisServer, running_redis

JOBS = 200
# Seconds: on a busy machine hearts miss beats, and who is only slow must not be expired.
LEASE = 10.0


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def farm(
    postgres: Postgres, redis_server: RedisServer, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Farm]:
    """A home whose database, queue and pictures are elsewhere."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3.make_bucket("farm")
    url = postgres.make_database("farm")
    with tempfile.TemporaryDirectory(prefix="pm-", ignore_cleanup_errors=True) as folder:
        farm = Farm(
            Path(folder) / "home",
            PROMPTMILL_DATABASE_URL=url,
            PROMPTMILL_REDIS_URL=redis_server.url,
            PROMPTMILL_STORE_URL="s3://farm/pictures",
            PROMPTMILL_LEASE=str(LEASE),
            **s3.environment,
        )
        upgraded = farm.run("db", "upgrade")
        assert upgraded.returncode == 0, upgraded.stderr
        try:
            yield farm
        finally:
            farm.close()
            postgres.drop_database("farm")
            s3.drop_bucket("farm")


def test_two_hundred_jobs_survive_a_kill_a_freeze_and_restarts_of_the_servers(
    farm: Farm, postgres: Postgres, redis_server: RedisServer
) -> None:
    """Three workers: 200 pictures, one row each, every hash right, whatever happened on the way."""
    supervisors = [farm.start_worker("--name", name) for name in ("one", "two", "three")]
    names = {worker.name: worker for worker in farm.workers()}
    submission = farm.submit(JOBS, "--steps", "6")

    def holds(worker: Worker) -> bool:
        running = farm.store().jobs(submission, statuses=(JobStatus.RUNNING,))
        return any(job.incarnation == worker.incarnation for job in running)

    killed, frozen = names["one"], names["two"]
    wait_until(lambda: holds(killed), what="the first worker holds jobs")
    os.kill(killed.pid, signal.SIGKILL)
    farm.wait_for(submission, 20)
    wait_until(lambda: holds(frozen), what="the second worker holds jobs")
    os.kill(frozen.pid, signal.SIGSTOP)
    held = [job for job in farm.jobs(submission) if job.incarnation == frozen.incarnation]

    def expired() -> bool:
        states = {worker.incarnation: worker.state for worker in farm.store().workers()}
        return states[frozen.incarnation] is WorkerState.EXPIRED

    wait_until(expired, what="the frozen worker is declared dead")
    os.kill(frozen.pid, signal.SIGCONT)

    farm.wait_for(submission, 70)
    postgres.restart()
    farm.wait_for(submission, 110)
    redis_server.kill()
    redis_server.start()

    farm.wait_for(submission, JOBS)
    # A process that wakes after its lease ends at once, perhaps between a file and its row.
    leftovers = {picture_key(job.submission, job.index, job.attempt) for job in held}
    jobs = farm.audit(submission, JOBS, leftovers=leftovers)
    # What a dead process left is rendered alone, and who is alone when a process ends is charged.
    suspects = {job.index for job in held if job.attempt > 1}
    assert {job.index for job in jobs if job.failures} <= suspects
    assert max(job.attempt for job in jobs) > 1, "nothing was running when it was taken away"
    assert [farm.stop(supervisor) for supervisor in supervisors] == [0, 0, 0]


def test_a_drained_worker_ends_and_the_other_goes_on(farm: Farm) -> None:
    """`worker drain NAME`, from wherever the database can be reached."""
    staying, leaving = (farm.start_worker("--name", name) for name in ("staying", "leaving"))
    submission = farm.submit(40, "--steps", "10")
    farm.wait_for(submission, 4)
    drained = farm.run("worker", "drain", "leaving")
    assert drained.returncode == 0, drained.stderr
    assert "Worker leaving drains" in drained.stderr
    assert leaving.wait(timeout=300) == 0
    assert [worker.name for worker in farm.workers()] == ["staying"]
    farm.wait_for(submission, 40)
    jobs = farm.audit(submission, 40)
    assert {job.failures for job in jobs} == {0}
    nobody = farm.run("worker", "drain", "leaving")
    assert nobody.returncode == 2
    assert "No live worker is called 'leaving'" in nobody.stderr
    assert farm.stop(staying) == 0


def test_a_celery_worker_started_by_hand_is_one_of_us(farm: Farm) -> None:
    """Its model comes from the configuration, `inspect active` shows its jobs, SIGTERM ends it in order."""
    celery = str(Path(sys.executable).parent / "celery")
    by_hand = [celery, "-A", "worker.app", "worker", "-P", "threads", "-l", "WARNING", "-Q"]
    worker = farm.start_program(*by_hand, "render.demo")
    farm.wait_until_ready(worker)
    submission = farm.submit(60, "--steps", "200", "--sampler", "euler", "--schedule", "default")
    wait_until(lambda: farm.furthest(submission) > 0, what="a job has begun")
    asked = farm.run_program(celery, "-A", "worker.app", "inspect", "active", "--json")
    assert asked.returncode == 0, asked.stderr
    (active,) = json.loads(asked.stdout).values()
    assert {task["name"] for task in active} == {"promptmill.render"}
    assert {task["args"][0] for task in active} <= {job.id for job in farm.jobs(submission)}
    assert farm.stop(worker) == 0, farm.output(worker)
    assert farm.count(submission, JobStatus.RUNNING) == 0
    assert farm.count(submission, JobStatus.SUCCEEDED) > 0
    assert {job.failures for job in farm.jobs(submission)} == {0}
    assert {one.state for one in farm.store().workers()} == {WorkerState.STOPPED}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("-P", "threads"), "name its queue, -Q render.NAME"),
        (("-P", "threads", "-Q", "render.demo,render.other"), "name its queue, -Q render.NAME"),
        (("-P", "threads", "-Q", "render.other"), "no model 'other'"),
        (("-P", "prefork", "-Q", "render.demo"), "-P threads"),
    ],
)
def test_a_celery_worker_that_cannot_be_is_told_so(words: tuple[str, ...], reason: str, farm: Farm) -> None:
    """One sentence, exit code 2."""
    celery = str(Path(sys.executable).parent / "celery")
    refused = farm.run_program(celery, "-A", "worker.app", "worker", *words)
    assert refused.returncode == 2
    assert reason in refused.stderr
    assert "Traceback" not in refused.stderr
