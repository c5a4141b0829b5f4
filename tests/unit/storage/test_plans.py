"""What is asked again and again never reads all the jobs of a large submission, as SQLite plans it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from sqlalchemy import event

from storage.browsing import JobPage
from storage.filters import JobFilter
from storage.parameters import JobParameters
from storage.records import JobStatus
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore
from storage.stores import open_job_store
from tests.records import worker_record

ALL_JOBS = re.compile(r"SCAN jobs|SEARCH jobs .*\(submission=\?\)")


@pytest.fixture
def store(settings: Settings) -> Iterator[SqlJobStore]:
    """A store with a worker and one submission, `mine`."""
    opened = cast("SqlJobStore", open_job_store(settings))
    submission, _ = opened.add_submission(model="demo", source="test", name="mine")
    opened.add_jobs(submission.id, [JobParameters(prompt="an otter", seed=1)])
    opened.open_submission(submission.id)
    opened.add_worker(worker_record())
    yield opened
    opened.close()


def _page(store: SqlJobStore, **wanted: Any) -> JobPage:
    return store.page(store.find_submission("mine").id, cursor=0, **wanted)


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.status("mine", lease=30.0),
        lambda store: store.rendered_since("demo", datetime.now(UTC)),
        lambda store: store.speed("demo"),
        lambda store: store.rates(over=10.0),
        lambda store: store.find_rendered("a" * 64),
        lambda store: store.newest(before=10),
        lambda store: store.statuses([store.find_submission("mine").id], lease=30.0),
        _page,
        lambda store: _page(store, statuses=(JobStatus.FAILED,)),
        lambda store: _page(store, meant=JobFilter(match="otter")),
    ],
    ids=[
        "status",
        "rendered_since",
        "speed",
        "rates",
        "find_rendered",
        "newest",
        "statuses",
        "page",
        "failed",
        "filtered",
    ],
)
def test_no_question_reads_all_jobs(store: SqlJobStore, ask: Callable[[SqlJobStore], object]) -> None:
    """Every statement goes in by an index that few jobs answer to."""
    asked: list[tuple[str, Any]] = []

    def hear(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(store.database.db_engine, "before_cursor_execute", hear)
    ask(store)
    event.remove(store.database.db_engine, "before_cursor_execute", hear)
    selects = [each for each in asked if each[0].startswith("SELECT")]
    assert selects
    with store.database.read() as connection:
        for statement, parameters in selects:
            steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            assert [step[3] for step in steps if ALL_JOBS.search(step[3])] == [], statement
