"""What `storage.jobstore.JobStore` promises, for every implementation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from storage.errors import BadInputError, StaleWorkerError
from storage.filters import JobFilter
from storage.jobstore import ADD_CHUNK, MAX_FAILURES, JobStore
from storage.measured import SELF_TEST
from storage.model_defaults import fill_defaults
from storage.parameters import JobParameters, estimate_cost
from storage.records import (
    Claim,
    Failure,
    Finish,
    Holdings,
    Image,
    Job,
    JobStatus,
    Refusal,
    Submission,
    SubmissionState,
    WorkerState,
    no_live_worker,
)
from storage.served import ServedModel, served_by, served_model
from storage.settings import Settings
from storage.sqljobstore import progress, selecting
from tests.records import worker_record

MODEL = "demo"
DEFAULTS = {"width": 64, "height": 64}
LEASE = 30.0
OpenAnother = Callable[[], JobStore]
Advance = Callable[[float], None]


def prompts(count: int, **others: object) -> Iterator[JobParameters]:
    """Yield so many jobs."""
    return (JobParameters(prompt=f"prompt {index}", seed=index, **others) for index in range(count))  # type: ignore[arg-type]


def submit(
    store: JobStore,
    count: int = 1,
    *,
    model: str = MODEL,
    name: str | None = None,
    priority: int = 0,
    weight: float = 1.0,
    max_running: int | None = None,
    **parameters: object,
) -> Submission:
    """Make an open submission."""
    submission, _ = store.add_submission(
        model=model, source="test", name=name, priority=priority, weight=weight, max_running=max_running
    )
    store.add_jobs(submission.id, prompts(count, **parameters))
    return store.open_submission(submission.id)


def add_worker(
    store: JobStore,
    incarnation: str = "w1",
    state: WorkerState = WorkerState.READY,
    *,
    name: str = f"{MODEL}@host",
) -> str:
    """Make a worker."""
    store.add_worker(worker_record(incarnation, state=state, name=name))
    return incarnation


def claim(store: JobStore, job: int, incarnation: str = "w1", *, alone: bool = False) -> Claim:
    """Claim a job that is there to be claimed."""
    claimed = store.claim(job, incarnation, defaults=DEFAULTS, alone=alone)
    assert isinstance(claimed, Claim), claimed
    return claimed


def take_and_claim(store: JobStore, incarnation: str = "w1", *, alone: bool = False) -> Claim:
    """Dispatch one job and claim it."""
    (job,) = store.take_for_dispatch(MODEL, window=len(store.queued(MODEL)) + 1)
    return claim(store, job, incarnation, alone=alone)


def image(claimed: Claim, *, file_sha256: str = "f" * 64) -> Image:
    """Return a picture's record."""
    return Image(
        key=f"{claimed.submission}/{claimed.index}-{claimed.attempt}.png",
        file_sha256=file_sha256,
        pixel_sha256="e" * 64,
        bytes=100,
        format="png",
        seconds={"denoise": 0.5},
        numerics={"dtype": "float32"},
    )


def refused(store: JobStore, job: int, incarnation: str = "w1", *, alone: bool = False) -> Refusal:
    """Claim a job that must not be granted."""
    refusal = store.claim(job, incarnation, defaults=DEFAULTS, alone=alone)
    assert isinstance(refusal, Refusal), refusal
    return refusal


def jobs(store: JobStore, submission: Submission) -> list[Job]:
    """Return all jobs of a submission."""
    return list(store.jobs(submission.id))


def statuses(store: JobStore, submission: Submission) -> list[str]:
    """Return the status of each job, in order."""
    return [job.status.value for job in jobs(store, submission)]


STEPS = (
    "take", "claim", "finish", "fail", "release", "crash", "cancel", "retry", "pause", "open", "again",
)  # fmt: skip


