"""Exit hooks in the database: due once, one taker at a time, and not lost with one who died."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage.hooks import BACKOFF_LIMIT, HELD_FOR, MAX_TRIES
from storage.jobstore import JobStore
from storage.parameters import JobParameters
from storage.records import Claim, JobStatus
from storage.sqljobstore import telling
from tests.records import worker_record

URL = "https://example.org/told?token=abc"


@pytest.fixture
def later(advance: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let seconds pass on the clock of hooks, too."""
    from storage.sqljobstore import claiming  # noqa: PLC0415 - whose clock the fixture has just replaced

    def pass_by(seconds: float) -> None:
        advance(seconds)
        monkeypatch.setattr(telling, "now", claiming.now)

    pass_by(0)
    return pass_by


def submitted(store: JobStore, count: int = 1) -> str:
    """Submit jobs and return the submission's id."""
    submission, _ = store.add_submission(model="demo", source="test")
    store.add_hook(submission.id, URL)
    store.add_jobs(submission.id, [JobParameters(prompt="an otter", seed=seed) for seed in range(count)])
    return store.open_submission(submission.id).id


def fail_one(store: JobStore) -> None:
    """Let a job reach its end."""
    store.add_worker(worker_record("w1"))
    (job,) = store.take_for_dispatch("demo", window=1)
    claim = store.claim(job, "w1", defaults={})
    assert isinstance(claim, Claim)
    store.fail(claim, error_type="E", message="no", permanent=True)


def test_a_hook_is_due_when_every_job_has_reached_its_end(job_store: JobStore) -> None:
    """And not before, nor while the submission is loading."""
    loading, _ = job_store.add_submission(model="demo", source="test")
    job_store.add_hook(loading.id, URL)
    submission = submitted(job_store, 2)
    assert job_store.take_hook() is None
    fail_one(job_store)
    assert job_store.take_hook() is None
    fail_one(job_store)
    hook = job_store.take_hook()
    assert hook is not None
    assert (hook.submission, hook.url, hook.attempts, hook.ended_at) == (submission, URL, 1, None)
    assert job_store.take_hook() is None, "somebody has it"


def test_a_cancelled_submission_is_done_too(job_store: JobStore) -> None:
    """Once its jobs are swept."""
    submission = submitted(job_store)
    job_store.cancel(submission)
    assert job_store.take_hook() is None
    job_store.sweep_cancelled(submission)
    assert job_store.counts(submission)[JobStatus.CANCELLED] == 1
    assert job_store.take_hook() is not None


def test_what_was_told_is_told_no_more(job_store: JobStore, later: Callable[[float], None]) -> None:
    """Neither after a retry nor when it is submitted once more."""
    submission = submitted(job_store)
    fail_one(job_store)
    hook = job_store.take_hook()
    assert hook is not None
    assert job_store.end_hook(hook, error=None)
    job_store.retry(submission)
    fail_one(job_store)
    job_store.add_hook(submission, URL)
    later(2 * HELD_FOR)
    assert job_store.take_hook() is None
    (kept,) = job_store.hooks(submission)
    assert (kept.error, kept.ended_at is None) == (None, False)


def test_a_hook_whose_taker_died_is_anybodys(job_store: JobStore, later: Callable[[float], None]) -> None:
    """After a minute; what the first one says when it comes back is not believed."""
    submission = submitted(job_store)
    fail_one(job_store)
    first = job_store.take_hook()
    assert first is not None
    later(HELD_FOR + 1)
    second = job_store.take_hook()
    assert second is not None
    assert second.attempts == 2
    job_store.end_hook(first, error="too late")
    assert [hook.error for hook in job_store.hooks(submission)] == [None]


def test_a_hook_that_fails_comes_again_and_not_for_ever(
    job_store: JobStore, later: Callable[[float], None]
) -> None:
    """With longer and longer pauses; the last error stays."""
    submission = submitted(job_store)
    fail_one(job_store)
    for number in range(1, MAX_TRIES + 1):
        hook = job_store.take_hook()
        assert hook is not None
        assert job_store.end_hook(hook, error=f"it answers {number}") is (number == MAX_TRIES)
        assert job_store.take_hook() is None
        later(BACKOFF_LIMIT + 1)
    assert job_store.take_hook() is None
    (kept,) = job_store.hooks(submission)
    assert (kept.attempts, kept.error) == (MAX_TRIES, f"it answers {MAX_TRIES}")
    assert kept.ended_at is not None


def test_a_hook_that_kills_whoever_takes_it_is_given_up(
    job_store: JobStore, later: Callable[[float], None]
) -> None:
    """Tries count when they begin, so that one which is never ended comes no more often than others."""
    submission = submitted(job_store)
    fail_one(job_store)
    for _ in range(MAX_TRIES):
        assert job_store.take_hook() is not None
        later(HELD_FOR + 1)
    other = submitted(job_store)
    fail_one(job_store)
    hook = job_store.take_hook()
    assert hook is not None
    assert hook.submission == other, "what was given up keeps nobody waiting"
    (kept,) = job_store.hooks(submission)
    assert (kept.attempts, kept.error) == (MAX_TRIES, telling.UNHEARD_OF)
    assert kept.ended_at is not None


def test_a_moment_that_a_wrong_clock_wrote_is_not_waited_for(
    job_store: JobStore, later: Callable[[float], None]
) -> None:
    """Nobody backs off for hours."""
    submitted(job_store)
    fail_one(job_store)
    later(36_000)
    hook = job_store.take_hook()
    assert hook is not None
    job_store.end_hook(hook, error="no")
    later(-36_000)
    assert job_store.take_hook() is not None


def test_two_takers_get_one_each(job_store: JobStore, open_another: Callable[[], JobStore]) -> None:
    """Two submissions, two supervisors: neither is told twice."""
    other = open_another()
    wanted = {submitted(job_store), submitted(job_store)}
    fail_one(job_store)
    fail_one(job_store)
    taken = [store.take_hook() for store in (job_store, other)]
    assert {hook.submission for hook in taken if hook} == wanted
    assert other.take_hook() is None


def test_pruning_takes_the_hooks_along(job_store: JobStore) -> None:
    """Nothing of a submission is left."""
    submission = submitted(job_store)
    fail_one(job_store)
    job_store.begin_pruning(submission)
    job_store.prune_jobs(submission, first=0, last=0)
    job_store.end_pruning(submission)
    assert job_store.hooks(submission) == []
    assert job_store.take_hook() is None
