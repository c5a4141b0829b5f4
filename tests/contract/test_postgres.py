"""What is promised of PostgreSQL alone: few connections, locks that nobody waits for, restarts survived."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import event, text

from storage.database import CONNECTIONS, HEAD, current_revision, open_database, upgrade
from storage.errors import BadInputError, SchemaError, UnreachableError
from storage.parameters import JobParameters
from storage.records import Claim, JobStatus
from storage.settings import Settings
from storage.sqljobstore import SqlJobStore
from storage.sqljobstore.dispatching import DISPATCH_LOCK
from storage.stores import open_job_store
from tests.records import worker_record
from tests.servers import Postgres

PATIENCE = 30.0  # seconds: only how long a broken test may take


@pytest.fixture
def settings(migrated_postgres: Postgres, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a database of its own."""
    url = migrated_postgres.make_database("own", template="migrated")
    yield Settings(home=tmp_path, database_url=url)
    migrated_postgres.drop_database("own")


@pytest.fixture
def store(settings: Settings) -> Iterator[SqlJobStore]:
    """An open job store."""
    opened = open_job_store(settings)
    assert isinstance(opened, SqlJobStore)
    yield opened
    opened.close()


def fill(store: SqlJobStore, jobs: int) -> str:
    """Submit jobs, and be a worker; return the submission."""
    store.add_worker(worker_record(defaults={}))
    submission, _ = store.add_submission(model="demo", source="test")
    store.add_jobs(submission.id, (JobParameters(prompt="a fox", seed=seed) for seed in range(jobs)))
    return store.open_submission(submission.id).id


