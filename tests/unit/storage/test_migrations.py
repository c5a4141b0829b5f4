"""The schema: made from nothing, equal to the models, backed up before it changes, refused when unknown."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from storage import database
from storage.database import HEAD, current_revision, migrations_path, open_database, schema_state, upgrade
from storage.errors import BadInputError, SchemaError, StoreFullError, UnreachableError
from storage.rows import METADATA
from storage.settings import Settings
from storage.stores import open_job_store
from storage.writer_lock import WriterLock

NEXT = f"{int(HEAD) + 1:04}"
NEXT_MIGRATION = '''"""One more column."""

import sqlalchemy as sa
from alembic import op

revision = "{next}"
down_revision = "{head}"


def upgrade() -> None:
    """Add it."""
    op.add_column("submissions", sa.Column("colour", sa.Text(), nullable=True))
    {last}
'''


def scripts() -> ScriptDirectory:
    """Return the folder of migrations as Alembic sees it."""
    config = Config()
    config.set_main_option("script_location", str(migrations_path()))
    return ScriptDirectory.from_config(config)


def stamp(settings: Settings, revision: str) -> None:
    """Make a database that says it has this schema."""
    upgrade(settings)
    with closing(sqlite3.connect(settings.database_path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])


def versions_with_a_next_one(folder: Path, monkeypatch: pytest.MonkeyPatch, *, last: str = "") -> None:
    """Pretend that this code is one schema ahead."""
    (folder / "versions").mkdir(parents=True)
    for path in (*migrations_path().glob("*.*"), *migrations_path().glob("versions/v*.py")):
        (folder / path.relative_to(migrations_path())).write_text(path.read_text())
    one_more = NEXT_MIGRATION.format(next=NEXT, head=HEAD, last=last)
    (folder / "versions" / f"v{NEXT}_one_more.py").write_text(one_more)
    monkeypatch.setattr(database, "migrations_path", lambda: folder)
    monkeypatch.setattr(database, "HEAD", NEXT)


def columns(path: Path) -> set[str]:
    """Return the columns of submissions."""
    with closing(sqlite3.connect(path)) as connection:
        return {row[1] for row in connection.execute("PRAGMA table_info(submissions)")}


def test_the_newest_migration_is_the_schema_that_the_code_names() -> None:
    """HEAD is the head of the migrations, and there is one head."""
    assert scripts().get_heads() == [HEAD]


def test_models_and_migrations_make_the_same_tables(settings: Settings) -> None:
    """Nothing is left to generate after all migrations ran."""
    upgrade(settings)
    opened = open_database(settings)
    with opened.db_engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
    opened.db_engine.dispose()


def test_the_embedded_database_is_made_from_nothing(settings: Settings) -> None:
    """Opening is enough; the file and its home are readable by their owner only."""
    assert schema_state(settings) == (None, HEAD)
    opened = open_database(settings)
    assert current_revision(opened) == HEAD
    opened.db_engine.dispose()
    assert settings.database_path.stat().st_mode & 0o777 == 0o600
    assert settings.home.stat().st_mode & 0o777 == 0o700


def test_upgrading_twice_does_nothing_the_second_time(settings: Settings) -> None:
    """The sentence says whether anything was done."""
    assert upgrade(settings).startswith("Upgraded ")
    assert upgrade(settings).endswith(f"is at schema {HEAD} already.")


def test_a_file_named_by_a_url_is_made_as_well(tmp_path: Path) -> None:
    """`sqlite:///FILE` is the embedded default with another file."""
    settings = Settings(home=tmp_path / "home", database_url=f"sqlite:///{tmp_path / 'jobs.db'}")
    open_database(settings).db_engine.dispose()
    assert "weight" in columns(tmp_path / "jobs.db")
    assert not settings.home.exists()


@pytest.mark.parametrize("name", ["what?", "a#b", "100%", "a b", "ü", "a::b"])
def test_any_folder_name_can_be_a_home(tmp_path: Path, name: str) -> None:
    """The database lies where the home says, whatever characters that name has."""
    settings = Settings(home=tmp_path / name)
    open_database(settings).db_engine.dispose()
    assert "weight" in columns(tmp_path / name / "promptmill.db")


def test_an_older_file_is_refused_then_backed_up_and_upgraded(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older schema asks for `db upgrade`, which copies the file before it changes it."""
    upgrade(settings)
    with closing(sqlite3.connect(settings.database_path)) as connection, connection:
        connection.execute("INSERT INTO meta VALUES ('kept', 'yes')")
    versions_with_a_next_one(tmp_path / "migrations", monkeypatch)
    with pytest.raises(SchemaError, match="db upgrade"):
        open_database(settings)
    sentence = upgrade(settings)
    (backup,) = settings.home.glob("*.backup")
    assert f"from {HEAD} to schema {NEXT} (backup: {backup})" in sentence
    assert backup.stat().st_mode & 0o777 == 0o600
    assert "colour" in columns(settings.database_path)
    assert "colour" not in columns(backup)
    with closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("SELECT value FROM meta WHERE key = 'kept'").fetchone() == ("yes",)


