"""Starting, sharing, draining and steering workers."""

from __future__ import annotations

import os
import signal
from itertools import pairwise

from storage.models import builtin_model_path
from storage.parameters import JobParameters
from storage.records import JobStatus, no_live_worker
from tests.acceptance.farm import PATIENCE, Farm, wait_until

ENDED = (JobStatus.SUCCEEDED, JobStatus.CANCELLED, JobStatus.FAILED)


def test_cancel_stops_running_jobs_and_retry_brings_them_back(farm: Farm) -> None:
    """Jobs of a thousand steps are cancelled in the middle; a retry queues and renders them again."""
    submission = farm.submit(
        12, "--steps", "1000", "--sampler", "euler", "--guidance", "1", "--schedule", "default"
    )
    supervisor = farm.start_worker()
    farm.wait_for(submission, 1, JobStatus.RUNNING)
    cancelled = farm.run("cancel", submission)
    assert cancelled.returncode == 0, cancelled.stderr
    farm.wait_for(submission, 12, *ENDED)
    assert farm.count(submission, JobStatus.CANCELLED) > 0
    assert farm.status(submission)["submission"]["state"] == "cancelled"
    retried = farm.run("retry", submission)
    assert retried.returncode == 0, retried.stderr
    farm.wait_for(submission, 1, JobStatus.RUNNING)
    assert farm.count(submission, JobStatus.CANCELLED) == 0
    supervisor.send_signal(signal.SIGTERM)
    supervisor.send_signal(signal.SIGTERM)
    supervisor.wait(timeout=PATIENCE)


def test_the_first_signal_drains(farm: Farm) -> None:
    """What has begun is finished, what has not goes back to waiting, nothing is charged."""
    submission = farm.submit(16, "--steps", "40")
    supervisor = farm.start_worker()
    wait_until(lambda: farm.furthest(submission) > 0, what="a job has begun, and is not only claimed")
    assert farm.stop(supervisor) == 0
    assert farm.count(submission, JobStatus.RUNNING) == 0
    assert farm.count(submission, JobStatus.SUCCEEDED) > 0
    assert farm.count(submission, JobStatus.WAITING, JobStatus.QUEUED) > 0
    assert {job.failures for job in farm.jobs(submission)} == {0}
    assert farm.processes() == {}


def test_two_workers_share_one_redis_and_the_last_one_out_stops_it(farm: Farm) -> None:
    """Redis belongs to the home, not to the worker that happened to start it."""
    first = farm.start_worker()
    redis = farm.redis_pid()
    second = farm.start_worker()
    assert farm.redis_pid() == redis
    assert farm.stop(first) == 0
    assert farm.redis_pid() == redis
    submission = farm.submit(3, "--steps", "4")
    farm.wait_for(submission, 3)
    assert farm.stop(second) == 0
    assert farm.processes() == {}
    assert not list(farm.home.glob("redis/*.sock"))


def test_a_second_signal_stops_at_once_and_gives_running_jobs_back(farm: Farm) -> None:
    """Running jobs of a worker that was told twice are waiting again, uncharged."""
    submission = farm.submit(4, "--steps", "1000", "--sampler", "euler", "--schedule", "default")
    supervisor = farm.start_worker()
    farm.wait_for(submission, 1, JobStatus.RUNNING)
    supervisor.send_signal(signal.SIGINT)
    wait_until(lambda: "once more" in farm.output(supervisor), what="the first signal was heard")
    supervisor.send_signal(signal.SIGINT)
    supervisor.wait(timeout=PATIENCE)
    assert farm.count(submission, JobStatus.RUNNING) == 0
    assert {job.failures for job in farm.jobs(submission)} == {0}
    assert not any(job.suspect for job in farm.jobs(submission))
    assert farm.processes() == {}


def test_two_models_have_a_queue_each_and_a_worker_serves_one(farm: Farm) -> None:
    """A worker never takes the other model's jobs; what nobody serves waits and says so."""
    farm.environment["PROMPTMILL_MODELS"] = f"other={builtin_model_path()}"
    others = farm.submit(6, "--steps", "4", model="other")
    supervisor = farm.start_worker()
    ours = farm.submit(6, "--steps", "4")
    farm.wait_for(ours, 6)
    assert farm.count(others, JobStatus.RUNNING, *ENDED) == 0
    assert farm.status(others)["submission"]["waiting_because"] == no_live_worker("other")
    second = farm.start_worker(model="other")
    farm.wait_for(others, 6)
    models = {worker.incarnation: worker.model for worker in farm.workers()}
    for submission, model in ((ours, "demo"), (others, "other")):
        served = {models[job.incarnation] for job in farm.audit(submission, 6) if job.incarnation}
        assert served == {model}
    assert [farm.stop(supervisor), farm.stop(second)] == [0, 0]


def test_two_models_take_turns_in_one_worker(farm: Farm) -> None:
    """A hundred alternating jobs need a handful of switches, and a kill on the way loses nothing."""
    demo = builtin_model_path()
    farm.environment["PROMPTMILL_MODELS"] = f"first={demo},second={demo}"
    supervisor = farm.start_worker("--model", "second", "--lanes", "8", model="first")
    jobs = farm.store()
    submissions = []
    for number in range(20):
        submission, _ = jobs.add_submission(model=("first", "second")[number % 2], source="test")
        small = {"num_inference_steps": 2, "guidance_scale": 1.0, "width": 64, "height": 64}
        jobs.add_jobs(submission.id, (JobParameters(prompt="an otter", seed=n, **small) for n in range(5)))
        submissions.append(jobs.open_submission(submission.id))
    wait_until(lambda: farm.workers()[0].model == "second", what="the second model's turn comes")
    os.kill(farm.workers()[0].pid, signal.SIGKILL)
    for submission in submissions:
        farm.wait_for(submission.id, 5)
    done = [
        (job.started_at, submission.model)
        for submission in submissions
        for job in farm.audit(submission.id, 5)
    ]
    turns = [model for _, model in sorted(done, key=str)]
    assert 1 <= sum(before != after for before, after in pairwise(turns)) <= 12
    assert {job.failures for submission in submissions for job in farm.jobs(submission.id)} == {0}
    assert farm.stop(supervisor) == 0
    assert farm.processes() == {}
