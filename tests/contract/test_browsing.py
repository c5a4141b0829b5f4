"""What `storage.browsing.Browsing` promises, for every implementation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from storage.filters import JobFilter
from storage.jobstore import JobStore
from storage.parameters import JobParameters
from storage.records import Claim, JobStatus, Submission
from storage.sqljobstore import SqlJobStore, browsing, progress
from tests.records import worker_record

JOBS = 30
FAILED = (3, 4, 17, 29)


def jobs(count: int) -> Iterator[JobParameters]:
    """Yield jobs, every third of which is of an otter."""
    return (
        JobParameters(prompt="an otter" if index % 3 == 0 else "a fox", seed=index, extra={"n": index % 2})
        for index in range(count)
    )


def submit(store: JobStore, count: int = JOBS) -> Submission:
    """Make an open submission."""
    submission, _ = store.add_submission(model="demo", source="test")
    store.add_jobs(submission.id, jobs(count))
    return store.open_submission(submission.id)


@pytest.fixture
def submission(job_store: JobStore) -> Submission:
    """A submission of which some jobs have failed, and the others wait."""
    made = submit(job_store)
    job_store.add_worker(worker_record())
    for one in job_store.take_for_dispatch("demo", window=JOBS):
        claim = job_store.claim(one, "w1", defaults={"width": 64, "height": 64})
        assert isinstance(claim, Claim)
        if claim.index in FAILED:
            job_store.fail(claim, error_type="Error", message="It failed.", permanent=True)
        else:
            job_store.release(claim)
    return made


@pytest.fixture(params=["few", "many"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a status are read by their status where they are few, and in their order where many."""
    if request.param == "many":
        monkeypatch.setattr(progress, "FEW", 1)


def test_submissions_come_in_pages_the_newest_first(job_store: JobStore) -> None:
    """Each page begins below the last one's sequence number."""
    made = [submit(job_store, 1) for _ in range(5)]
    first = job_store.newest(limit=3)
    rest = job_store.newest(before=first[-1].seq, limit=3)
    assert [one.id for one in first + rest] == [one.id for one in reversed(made)]
    assert job_store.newest(before=rest[-1].seq) == []


def test_several_statuses_are_those_of_each(job_store: JobStore, submission: Submission) -> None:
    """In the order that was asked for; what is not there is left out."""
    other = submit(job_store, 2)
    found = job_store.statuses([other.id, "nothing", submission.id], lease=30.0)
    assert found == [job_store.status(one, lease=30.0) for one in (other.id, submission.id)]
    assert job_store.statuses([], lease=30.0) == []


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_pages_show_every_job_once(job_store: JobStore, submission: Submission, *, backwards: bool) -> None:
    """In the order of the index, or against it, of all jobs and of those with a status."""
    waiting = [index for index in range(JOBS) if index not in FAILED]
    for statuses, expected in (
        ((), list(range(JOBS))),
        ((JobStatus.FAILED,), list(FAILED)),
        ((JobStatus.WAITING,), waiting),
        ((JobStatus.WAITING, JobStatus.FAILED), list(range(JOBS))),
        ((JobStatus.SUCCEEDED,), []),
    ):
        seen: list[int] = []
        cursor = None
        while True:
            page = job_store.page(
                submission.id, statuses=statuses, cursor=cursor, backwards=backwards, limit=7
            )
            assert len(page.jobs) <= 7
            seen += [job.index for job in page.jobs]
            if page.cursor is None:
                break
            cursor = page.cursor
        assert seen == (expected[::-1] if backwards else expected)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("look_at", [1_000, 10], ids=["all", "bounded"])
def test_pages_of_a_filter_show_every_job_that_is_meant(
    job_store: JobStore,
    submission: Submission,
    monkeypatch: pytest.MonkeyPatch,
    *,
    backwards: bool,
    look_at: int,
) -> None:
    """Also where a page may read only a few jobs: then it says that it is not complete, and goes on."""
    monkeypatch.setattr(browsing, "LOOK_AT", look_at)
    monkeypatch.setattr(browsing, "PAGE", 5)
    meant = JobFilter(match="OTTER", where={"n": ("1",)})
    statuses = (JobStatus.WAITING,)
    expected = [index for index in range(JOBS) if index % 6 == 3 and index not in FAILED]
    seen: list[int] = []
    cursor, incomplete = None, 0
    while True:
        page = job_store.page(
            submission.id, statuses=statuses, meant=meant, cursor=cursor, backwards=backwards, limit=2
        )
        seen += [job.index for job in page.jobs]
        incomplete += not page.complete
        if page.cursor is None:
            break
        cursor = page.cursor
    assert seen == (expected[::-1] if backwards else expected)
    assert bool(incomplete) is (look_at == 10)


