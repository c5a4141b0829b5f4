"""What is asked again and again reads few jobs of many: the very statements, as each database runs them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy import event, update

from storage.filters import JobFilter
from storage.parameters import JobParameters
from storage.records import Claim, Image, JobStatus
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore, base, progress, selecting
from storage.sqljobstore.base import JOBS
from storage.stores import open_job_store
from tests.records import worker_record
from tests.servers import Postgres

MANY = 20_000  # jobs of each of the two submissions
FEW = 100  # jobs of a status that are counted, and of a chunk
MOST = 1_000  # jobs that a statement may read
STEPS = 30 * MOST  # instructions of SQLite's machine that this takes at most
MORE_JOBS = """
    INSERT INTO jobs (submission, "index", status, prompt, negative_prompt, seed, options, extra, attempt,
                      failures, suspect, created_at, warnings)
    WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {many})
    SELECT submission, n, status, prompt, negative_prompt, seed, options, extra, attempt, failures, suspect,
           created_at, warnings
    FROM jobs, number WHERE submission = '{submission}' AND "index" = 0
"""
PICTURES = """
    INSERT INTO images (job, key, file_sha256, pixel_sha256, bytes, format, seconds, numerics, created_at)
    SELECT id, 'key', 'file' || id, 'pixel' || id, 9, 'png', '{{}}', '{{}}', created_at
    FROM jobs WHERE submission = '{submission}'
"""


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """A store in which a submission waits and another has its pictures, MANY jobs each; one job is held."""

    store: SqlJobStore
    waiting: str
    done: str
    queued: list[int]
    held: Claim


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def crowd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """Such a store on each database; on PostgreSQL with the statistics that autovacuum gathers."""
    home: Path = tmp_path_factory.mktemp("home")
    server: Postgres | None = None
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), home / "promptmill.db")
        settings = Settings(home=home)
    else:
        server = request.getfixturevalue("migrated_postgres")
        settings = Settings(home=home, database_url=server.make_database("crowd", template="migrated"))
    store = cast("SqlJobStore", open_job_store(settings))
    waiting, done = _submitted(store), _submitted(store)
    long_ago = datetime.now(UTC) - timedelta(days=1)
    with store.database.write() as connection:
        ended = update(JOBS).where(JOBS.c.submission == done)
        connection.execute(ended.values(status="succeeded", created_at=long_ago))
        for submission in (waiting, done):
            connection.exec_driver_sql(MORE_JOBS.format(many=MANY, submission=submission))
        connection.exec_driver_sql(PICTURES.format(submission=done))
    store.open_submission(waiting)
    store.open_submission(done)
    store.compact(whole=server is not None)
    store.add_worker(worker_record("w1"))
    queued = store.take_for_dispatch("demo", window=20)
    held = store.claim(queued[0], "w1", defaults={})
    assert isinstance(held, Claim)
    yield Crowd(store=store, waiting=waiting, done=done, queued=queued[1:], held=held)
    store.close()
    if server is not None:
        server.drop_database("crowd")


def _submitted(store: SqlJobStore) -> str:
    submission, _ = store.add_submission(model="demo", source="test")
    store.add_jobs(submission.id, [JobParameters(prompt="an otter", seed=1)])
    return submission.id


def _picture() -> Image:
    return Image(
        key="k", file_sha256="a" * 64, pixel_sha256="b" * 64, bytes=9, format="png", seconds={}, numerics={},
        fingerprint="c" * 64, copied_from=None,
    )  # fmt: skip


ASKED: dict[str, Callable[[Crowd], object]] = {
    "dispatch": lambda crowd: crowd.store.take_for_dispatch("demo", window=40),
    "dispatch with a full window": lambda crowd: crowd.store.take_for_dispatch("demo", window=1),
    "what is queued": lambda crowd: crowd.store.queued("demo"),
    "how fast it is": lambda crowd: crowd.store.rendered_since("demo", datetime.now(UTC)),
    "claim": lambda crowd: crowd.store.claim(crowd.queued[0], "w1", defaults={}),
    "claim alone": lambda crowd: crowd.store.claim(crowd.queued[1], "w1", defaults={}, alone=True),
    "heartbeat": lambda crowd: crowd.store.heartbeat("w1", {crowd.held.job: 0.5}),
    "fail": lambda crowd: crowd.store.fail(crowd.held, error_type="Error", message="no"),
    "finish": lambda crowd: crowd.store.finish(crowd.held, _picture()),
    "release": lambda crowd: crowd.store.release(crowd.held),
    "stray": lambda crowd: crowd.store.release_stray(crowd.held.job, "w1"),
    "reaper looks": lambda crowd: crowd.store.workers(alive_only=True),
    "reaper expires": lambda crowd: crowd.store.release_incarnation("w2", crashed=True),
    "orphans": lambda crowd: crowd.store.release_orphans(),
    "sweep with nothing to do": lambda crowd: crowd.store.sweep_cancelled(),
    "sweep of what is swept": lambda crowd: crowd.store.sweep_cancelled(crowd.done),
    "retry of what is done": lambda crowd: crowd.store.retry(crowd.done),
    "forget workers": lambda crowd: crowd.store.forget_workers(),
    "pause": lambda crowd: crowd.store.pause(crowd.done),
    "status and watch": lambda crowd: crowd.store.status(crowd.waiting, lease=30.0),
    "status of what is done": lambda crowd: crowd.store.status(crowd.done, lease=30.0),
    "list": lambda crowd: [crowd.store.status(one.id, lease=30.0) for one in crowd.store.submissions()],
    "show": lambda crowd: crowd.store.find_job(f"{crowd.done}:{MANY - 5}"),
    "the first failures": lambda crowd: list(
        crowd.store.jobs(crowd.waiting, statuses=(JobStatus.FAILED,), limit=3)
    ),
    "picture by its hash": lambda crowd: crowd.store.find_pictures("a" * 64),
    "picture by its fingerprint": lambda crowd: crowd.store.find_rendered("c" * 64),
    "speed": lambda crowd: crowd.store.speed("demo"),
    "rates": lambda crowd: crowd.store.rates(over=10.0),
    "newest submissions": lambda crowd: crowd.store.newest(before=10),
    "statuses of several": lambda crowd: crowd.store.statuses([crowd.waiting, crowd.done], lease=30.0),
    "a page of jobs": lambda crowd: crowd.store.page(crowd.done, cursor=MANY // 2),
    "a page of one status": lambda crowd: crowd.store.page(
        crowd.waiting, cursor=0, statuses=(JobStatus.FAILED,)
    ),
    "a filtered page": lambda crowd: crowd.store.page(crowd.done, cursor=0, meant=JobFilter(match="otter")),
    "hooks with nothing to tell": lambda crowd: crowd.store.take_hook(),
    "hooks of what is done": lambda crowd: (
        crowd.store.add_hook(crowd.done, "https://example.org"),
        crowd.store.take_hook(),
    ),
    "hooks of what waits": lambda crowd: (
        crowd.store.add_hook(crowd.waiting, "https://example.org"),
        crowd.store.take_hook(),
    ),
    "the whole farm": lambda crowd: crowd.store.survey(),
    "may it be pruned": lambda crowd: crowd.store.check_prunable(crowd.done),
}


@pytest.mark.parametrize("ask", ASKED)
def test_no_question_reads_many_jobs(crowd: Crowd, ask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each statement goes in by an index, and looks at few of the forty thousand jobs behind it."""
    for module in (progress, selecting):
        monkeypatch.setattr(module, "FEW", FEW)
    monkeypatch.setattr(base, "ADD_CHUNK", FEW)
    statements = _heard(crowd, ASKED[ask])
    assert statements
    judge = _faults_of_sqlite if crowd.store.database.is_sqlite else _faults_of_postgres
    assert [
        fault for statement, values in statements for fault in judge(crowd.store, statement, values)
    ] == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM jobs WHERE prompt = 'an otter'",
        "SELECT min(seed) FROM jobs WHERE status = 'waiting'",
        "UPDATE jobs SET failures = 0 WHERE error_type IS NOT NULL",
    ],
)
def test_a_statement_that_reads_all_jobs_is_found_out(crowd: Crowd, statement: str) -> None:
    """The test above can fail."""
    judge = _faults_of_sqlite if crowd.store.database.is_sqlite else _faults_of_postgres
    assert judge(crowd.store, statement, ())


