"""A submission of a million jobs: how long it takes to cancel it, bring it back, look at it and remove it.

A worker for the demo model renders meanwhile, and its supervisor alone sweeps what a cancel leaves: the
cancel here only sets the flag, as one does that is killed right after it. Another process' heartbeat, twenty
times a second, says how long everybody else waits for the database.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from million import Waiting
from report import PROMPTMILL, arguments, promptmill, seconds, show, worker
from sqlalchemy import text

from storage.database import upgrade
from storage.parameters import JobParameters
from storage.queue import broker_url, connect
from storage.records import JobStatus
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore
from storage.stores import open_job_store
from tests.servers import running_postgres

PATIENCE = 600.0  # seconds until something that has to happen is given up
Measures = dict[str, float]


class Farm:
    """One database with a worker, a submission of many jobs in it, and what was measured so far."""

    def __init__(self, settings: Settings, environment: dict[str, str], jobs: int) -> None:
        self.settings, self.environment, self.jobs = settings, environment, jobs
        self.store = cast("SqlJobStore", open_job_store(settings))
        self.measures: Measures = {}
        made, _ = self.store.add_submission(model="demo", source="benchmark")
        self.id = made.id
        lines = (
            JobParameters(prompt=f"an otter, number {n}", seed=n, width=64, height=64) for n in range(jobs)
        )
        self.measures["submit (in one process) s"] = seconds(lambda: self.store.add_jobs(self.id, lines))
        self.store.open_submission(self.id)

    def count(self, *statuses: JobStatus) -> int:
        """How many jobs have one of these statuses."""
        counts = self.store.counts(self.id)
        return sum(counts[status] for status in statuses)

    def run(self, *words: str) -> float:
        """Return how long a command takes."""
        return seconds(lambda: promptmill(self.environment, *words))

    @contextmanager
    def others_wait(self, during: str) -> Iterator[None]:
        """Measure the longest heartbeat of another process meanwhile."""
        waiting = Waiting(self.settings)
        try:
            yield
        finally:
            self.measures[f"longest other write while it is {during} s"] = waiting.stop()

    def bytes(self) -> int:
        """Return the database's size."""
        return self.store.compact().before


def until(condition: Callable[[], Any], *, every: float = 0.02) -> float:
    """Return after how many seconds `condition` held; to count a million rows all the time would slow it."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > PATIENCE:
            raise SystemExit("waited in vain")
        time.sleep(every)
    return time.perf_counter() - began


def cancelled(farm: Farm) -> None:
    """Set the flag while jobs run; see when the last one is claimed or running, and who sweeps."""
    until(lambda: farm.count(JobStatus.RUNNING))
    with farm.others_wait("swept"):
        began, moment = time.perf_counter(), datetime.now(UTC)
        farm.store.cancel(farm.id)
        stopped = until(lambda: not farm.count(JobStatus.RUNNING))
        until(lambda: not farm.count(JobStatus.WAITING, JobStatus.QUEUED), every=0.5)
        farm.measures["cancel until it is swept s"] = time.perf_counter() - began
    farm.measures["cancel until no job of it runs s"] = stopped
    with farm.store.database.read() as connection:
        last = text("SELECT count(*) FROM jobs WHERE submission = :id AND started_at > :at")
        later = connection.execute(last.bindparams(id=farm.id, at=_as_stored(farm, moment))).scalar_one()
    farm.measures["jobs claimed after the cancel"] = later


def _as_stored(farm: Farm, moment: datetime) -> object:
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f") if farm.store.database.is_sqlite else moment


def retried(farm: Farm) -> None:
    """Bring all of it back, and see when its first job runs again."""
    with farm.others_wait("retried"):
        began = time.perf_counter()
        command = subprocess.Popen(
            [PROMPTMILL, "retry", farm.id], env=farm.environment, stderr=subprocess.DEVNULL
        )
        until(lambda: farm.count(JobStatus.RUNNING))
        farm.measures["retry until a job of it runs s"] = time.perf_counter() - began
        command.wait()
        farm.measures["retry command s"] = time.perf_counter() - began


def looked_at(farm: Farm, when: str) -> None:
    """Time what people type to see how far it is."""
    for words in (("list",), ("status", farm.id), ("show", f"{farm.id}:{farm.jobs - 1}"), ("metrics",)):
        farm.measures[f"{words[0]} {when} s"] = min(farm.run(*words) for _ in range(3))
    command = [PROMPTMILL, "watch", farm.id, "--jsonl"]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=farm.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    if not (process.stdout and process.stdout.readline()):
        raise SystemExit("watch says nothing")
    farm.measures[f"watch's first line {when} s"] = time.perf_counter() - began
    process.send_signal(signal.SIGINT)
    process.communicate()


def pruned(farm: Farm) -> None:
    """Cancel it by the command, remove it, and see what the database takes then."""
    with farm.others_wait("cancelled by the command"):
        farm.measures["cancel command s"] = farm.run("cancel", farm.id)
    looked_at(farm, "when it is cancelled")
    farm.measures["database before prune MB"] = farm.bytes() / 1e6
    with farm.others_wait("pruned"):
        farm.measures["prune command s"] = farm.run("prune", farm.id, "--yes")
    farm.measures["database after prune MB"] = farm.bytes() / 1e6
    with farm.others_wait("vacuumed"):
        farm.measures["db vacuum s"] = farm.run("db", "vacuum")
    farm.measures["database after db vacuum MB"] = farm.bytes() / 1e6


def measured(settings: Settings, environment: dict[str, str], jobs: int) -> Measures:
    """Do all of it on one database."""
    upgrade(settings)
    farm = Farm(settings, environment, jobs)
    with worker(environment):
        until(lambda: farm.count(JobStatus.SUCCEEDED))
        looked_at(farm, "while it renders")
        cancelled(farm)
        retried(farm)
        pruned(farm)
        with connect(broker_url(settings)) as client:
            memory = cast("dict[str, Any]", client.info("memory"))
    farm.measures["most that Redis held MB"] = memory["used_memory_peak"] / 1e6
    farm.store.close()
    return farm.measures


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "").parse_args()
    jobs = 50_000 if options.quick else 1_000_000
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
    found: dict[str, Measures] = {}
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="pm-", ignore_cleanup_errors=True))
        )
        server = stack.enter_context(running_postgres(folder / "pg", durable=True))
        for name, url in (("SQLite", None), ("PostgreSQL", server.make_database("at_size"))):
            environment = {**clean, "PROMPTMILL_HOME": str(folder / name)}
            if url:
                environment["PROMPTMILL_DATABASE_URL"] = url
            (folder / name).mkdir()
            settings = Settings(home=folder / name, database_url=url)
            found[name] = measured(settings, environment, jobs)
    rows = [
        {"of a submission of": f"{jobs:,}", "what": what, **{name: found[name][what] for name in found}}
        for what in found["SQLite"]
    ]
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
