"""What `promptmill metrics` asks the database: right numbers, whichever of the ways of counting is taken."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from storage.jobstore import JobStore
from storage.parameters import JobParameters
from storage.records import Claim, Image, JobStatus, SubmissionState
from storage.sqljobstore import progress
from tests.records import worker_record


def submitted(store: JobStore, count: int, *, model: str = "demo") -> str:
    """Submit jobs and return the submission's id."""
    submission, _ = store.add_submission(model=model, source="test")
    store.add_jobs(submission.id, [JobParameters(prompt="an otter", seed=seed) for seed in range(count)])
    return store.open_submission(submission.id).id


@pytest.mark.parametrize("few", [1, 10_000])
def test_jobs_are_counted_by_model_and_status(
    job_store: JobStore, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that succeeded are what is left; of many, which are not, each is counted."""
    monkeypatch.setattr(progress, "FEW", few)
    first, second = submitted(job_store, 6), submitted(job_store, 3)
    submitted(job_store, 2, model="other")
    job_store.add_worker(worker_record("w1"))
    taken = job_store.take_for_dispatch("demo", window=5)
    claim = job_store.claim(taken[0], "w1", defaults={})
    failed = job_store.claim(taken[1], "w1", defaults={})
    assert isinstance(claim, Claim)
    assert isinstance(failed, Claim)
    job_store.fail(failed, error_type="E", message="no", permanent=True)
    job_store.cancel(second)
    job_store.sweep_cancelled(second)
    view = job_store.survey()
    expected = dict.fromkeys(JobStatus, 0)
    for submission in (first, second):
        for status, count in job_store.counts(submission).items():
            expected[status] += count
    assert {status: view.jobs["demo", status] for status in JobStatus} == expected
    assert view.jobs["other", JobStatus.WAITING] == 2
    assert expected[JobStatus.FAILED] == expected[JobStatus.RUNNING] == 1


def test_what_succeeded_is_counted(job_store: JobStore) -> None:
    """A submission all of whose jobs have pictures has nothing else."""
    submission = submitted(job_store, 3)
    for _ in range(3):
        (job,) = job_store.take_for_dispatch("demo", window=1)
        job_store.add_worker(worker_record("w1"))
        claim = job_store.claim(job, "w1", defaults={})
        assert isinstance(claim, Claim)
        job_store.finish(claim, _image())
    view = job_store.survey()
    assert view.jobs["demo", JobStatus.SUCCEEDED] == 3
    assert view.oldest == {}
    assert job_store.counts(submission)[JobStatus.SUCCEEDED] == 3


def test_only_what_waits_in_an_open_submission_is_old(job_store: JobStore) -> None:
    """A paused list does not wait for a worker, and one that is loading not for anybody."""
    first, second = submitted(job_store, 1), submitted(job_store, 1)
    job_store.add_submission(model="demo", source="test")
    assert job_store.survey().oldest == {"demo": job_store.find_submission(first).created_at}
    job_store.pause(first)
    view = job_store.survey()
    assert view.oldest == {"demo": job_store.find_submission(second).created_at}
    assert view.submissions == {
        ("demo", SubmissionState.OPEN): 1,
        ("demo", SubmissionState.PAUSED): 1,
        ("demo", SubmissionState.LOADING): 1,
    }


def test_the_clock_is_the_databases_and_the_ended_are_left_out(job_store: JobStore) -> None:
    """Who has ended is no worker any more; the clock is one of today."""
    job_store.add_worker(worker_record("w1"))
    job_store.add_worker(worker_record("w2"))
    job_store.release_incarnation("w2", crashed=True)
    view = job_store.survey()
    assert [worker.incarnation for worker in view.workers] == ["w1"]
    assert abs((view.clock - datetime.now(UTC)).total_seconds()) < 3600


def _image() -> Image:
    return Image(
        key="k", file_sha256="a" * 64, pixel_sha256="b" * 64, bytes=9, format="png", seconds={}, numerics={}
    )
