"""Claim to finish without an engine or a store: how many jobs/s one worker process gets through the database.

Threads of one process claim and finish every job of a submission, on SQLite and on PostgreSQL in turns, with
the connections that a worker has. Also counted: the statements that a job takes, and the bytes that its rows
and their indices take after a VACUUM.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from report import arguments, show
from sqlalchemy import event, text

from storage.database import upgrade
from storage.parameters import JobParameters
from storage.records import Claim, Image
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore
from storage.stores import open_job_store
from tests.records import worker_record
from tests.servers import running_postgres

THREADS = 12  # lanes / 2 + look-ahead + saving, for 16 lanes
DEFAULTS = {"width": 64, "height": 64}
NOBODY = "w1"


@contextmanager
def opened(settings: Settings) -> Iterator[SqlJobStore]:
    """Open a database that is made from nothing."""
    upgrade(settings)
    store = cast("SqlJobStore", open_job_store(settings))
    yield store
    store.close()


def submit(store: SqlJobStore, count: int) -> list[int]:
    """Submit jobs, and queue them all."""
    store.add_worker(worker_record(NOBODY, lanes=16, concurrency=THREADS))
    submission, _ = store.add_submission(model="demo", source="benchmark")
    prompt = "a watercolor painting of an otter that holds a lantern, in the rain"
    store.add_jobs(submission.id, (JobParameters(prompt=prompt, seed=seed) for seed in range(count)))
    store.open_submission(submission.id)
    return store.take_for_dispatch("demo", window=count)


def image(claimed: Claim) -> Image:
    """Return a picture's record of usual size."""
    versions = dict.fromkeys(("torch", "diffusers", "transformers", "numpy", "scipy", "pillow"), "1.2.3")
    return Image(
        key=f"{claimed.submission}/0000/{claimed.index:06d}.png", file_sha256="f" * 64, pixel_sha256="e" * 64,
        bytes=400_000, format="png", seconds={"encode": 0.1, "denoise": 1.5, "decode": 0.1, "save": 0.1},
        numerics={"model_revision": "a" * 64, "dtype": "float32", "lanes": 16, "versions": versions},
    )  # fmt: skip


def measure(name: str, settings: Settings, count: int) -> dict[str, Any]:
    """Take `count` jobs from claim to finish."""
    statements = [0]
    with opened(settings) as store:
        jobs = submit(store, count)

        def counted(*_: Any) -> None:
            statements[0] += 1

        event.listen(store.database.db_engine, "before_cursor_execute", counted)

        def render(job: int) -> None:
            claimed = cast("Claim", store.claim(job, NOBODY, defaults=DEFAULTS))
            store.finish(claimed, image(claimed))

        began = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(render, jobs))
        taken = time.perf_counter() - began
        return {
            "database": name,
            "jobs": count,
            "jobs/s": count / taken,
            "statements a job": statements[0] / count,
            "bytes a job": _size(store) / count,
        }


def _size(store: SqlJobStore) -> float:
    """Return the bytes of all tables, without what updates have left behind."""
    query = (
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        if store.database.is_sqlite
        else "SELECT pg_total_relation_size('jobs') + pg_total_relation_size('images')"
    )
    raw = store.database.db_engine.raw_connection()  # our own would begin a transaction
    try:
        if not store.database.is_sqlite:
            raw.driver_connection.autocommit = True  # type: ignore[union-attr]  # psycopg's
        raw.cursor().execute("VACUUM" if store.database.is_sqlite else "VACUUM FULL")
    finally:
        raw.invalidate()
    with store.database.read() as connection:
        return float(connection.execute(text(query)).scalar_one())


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "").parse_args()
    count, rounds = (500, 1) if options.quick else (4000, 3)
    rows: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pm-")))
        # As an administrator runs it: what a commit says is on the disk.
        server = stack.enter_context(running_postgres(folder / "pg", durable=True))
        for number in range(rounds):
            home = folder / f"home-{number}"
            home.mkdir()
            cases = {
                "SQLite": Settings(home=home),
                "PostgreSQL": Settings(home=home, database_url=server.make_database(f"round{number}")),
            }
            for name, settings in cases.items():
                rows.setdefault(name, []).append(measure(name, settings, count))
    middle = [sorted(found, key=lambda row: row["jobs/s"])[len(found) // 2] for found in rows.values()]
    show(middle, as_json=options.json)


if __name__ == "__main__":
    main()