def test_the_first_schema_is_upgraded_with_its_rows(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything in a database of schema 0001 is there after the upgrade, and the new table works."""
    monkeypatch.setattr(database, "HEAD", "0001")
    upgrade(settings)
    with closing(sqlite3.connect(settings.database_path)) as connection, connection:
        connection.execute(
            "INSERT INTO submissions (id, created_at, source, model, state, priority, weight, pass, total) "
            "VALUES ('abcd2345', '2026-11-01 00:00:00', 'prompts.txt', 'demo', 'open', 0, 1.0, 0.0, 0)"
        )
    monkeypatch.undo()
    with pytest.raises(SchemaError, match=f"has schema 0001, this promptmill needs {HEAD}"):
        open_job_store(settings)
    upgrade(settings)
    store = open_job_store(settings)
    assert [submission.id for submission in store.submissions()] == ["abcd2345"]
    assert store.keep_tuning({"device": "a GPU"}, {"lanes": 4}) == {"lanes": 4}
    store.close()


def test_a_migration_that_fails_changes_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a migration is rolled back, and the file still has its old schema."""
    upgrade(settings)
    versions_with_a_next_one(
        tmp_path / "migrations", monkeypatch, last='op.execute("INSERT INTO no_such VALUES (1)")'
    )
    with pytest.raises(UnreachableError, match="database"):
        upgrade(settings)
    assert "colour" not in columns(settings.database_path)
    assert schema_state(settings)[0] == HEAD


def test_a_newer_schema_that_asks_for_newer_workers_is_refused(settings: Settings) -> None:
    """A database that a newer promptmill has upgraded past this one is neither opened nor changed."""
    stamp(settings, "9999")
    with closing(sqlite3.connect(settings.database_path)) as connection, connection:
        connection.execute("UPDATE meta SET value = '99.0' WHERE key = 'oldest_worker'")
    for act in (open_database, upgrade):
        with pytest.raises(SchemaError, match="upgrade promptmill here"):
            act(settings)


def test_a_newer_schema_that_allows_this_version_is_opened(settings: Settings) -> None:
    """So that workers can be replaced one after another, and old ones start again meanwhile; no upgrade."""
    stamp(settings, "9999")
    open_database(settings).db_engine.dispose()
    with pytest.raises(SchemaError, match="upgrade promptmill here"):
        upgrade(settings)


def test_an_unknown_older_schema_is_one_sentence(settings: Settings) -> None:
    """A revision that no migration knows ends in a sentence, not in Alembic's traceback."""
    stamp(settings, "0000")
    with pytest.raises(SchemaError, match="cannot be upgraded"):
        upgrade(settings)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "nonsense", "nosuch://x/y", "oracle+nosuch://x/y", "://", ""]
)
def test_a_url_that_cannot_be_used_is_bad_input(tmp_path: Path, url: str) -> None:
    """A database in memory, or of a kind that nobody knows, is refused with what to write instead."""
    with pytest.raises(BadInputError, match="PROMPTMILL_DATABASE_URL"):
        open_database(Settings(home=tmp_path, database_url=url))


def test_a_file_that_is_no_database_is_one_sentence(settings: Settings) -> None:
    """Garbage in the database's place is said to be that, and left as it is."""
    settings.home.mkdir()
    settings.database_path.write_bytes(b"this is not a database, but long enough to look at" * 50)
    with pytest.raises(UnreachableError, match="not a database"):
        open_database(settings)
    assert settings.database_path.read_bytes().startswith(b"this is not")


