"""A farm of workers that sleep instead of rendering: what hundreds of GPUs ask of database and Redis.

Each worker is a process with all that a real one has but an engine: a Celery consumer, its threads, claims,
finishes, a heartbeat; every eighth has a supervisor's tick, as a host of eight GPUs has. Its engine has
`--slots` places in which a job sleeps, `--job-seconds` on average. PostgreSQL (durable) and Redis are real.
First nothing is to be done, then more than can be; both are measured for `--seconds`. `--ghosts` adds the
rows of workers that are not there, each with jobs in the queue: what every tick of a large farm has to read.

Read the figures per worker and per job: with more workers than cores, processes wait for each other.
docs/scale.md goes on from here to a thousand GPUs.

Past 300 lines because the script starts itself as each worker.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import psutil
from report import arguments, median, show

MODEL = "sleep"
HOST = 8  # workers for each supervisor's tick
PATIENCE = 300.0  # seconds until something that has to happen is given up
BEAT_GHOSTS = 10.0  # seconds: often enough for the lease, rarely enough to cost little
JOBS_AHEAD = 3  # times what the workers get through while they are measured


class SleepingWorker:
    """One worker process without an engine."""

    def __init__(self, number: int, *, slots: int, seconds: float) -> None:
        from celery.worker import WorkController  # noqa: PLC0415  (only a worker needs it)
        from sqlalchemy import event  # noqa: PLC0415  (likewise)

        from storage.queue import JobQueue, broker_url, make_app, queue_name  # noqa: PLC0415  (likewise)
        from storage.settings import load_settings  # noqa: PLC0415  (likewise)
        from storage.stores import open_job_store  # noqa: PLC0415  (likewise)
        from tests.records import worker_record  # noqa: PLC0415  (likewise)
        from worker.heartbeat import Heartbeat  # noqa: PLC0415  (likewise)
        from worker.logs import configure_logs  # noqa: PLC0415  (likewise)
        from worker.ticking import Ticker  # noqa: PLC0415  (likewise)

        configure_logs()
        settings = load_settings()
        self.seconds = seconds
        self.incarnation = f"sleeper-{number}"
        self.jobs = open_job_store(settings)
        self.statements: Counter[str] = Counter()
        self.finished, self.slept, self.beats = 0, 0.0, 0
        self.asleep: dict[int, float] = {}
        self.held: dict[int, float] = {}
        self.lock = threading.Lock()
        self.engine = threading.Semaphore(slots)
        event.listen(cast("Any", self.jobs).database.db_engine, "before_cursor_execute", self._count)
        concurrency = slots + 4  # as `worker.introduction.concurrency_of` has it
        self.jobs.add_worker(
            worker_record(
                self.incarnation,
                name=f"sleep-{number}",
                model=MODEL,
                lanes=2 * slots,
                concurrency=concurrency,
            )
        )
        self.heartbeat = Heartbeat(
            self.jobs, self.incarnation, progress=self._progress, lanes_used=lambda: 2 * len(self.asleep),
            drop=lambda _job: None, stray=lambda _job: None, drain=lambda _seconds: None,
            stale=lambda _error: os._exit(70),
        )  # fmt: skip
        self.heartbeat.start()
        if number % HOST == 0:
            queue = JobQueue(broker_url(settings), MODEL)
            Ticker(
                self.jobs, [queue], None, lease=settings.lease, dispatches=lambda: True, too_old=_too_old
            ).start()
        app = make_app(broker_url(settings))
        app.task(name="promptmill.render", shared=False, ignore_result=True, acks_late=True)(self.render)
        app.set_current()
        app.set_default()
        self.celery = WorkController(
            app=app, hostname=f"{self.incarnation}@here", pool_cls="threads", concurrency=concurrency,
            queues=[queue_name(MODEL)], without_gossip=True, without_mingle=True, without_heartbeat=False,
        )  # fmt: skip

    def render(self, job: int, *, version: int = 1) -> None:
        """Claim, sleep in one of the engine's slots, finish: the stations of `worker.tasks`."""
        from storage.records import Claim, Image  # noqa: PLC0415  (only a worker needs it)

        del version
        claim = self.jobs.claim(job, self.incarnation, defaults={"width": 64, "height": 64})
        if not isinstance(claim, Claim):
            return
        with self.lock:
            self.held[job] = 0.0
        with self.engine:
            began = time.monotonic()
            with self.lock:
                self.asleep[job] = began
            time.sleep(self.seconds * random.Random(job).uniform(0.5, 1.5))  # noqa: S311  (no secret)
            with self.lock:
                self.slept += time.monotonic() - self.asleep.pop(job)
        image = Image(
            key=f"{claim.submission}/{claim.index // 1000:04d}/{claim.index:06d}.png", file_sha256="f" * 64,
            pixel_sha256="e" * 64, bytes=400_000, format="png", seconds={"denoise": self.seconds},
            numerics={"model_revision": "a" * 64, "lanes": 8},
        )  # fmt: skip
        self.jobs.finish(claim, image)
        with self.lock:
            self.held.pop(job)
            self.finished += 1

    def _progress(self) -> dict[int, float]:
        self.beats += 1
        with self.lock:
            return dict(self.held)

    def _count(self, *_: Any) -> None:
        name = threading.current_thread().name
        self.statements[name if name in ("heartbeat", "tick") else "jobs"] += 1

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as they are now."""
        now = time.monotonic()
        with self.lock:
            slept = self.slept + sum(now - began for began in self.asleep.values())
        return {
            "finished": self.finished, "slept": slept, "beats": self.beats, "cpu": time.process_time(),
            "heartbeat": self.statements["heartbeat"], "tick": self.statements["tick"],
            "jobs": self.statements["jobs"],
        }  # fmt: skip

    def run(self) -> None:
        """Work, and print a snapshot for each line of standard input; its end ends this process."""
        threading.Thread(target=self.celery.start, name="celery", daemon=True).start()
        print("ready", flush=True)
        for _ in sys.stdin:
            if "torch" in sys.modules:
                sys.exit("this has loaded torch: it is no sleeping worker")
            print(json.dumps(self.snapshot()), flush=True)
        os._exit(0)


def _too_old(error: Exception) -> None:
    raise error


class Ghosts:
    """Rows of live workers that are nobody: ticks read them, and queue jobs for them."""

    def __init__(self, count: int, store: Any, *, slots: int) -> None:
        from tests.records import worker_record  # noqa: PLC0415  (only the one who measures needs it)

        self._store, self._stopped = store, threading.Event()
        defaults = {"width": 1024, "height": 1024, "takes": ["init_image", "mask"], "note": "x" * 400}
        for number in range(count):
            name = f"ghost-{number}"
            store.add_worker(
                worker_record(
                    name, name=name, model=MODEL, lanes=2 * slots, concurrency=slots + 4, defaults=defaults
                )
            )
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        from sqlalchemy import text  # noqa: PLC0415  (only the one who measures needs it)

        beat = text("UPDATE workers SET beat = beat + 1, beat_at = now() WHERE incarnation LIKE 'ghost-%'")
        while not self._stopped.wait(BEAT_GHOSTS):
            with self._store.database.write() as connection:
                connection.execute(beat)

    def close(self) -> None:
        """Let them be, before the store is closed."""
        self._stopped.set()
        self._thread.join()


class Sleepers:
    """All sleeping workers of one row of the table."""

    def __init__(
        self, count: int, environment: dict[str, str], log: Any, *, slots: int, seconds: float
    ) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        for number in range(count):
            order = json.dumps({"number": number, "slots": slots, "seconds": seconds})
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--sleep", order], env=environment, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )
            )  # fmt: skip
            self._line(self.processes[-1], expected="ready\n")  # one after another: the cores are few

    def _line(self, process: subprocess.Popen[str], *, expected: str | None = None) -> str:
        assert process.stdout is not None  # noqa: S101  (we asked for the pipe)
        line = process.stdout.readline()
        if not line or expected not in (None, line):
            sys.exit(f"a sleeping worker ended with {process.wait()}")
        return line

    def snapshots(self) -> list[dict[str, Any]]:
        """Ask all for their counters."""
        for process in self.processes:
            assert process.stdin is not None  # noqa: S101  (we asked for the pipe)
            process.stdin.write("now\n")
            process.stdin.flush()
        return [json.loads(self._line(process)) for process in self.processes]

    def close(self) -> None:
        """End them all."""
        for process in self.processes:
            process.kill()
            process.wait()


def cpu_of(name: str, below: psutil.Process) -> float:
    """Return the CPU seconds of a process and its descendants, as far as they are of one program."""
    total = 0.0
    for process in [below, *below.children(recursive=True)]:
        try:
            if name in process.name():
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


class Servers:
    """PostgreSQL and Redis, and what they have counted."""

    def __init__(self, postgres: Any, redis: Any, database: str) -> None:
        self._postgres, self._database = postgres, database
        self._client = redis.client()
        self._redis = psutil.Process(redis._process.pid)  # noqa: SLF001  (the tests' own class)
        folder = postgres._folder  # noqa: SLF001  (likewise)
        self._postmaster = psutil.Process(int((folder / "postmaster.pid").read_text().split()[0]))

    def counts(self) -> dict[str, float]:
        """Return the counters of both servers."""
        query = (
            "SELECT xact_commit + xact_rollback, tup_returned, numbackends FROM pg_stat_database "
            "WHERE datname = %s"
        )
        with self._postgres.connect() as connection:
            transactions, rows, connections = connection.execute(query, (self._database,)).fetchone()
        stats = self._client.info("stats")
        return {
            "transactions": float(transactions),
            "rows": float(rows),
            "connections": float(connections),
            "commands": float(stats["total_commands_processed"]),
            "megabytes": stats["total_net_output_bytes"] / 1e6,
            "postgres": cpu_of("postgres", self._postmaster),
            "redis": cpu_of("redis", self._redis),
            "at": time.monotonic(),
        }


def window(sleepers: Sleepers, servers: Servers, seconds: float, *, slots: int) -> dict[str, float]:
    """Measure for a while; return rates a second."""
    before, counted = sleepers.snapshots(), servers.counts()
    time.sleep(seconds)
    after, counted_after = sleepers.snapshots(), servers.counts()
    taken = counted_after["at"] - counted["at"]
    grown = {name: (counted_after[name] - counted[name]) / taken for name in counted}
    count = len(before)

    def rate(name: str) -> float:
        return float(sum(b[name] - a[name] for a, b in zip(before, after, strict=True))) / taken

    def middle(*, ticking: bool) -> float:
        """Return the cores of a worker: the median of those with a tick, or of the others."""
        pairs = list(zip(before, after, strict=True))
        some = [pair for number, pair in enumerate(pairs) if (number % HOST == 0) is ticking]
        return median([(b["cpu"] - a["cpu"]) / taken for a, b in some])

    beats = sorted((b["beats"] - a["beats"]) / taken for a, b in zip(before, after, strict=True))
    return {
        "jobs/s": rate("finished"),
        "utilisation": rate("slept") / (count * slots),
        "beats/s (median)": beats[count // 2],
        "beats/s (least)": beats[0],
        "statements/s": rate("heartbeat") + rate("tick") + rate("jobs"),
        "of beats": rate("heartbeat"),
        "of ticks": rate("tick"),
        "of jobs": rate("jobs"),
        "commits/s": grown["transactions"],
        "rows read/s": grown["rows"],
        "connections": counted_after["connections"],
        "Redis commands/s": grown["commands"],
        "Redis MB/s": grown["megabytes"],
        "cores: workers": rate("cpu"),
        "one with a tick": middle(ticking=True),
        "one without": middle(ticking=False),
        "PostgreSQL": grown["postgres"],
        "Redis": grown["redis"],
    }


def measure(count: int, options: Any) -> list[dict[str, Any]]:
    """Return two rows of the table for so many workers: without work, and with more than they can do."""
    from storage.database import upgrade  # noqa: PLC0415  (only the one who measures needs it)
    from storage.parameters import JobParameters  # noqa: PLC0415  (likewise)
    from storage.settings import Settings  # noqa: PLC0415  (likewise)
    from storage.stores import open_job_store  # noqa: PLC0415  (likewise)
    from tests.servers import running_postgres, running_redis  # noqa: PLC0415  (likewise)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pm-")))
        postgres = stack.enter_context(running_postgres(folder / "pg", durable=True))
        redis = stack.enter_context(running_redis(folder))
        url = postgres.make_database("sleep")
        settings = Settings(home=folder / "home", database_url=url, redis_url=redis.url)
        upgrade(settings)
        environment = {
            **os.environ, "PROMPTMILL_HOME": str(folder / "home"), "PROMPTMILL_DATABASE_URL": url,
            "PROMPTMILL_REDIS_URL": redis.url,
        }  # fmt: skip
        log = stack.enter_context((folder / "workers.log").open("w"))
        sleepers = Sleepers(count, environment, log, slots=options.slots, seconds=options.job_seconds)
        stack.callback(sleepers.close)
        servers = Servers(postgres, redis, "sleep")
        store = open_job_store(settings)
        stack.callback(store.close)
        stack.callback(Ghosts(options.ghosts, store, slots=options.slots).close)
        time.sleep(5)
        idle = window(sleepers, servers, options.seconds, slots=options.slots)
        a_second = count * options.slots / options.job_seconds
        jobs = int(a_second * (options.seconds + options.warm_up) * JOBS_AHEAD)
        jobs += options.ghosts * (options.slots + 4)
        submission, _ = store.add_submission(model=MODEL, source="simulate")
        store.add_jobs(submission.id, (JobParameters(prompt=f"job {n}", seed=n) for n in range(jobs)))
        store.open_submission(submission.id)
        time.sleep(options.warm_up)
        busy = window(sleepers, servers, options.seconds, slots=options.slots)
        told = {"workers": count, "ghosts": options.ghosts}
        return [{**told, "load": "none", **idle}, {**told, "load": "full", **busy}]


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--workers", default="8,16,32", help="how many, several in a row joined by commas")
    parser.add_argument("--ghosts", type=int, default=0, help="rows of workers that are not there")
    parser.add_argument("--slots", type=int, default=4, help="jobs that a worker renders at once")
    parser.add_argument("--job-seconds", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each load is measured")
    parser.add_argument("--warm-up", type=float, default=15.0)
    parser.add_argument("--sleep", help="(a sleeping worker's own order)")
    options = parser.parse_args()
    if options.sleep:
        SleepingWorker(**json.loads(options.sleep)).run()
        return
    if options.quick:
        options.workers, options.seconds, options.warm_up = "4", 8.0, 5.0
    rows = [row for count in map(int, options.workers.split(",")) for row in measure(count, options)]
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
