"""Whatever is killed, every job ends with one picture."""

from __future__ import annotations

import os
import signal

from storage.records import JobStatus, WorkerState
from tests.acceptance.farm import Farm, wait_until
from worker.nursery import STILLBORN

JOBS = 100


def test_all_jobs_succeed_once_though_the_worker_process_is_killed_twice(farm: Farm) -> None:
    """100 jobs, the worker process killed with -9 twice: 100 pictures, one row each, no stale file."""
    submission = farm.submit(JOBS, "--steps", "8")
    supervisor = farm.start_worker()
    killed = set()
    for enough in (10, 45):
        farm.wait_for(submission, enough)
        killed.add(farm.kill_worker_process())
    farm.wait_for(submission, JOBS)
    jobs = farm.audit(submission, JOBS)
    assert len(killed) == 2
    assert max(job.attempt for job in jobs) > 1, "nothing was running when the process was killed"
    assert {job.failures for job in jobs} == {0}, "a neighbour's crash was charged to a job"
    states = {worker.incarnation: worker.state for worker in farm.store().workers()}
    assert {states[incarnation] for incarnation in killed} == {WorkerState.EXPIRED}
    assert farm.stop(supervisor) == 0
    assert farm.processes() == {}


def test_all_jobs_succeed_once_though_redis_is_killed_and_comes_back_empty(farm: Farm) -> None:
    """100 jobs, Redis killed with -9 on the way: rows make its messages again."""
    submission = farm.submit(JOBS, "--steps", "8")
    supervisor = farm.start_worker()
    farm.wait_for(submission, 10)
    first = farm.redis_pid()
    os.kill(first, signal.SIGKILL)
    farm.wait_for(submission, JOBS)
    assert farm.redis_pid() != first
    farm.audit(submission, JOBS)
    assert farm.stop(supervisor) == 0
    assert farm.processes() == {}


def test_a_killed_supervisor_takes_its_process_along_and_loses_nothing(farm: Farm) -> None:
    """The supervisor killed with -9: its process gives the jobs back and ends."""
    submission = farm.submit(12, "--steps", "20")
    supervisor = farm.start_worker()
    farm.wait_for(submission, 2)
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not farm.processes(), what="the orphans are gone")
    assert not list(farm.home.glob("redis/*.sock"))
    assert farm.count(submission, JobStatus.RUNNING) == 0
    again = farm.start_worker()
    farm.wait_for(submission, 12)
    farm.audit(submission, 12)
    assert farm.stop(again) == 0


def test_a_supervisor_outlives_more_crashes_than_one_that_never_got_ready(farm: Farm) -> None:
    """It gives up on a process that dies three times before it was ever ready, and on no other."""
    submission = farm.submit(20, "--steps", "8")
    supervisor = farm.start_worker()
    killed: set[str] = set()
    for _ in range(STILLBORN + 2):
        farm.wait_until_ready(supervisor, killed)
        wait_until(lambda: not farm.run("doctor", "--probe", "readiness").returncode, what="it takes jobs")
        killed.add(farm.kill_worker_process())
    farm.wait_for(submission, 20)
    farm.audit(submission, 20)
    assert farm.stop(supervisor) == 0
