"""A hundred alternating jobs of two models: switches and waits in one worker, and in one for each turn."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from report import arguments, fresh_home, promptmill, show, worker

from storage.models import builtin_model_path
from storage.parameters import JobParameters
from storage.records import JobStatus
from storage.settings import Settings
from storage.stores import open_job_store

MODELS = ("demo", "second")
SECOND = f"second={builtin_model_path()}"
SMALL: dict[str, Any] = {"num_inference_steps": 8, "guidance_scale": 1.0, "width": 64, "height": 64}
SWITCH = re.compile(r"action=switch.* finishing=([\d.]+).* seconds=([\d.]+)")


def main() -> None:
    """Render with both models loaded, with one at a time, and with a worker of its own for each turn."""
    options = arguments(main.__doc__ or "").parse_args()
    jobs = 20 if options.quick else 100
    patience = "2" if options.quick else "10"
    rows = [
        _one_worker("both loaded", jobs, "--model-patience", patience),
        _one_worker("one loaded", jobs, "--model-patience", patience, "--max-loaded", "1"),
        _restarts(jobs),
    ]
    show(rows, as_json=options.json)


@contextmanager
def _store(environment: dict[str, str]) -> Iterator[Any]:
    promptmill(environment, "list")  # makes the database, where it is not there yet
    store = open_job_store(Settings(home=Path(environment["PROMPTMILL_HOME"])))
    try:
        yield store
    finally:
        store.close()


def _submit(store: Any, number: int) -> str:
    submission, _ = store.add_submission(model=MODELS[number % 2], source="benchmark")
    store.add_jobs(submission.id, [JobParameters(prompt="an otter", seed=number, **SMALL)])
    return str(store.open_submission(submission.id).id)


def _wait(store: Any, submissions: list[str]) -> None:
    for submission in submissions:
        while not store.counts(submission)[JobStatus.SUCCEEDED]:
            time.sleep(0.05)


def _row(what: str, store: Any, submissions: list[str], switches: list[float], finishing: list[float]) -> Any:
    found = [(store.find_submission(one).model, job) for one in submissions for job in store.jobs(one)]
    found.sort(key=lambda pair: pair[1].started_at)
    last = max(job.finished_at for _, job in found)
    waits = [(job.started_at - job.created_at).total_seconds() for _, job in found]
    return {
        "worker": what,
        "jobs": len(found),
        "turns": 1 + sum(before[0] != after[0] for before, after in pairwise(found)),
        "seconds per switch": statistics.median(switches) if switches else 0.0,
        "of that, jobs that end": statistics.median(finishing) if finishing else 0.0,
        "median wait": statistics.median(waits),
        "longest wait": max(waits),
        "seconds": (last - min(job.created_at for _, job in found)).total_seconds(),
    }


def _one_worker(what: str, jobs: int, *options: str) -> Any:
    with (
        fresh_home() as environment,
        tempfile.NamedTemporaryFile("w+") as log,
        worker(environment, "--model", SECOND, *options, log=log),
        _store(environment) as store,
    ):
        submissions = []
        for number in range(jobs):
            submissions.append(_submit(store, number))
            time.sleep(0.05)
        _wait(store, submissions)
        found = SWITCH.findall(Path(log.name).read_text())
        switches, finishing = [float(took) for _, took in found], [float(ending) for ending, _ in found]
        return _row(what, store, submissions, switches, finishing)


def _restarts(jobs: int) -> Any:
    """One worker after the other: what was possible before, with the fewest turns that there can be."""
    with fresh_home() as environment, _store(environment) as store:
        submissions = [_submit(store, number) for number in range(jobs)]
        starts = []
        for number, model in enumerate(("demo", SECOND)):
            began = time.perf_counter()
            with worker(environment, model=model):
                starts.append(time.perf_counter() - began)
                _wait(store, submissions[number::2])
        return _row("one for each turn", store, submissions, starts[1:], [])


main()