def test_a_process_has_three_connections(store: SqlJobStore, settings: Settings) -> None:
    """However many threads it has, and all of them get their turn."""
    fill(store, 200)
    jobs = store.take_for_dispatch("demo", window=200)
    counts: list[int] = []
    done = threading.Event()

    def watch() -> None:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = 'own' AND application_name = 'promptmill'"
        )
        with psycopg.connect(settings.database_url or "", autocommit=True) as connection:
            while not done.is_set():
                counts.append(connection.execute(query).fetchall()[0][0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(24) as pool:
        claims = list(pool.map(lambda job: store.claim(job, "w1", defaults={}), jobs))
    done.set()
    watcher.join()
    assert all(isinstance(claim, Claim) for claim in claims)
    assert max(counts) == CONNECTIONS


def test_a_process_that_freezes_in_a_transaction_holds_nobody_up(
    settings: Settings, store: SqlJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its locks are taken from it, so that a reaper can free its jobs; what it did not commit is undone."""
    fill(store, 1)
    (job,) = store.take_for_dispatch("demo", window=1)
    claim = store.claim(job, "w1", defaults={})
    assert isinstance(claim, Claim)
    monkeypatch.setattr("storage.database.IDLE_IN_TRANSACTION", 0.2)
    frozen = open_job_store(settings)
    assert isinstance(frozen, SqlJobStore)
    with ThreadPoolExecutor(1) as pool, frozen.database.db_engine.connect() as connection:
        connection.execute(text("UPDATE workers SET beat = beat + 1"))
        released = pool.submit(store.release_incarnation, "w1", crashed=True)
        in_time, _ = wait([released], timeout=PATIENCE)
        connection.invalidate()
    frozen.close()
    assert in_time
    assert store.find_job(f"{claim.label}").status is JobStatus.WAITING


def test_a_restart_of_the_server_costs_no_call_after_it(
    store: SqlJobStore, migrated_postgres: Postgres
) -> None:
    """Connections that died with it are replaced unseen; meanwhile there is one sentence."""
    submission = fill(store, 3)
    migrated_postgres.stop()
    try:
        with pytest.raises(UnreachableError, match="cannot be used"):
            store.counts(submission)
    finally:
        migrated_postgres.start()
    assert sum(store.counts(submission).values()) == 3
    migrated_postgres.restart()
    assert len(store.take_for_dispatch("demo", window=3)) == 3


def test_only_one_process_dispatches(store: SqlJobStore, settings: Settings) -> None:
    """Who comes second does not wait, and queues nothing."""
    fill(store, 3)
    with psycopg.connect(settings.database_url or "") as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (DISPATCH_LOCK,))
        began = time.monotonic()
        assert store.take_for_dispatch("demo", window=3) == []
        assert time.monotonic() - began < 5
    assert len(store.take_for_dispatch("demo", window=3)) == 3


def test_dispatch_does_not_wait_for_a_row_that_somebody_holds(store: SqlJobStore, settings: Settings) -> None:
    """The others go on."""
    fill(store, 3)
    with psycopg.connect(settings.database_url or "") as other:
        (held,) = other.execute('SELECT id FROM jobs WHERE "index" = 0 FOR UPDATE').fetchall()[0]
        taken = store.take_for_dispatch("demo", window=3)
        assert len(taken) == 2
        assert held not in taken
    assert store.take_for_dispatch("demo", window=3) == [held]


def test_only_heartbeats_do_without_a_flush(store: SqlJobStore) -> None:
    """What a power cut may take is a beat, and nothing else."""
    fill(store, 1)
    said: list[str] = []
    event.listen(
        store.database.db_engine, "before_cursor_execute", lambda *arguments: said.append(str(arguments[2]))
    )

    def relaxed(action: Callable[[], object]) -> bool:
        said.clear()
        action()
        assert said
        return any("synchronous_commit" in statement for statement in said)

    assert relaxed(lambda: store.heartbeat("w1", {}))
    (job,) = store.take_for_dispatch("demo", window=1)
    assert not relaxed(lambda: store.claim(job, "w1", defaults={}))
    assert not relaxed(lambda: store.add_submission(model="demo", source="test"))


def test_two_that_upgrade_at_once_make_one_schema(postgres: Postgres, tmp_path: Path) -> None:
    """A migration job and an impatient administrator."""
    url = postgres.make_database("fresh")
    settings = Settings(home=tmp_path, database_url=url)
    try:
        # Processes: Alembic keeps its environment in a module.
        with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
            said = list(pool.map(upgrade, [settings] * 3))
        assert sorted(sentence.split()[0] for sentence in said) == ["The", "The", "Upgraded"]
        assert all(HEAD in sentence for sentence in said)
        database = open_database(settings)
        assert current_revision(database) == HEAD
        database.db_engine.dispose()
    finally:
        postgres.drop_database("fresh")


def test_an_empty_database_is_not_upgraded_unasked(postgres: Postgres, tmp_path: Path) -> None:
    """It may be somebody else's: `promptmill db upgrade` is asked for."""
    url = postgres.make_database("empty")
    try:
        with pytest.raises(SchemaError, match="db upgrade"):
            open_job_store(Settings(home=tmp_path, database_url=url))
    finally:
        postgres.drop_database("empty")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://postgres:secret@127.0.0.1:1/x", "refused"),
        ("postgresql://postgres:secret@no-such-host.invalid/x", "resolve"),
    ],
)
def test_a_server_that_is_not_there_is_one_sentence_without_the_password(
    url: str, reason: str, tmp_path: Path
) -> None:
    """What the driver says, and where to look."""
    with pytest.raises(UnreachableError, match=reason) as caught:
        open_job_store(Settings(home=tmp_path, database_url=url))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_that_is_not_there_is_one_sentence(postgres: Postgres, tmp_path: Path) -> None:
    """With its name."""
    with pytest.raises(UnreachableError, match='"nowhere" does not exist'):
        open_job_store(Settings(home=tmp_path, database_url=postgres.url("nowhere")))


def test_a_missing_driver_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare install has no PostgreSQL."""
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(BadInputError, match=r"promptmill\[postgres\]"):
        open_job_store(Settings(home=tmp_path, database_url="postgresql://u@h/x"))
