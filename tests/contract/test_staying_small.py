"""What keeps a database small and quick: sweeps in chunks, rows that are forgotten, room given back."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.errors import BadInputError
from storage.jobstore import JobStore
from storage.parameters import JobParameters
from storage.records import JobStatus, WorkerState
from storage.settings import Settings
from storage.sqljobstore import base
from storage.stores import open_job_store
from tests.records import worker_record

CHUNK = 4
A_WEEK, A_DAY = 7 * 86400.0, 86400.0


@pytest.fixture
def cancelled(job_store: JobStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cancelled submission of ten chunks that nobody has swept yet."""
    monkeypatch.setattr(base, "ADD_CHUNK", CHUNK)
    submission = submitted(job_store, 10 * CHUNK)
    job_store.cancel(submission)
    return submission


def submitted(store: JobStore, count: int) -> str:
    """Submit so many jobs; return the submission's id."""
    submission, _ = store.add_submission(model="demo", source="test")
    store.add_jobs(submission.id, (JobParameters(prompt="an otter " * 20, seed=n) for n in range(count)))
    store.open_submission(submission.id)
    return submission.id


def removed(store: JobStore, submission: str) -> None:
    """Remove a submission with all its rows."""
    store.cancel(submission)
    store.begin_pruning(submission)
    store.prune_jobs(submission, first=0, last=10**6)
    store.end_pruning(submission)


def test_a_sweep_may_stop_between_two_chunks(job_store: JobStore, cancelled: str) -> None:
    """A supervisor has other things to do: it sweeps for a moment in each tick."""
    assert job_store.sweep_cancelled(seconds=0) == CHUNK
    assert job_store.counts(cancelled)[JobStatus.CANCELLED] == CHUNK
    assert job_store.sweep_cancelled() == 9 * CHUNK


def test_several_may_sweep_at_once(
    job_store: JobStore, cancelled: str, open_another: Callable[[], JobStore]
) -> None:
    """Each job is swept once, and nobody stops because somebody else took a part of his chunk."""
    stores = [job_store, open_another(), open_another()]
    with ThreadPoolExecutor(len(stores)) as pool:
        swept = list(pool.map(lambda store: store.sweep_cancelled(cancelled), stores))
    assert sum(swept) == 10 * CHUNK
    assert job_store.counts(cancelled)[JobStatus.CANCELLED] == 10 * CHUNK


def test_others_can_write_between_two_chunks(
    job_store: JobStore, cancelled: str, open_another: Callable[[], JobStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep breathes after each chunk, and whoever waits for the writer's lock gets it then."""
    other = open_another()
    other.add_worker(worker_record())
    beats: list[object] = []
    breath = SimpleNamespace(
        monotonic=time.monotonic, sleep=lambda _seconds: beats.append(other.heartbeat("w1", {}))
    )
    monkeypatch.setattr(base, "time", breath)
    assert job_store.sweep_cancelled(cancelled) == 10 * CHUNK
    assert len(beats) == 10


def test_rows_of_workers_that_ended_long_ago_are_forgotten(
    job_store: JobStore, advance: Callable[[float], None]
) -> None:
    """A week after its end nobody asks for an incarnation; who lives stays, however old its row."""
    for name in ("old", "alive", "newest"):
        job_store.add_worker(worker_record(name, revision="abc"))
    job_store.release_incarnation("old", crashed=True)
    job_store.release_incarnation("newest", crashed=False)
    assert job_store.forget_workers() == []
    advance(A_WEEK + A_DAY)
    job_store.heartbeat("alive", {})
    assert {worker.incarnation for worker in job_store.forget_workers()} >= {"old"}
    assert "alive" in {worker.incarnation for worker in job_store.workers()}
    assert job_store.forget_workers() == []


def test_what_is_known_of_a_model_is_not_forgotten(
    job_store: JobStore, advance: Callable[[float], None]
) -> None:
    """The newest that told its model's revision stays, for the next submit; one that never loaded goes."""
    job_store.add_worker(worker_record("told", revision="abc", defaults={"width": 64}))
    job_store.release_incarnation("told", crashed=False)
    advance(A_DAY)
    job_store.add_worker(worker_record("stillborn", state=WorkerState.STARTING, defaults={}))
    job_store.release_incarnation("stillborn", crashed=True)
    advance(2 * A_WEEK)
    job_store.forget_workers()
    assert [worker.incarnation for worker in job_store.workers()] == ["told"]


def test_the_room_of_removed_rows_is_given_back(job_store: JobStore, settings: Settings) -> None:
    """After a prune a SQLite file is shorter; PostgreSQL may keep its room, and nothing else changes."""
    gone, kept = submitted(job_store, 500), submitted(job_store, 3)
    removed(job_store, gone)
    room = job_store.compact(whole=settings.database_url is not None)
    assert room.after < room.before or settings.database_url
    assert job_store.counts(kept)[JobStatus.WAITING] == 3


def test_a_file_is_opened_while_somebody_writes_to_it(migrated_sqlite: Path, tmp_path: Path) -> None:
    """What a new connection asks SQLite for takes no lock that a writer has."""
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    shutil.copyfile(migrated_sqlite, settings.database_path)
    submission = submitted(open_job_store(settings), 3)
    with closing(sqlite3.connect(settings.database_path)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE jobs SET failures = failures")
        assert open_job_store(settings).counts(submission)[JobStatus.WAITING] == 3


def test_a_file_of_an_earlier_version_is_written_anew_when_nobody_uses_it(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    """It cannot give single pages back; a worker that lives would have to wait for too long."""
    settings = Settings(home=tmp_path / "old")
    settings.home.mkdir()
    shutil.copyfile(migrated_sqlite, settings.database_path)
    with closing(sqlite3.connect(settings.database_path)) as connection:
        connection.executescript("PRAGMA journal_mode=DELETE; PRAGMA auto_vacuum=NONE; VACUUM")
    store = open_job_store(settings)
    removed(store, submitted(store, 500))
    room = store.compact()
    assert room.after == room.before
    store.add_worker(worker_record("w1", name="busy@host"))
    with pytest.raises(BadInputError, match=r"busy@host.*worker drain"):
        store.compact(whole=True)
    store.release_incarnation("w1", crashed=False)
    room = store.compact(whole=True)
    assert room.after < room.before
    removed(store, submitted(store, 500))
    room = store.compact()
    assert room.after < room.before
    store.close()