def test_a_page_has_whole_jobs(job_store: JobStore, submission: Submission) -> None:
    """As `find_job` returns them."""
    page = job_store.page(submission.id, cursor=2, limit=2)
    assert page.jobs == [job_store.find_job(f"{submission.id}:{index}") for index in (3, 4)]
    filtered = job_store.page(submission.id, meant=JobFilter(match="otter"), limit=1)
    assert filtered.jobs == [job_store.find_job(f"{submission.id}:0")]


@pytest.fixture
def asked(job_store: JobStore) -> Iterator[list[str]]:
    """The statements that the database was asked meanwhile."""
    assert isinstance(job_store, SqlJobStore)
    statements: list[str] = []

    def hear(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    event.listen(job_store.database.db_engine, "before_cursor_execute", hear)
    yield statements
    event.remove(job_store.database.db_engine, "before_cursor_execute", hear)


def test_many_statuses_are_as_few_statements_as_one(job_store: JobStore, asked: list[str]) -> None:
    """A page of submissions costs the same whatever is on it."""
    made = [submit(job_store, 2).id for _ in range(30)]
    job_store.pause(made[3], note="a full disk")
    job_store.cancel(made[4])
    asked.clear()
    job_store.statuses(made[:1], lease=30.0)
    one = len(asked)
    asked.clear()
    found = job_store.statuses(made, lease=30.0)
    assert len(asked) == one
    assert found == [job_store.status(each, lease=30.0) for each in made]


@pytest.mark.usefixtures("few")
def test_statuses_of_many_jobs_are_counted_exactly(job_store: JobStore, submission: Submission) -> None:
    """Those too whose jobs are counted up to a limit at first, of several submissions beside each other."""
    other = submit(job_store, 9)
    loading, _ = job_store.add_submission(model="demo", source="test")
    job_store.add_jobs(loading.id, jobs(5))
    found = job_store.statuses([submission.id, other.id, loading.id], lease=30.0)
    counted = [{one: count for one, count in each.counts.items() if count} for each in found]
    assert counted == [
        {JobStatus.WAITING: JOBS - len(FAILED), JobStatus.FAILED: len(FAILED)},
        {JobStatus.WAITING: 9},
        {JobStatus.WAITING: 5},
    ]


def test_waiting_for_another_try_is_said_of_each(job_store: JobStore) -> None:
    """Of those whose jobs all have to wait, not of those beside them."""
    late, due = submit(job_store, 1), submit(job_store, 1)
    job_store.add_worker(worker_record())
    for one in job_store.take_for_dispatch("demo", window=2):
        claim = job_store.claim(one, "w1", defaults={"width": 64, "height": 64})
        assert isinstance(claim, Claim)
        if claim.submission == late.id:
            job_store.fail(claim, error_type="Error", message="It failed.")
        else:
            job_store.release(claim)
    reasons = [each.waiting_because for each in job_store.statuses([late.id, due.id], lease=1e6)]
    assert reasons[0] is not None
    assert "backing off after a failure until" in reasons[0]
    assert reasons[1] is None


def test_a_whole_id_is_found_by_the_index_alone(job_store: JobStore, asked: list[str]) -> None:
    """Nobody looks for its beginning among all ids, nor for its name."""
    made = submit(job_store, 1)
    asked.clear()
    assert job_store.find_submission(made.id.upper()) == made
    assert len(asked) == 1


def test_some_jobs_are_read_at_once(job_store: JobStore, submission: Submission, asked: list[str]) -> None:
    """Whole, in the order of their index, each once; what is not there is left out."""
    asked.clear()
    found = job_store.these(submission.id, [7, 3, 999, 3])
    assert len(asked) == 1
    assert found == [job_store.find_job(f"{submission.id}:{index}") for index in (3, 7)]
    assert job_store.these(submission.id, []) == []