class Story:
    """Three jobs and one worker after another; each method is something that can happen at any moment."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.submission = submit(store, 3)
        self.lives = 0
        self.held: list[Claim] = []
        self._next_life()

    def _next_life(self) -> None:
        self.lives += 1
        self.incarnation = add_worker(self.store, f"{self.submission.id}-{self.lives}")

    def take(self) -> None:
        """Dispatch."""
        self.store.take_for_dispatch(MODEL, window=2)

    def claim(self) -> None:
        """Claim whatever is queued, alone if need be."""
        for job in self.store.queued(MODEL):
            for alone in (False, True):
                answer = self.store.claim(job, self.incarnation, defaults=DEFAULTS, alone=alone)
                self.held += [answer] if isinstance(answer, Claim) else []

    def finish(self) -> None:
        """Finish the latest claim, perhaps not for the first time, perhaps too late."""
        if self.held:
            self.store.finish(self.held[-1], image(self.held[-1]))

    def fail(self) -> None:
        """Fail the latest claim."""
        if self.held:
            self.store.fail(self.held[-1], error_type="E", message="m")

    def release(self) -> None:
        """Give the latest claim back and forget it."""
        if self.held:
            self.store.release(self.held.pop())

    def crash(self) -> None:
        """End this life and begin another."""
        self.store.release_incarnation(self.incarnation, crashed=True)
        self._next_life()

    def cancel(self) -> None:
        """Cancel."""
        self.store.cancel(self.submission.id)

    def retry(self) -> None:
        """Retry."""
        self.store.retry(self.submission.id)

    def pause(self) -> None:
        """Pause, unless cancelled."""
        if self.store.find_submission(self.submission.id).state is not SubmissionState.CANCELLED:
            self.store.pause(self.submission.id)

    def again(self) -> None:
        """Render every picture again, unless paused."""
        if self.store.find_submission(self.submission.id).state is not SubmissionState.PAUSED:
            self.store.render_again(self.submission.id, jobs(self.store, self.submission))

    def open(self) -> None:
        """Resume, unless cancelled."""
        if self.store.find_submission(self.submission.id).state is not SubmissionState.CANCELLED:
            self.store.open_submission(self.submission.id)


class TestJobStore:
    """One contract for every implementation."""

    # -- submitting

    def test_a_submission_starts_loading_and_counts_its_jobs_when_it_opens(self, job_store: JobStore) -> None:
        """A submission is `loading` until it is opened, and then knows how many jobs it has."""
        submission, new = job_store.add_submission(model=MODEL, source="prompts.txt", name="otters")
        assert new
        assert (submission.state, submission.total) == (SubmissionState.LOADING, 0)
        assert len(submission.id) == 8
        assert job_store.add_jobs(submission.id, prompts(3)) == 3
        opened = job_store.open_submission(submission.id)
        assert (opened.state, opened.total, opened.name) == (SubmissionState.OPEN, 3, "otters")
        assert job_store.open_submission(submission.id) == opened

    def test_jobs_come_back_as_they_were_given(self, job_store: JobStore) -> None:
        """Every parameter survives the way through the database."""
        given_parameters = JobParameters(
            prompt="an otter, 水彩",
            negative_prompt="blurry",
            seed=2**63 - 1,
            num_inference_steps=20,
            guidance_scale=0.1,
            width=64,
            height=128,
            sampler="dpmpp_2m",
            schedule="karras",
            options={"eta": 0.5},
            extra={"category": "animals", "n": 3},
        )
        submission, _ = job_store.add_submission(model=MODEL, source="test")
        job_store.add_jobs(submission.id, [given_parameters])
        job = job_store.find_job(f"{submission.id}:0")
        assert job.parameters == given_parameters
        assert (job.status, job.attempt, job.failures) == (JobStatus.WAITING, 0, 0)
        assert job.label == f"{submission.id}:0"

    def test_jobs_are_committed_in_chunks(self, job_store: JobStore, open_another: OpenAnother) -> None:
        """Somebody else sees the first chunk before the third is made: at most two are held."""
        other = open_another()
        submission, _ = job_store.add_submission(model=MODEL, source="test")
        seen: list[int] = []

        def many() -> Iterator[JobParameters]:
            for index, job in enumerate(prompts(2 * ADD_CHUNK + 7)):
                if index == 2 * ADD_CHUNK:
                    seen.append(other.counts(submission.id)[JobStatus.WAITING])
                yield job

        assert job_store.add_jobs(submission.id, many()) == 2 * ADD_CHUNK + 7
        assert seen[0] in (ADD_CHUNK, 2 * ADD_CHUNK)
        assert [job.index for job in job_store.jobs(submission.id, after=2 * ADD_CHUNK - 3)] == list(
            range(2 * ADD_CHUNK - 2, 2 * ADD_CHUNK + 7)
        )

    def test_an_idempotency_key_names_one_submission(self, job_store: JobStore) -> None:
        """A repeated key returns the first submission, in whatever state it is."""
        first, new = job_store.add_submission(model=MODEL, source="test", idempotency_key="k")
        assert new
        assert job_store.add_submission(model="other", source="x", idempotency_key="k") == (first, False)
        job_store.add_jobs(first.id, prompts(1))
        opened = job_store.open_submission(first.id)
        assert job_store.add_submission(model=MODEL, source="test", idempotency_key="k") == (opened, False)

    def test_many_threads_with_one_key_make_one_submission(self, job_store: JobStore) -> None:
        """Simultaneous submits with one key all get the same submission, and one of them made it."""
        with ThreadPoolExecutor(8) as pool:
            made = list(
                pool.map(
                    lambda _: job_store.add_submission(model=MODEL, source="t", idempotency_key="k"),
                    range(16),
                )
            )
        assert len({submission.id for submission, _ in made}) == 1
        assert sum(new for _, new in made) == 1

    def test_a_killed_submit_is_finished_by_the_same_jobs(self, job_store: JobStore) -> None:
        """Jobs that are there already are left alone when a submit is repeated."""
        submission, _ = job_store.add_submission(model=MODEL, source="test")
        job_store.add_jobs(submission.id, prompts(4))
        before = jobs(job_store, submission)
        assert job_store.add_jobs(submission.id, prompts(10)) == 10
        after = jobs(job_store, submission)
        assert after[:4] == before
        assert [job.index for job in after] == list(range(10))

    def test_jobs_can_start_at_a_later_index(self, job_store: JobStore) -> None:
        """`first_index` continues where an earlier call stopped."""
        submission, _ = job_store.add_submission(model=MODEL, source="test")
        job_store.add_jobs(submission.id, prompts(2))
        assert job_store.add_jobs(submission.id, prompts(2), first_index=2) == 4
        assert [job.parameters.seed for job in jobs(job_store, submission)] == [0, 1, 0, 1]

    def test_jobs_are_only_added_while_loading(self, job_store: JobStore) -> None:
        """An open submission takes no more jobs."""
        submission = submit(job_store)
        with pytest.raises(BadInputError, match="only added while it is loading"):
            job_store.add_jobs(submission.id, prompts(1))

    @pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_weight_is_a_positive_number(self, job_store: JobStore, weight: float) -> None:
        """A weight that cannot share anything is refused before anything is written."""
        with pytest.raises(BadInputError, match="Weight"):
            job_store.add_submission(model=MODEL, source="test", weight=weight)
        assert job_store.submissions() == []

    def test_names_that_are_no_text_are_kept_readable(self, job_store: JobStore) -> None:
        """A file name with half a surrogate pair or a NUL does not keep a submission out."""
        submission, _ = job_store.add_submission(model=MODEL, source="caf\udce9.txt", name="a\0b\udce9")
        assert "\udce9" not in submission.source
        assert job_store.find_submission("a\0b\udce9").id == submission.id

    # -- finding

    def test_a_submission_is_found_by_id_prefix_name_and_last(self, job_store: JobStore) -> None:
        """Everything that a user may type finds the submission."""
        old = submit(job_store, name="otters")
        new = submit(job_store, name="otters")
        assert job_store.find_submission(old.id) == old
        assert job_store.find_submission(old.id.upper()) == old
        assert job_store.find_submission("otters") == new
        assert job_store.find_submission("@last") == new
        unique = next(old.id[:n] for n in range(1, 9) if not new.id.startswith(old.id[:n]))
        assert job_store.find_submission(unique) == old

    def test_an_ambiguous_prefix_is_refused(self, job_store: JobStore) -> None:
        """A prefix of several ids is an error that lists them."""
        letters: dict[str, str] = {}
        for _ in range(23):  # 22 letters can start an id
            made, _new = job_store.add_submission(model=MODEL, source="test")
            if made.id[0] in letters:
                with pytest.raises(BadInputError, match="could be") as caught:
                    job_store.find_submission(made.id[0])
                assert made.id in str(caught.value)
                return
            letters[made.id[0]] = made.id
        pytest.fail("no two ids began with the same letter")

    @pytest.mark.parametrize(
        "reference", ["", "%", "_", "nothing", "@first", "\\", "é\udce9", "%%%%%%%%", "a" * 1000, "'; --"]
    )
    def test_a_reference_to_nothing_is_refused(self, job_store: JobStore, reference: str) -> None:
        """What names nothing is a BadInputError, wildcards and nonsense included."""
        with pytest.raises(BadInputError):
            job_store.find_submission(reference)
        submit(job_store)
        with pytest.raises(BadInputError):
            job_store.find_submission(reference)

    def test_there_is_no_last_submission_at_first(self, job_store: JobStore) -> None:
        """`@last` says so while nothing was submitted."""
        with pytest.raises(BadInputError, match="no submission yet"):
            job_store.find_submission("@last")

    def test_an_id_that_names_nothing_is_refused_everywhere(self, job_store: JobStore) -> None:
        """Every method that takes a submission's id answers an unknown one with BadInputError."""
        for act in (
            lambda: job_store.add_jobs("zzzzzzzz", prompts(1)),
            lambda: job_store.open_submission("zzzzzzzz"),
            lambda: job_store.cancel("zzzzzzzz"),
            lambda: job_store.pause("zzzzzzzz"),
            lambda: job_store.retry("zzzzzzzz"),
            lambda: job_store.status("zzzzzzzz", lease=LEASE),
        ):
            with pytest.raises(BadInputError, match="no submission"):
                act()

    @pytest.mark.parametrize("index", ["1", "99999999999999999999999", "-1", "x", "", "9" * 5000])
    def test_a_job_that_is_not_there_is_refused(self, job_store: JobStore, index: str) -> None:
        """A job's index past the end, or no number at all, is a BadInputError."""
        submission = submit(job_store)
        with pytest.raises(BadInputError):
            job_store.find_job(f"{submission.id}:{index}")

    def test_a_submission_without_jobs_says_so(self, job_store: JobStore) -> None:
        """The sentence about a missing job does not invent a range."""
        submission, _ = job_store.add_submission(model=MODEL, source="test")
        with pytest.raises(BadInputError, match="it has none yet"):
            job_store.find_job(f"{submission.id}:0")

    def test_submissions_are_listed_newest_first(self, job_store: JobStore) -> None:
        """The list starts with the newest and ends at its limit."""
        made = [submit(job_store) for _ in range(3)]
        assert job_store.submissions() == made[::-1]
        assert job_store.submissions(limit=1) == made[2:]

    def test_jobs_are_read_in_pages(self, job_store: JobStore) -> None:
        """Jobs come in the order of their index, whatever the limit, the start and the page."""
        submission = submit(job_store, 2_500)
        assert [job.index for job in job_store.jobs(submission.id)] == list(range(2_500))
        assert [job.index for job in job_store.jobs(submission.id, after=10, limit=1_500)] == list(
            range(11, 1_511)
        )
        assert list(job_store.jobs(submission.id, statuses=[JobStatus.FAILED])) == []
        assert list(job_store.jobs(submission.id, limit=0)) == []

    def test_jobs_are_filtered_alike_everywhere(
        self, job_store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By words of any script, % and _ as they are, and by values; whatever the page and the limit."""
        monkeypatch.setattr(selecting, "PAGE", 3)
        submission, _ = job_store.add_submission(model=MODEL, source="test")
        words = ["ÉMILE", "100% otter", "1000 otters", "a_b", "axb", "Straße"] * 3
        job_store.add_jobs(
            submission.id,
            (
                JobParameters(prompt=word, seed=number, extra={"set": number // 6, "名": "é"})
                for number, word in enumerate(words)
            ),
        )

        def found(limit: int | None = None, **meant: Any) -> list[int]:
            jobs = job_store.jobs(submission.id, meant=JobFilter(**meant), limit=limit)
            return [job.index for job in jobs]

        assert found(match="émile") == [0, 6, 12]
        assert found(match="100%") == [1, 7, 13]
        assert found(match="A_B") == [3, 9, 15]
        assert found(match="STRASSE") == [5, 11, 17]
        assert found(match="otter", where={"set": ("1", "2")}) == [7, 8, 13, 14]
        assert found(match="otter", limit=3) == [1, 2, 7]
        assert found(where={"名": ("é",), "seed": ("4",)}) == [4]
        assert found(match="fox") == []

    def test_columns_of_a_prompt_file_are_known(self, job_store: JobStore) -> None:
        """Those that any job of this submission has, and of no other one."""
        submit(job_store, extra={"other": 1})
        submission, _ = job_store.add_submission(model=MODEL, source="test")
        assert job_store.columns(submission.id) == []
        extras: list[dict[str, Any]] = [{}, {"genre": "neon", "a.b": 1}, {"genre": None, "名": [1]}]
        job_store.add_jobs(submission.id, (JobParameters(prompt="p", seed=1, extra=one) for one in extras))
        assert job_store.columns(submission.id) == ["a.b", "genre", "名"]

    # -- dispatch

    def test_dispatch_fills_the_window_in_the_order_of_the_index(self, job_store: JobStore) -> None:
        """As many jobs are queued as the window allows, lowest index first, and no more the next time."""
        submission = submit(job_store, 5)
        ids = [job.id for job in jobs(job_store, submission)]
        assert job_store.take_for_dispatch(MODEL, window=3) == ids[:3]
        assert job_store.take_for_dispatch(MODEL, window=3) == []
        assert sorted(job_store.queued(MODEL)) == ids[:3]
        assert statuses(job_store, submission) == ["queued"] * 3 + ["waiting"] * 2
        assert job_store.take_for_dispatch(MODEL, window=4) == ids[3:4]
        assert job_store.take_for_dispatch(MODEL, window=0) == []

    def test_only_open_submissions_of_the_model_are_dispatched(self, job_store: JobStore) -> None:
        """Loading, paused and cancelled submissions and those of other models stay where they are."""
        loading, _ = job_store.add_submission(model=MODEL, source="test")
        job_store.add_jobs(loading.id, prompts(1))
        job_store.pause(submit(job_store).id)
        job_store.cancel(submit(job_store).id)
        submit(job_store, model="other")
        assert job_store.take_for_dispatch(MODEL, window=9) == []

    def test_a_higher_priority_goes_first(self, job_store: JobStore) -> None:
        """A submission of higher priority is emptied before any other gets its turn."""
        low, high = submit(job_store, 2), submit(job_store, 2, priority=5)
        taken = job_store.take_for_dispatch(MODEL, window=3)
        assert taken == [job.id for job in [*jobs(job_store, high), jobs(job_store, low)[0]]]

    def test_weights_share_out_the_turns(self, job_store: JobStore) -> None:
        """Weight 3 gets three jobs for each one of weight 1, over many small dispatches."""
        heavy, light = submit(job_store, 60, weight=3.0), submit(job_store, 60)
        owner = {job.id: sub.id for sub in (heavy, light) for job in jobs(job_store, sub)}
        picked: Counter[str] = Counter()
        for window in range(1, 41):
            picked.update(owner[job] for job in job_store.take_for_dispatch(MODEL, window=window))
        assert picked == {heavy.id: 30, light.id: 10}

    def test_cost_shares_out_the_turns(self, job_store: JobStore) -> None:
        """Jobs of four times the steps get a quarter of the turns."""
        slow = submit(job_store, 40, num_inference_steps=40)
        fast = submit(job_store, 40, num_inference_steps=10)
        owner = {job.id: sub.id for sub in (slow, fast) for job in jobs(job_store, sub)}
        taken = Counter(owner[job] for job in job_store.take_for_dispatch(MODEL, window=25))
        assert taken == {slow.id: 5, fast.id: 20}

    def test_a_small_list_overtakes_a_huge_one(self, job_store: JobStore) -> None:
        """A late small submission takes turns with one that has been dispatched from for long."""
        huge = submit(job_store, 100)
        job_store.take_for_dispatch(MODEL, window=50)
        small = submit(job_store, 5)
        taken = set(job_store.take_for_dispatch(MODEL, window=60))
        assert {job.id for job in jobs(job_store, small)} <= taken
        assert len(taken & {job.id for job in jobs(job_store, huge)}) == 5

    def test_a_resumed_submission_that_ran_ahead_alone_takes_its_turns(self, job_store: JobStore) -> None:
        """What it rendered while nobody else waited is not held against it."""
        ahead = submit(job_store, 200)
        job_store.take_for_dispatch(MODEL, window=150)
        job_store.pause(ahead.id)
        other = submit(job_store, 50)
        job_store.open_submission(ahead.id)
        owner = {job.id: sub.id for sub in (ahead, other) for job in jobs(job_store, sub)}
        taken = Counter(owner[job] for job in job_store.take_for_dispatch(MODEL, window=20))
        assert taken == {ahead.id: 10, other.id: 10}

    def test_a_submission_cancelled_while_it_was_loading_is_not_opened_in_part(
        self, job_store: JobStore
    ) -> None:
        """Half a list is never rendered as if it were whole."""
        submission, _ = job_store.add_submission(model=MODEL, source="test")
        job_store.add_jobs(submission.id, prompts(3))
        job_store.cancel(submission.id)
        with pytest.raises(BadInputError, match="submit the list again"):
            job_store.retry(submission.id)
        assert job_store.find_submission(submission.id).state is SubmissionState.CANCELLED

    def test_only_one_of_many_dispatchers_takes_a_job(self, job_store: JobStore) -> None:
        """Simultaneous dispatch never queues one job twice nor more than the window."""
        submit(job_store, 40)
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda _: job_store.take_for_dispatch(MODEL, window=20), range(8)))
        together = [job for some in taken for job in some]
        assert len(together) == len(set(together)) == 20

    def test_a_job_that_backs_off_is_not_dispatched_before_its_time(
        self, job_store: JobStore, advance: Advance
    ) -> None:
        """A failed job waits out its backoff, then comes back."""
        add_worker(job_store)
        submit(job_store)
        claimed = take_and_claim(job_store)
        assert job_store.fail(claimed, error_type="E", message="m") is Failure.WAITING
        assert job_store.take_for_dispatch(MODEL, window=1) == []
        advance(1.1)
        assert job_store.take_for_dispatch(MODEL, window=1) == [claimed.job]

    # -- claiming

    def test_a_claim_carries_everything_that_rendering_needs(self, job_store: JobStore) -> None:
        """A claim says which attempt it is, and no parameter of it is open."""
        add_worker(job_store)
        submission = submit(job_store, num_inference_steps=None, sampler=None, schedule=None)
        claimed = take_and_claim(job_store)
        assert (claimed.submission, claimed.index, claimed.attempt) == (submission.id, 0, 1)
        assert (claimed.failures, claimed.incarnation, claimed.model) == (0, "w1", MODEL)
        parameters = claimed.parameters
        assert (parameters.width, parameters.height) == (64, 64)
        assert (parameters.num_inference_steps, parameters.sampler) == (30, "lms")
        assert (parameters.schedule, parameters.guidance_scale) == ("default", 7.5)
        (job,) = jobs(job_store, submission)
        assert job.parameters == parameters
        assert (job.status, job.incarnation) == (JobStatus.RUNNING, "w1")

    def test_what_the_user_chose_is_never_replaced(self, job_store: JobStore) -> None:
        """A worker's defaults fill gaps only."""
        add_worker(job_store)
        submit(job_store, width=128, height=256, num_inference_steps=7, guidance_scale=0.0)
        (job,) = job_store.take_for_dispatch(MODEL, window=1)
        claimed = job_store.claim(job, "w1", defaults={**DEFAULTS, "num_inference_steps": 50})
        assert isinstance(claimed, Claim)
        assert (claimed.parameters.width, claimed.parameters.height) == (128, 256)
        assert (claimed.parameters.num_inference_steps, claimed.parameters.guidance_scale) == (7, 0.0)

    @pytest.mark.parametrize(
        ("sampler", "schedule", "filled"),
        [
            (None, None, ("euler", "karras")),
            ("euler", None, ("euler", "karras")),
            ("lms", None, ("lms", "default")),
            ("ddim", None, ("ddim", "default")),
            ("lms", "beta", ("lms", "beta")),
            (None, "default", ("euler", "default")),
        ],
    )
    def test_a_recommended_schedule_stays_with_its_sampler(
        self, job_store: JobStore, sampler: str | None, schedule: str | None, filled: tuple[str, str]
    ) -> None:
        """What submit left open is filled as `fill_defaults` does it."""
        add_worker(job_store)
        defaults = {**DEFAULTS, "sampler": "euler", "schedule": "karras"}
        submit(job_store, sampler=sampler, schedule=schedule)
        (job,) = job_store.take_for_dispatch(MODEL, window=1)
        claimed = job_store.claim(job, "w1", defaults=defaults)
        assert isinstance(claimed, Claim)
        assert (claimed.parameters.sampler, claimed.parameters.schedule) == filled
        assert fill_defaults(
            JobParameters(prompt="x", seed=1, sampler=sampler, schedule=schedule), defaults
        ) == (JobParameters(prompt="x", seed=1, sampler=filled[0], schedule=filled[1], width=64, height=64))

    def test_a_duplicate_message_is_refused(self, job_store: JobStore) -> None:
        """The second claim of a job gets nothing, and the first one stays what it is."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        assert refused(job_store, claimed.job) is Refusal.GONE
        assert statuses(job_store, submission) == ["running"]
        assert job_store.finish(claimed, image(claimed)) is Finish.SAVED
        assert refused(job_store, claimed.job) is Refusal.GONE

    def test_a_job_that_never_was_is_refused(self, job_store: JobStore) -> None:
        """A message about an unknown job is no error."""
        add_worker(job_store)
        assert refused(job_store, 12345) is Refusal.GONE

    def test_a_waiting_job_cannot_be_claimed(self, job_store: JobStore) -> None:
        """Only what was dispatched is rendered."""
        add_worker(job_store)
        submission = submit(job_store)
        assert refused(job_store, jobs(job_store, submission)[0].id) is Refusal.GONE
        assert statuses(job_store, submission) == ["waiting"]

    def test_paused_and_cancelled_jobs_are_refused(self, job_store: JobStore) -> None:
        """Pausing and cancelling are effective at once, also for jobs whose message is out."""
        add_worker(job_store)
        paused, cancelled = submit(job_store), submit(job_store)
        job_store.take_for_dispatch(MODEL, window=2)
        job_store.pause(paused.id)
        job_store.cancel(cancelled.id)
        for submission in (paused, cancelled):
            assert refused(job_store, jobs(job_store, submission)[0].id) is Refusal.GONE
            assert statuses(job_store, submission) == ["waiting"]

    @pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.DRAINING])
    def test_only_a_ready_worker_claims(
        self, job_store: JobStore, state: WorkerState, advance: Advance
    ) -> None:
        """A worker that loads or drains is refused, and the job is soon offered again."""
        add_worker(job_store, state=state)
        submit(job_store)
        (job,) = job_store.take_for_dispatch(MODEL, window=1)
        assert refused(job_store, job) is Refusal.GONE
        advance(1.1)
        assert job_store.take_for_dispatch(MODEL, window=1) == [job]

    @pytest.mark.parametrize("crashed", [True, False])
    def test_an_incarnation_that_ended_cannot_claim(self, job_store: JobStore, *, crashed: bool) -> None:
        """What an expired or stopped incarnation asks for it does not get; nor does an unknown one."""
        add_worker(job_store)
        job_store.release_incarnation("w1", crashed=crashed)
        submit(job_store, 2)
        first, second = job_store.take_for_dispatch(MODEL, window=2)
        assert refused(job_store, first) is Refusal.GONE
        assert refused(job_store, second, "nobody") is Refusal.GONE

    # -- finishing

    def test_a_finished_job_has_one_image(self, job_store: JobStore) -> None:
        """`finish` writes the status, the image row and the warnings in one go."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        assert job_store.finish(claimed, image(claimed), warnings=["truncated"]) is Finish.SAVED
        (job,) = jobs(job_store, submission)
        assert job.status is JobStatus.SUCCEEDED
        assert job.image == image(claimed)
        assert job.warnings == ["truncated"]
        assert job.finished_at is not None
        assert job_store.find_job(job.label).image == job.image

    def test_a_picture_is_found_by_the_hash_of_its_file(self, job_store: JobStore) -> None:
        """With its job, the newest first: equal jobs make equal files; of other bytes nobody knows."""
        add_worker(job_store)
        submit(job_store, 3)
        earlier, later, other = (take_and_claim(job_store) for _ in range(3))
        for claimed, digest in ((earlier, "a" * 64), (later, "a" * 64), (other, "b" * 64)):
            job_store.finish(claimed, image(claimed, file_sha256=digest))
        found = job_store.find_pictures("a" * 64)
        assert [job.label for job in found] == [later.label, earlier.label]
        assert found[0] == job_store.find_job(later.label)
        assert job_store.find_pictures("a" * 64, limit=1) == found[:1]
        assert job_store.find_pictures("c" * 64) == []

    def test_a_repeated_finish_is_ours(self, job_store: JobStore) -> None:
        """A finish whose reply was lost can be repeated; there is still one image."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        assert job_store.finish(claimed, image(claimed)) is Finish.SAVED
        assert job_store.finish(claimed, image(claimed)) is Finish.OURS
        assert job_store.rendered_since(MODEL, datetime.now(UTC) - timedelta(minutes=1)) == 1
        assert jobs(job_store, submission)[0].image == image(claimed)

    def test_a_stale_attempt_cannot_finish(self, job_store: JobStore) -> None:
        """After a takeover the old attempt can neither finish, nor fail, nor release the job."""
        add_worker(job_store)
        add_worker(job_store, "w2")
        submit(job_store)
        stale = take_and_claim(job_store)
        job_store.release_incarnation("w1", crashed=False)
        assert job_store.finish(stale, image(stale)) is Finish.LOST
        fresh = take_and_claim(job_store, "w2")
        assert (fresh.job, fresh.attempt) == (stale.job, 2)
        for _ in range(2):
            assert job_store.finish(stale, image(stale)) is Finish.LOST
            assert job_store.fail(stale, error_type="E", message="m") is Failure.LOST
            assert not job_store.release(stale)
            job_store.finish(fresh, image(fresh))
        assert job_store.find_job(fresh.label).image == image(fresh)

    # -- pictures that are there already

    def test_a_claim_says_whether_pictures_may_be_taken_over(self, job_store: JobStore) -> None:
        """It is its submission's, and off where nobody asked."""
        add_worker(job_store)
        for reuse in (True, False):
            submission, _ = job_store.add_submission(model=MODEL, source="test", reuse=reuse)
            assert submission.reuse is reuse
            job_store.add_jobs(submission.id, prompts(1))
            assert job_store.open_submission(submission.id).reuse is reuse
            assert take_and_claim(job_store).reuse is reuse

    def test_a_claim_says_how_urgent_it_is(self, job_store: JobStore) -> None:
        """It is its submission's, as it is now."""
        add_worker(job_store)
        submission = submit(job_store, 2, priority=5)
        assert take_and_claim(job_store).priority == 5
        job_store.adjust(submission.id, priority=-1)
        assert take_and_claim(job_store).priority == -1

    def test_pictures_are_found_by_their_fingerprint(self, job_store: JobStore) -> None:
        """The newest few, newest first, with where they came from; one without a fingerprint never is."""
        submission = submit(job_store, 6)
        add_worker(job_store)
        for index, mark in enumerate(("a" * 64, "a" * 64, "a" * 64, "b" * 64, None, "a" * 64)):
            held = take_and_claim(job_store)
            source = f"{submission.id}:0" if index == 5 else None
            picture = replace(image(held), fingerprint=mark, copied_from=source)
            assert job_store.finish(held, picture, warnings=["w"]) is Finish.SAVED
        found = job_store.find_rendered("a" * 64)
        assert [job.index for job in found] == [5, 2, 1]
        assert [job.image and job.image.copied_from for job in found] == [f"{submission.id}:0", None, None]
        assert {job.label for job in found} == {f"{submission.id}:{index}" for index in (1, 2, 5)}
        assert found[0].warnings == ["w"]
        assert [job.index for job in job_store.find_rendered("b" * 64)] == [3]
        assert job_store.find_rendered("c" * 64) == []

    # -- failing

    def test_a_failing_job_backs_off_longer_each_time_and_then_fails(
        self, job_store: JobStore, advance: Advance
    ) -> None:
        """Each failure doubles the backoff; the last one that is allowed ends the job with its error."""
        add_worker(job_store)
        submission = submit(job_store)
        outcomes, waits = [], []
        for _ in range(MAX_FAILURES):
            claimed = take_and_claim(job_store)
            outcomes.append(
                job_store.fail(claimed, error_type="RenderError", message="NaN", traceback="trace")
            )
            job = job_store.find_job(claimed.label)
            waits.append(job.not_before is not None)
            advance(61)
        assert outcomes == [Failure.WAITING] * (MAX_FAILURES - 1) + [Failure.FAILED]
        assert waits == [True] * (MAX_FAILURES - 1) + [False]
        (job,) = jobs(job_store, submission)
        assert (job.status, job.failures, job.attempt) == (JobStatus.FAILED, MAX_FAILURES, MAX_FAILURES)
        assert (job.error_type, job.error_message, job.traceback) == ("RenderError", "NaN", "trace")

    def test_a_clock_that_was_hours_ahead_makes_no_job_wait_for_hours(
        self, job_store: JobStore, advance: Advance
    ) -> None:
        """A moment that lies further ahead than any backoff is none."""
        add_worker(job_store)
        submit(job_store)
        claimed = take_and_claim(job_store)
        advance(5 * 3600)
        assert job_store.fail(claimed, error_type="RuntimeError", message="x") is Failure.WAITING
        assert job_store.take_for_dispatch(MODEL, window=1) == []
        advance(-5 * 3600)
        assert job_store.take_for_dispatch(MODEL, window=1) == [claimed.job]

    def test_the_backoff_doubles(self, job_store: JobStore, advance: Advance) -> None:
        """The second backoff lasts longer than the first."""
        add_worker(job_store)
        submit(job_store)
        claimed = take_and_claim(job_store)
        job_store.fail(claimed, error_type="E", message="m")
        advance(1.1)
        job_store.fail(take_and_claim(job_store), error_type="E", message="m")
        advance(1.1)
        assert job_store.take_for_dispatch(MODEL, window=1) == []
        advance(1.0)
        assert job_store.take_for_dispatch(MODEL, window=1) == [claimed.job]

    def test_a_permanent_failure_ends_a_job_at_once(self, job_store: JobStore) -> None:
        """What would fail the same way again is not tried again."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        outcome = job_store.fail(claimed, error_type="E", message="\0caf\udce9", permanent=True)
        assert outcome is Failure.FAILED
        assert statuses(job_store, submission) == ["failed"]

    def test_success_forgets_earlier_errors(self, job_store: JobStore, advance: Advance) -> None:
        """A job that succeeds after a failure carries no error any more."""
        add_worker(job_store)
        submit(job_store)
        job_store.fail(take_and_claim(job_store), error_type="E", message="m")
        advance(2)
        claimed = take_and_claim(job_store)
        assert claimed.failures == 1
        job_store.finish(claimed, image(claimed))
        job = job_store.find_job(claimed.label)
        assert (job.error_type, job.error_message, job.traceback, job.not_before) == (None,) * 4

    def test_a_released_job_is_not_charged(self, job_store: JobStore) -> None:
        """A job that is given back waits as if nothing had happened, only its attempt has grown."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        assert job_store.release(claimed)
        assert not job_store.release(claimed)
        (job,) = jobs(job_store, submission)
        assert (job.status, job.failures, job.attempt) == (JobStatus.WAITING, 0, 1)
        assert take_and_claim(job_store).attempt == 2

    def test_a_stray_job_is_given_back_uncharged(self, job_store: JobStore) -> None:
        """A claim whose reply was lost can be undone by its incarnation, and by no other."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        assert not job_store.release_stray(claimed.job, "w2")
        assert job_store.release_stray(claimed.job, "w1")
        assert not job_store.release_stray(claimed.job, "w1")
        (job,) = jobs(job_store, submission)
        assert (job.status, job.failures, job.attempt) == (JobStatus.WAITING, 0, 1)
        assert job_store.finish(claimed, image(claimed)) is Finish.LOST

    def test_a_job_of_a_worker_that_has_ended_is_given_back(self, job_store: JobStore) -> None:
        """A claim may be committed just after its worker was expired; jobs of the living are left alone."""
        add_worker(job_store)
        add_worker(job_store, "w2")
        submission = submit(job_store, 2)
        lost, kept = take_and_claim(job_store), take_and_claim(job_store, "w2")
        assert job_store.release_orphans() == 0
        job_store.set_worker_state("w1", WorkerState.EXPIRED)
        assert job_store.release_orphans() == 1
        assert job_store.release_orphans() == 0
        assert statuses(job_store, submission) == ["waiting", "running"]
        assert job_store.finish(lost, image(lost)) is Finish.LOST
        assert job_store.finish(kept, image(kept)) is Finish.SAVED

    # -- cancelling, pausing, retrying

    def test_cancelling_is_effective_at_once_and_sweeping_ends_the_jobs(self, job_store: JobStore) -> None:
        """Cancel stops dispatch at once; the sweep ends waiting and queued jobs and says how many."""
        submission, other = submit(job_store, 4), submit(job_store, 2, priority=-1)
        job_store.take_for_dispatch(MODEL, window=2)
        assert job_store.cancel(submission.id).state is SubmissionState.CANCELLED
        assert len(job_store.take_for_dispatch(MODEL, window=9)) == 2
        assert job_store.sweep_cancelled() == 4
        assert job_store.sweep_cancelled(submission.id) == 0
        assert statuses(job_store, submission) == ["cancelled"] * 4
        assert statuses(job_store, other) == ["queued"] * 2

    def test_a_sweep_goes_in_chunks(self, job_store: JobStore) -> None:
        """A list of more than a chunk is swept completely."""
        submission = submit(job_store, ADD_CHUNK + 3)
        job_store.cancel(submission.id)
        assert job_store.sweep_cancelled(submission.id) == ADD_CHUNK + 3
        assert job_store.counts(submission.id)[JobStatus.CANCELLED] == ADD_CHUNK + 3

    def test_a_sweep_leaves_what_is_not_cancelled(self, job_store: JobStore) -> None:
        """Sweeping an open submission does nothing."""
        submission = submit(job_store, 2)
        assert job_store.sweep_cancelled(submission.id) == 0
        assert statuses(job_store, submission) == ["waiting"] * 2

    def test_a_running_job_of_a_cancelled_submission_is_dropped_and_ends_cancelled(
        self, job_store: JobStore
    ) -> None:
        """The heartbeat no longer names it, a sweep leaves it alone, and its release ends it."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        assert job_store.heartbeat("w1", {claimed.job: 0.5}).jobs == {claimed.job}
        job_store.cancel(submission.id)
        assert job_store.heartbeat("w1", {claimed.job: 0.6}).jobs == set()
        assert job_store.sweep_cancelled() == 0
        assert job_store.release(claimed)
        (job,) = jobs(job_store, submission)
        assert job.status is JobStatus.CANCELLED
        assert job.finished_at is not None

    def test_a_failure_after_a_cancel_ends_the_job_cancelled(self, job_store: JobStore) -> None:
        """A job that fails while its submission is cancelled does not wait for another try."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        job_store.cancel(submission.id)
        job_store.fail(claimed, error_type="E", message="m")
        assert statuses(job_store, submission) == ["cancelled"]

    def test_a_cancelled_loading_submission_takes_no_more_jobs(self, job_store: JobStore) -> None:
        """A submit that is cancelled on the way stops, and cannot open."""
        submission, _ = job_store.add_submission(model=MODEL, source="test")
        job_store.cancel(submission.id)
        with pytest.raises(BadInputError, match="cancelled"):
            job_store.add_jobs(submission.id, prompts(1))
        with pytest.raises(BadInputError, match="retry"):
            job_store.open_submission(submission.id)

    def test_retry_brings_failed_and_cancelled_jobs_back(self, job_store: JobStore) -> None:
        """Retry reopens, forgets errors, keeps attempts, and leaves what succeeded alone."""
        add_worker(job_store)
        submission = submit(job_store, 4)
        done = take_and_claim(job_store)
        job_store.finish(done, image(done))
        failed = take_and_claim(job_store)
        job_store.fail(failed, error_type="E", message="m", permanent=True)
        job_store.cancel(submission.id)  # swept only by the retry itself
        assert job_store.retry(submission.id) == 3
        assert statuses(job_store, submission) == ["succeeded"] + ["waiting"] * 3
        job = job_store.find_job(failed.label)
        assert (job.error_type, job.failures, job.attempt) == (None, 0, 1)
        assert job_store.find_submission(submission.id).state is SubmissionState.OPEN
        assert len(job_store.take_for_dispatch(MODEL, window=9)) == 3

    def test_retry_of_one_job_leaves_the_others(self, job_store: JobStore) -> None:
        """With an index only that job comes back."""
        submission = submit(job_store, 3)
        job_store.cancel(submission.id)
        job_store.sweep_cancelled()
        assert job_store.retry(submission.id, index=1) == 1
        assert statuses(job_store, submission) == ["cancelled", "waiting", "cancelled"]
        assert job_store.retry(submission.id, index=1) == 0

    def test_retry_without_anything_to_retry_changes_nothing(self, job_store: JobStore) -> None:
        """A paused submission without failed jobs stays paused."""
        submission = submit(job_store, 2)
        paused = job_store.pause(submission.id, note="full")
        assert job_store.retry(submission.id) == 0
        assert job_store.find_submission(submission.id) == paused

    def test_a_sweep_during_a_retry_cancels_nothing_again(
        self, job_store: JobStore, open_another: OpenAnother, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A supervisor that sweeps half-way through a retry does not take back what was retried."""
        submission = submit(job_store, 3)
        job_store.cancel(submission.id)
        job_store.sweep_cancelled()
        other = open_another()
        original = job_store._in_chunks  # type: ignore[attr-defined]

        def in_chunks(*arguments: object, **named: object) -> int:
            count: int = original(*arguments, **named)
            other.sweep_cancelled()
            return count

        monkeypatch.setattr(job_store, "_in_chunks", in_chunks)
        assert job_store.retry(submission.id) == 3
        assert statuses(job_store, submission) == ["waiting"] * 3

    def test_pausing_takes_queued_jobs_back_and_opening_resumes(self, job_store: JobStore) -> None:
        """A pause keeps its reason and empties the queue, running jobs go on; opening clears the reason."""
        add_worker(job_store)
        submission = submit(job_store, 3)
        claimed = take_and_claim(job_store)
        job_store.take_for_dispatch(MODEL, window=1)
        paused = job_store.pause(submission.id, note="the disk is full")
        assert (paused.state, paused.note) == (SubmissionState.PAUSED, "the disk is full")
        assert statuses(job_store, submission) == ["running", "waiting", "waiting"]
        assert job_store.heartbeat("w1", {}).jobs == {claimed.job}
        assert job_store.finish(claimed, image(claimed)) is Finish.SAVED
        assert job_store.take_for_dispatch(MODEL, window=9) == []
        assert job_store.open_submission(submission.id).note is None
        assert len(job_store.take_for_dispatch(MODEL, window=9)) == 2

    def test_only_an_open_submission_can_be_paused(self, job_store: JobStore) -> None:
        """Loading and cancelled submissions are not paused."""
        loading, _ = job_store.add_submission(model=MODEL, source="test")
        cancelled = job_store.cancel(submit(job_store).id)
        for submission in (loading, cancelled):
            with pytest.raises(BadInputError, match="cannot be paused"):
                job_store.pause(submission.id)

    # -- heartbeat and workers

    def test_a_heartbeat_advances_the_beat_and_shows_progress(self, job_store: JobStore) -> None:
        """The beat grows by one, and a running job shows how far it is."""
        add_worker(job_store)
        submit(job_store)
        claimed = take_and_claim(job_store)
        assert job_store.find_job(claimed.label).progress == 0.0
        for beat in (1, 2):
            job_store.heartbeat("w1", {claimed.job: 0.25 * beat})
            assert job_store.workers()[0].beat == beat
        assert job_store.find_job(claimed.label).progress == 0.5

    def test_a_heartbeat_does_not_name_jobs_of_others(self, job_store: JobStore) -> None:
        """Each incarnation hears only of its own running jobs, whatever it claims to hold."""
        add_worker(job_store)
        add_worker(job_store, "w2")
        submit(job_store, 2)
        mine, theirs = take_and_claim(job_store), take_and_claim(job_store, "w2")
        assert job_store.heartbeat("w1", {mine.job: 0.1, theirs.job: 0.1, 999: 0.0}).jobs == {mine.job}

    @pytest.mark.parametrize("crashed", [True, False])
    def test_an_ended_incarnation_never_comes_back(self, job_store: JobStore, *, crashed: bool) -> None:
        """Neither a beat, nor a state, nor a new row brings an expired or stopped incarnation back."""
        add_worker(job_store)
        job_store.release_incarnation("w1", crashed=crashed)
        with pytest.raises(StaleWorkerError):
            job_store.heartbeat("w1", {})
        job_store.set_worker_state("w1", WorkerState.READY)
        with pytest.raises(StaleWorkerError):
            add_worker(job_store)
        (worker,) = job_store.workers()
        assert worker.state is (WorkerState.EXPIRED if crashed else WorkerState.STOPPED)
        assert job_store.workers(alive_only=True) == []

    def test_an_unknown_incarnation_is_stale(self, job_store: JobStore) -> None:
        """A beat of nobody is answered like that of a dead one."""
        with pytest.raises(StaleWorkerError):
            job_store.heartbeat("nobody", {})

    def test_a_worker_may_tell_more_about_itself_later(self, job_store: JobStore) -> None:
        """A second row of a living incarnation replaces the first."""
        add_worker(job_store, state=WorkerState.STARTING)
        add_worker(job_store, state=WorkerState.READY)
        job_store.set_worker_state("w1", WorkerState.DRAINING, note="bye")
        (worker,) = job_store.workers(alive_only=True)
        assert (worker.state, worker.note, worker.defaults) == (WorkerState.DRAINING, "bye", DEFAULTS)

    def test_an_orderly_end_charges_nobody(self, job_store: JobStore) -> None:
        """Jobs of a process that stopped in order wait again and are no suspects."""
        add_worker(job_store)
        submission = submit(job_store, 2)
        take_and_claim(job_store)
        take_and_claim(job_store)
        assert job_store.release_incarnation("w1", crashed=False) == 2
        assert job_store.release_incarnation("w1", crashed=True) == 0
        assert [(job.status, job.suspect, job.failures) for job in jobs(job_store, submission)] == [
            (JobStatus.WAITING, False, 0)
        ] * 2

    def test_jobs_of_a_crash_are_suspects_and_not_charged(self, job_store: JobStore) -> None:
        """A crash in company condemns nobody: all wait again, each to be tried alone."""
        add_worker(job_store)
        submission, cancelled = submit(job_store, 2), submit(job_store, priority=-1)
        for _ in range(3):
            take_and_claim(job_store)
        job_store.cancel(cancelled.id)
        assert job_store.release_incarnation("w1", crashed=True) == 3
        assert [(job.status, job.suspect, job.failures) for job in jobs(job_store, submission)] == [
            (JobStatus.WAITING, True, 0)
        ] * 2
        assert statuses(job_store, cancelled) == ["cancelled"]

    def test_a_suspect_is_claimed_alone(self, job_store: JobStore, advance: Advance) -> None:
        """A suspect is refused in company; alone it is granted only to a process with nothing else to do."""
        add_worker(job_store)
        submit(job_store)
        suspect = take_and_claim(job_store)
        job_store.release_incarnation("w1", crashed=True)
        add_worker(job_store, "w2")
        submit(job_store, priority=1)
        neighbour = take_and_claim(job_store, "w2")
        (job,) = job_store.take_for_dispatch(MODEL, window=1)
        assert job == suspect.job
        assert refused(job_store, job, "w2") is Refusal.SUSPECT
        assert refused(job_store, job, "w2", alone=True) is Refusal.COMPANY
        assert job_store.find_job(suspect.label).status is JobStatus.WAITING
        job_store.finish(neighbour, image(neighbour))
        advance(1.1)
        claimed = take_and_claim(job_store, "w2", alone=True)
        assert job_store.finish(claimed, image(claimed)) is Finish.SAVED
        assert not job_store.find_job(suspect.label).suspect

    def test_a_job_that_crashes_alone_is_condemned_in_the_end(self, job_store: JobStore) -> None:
        """Each crash while it runs alone is a failure of the job; the last ends it, retry brings it back."""
        submission = submit(job_store)
        for life in range(MAX_FAILURES + 1):
            add_worker(job_store, f"w{life}")
            take_and_claim(job_store, f"w{life}", alone=life > 0)
            assert job_store.release_incarnation(f"w{life}", crashed=True) == 1
        (job,) = jobs(job_store, submission)
        assert (job.status, job.failures, job.error_type) == (JobStatus.FAILED, MAX_FAILURES, "WorkerCrash")
        assert job_store.retry(submission.id) == 1
        assert not jobs(job_store, submission)[0].suspect

    def test_a_suspect_of_a_cancelled_submission_ends_cancelled(self, job_store: JobStore) -> None:
        """A crash after a cancel never turns a job into a failed one."""
        submission = submit(job_store)
        for life in range(MAX_FAILURES + 1):
            add_worker(job_store, f"w{life}")
            take_and_claim(job_store, f"w{life}", alone=life > 0)
            if life == MAX_FAILURES:
                job_store.cancel(submission.id)
            job_store.release_incarnation(f"w{life}", crashed=True)
        assert statuses(job_store, submission) == ["cancelled"]

    def test_the_schema_says_which_workers_it_allows(self, job_store: JobStore) -> None:
        """The oldest allowed worker version is written in the database."""
        assert job_store.oldest_worker_version() == "0.1.0"

    # -- status

    def test_counts_name_every_status(self, job_store: JobStore) -> None:
        """Counts are complete, zeros included."""
        add_worker(job_store)
        submission = submit(job_store, 3)
        claimed = take_and_claim(job_store)
        job_store.finish(claimed, image(claimed))
        take_and_claim(job_store)
        assert job_store.counts(submission.id) == {
            JobStatus.WAITING: 1,
            JobStatus.QUEUED: 0,
            JobStatus.RUNNING: 1,
            JobStatus.SUCCEEDED: 1,
            JobStatus.FAILED: 0,
            JobStatus.CANCELLED: 0,
        }

    def test_status_measures_the_rate_and_foresees_the_end(
        self, job_store: JobStore, advance: Advance
    ) -> None:
        """Five pictures one second apart are one picture a second, and five more take five seconds."""
        add_worker(job_store)
        submission = submit(job_store, 10)
        for _ in range(5):
            claimed = take_and_claim(job_store)
            job_store.finish(claimed, image(claimed))
            advance(1)
        advance(-1)
        status = job_store.status(submission.id, lease=LEASE)
        assert status.images_per_second == pytest.approx(1.0, rel=0.5)
        assert status.eta_seconds == pytest.approx(5.0, rel=0.5)
        assert status.unfinished == 5
        assert not status.done
        assert job_store.rendered_since(MODEL, datetime.now(UTC) - timedelta(minutes=1)) == 5
        assert job_store.rendered_since("other", datetime.now(UTC) - timedelta(minutes=1)) == 0
        assert job_store.rendered_since(MODEL, datetime.now(UTC) + timedelta(minutes=1)) == 0

    def test_status_says_why_a_submission_waits(self, job_store: JobStore, advance: Advance) -> None:
        """Each reason for waiting has its words, and there are none while all is well."""
        loading, _ = job_store.add_submission(model=MODEL, source="test")
        job_store.add_jobs(loading.id, prompts(1))

        def because(submission: Submission) -> str:
            return job_store.status(submission.id, lease=LEASE).waiting_because or "nothing"

        assert because(loading) == "its jobs are still being submitted"
        submission = job_store.open_submission(loading.id)
        assert because(submission) == f"no live worker serves model {MODEL}"
        add_worker(job_store, state=WorkerState.STARTING)
        assert because(submission) == "the worker is loading its model"
        add_worker(job_store)
        assert because(submission) == "nothing"
        job_store.set_worker_state("w1", WorkerState.READY, note="backing off: full")
        assert because(submission) == "backing off: full"
        job_store.set_worker_state("w1", WorkerState.READY)
        claimed = take_and_claim(job_store)
        assert because(submission) == "nothing"
        job_store.fail(claimed, error_type="E", message="m")
        assert because(submission).startswith("backing off after a failure until ")
        job_store.pause(submission.id)
        assert because(submission) == "paused"
        job_store.pause(submission.id, note="disk full")
        assert because(submission) == "paused: disk full"
        job_store.open_submission(submission.id)
        advance(LEASE + 1)
        assert because(submission) == f"no live worker serves model {MODEL}"

    def test_a_job_that_is_ready_is_not_said_to_back_off(self, job_store: JobStore) -> None:
        """One job that backs off does not speak for another that only waits for its turn."""
        add_worker(job_store)
        submission = submit(job_store, 2)
        job_store.fail(take_and_claim(job_store), error_type="E", message="m")
        assert job_store.status(submission.id, lease=LEASE).waiting_because is None

    def test_a_submission_is_done_when_nothing_is_left(self, job_store: JobStore) -> None:
        """`done` is derived from the jobs, and nothing waits any more."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        job_store.finish(claimed, image(claimed))
        status = job_store.status(submission.id, lease=LEASE)
        assert status.done
        assert (status.eta_seconds, status.waiting_because) == (None, None)

    def test_the_counts_of_a_large_submission_are_those_of_its_jobs(
        self, job_store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whichever status is the most frequent one, at every moment of a submission's life."""
        monkeypatch.setattr(progress, "FEW", 1)

        def check() -> None:
            counted = Counter(job.status for job in job_store.jobs(submission.id))
            assert job_store.counts(submission.id) == {status: counted[status] for status in JobStatus}
            status = job_store.status(submission.id, lease=LEASE)
            assert status.counts == job_store.counts(submission.id)

        submission, _ = job_store.add_submission(model=MODEL, source="test")
        job_store.add_jobs(submission.id, prompts(9))
        check()
        job_store.open_submission(submission.id)
        add_worker(job_store)
        check()
        for _ in range(4):
            job_store.fail(take_and_claim(job_store), error_type="E", message="m", permanent=True)
        check()
        held = take_and_claim(job_store)
        job_store.take_for_dispatch(MODEL, window=2)
        check()
        job_store.finish(held, image(held))
        job_store.cancel(submission.id)
        job_store.sweep_cancelled()
        check()

    # -- limits

    def test_no_more_than_max_running_are_handed_out(self, job_store: JobStore) -> None:
        """Queued and running ones together; what is finished makes room; others are not held up."""
        add_worker(job_store)
        few = submit(job_store, 5, max_running=2)
        assert few.max_running == 2
        first = job_store.take_for_dispatch(MODEL, window=10)
        assert len(first) == 2
        claimed = claim(job_store, first[0])
        assert job_store.take_for_dispatch(MODEL, window=10) == []
        many = submit(job_store, 4)
        taken = job_store.take_for_dispatch(MODEL, window=10)
        assert {job.submission for job in job_store.jobs(many.id) if job.id in taken} == {many.id}
        assert len(taken) == 4
        job_store.finish(claimed, image(claimed))
        assert len(job_store.take_for_dispatch(MODEL, window=10)) == 1

    def test_a_share_can_be_changed_later(self, job_store: JobStore) -> None:
        """What is not named stays; 0 takes the limit away."""
        add_worker(job_store)
        submission = submit(job_store, 5, max_running=1)
        assert len(job_store.take_for_dispatch(MODEL, window=10)) == 1
        changed = job_store.adjust(submission.id, priority=3, max_running=2)
        assert (changed.priority, changed.weight, changed.max_running) == (3, 1.0, 2)
        assert len(job_store.take_for_dispatch(MODEL, window=10)) == 1
        free = job_store.adjust(submission.id, weight=0.5, max_running=0)
        assert (free.priority, free.weight, free.max_running) == (3, 0.5, None)
        assert len(job_store.take_for_dispatch(MODEL, window=10)) == 3
        assert job_store.adjust(submission.id) == free
        with pytest.raises(BadInputError, match="no submission"):
            job_store.adjust("zzzzzzzz", priority=1)

    # -- draining, and what `worker list` shows

    def test_a_drained_worker_hears_it_and_claims_nothing(self, job_store: JobStore) -> None:
        """From the moment of the request on; nobody else is asked whose name only begins like that."""
        for incarnation, name in (("w1", "farm@a"), ("w2", "farm@a-1"), ("w3", "farm@ab")):
            add_worker(job_store, incarnation, name=name)
        submit(job_store, 3)
        running = take_and_claim(job_store)
        drained = job_store.drain_workers("farm@a", timeout=60.0)
        assert {worker.incarnation for worker in drained} == {"w1"}
        assert drained[0].drain_timeout == 60.0
        (job,) = job_store.take_for_dispatch(MODEL, window=1)
        assert job_store.claim(job, "w1", defaults=DEFAULTS) is Refusal.GONE
        heard = job_store.heartbeat("w1", {running.job: 0.5})
        assert (heard.jobs, heard.drain_timeout) == ({running.job}, 60.0)
        assert job_store.heartbeat("w2", {}).drain_timeout is None
        assert job_store.heartbeat("w3", {}).drain_timeout is None
        assert job_store.finish(running, image(running)) is Finish.SAVED

    def test_a_name_stands_for_all_devices_of_a_worker(self, job_store: JobStore) -> None:
        """`farm-0`, `farm-1`; not `farm-eu-0`."""
        for incarnation, name in (
            ("w1", "farm-0"),
            ("w2", "farm-12"),
            ("w3", "farm-eu-0"),
            ("w4", "farm-eu"),
        ):
            add_worker(job_store, incarnation, name=name)
        assert {w.incarnation for w in job_store.drain_workers("farm", timeout=1.0)} == {"w1", "w2"}

    def test_a_request_survives_the_end_of_loading(self, job_store: JobStore) -> None:
        """A worker writes its row anew when it is ready."""
        add_worker(job_store, state=WorkerState.STARTING)
        job_store.drain_workers(f"{MODEL}@host", timeout=9.0)
        add_worker(job_store)
        assert job_store.heartbeat("w1", {}).drain_timeout == 9.0
        submit(job_store)
        (job,) = job_store.take_for_dispatch(MODEL, window=1)
        assert job_store.claim(job, "w1", defaults=DEFAULTS) is Refusal.GONE

    def test_any_text_comes_back(self, job_store: JobStore) -> None:
        """What escapes mean something to, in every column that holds text."""
        odd = [
            "\\N",
            "a\\tb\tc",
            "one\ntwo\r\nthree",
            "\\.",
            "\"quoted\", 'so'",
            "狐狸 🦊 \u2028",
            "\x01\x7f",
            "{}",
        ]
        made, _new = job_store.add_submission(model=MODEL, source="test")
        jobs = [
            JobParameters(
                prompt=text, negative_prompt=text, seed=2**63 - 1, guidance_scale=None, width=64, height=64,
                options={"eta": 0.25}, extra={text: [text, {"x": None, "y": 1.5, "z": True}]},
            )
            for text in odd
        ]  # fmt: skip
        job_store.add_jobs(made.id, jobs)
        assert [job.parameters for job in job_store.jobs(made.id)] == jobs

    def test_jobs_that_are_there_are_left_alone(self, job_store: JobStore) -> None:
        """A submit that was killed after a commit is finished by the same call."""
        made, _new = job_store.add_submission(model=MODEL, source="test")
        jobs = [JobParameters(prompt="a fox", seed=seed) for seed in range(3)]
        assert job_store.add_jobs(made.id, jobs[:2]) == 2
        assert job_store.add_jobs(made.id, jobs[:2]) == 2
        assert job_store.add_jobs(made.id, jobs) == 3

    def test_content_finds_the_newest_submission_that_can_be_used(self, job_store: JobStore) -> None:
        """Not one that is still loading, not one that was cancelled."""
        ids = []
        for _ in range(3):
            made, _new = job_store.add_submission(model=MODEL, source="test", content_hash="c" * 64)
            ids.append(made.id)
        assert job_store.find_content("c" * 64) is None
        for submission in ids:
            job_store.open_submission(submission)
        job_store.cancel(ids[2])
        found = job_store.find_content("c" * 64)
        assert found is not None
        assert found.id == ids[1]
        assert job_store.find_content("d" * 64) is None

    def test_draining_nobody_is_bad_input(self, job_store: JobStore) -> None:
        """A name that no live worker has; `%` is a letter like others."""
        add_worker(job_store, "w1", name="farm@a")
        job_store.release_incarnation("w1", crashed=False)
        add_worker(job_store, "w2", name="farm@b-1")
        for name in ("farm@a", "farm@", "nobody", "%"):
            with pytest.raises(BadInputError, match="No live worker"):
                job_store.drain_workers(name, timeout=1.0)

    def test_lanes_in_use_are_those_of_the_last_beat(self, job_store: JobStore) -> None:
        """None before the first."""
        add_worker(job_store)
        assert job_store.workers()[0].lanes_used == 0
        job_store.heartbeat("w1", {}, lanes_used=6)
        assert job_store.workers()[0].lanes_used == 6

    def test_rates_are_counted_by_incarnation(self, job_store: JobStore, advance: Advance) -> None:
        """Pictures of the last seconds; older ones do not count."""
        for incarnation in ("w1", "w2"):
            add_worker(job_store, incarnation)
        submit(job_store, 5)
        for incarnation in ("w1", "w1", "w2"):
            claimed = take_and_claim(job_store, incarnation)
            job_store.finish(claimed, image(claimed))
        assert job_store.rates(over=10.0) == {"w1": 0.2, "w2": 0.1}
        advance(20)
        claimed = take_and_claim(job_store, "w2")
        job_store.finish(claimed, image(claimed))
        assert job_store.rates(over=10.0) == {"w2": 0.1}

    def test_speed_is_what_was_rendered_while_somebody_rendered(
        self, job_store: JobStore, advance: Advance
    ) -> None:
        """In units of one evaluation of 512 x 512; a night without work, and copies, are left out."""
        add_worker(job_store)
        submit(job_store, 8)
        assert job_store.speed(MODEL) is None
        for pause in (4, 4, 100_000, 4):
            claimed = take_and_claim(job_store)
            job_store.finish(claimed, image(claimed))
            cost = estimate_cost(asdict(claimed.parameters))
            advance(pause)
        for source in (None, "abcd2345:0", "abcd2345:1"):
            claimed = take_and_claim(job_store)
            job_store.finish(claimed, replace(image(claimed), copied_from=source))
        assert job_store.speed(MODEL) == pytest.approx(cost / 4, rel=0.05)
        assert job_store.speed("another") is None

    # -- many at once

    def test_many_threads_never_claim_one_job_twice(self, job_store: JobStore) -> None:
        """Every job is granted once, however many threads ask for it."""
        add_worker(job_store)
        submit(job_store, 30)
        queued = job_store.take_for_dispatch(MODEL, window=30)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda job: job_store.claim(job, "w1", defaults=DEFAULTS), [*queued * 4]))
        granted = [answer.job for answer in answers if isinstance(answer, Claim)]
        assert sorted(granted) == sorted(queued)

    def test_processes_never_claim_one_job_twice(self, job_store: JobStore, settings: Settings) -> None:
        """Two real processes that ask for the same jobs share them out."""
        for incarnation in ("p1", "p2"):
            add_worker(job_store, incarnation)
        submit(job_store, 60)
        queued = job_store.take_for_dispatch(MODEL, window=60)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIM_ALL, incarnation, json.dumps(queued)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    "PROMPTMILL_HOME": str(settings.home),
                    "PROMPTMILL_DATABASE_URL": settings.database_url or "",
                },
            )
            for incarnation in ("p1", "p2")
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        won = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
        assert sorted(won[0] + won[1]) == sorted(queued)

    @hypothesis_settings(
        max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(steps=st.lists(st.sampled_from(STEPS), max_size=25))
    def test_whatever_happens_every_job_keeps_its_invariants(
        self, job_store: JobStore, steps: list[str]
    ) -> None:
        """After any sequence of events an image belongs to each succeeded job and to no other."""
        story = Story(job_store)
        for step in steps:
            getattr(story, step)()
        for job in jobs(job_store, story.submission):
            assert (job.image is not None) == (job.status is JobStatus.SUCCEEDED)
            assert job.failures <= MAX_FAILURES
            assert job.status is not JobStatus.RUNNING or job.incarnation == story.incarnation
        job_store.release_incarnation(story.incarnation, crashed=False)
        job_store.cancel(story.submission.id)
        job_store.sweep_cancelled()
        assert job_store.status(story.submission.id, lease=LEASE).done


class TestKeeping:
    """What is kept, how it is removed, and how a lost picture comes back."""

    def test_a_picture_is_found_by_its_hash(self, job_store: JobStore) -> None:
        """The newest one first, if several jobs made the same picture."""
        add_worker(job_store)
        submission = submit(job_store, 2)
        for _ in range(2):
            claimed = take_and_claim(job_store)
            job_store.finish(claimed, image(claimed))
        found = job_store.find_pictures("f" * 64)
        assert [job.label for job in found] == [f"{submission.id}:1", f"{submission.id}:0"]
        assert found[0].image is not None
        assert job_store.find_pictures("f" * 64, limit=1) == found[:1]
        assert job_store.find_pictures("0" * 64) == []

    def test_holdings_count_jobs_and_pictures(self, job_store: JobStore) -> None:
        """And the bytes of the pictures."""
        add_worker(job_store)
        submission = submit(job_store, 3)
        assert job_store.holdings(submission.id) == Holdings(jobs=3, pictures=0, bytes=0)
        for _ in range(2):
            claimed = take_and_claim(job_store)
            job_store.finish(claimed, image(claimed))
        assert job_store.holdings(submission.id) == Holdings(jobs=3, pictures=2, bytes=200)

    def test_inputs_that_any_job_names_are_used(self, job_store: JobStore) -> None:
        """Of whatever state, by every name that an input has; other options are none."""
        named = {"init_image": "a" * 64, "mask_image": "b" * 64, "strength": 1.0}
        own = [{"image_format": "jpeg"}, named, named, {"control_image": "c" * 64}, {}]
        submission, _ = job_store.add_submission(model=MODEL, source="test")
        assert job_store.inputs_used() == set()
        job_store.add_jobs(submission.id, (replace(job, options=own[i]) for i, job in enumerate(prompts(5))))
        assert job_store.inputs_used() == {"a" * 64, "b" * 64, "c" * 64}
        job_store.cancel(submission.id)
        assert len(job_store.inputs_used()) == 3

    def test_only_what_has_ended_or_was_cancelled_is_pruned(self, job_store: JobStore) -> None:
        """A submission that is loading or has work left is refused, and nothing changes."""
        loading, _ = job_store.add_submission(model=MODEL, source="test")
        unfinished = submit(job_store)
        for refused_one, reason in ((loading, "not complete"), (unfinished, "not finished")):
            for act in (job_store.check_prunable, job_store.begin_pruning):
                with pytest.raises(BadInputError, match=reason):
                    act(refused_one.id)
        assert job_store.find_submission(unfinished.id) == unfinished
        job_store.cancel(unfinished.id)
        job_store.check_prunable(unfinished.id)
        assert job_store.begin_pruning(unfinished.id).state is SubmissionState.PRUNING
        assert statuses(job_store, unfinished) == ["cancelled"]

    def test_nothing_leads_back_from_pruning(self, job_store: JobStore) -> None:
        """Not a cancel, a retry, a pause, a resume, a repair or more jobs; a second begin is no error."""
        submission, _ = job_store.add_submission(model=MODEL, source="test", content_hash="c" * 64)
        job_store.add_jobs(submission.id, prompts(2))
        job_store.open_submission(submission.id)
        job_store.take_for_dispatch(MODEL, window=1)
        job_store.cancel(submission.id)
        job_store.begin_pruning(submission.id)
        for act in (job_store.cancel, job_store.retry, job_store.pause, job_store.open_submission):
            with pytest.raises(BadInputError):
                act(submission.id)
        with pytest.raises(BadInputError, match="being removed"):
            job_store.render_again(submission.id, jobs(job_store, submission))
        with pytest.raises(BadInputError):
            job_store.add_jobs(submission.id, prompts(3))
        assert job_store.find_content("c" * 64) is None
        assert job_store.take_for_dispatch(MODEL, window=9) == []
        assert job_store.begin_pruning(submission.id).state is SubmissionState.PRUNING
        assert job_store.status(submission.id, lease=LEASE).done

    def test_a_worker_loses_the_jobs_of_a_pruned_submission(self, job_store: JobStore) -> None:
        """It hears so with its next beat; what it finishes is lost, before the row has gone and after."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        job_store.cancel(submission.id)
        job_store.begin_pruning(submission.id)
        assert job_store.heartbeat("w1", {}).jobs == set()
        assert job_store.finish(claimed, image(claimed)) is Finish.LOST
        assert job_store.prune_jobs(submission.id, first=0, last=0) == 1
        assert job_store.finish(claimed, image(claimed)) is Finish.LOST
        assert job_store.fail(claimed, error_type="E", message="m") is Failure.LOST
        assert not job_store.release(claimed)

    def test_a_claim_on_a_pruned_job_is_none_on_the_job_that_got_its_number(
        self, job_store: JobStore
    ) -> None:
        """SQLite uses the numbers of removed rows again, and the same worker may hold the new job, too."""
        add_worker(job_store)
        pruned = submit(job_store)
        stale = take_and_claim(job_store)
        job_store.cancel(pruned.id)
        job_store.begin_pruning(pruned.id)
        job_store.prune_jobs(pruned.id, first=0, last=0)
        job_store.end_pruning(pruned.id)
        submit(job_store)
        fresh = take_and_claim(job_store)
        assert job_store.finish(stale, image(stale)) is Finish.LOST
        assert job_store.fail(stale, error_type="E", message="m") is Failure.LOST
        assert not job_store.release(stale)
        assert job_store.finish(fresh, image(fresh)) is Finish.SAVED
        assert job_store.finish(stale, image(stale)) is Finish.LOST

    def test_pruning_goes_in_parts_and_ends_with_the_submission(self, job_store: JobStore) -> None:
        """Whoever goes on sees what is left; the last row goes when no job is left."""
        add_worker(job_store)
        submission = submit(job_store, 4)
        for _ in range(4):
            claimed = take_and_claim(job_store)
            job_store.finish(claimed, image(claimed))
        other = submit(job_store)
        with pytest.raises(BadInputError, match="only what is being pruned"):
            job_store.prune_jobs(submission.id, first=0, last=9)
        job_store.begin_pruning(submission.id)
        assert job_store.lowest_index(submission.id) == 0
        assert job_store.prune_jobs(submission.id, first=0, last=2) == 3
        assert job_store.lowest_index(submission.id) == 3
        assert job_store.holdings(submission.id).pictures == 1
        with pytest.raises(BadInputError, match="being removed"):
            job_store.end_pruning(submission.id)
        assert job_store.prune_jobs(submission.id, first=3, last=9) == 1
        assert job_store.lowest_index(submission.id) is None
        job_store.end_pruning(submission.id)
        job_store.end_pruning(submission.id)
        assert job_store.submissions() == [other]
        assert statuses(job_store, other) == ["waiting"]

    def test_a_lost_picture_is_rendered_again(self, job_store: JobStore) -> None:
        """Its job waits, its row is gone, its hash is kept, and the next attempt has the next number."""
        add_worker(job_store)
        submission = submit(job_store, 2)
        for _ in range(2):
            claimed = take_and_claim(job_store)
            job_store.finish(claimed, image(claimed))
        before = job_store.find_job(f"{submission.id}:1")
        assert job_store.render_again(submission.id, [before]) == [1]
        job = job_store.find_job(before.label)
        assert (job.status, job.image, job.attempt) == (JobStatus.WAITING, None, 1)
        assert (job.lost_sha256, job.finished_at) == ("f" * 64, None)
        assert statuses(job_store, submission) == ["succeeded", "waiting"]
        assert job_store.render_again(submission.id, [before]) == []
        again = take_and_claim(job_store)
        assert (again.label, again.attempt) == (before.label, 2)
        assert job_store.finish(again, image(again)) is Finish.SAVED
        assert job_store.find_job(before.label).lost_sha256 == "f" * 64
        assert job_store.render_again(submission.id, [before]) == []
        assert job_store.find_job(before.label).image == image(again)

    def test_rendering_again_reopens_a_cancelled_submission_for_that_job_only(
        self, job_store: JobStore
    ) -> None:
        """What was cancelled stays cancelled, also where no sweep has come by yet."""
        add_worker(job_store)
        submission = submit(job_store, 3)
        claimed = take_and_claim(job_store)
        job_store.finish(claimed, image(claimed))
        job_store.cancel(submission.id)
        assert job_store.render_again(submission.id, jobs(job_store, submission)) == [0]
        assert statuses(job_store, submission) == ["waiting", "cancelled", "cancelled"]
        assert job_store.find_submission(submission.id).state is SubmissionState.OPEN

    def test_a_paused_submission_renders_nothing_again(self, job_store: JobStore) -> None:
        """Whoever paused it has to resume it first."""
        add_worker(job_store)
        submission = submit(job_store)
        claimed = take_and_claim(job_store)
        job_store.finish(claimed, image(claimed))
        job_store.pause(submission.id)
        with pytest.raises(BadInputError, match="promptmill resume"):
            job_store.render_again(submission.id, jobs(job_store, submission))
        assert statuses(job_store, submission) == ["succeeded"]


CLAIM_ALL = """
import json, sys
from storage.records import Claim
from storage.settings import load_settings
from storage.stores import open_job_store

store = open_job_store(load_settings())
store.workers()
print("ready", flush=True)
sys.stdin.readline()
won = []
for job in json.loads(sys.argv[2]):
    if isinstance(store.claim(job, sys.argv[1], defaults={"width": 64, "height": 64}), Claim):
        won.append(job)
print(json.dumps(won))
store.close()
"""


class TestTunings:
    """What the first worker of a kind measured is what all of its kind run with."""

    FACTS = {"device": "a GPU", "dtype": "float16", "shape": [4, 64, 64]}  # noqa: RUF012 - never changed

    def test_the_first_one_stays(self, job_store: JobStore, open_another: OpenAnother) -> None:
        """Another worker of the kind gets the first one's, also in another process."""
        assert job_store.tuning(self.FACTS) is None
        assert job_store.keep_tuning(self.FACTS, {"lanes": 4}) == {"lanes": 4}
        assert open_another().keep_tuning(self.FACTS, {"lanes": 8}) == {"lanes": 4}
        assert open_another().tuning(dict(reversed(self.FACTS.items()))) == {"lanes": 4}

    def test_another_kind_has_its_own(self, job_store: JobStore) -> None:
        """One fact that differs makes another kind."""
        job_store.keep_tuning(self.FACTS, {"lanes": 4})
        assert job_store.tuning({**self.FACTS, "dtype": "float32"}) is None

    def test_all_can_be_forgotten(self, job_store: JobStore) -> None:
        """After that the next one to measure decides."""
        job_store.keep_tuning(self.FACTS, {"lanes": 4})
        assert job_store.forget_tunings() == 1
        assert job_store.forget_tunings() == 0
        assert job_store.keep_tuning(self.FACTS, {"lanes": 8}) == {"lanes": 8}

    def test_all_that_was_measured_can_be_read(self, job_store: JobStore) -> None:
        """The newest first, self-tests too; these are not forgotten with the tunings."""
        job_store.keep_tuning(self.FACTS, {"lanes": 4})
        job_store.keep_tuning({SELF_TEST: {}, **self.FACTS}, {"file_sha256": "0"})
        found = job_store.measured()
        assert [one.found for one in found] == [{"file_sha256": "0"}, {"lanes": 4}]
        assert found[1].facts == self.FACTS
        assert found[0].created_at >= found[1].created_at
        assert job_store.forget_tunings() == 1
        assert [one.found for one in job_store.measured()] == [{"file_sha256": "0"}]

    def test_the_database_says_what_time_it_is(self, job_store: JobStore) -> None:
        """On the same machine the same; aware of its zone."""
        assert abs(job_store.clock() - datetime.now(UTC)) < timedelta(minutes=5)

    def test_several_at_once_agree(self, job_store: JobStore) -> None:
        """Eight workers that start together end up with one tuning."""
        with ThreadPoolExecutor(8) as pool:
            kept = list(
                pool.map(lambda n: job_store.keep_tuning(self.FACTS, {"lanes": n})["lanes"], range(8))
            )
        assert len(set(kept)) == 1


class TestTakingTurns:
    """What a worker of several models says and asks."""

    MODELS = (
        ServedModel(name="demo", loaded=True, revision="abc", defaults={"width": 64}, concurrency=6, bytes=9),
        ServedModel(name="other"),
        ServedModel(name="broken", problem="No such file."),
    )

    def test_a_worker_tells_of_all_its_models(self, job_store: JobStore) -> None:
        """They come back as they were given; a worker of one model tells of that one."""
        job_store.add_worker(worker_record("w1", models=self.MODELS))
        job_store.add_worker(worker_record("w2", model="other"))
        several, one = sorted(job_store.workers(), key=lambda worker: worker.incarnation)
        assert served_by(several) == several.models == self.MODELS
        assert [model.name for model in served_by(one)] == ["other"]
        assert [served_model(several, name) is not None for name in ("demo", "other", "broken")] == [
            True,
            True,
            False,
        ]

    def test_it_may_begin_another_turn(self, job_store: JobStore) -> None:
        """Its row names another model from then on, and still the moment at which it was started."""
        first = worker_record("w1", models=self.MODELS)
        job_store.add_worker(first)
        later = first.started_at + timedelta(hours=1)
        job_store.add_worker(replace(first, model="other", started_at=later))
        (worker,) = job_store.workers()
        assert (worker.model, worker.started_at) == ("other", first.started_at)

    def test_models_with_work_are_those_with_jobs_that_nobody_has_begun(self, job_store: JobStore) -> None:
        """Waiting or queued ones; not running ones, nor those of a paused submission."""
        add_worker(job_store)
        names = ("demo", "other", "idle")
        assert job_store.models_with_work(names) == set()
        submission, _ = job_store.add_submission(model="other", source="test")
        job_store.add_jobs(submission.id, [JobParameters(prompt="a fox", seed=1)])
        job_store.open_submission(submission.id)
        assert job_store.models_with_work(names) == {"other"}
        (job,) = job_store.take_for_dispatch("other", window=1)
        assert job_store.models_with_work(names) == {"other"}
        assert job_store.model_of(job) == "other"
        assert isinstance(job_store.claim(job, "w1", defaults=DEFAULTS), Claim)
        assert job_store.models_with_work(names) == set()
        assert job_store.model_of(job + 1) is None
        paused = submit(job_store, 1)
        assert job_store.models_with_work(names) == {MODEL}
        job_store.pause(paused.id)
        assert job_store.models_with_work(names) == set()

    @pytest.mark.parametrize(
        ("model", "because"),
        [
            ("other", "the worker renders with model demo now, and takes turns"),
            ("broken", "No such file."),
            ("unknown", no_live_worker("unknown")),
        ],
    )
    def test_status_says_what_a_turn_is_waited_for(
        self, model: str, because: str, job_store: JobStore
    ) -> None:
        """Another model's turn, a model that cannot be loaded, or nobody at all."""
        job_store.add_worker(worker_record("w1", models=self.MODELS))
        submission, _ = job_store.add_submission(model=model, source="test")
        job_store.add_jobs(submission.id, [JobParameters(prompt="a fox", seed=1)])
        job_store.open_submission(submission.id)
        assert job_store.status(submission.id, lease=30).waiting_because == because


def test_two_submits_with_one_key_at_once_make_every_job_once(job_store: JobStore) -> None:
    """Each job comes from one of them, and nobody fails but who finds the submission open already."""
    submission, _ = job_store.add_submission(model=MODEL, source="test", idempotency_key="once")
    jobs = [JobParameters(prompt="a fox", seed=seed) for seed in range(3_000)]

    def submit() -> None:
        job_store.add_jobs(submission.id, iter(jobs))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(submit) for _ in range(2)]:
            done.result()
    job_store.open_submission(submission.id)
    assert [job.index for job in job_store.jobs(submission.id)] == list(range(3_000))