def test_a_home_below_a_regular_file_is_one_sentence(tmp_path: Path) -> None:
    """A home that cannot be made names itself and PROMPTMILL_HOME."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UnreachableError, match=r"home .*PROMPTMILL_HOME"):
        open_database(Settings(home=tmp_path / "file" / "home"))
    with pytest.raises(UnreachableError, match="PROMPTMILL_HOME"):
        open_database(Settings(home=tmp_path / "file"))


def test_a_folder_in_the_databases_place_is_one_sentence(settings: Settings) -> None:
    """A folder that is called like the database is no database."""
    settings.database_path.mkdir(parents=True)
    with pytest.raises(UnreachableError, match="cannot be opened"):
        open_database(settings)


def test_a_full_disk_is_a_full_store(settings: Settings) -> None:
    """What SQLite says about a full disk becomes a StoreFullError, and the database stays usable."""
    opened = open_database(settings)
    with opened.db_engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # it is never less than what is there

    def fill() -> None:
        with opened.write() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
            connection.exec_driver_sql("INSERT INTO meta VALUES ('big', zeroblob(1000000))")

    with pytest.raises(StoreFullError, match="free some space"):
        fill()
    with opened.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM meta WHERE key = 'big'").scalar() == 0
    opened.db_engine.dispose()


def test_a_database_without_tables_asks_for_an_upgrade(settings: Settings) -> None:
    """A table that is missing points at `db upgrade`."""
    opened = open_database(settings)
    with pytest.raises(SchemaError, match="db upgrade"), opened.read() as connection:
        connection.exec_driver_sql("SELECT * FROM no_such")
    opened.db_engine.dispose()


def test_a_busy_pool_is_a_fault_of_the_surroundings(settings: Settings) -> None:
    """Waiting in vain for a connection is never charged to a job."""
    opened = open_database(settings)
    opened.db_engine.pool._timeout = 0.01  # type: ignore[attr-defined]
    connections = [opened.db_engine.connect() for _ in range(database.CONNECTIONS)]
    with pytest.raises(UnreachableError, match="cannot be used"), opened.read():
        pass
    for connection in connections:
        connection.close()
    opened.db_engine.dispose()


def test_a_mistake_in_our_own_code_stays_what_it_is(settings: Settings) -> None:
    """A value that the driver cannot bind is no outage, so nobody waits for it to pass."""
    opened = open_database(settings)
    with pytest.raises(Exception, match="type") as caught, opened.read() as connection:
        connection.exec_driver_sql("SELECT ?", (object(),))
    assert not isinstance(caught.value, UnreachableError)
    opened.db_engine.dispose()


@pytest.mark.parametrize("url", ["me:secret@127.0.0.1:1/jobs", "me@127.0.0.1:1/jobs?password=secret"])
def test_a_password_is_never_shown(tmp_path: Path, url: str) -> None:
    """The sentence about a server that is down hides the password in its URL, wherever it stands there."""
    pytest.importorskip("psycopg", reason="psycopg is an extra")
    settings = Settings(home=tmp_path, database_url=f"postgresql://{url}")
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1") as caught:
        open_database(settings)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg a PostgreSQL URL is refused with a sentence."""

    def no_driver(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'psycopg'")

    monkeypatch.setattr(database, "create_engine", no_driver)
    with pytest.raises(BadInputError, match="psycopg"):
        open_database(Settings(home=tmp_path, database_url="postgresql://me@host/jobs"))


def test_whoever_comes_while_a_database_is_made_waits_for_its_end(tmp_path: Path) -> None:
    """Migrations are committed one by one: what is seen half-way is no older schema."""
    settings = Settings(home=tmp_path)
    stamp(settings, "0003")
    with ThreadPoolExecutor(1) as pool:
        with WriterLock(settings.database_path.with_name("promptmill.db.writer")).held():
            opened = pool.submit(open_job_store, settings)
            with pytest.raises(TimeoutError):
                opened.result(timeout=1)
            with closing(sqlite3.connect(settings.database_path)) as connection, connection:
                connection.execute("UPDATE alembic_version SET version_num = ?", [HEAD])
        opened.result().close()