def _heard(crowd: Crowd, ask: Callable[[Crowd], object]) -> list[tuple[str, Any]]:
    """Ask, and return the statements with their values that this took."""
    asked: list[tuple[str, Any]] = []

    def hear(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if re.match("SELECT|UPDATE|DELETE|WITH", statement):
            asked.append((statement, parameters))

    event.listen(crowd.store.database.db_engine, "before_cursor_execute", hear)
    try:
        ask(crowd)
    finally:
        event.remove(crowd.store.database.db_engine, "before_cursor_execute", hear)
    return asked


def _faults_of_sqlite(store: SqlJobStore, statement: str, values: Sequence[Any]) -> list[str]:
    """Say which steps of the plan read the whole table, and whether it takes many instructions."""
    ticks = [0]

    def tick() -> int:
        ticks[0] += 1
        return 0

    pooled = store.database.db_engine.raw_connection()
    driver: Any = pooled.driver_connection
    try:
        plan = [step[3] for step in driver.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        driver.execute("BEGIN")
        driver.set_progress_handler(tick, 100)
        driver.execute(statement, values).fetchall()
        driver.set_progress_handler(None, 0)
        driver.execute("ROLLBACK")
    finally:
        pooled.close()
    faults = [f"{step}: {statement}" for step in plan if re.fullmatch(r"SCAN (jobs|other)", step)]
    if ticks[0] * 100 > STEPS:
        faults.append(f"{ticks[0] * 100} instructions: {statement}")
    return faults


def _faults_of_postgres(store: SqlJobStore, statement: str, values: Any) -> list[str]:
    """Say which nodes of the plan read many jobs, or might."""
    driver: Any = None
    with store.database.db_engine.connect() as connection:
        driver = connection.connection.driver_connection
        with psycopg.ClientCursor(driver) as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values or None)
            found = cursor.fetchone()
        driver.rollback()
    assert found is not None
    faults = []
    for node in _nodes(found[0][0]["Plan"]):
        if node.get("Relation Name") != "jobs" or node["Node Type"] == "ModifyTable":
            continue
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        read = (node["Actual Rows"] + removed) * node["Actual Loops"]
        if node["Node Type"] == "Seq Scan" or read > MOST:
            faults.append(f"{node['Node Type']} of {read} jobs: {statement}")
    return faults


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)
