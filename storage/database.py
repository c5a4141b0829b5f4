"""Open the database (SQLite with one writer at a time, or PostgreSQL), migrate it, say what is wrong."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from storage.database_faults import translated
from storage.errors import BadInputError, SchemaError, UnreachableError
from storage.safe_url import safe_database_url
from storage.settings import Settings, ensure_home
from storage.sqlite_file import sqlite_engine
from storage.writer_lock import WriterLock

HEAD = "0008"  # the schema that this code works with; a test compares it with migrations/
CONNECTIONS = 3  # per process, whatever its concurrency; only the web server has more
# libpq's own patience with a host that does not answer is minutes long, or endless.
POSTGRES_OPTIONS = {
    "application_name": "promptmill",  # in pg_stat_activity
    "connect_timeout": 5,  # seconds
    "keepalives_idle": 10,  # seconds of silence, then a probe every 5 s, and after 3 without answer the end
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # milliseconds until what was sent has to be acknowledged
}
# A process that is frozen between two statements keeps its locks, and a reaper would wait for them for ever.
IDLE_IN_TRANSACTION = 10.0  # seconds, or the lease where that is shorter


@dataclass(frozen=True, kw_only=True)
class Database:
    """An open database: its SQLAlchemy engine, and the lock that orders writers on SQLite."""

    db_engine: Engine
    writer: WriterLock | None = None

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded default."""
        return self.writer is not None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection in a read transaction; errors come out as ours."""
        with translated(self.db_engine), self.db_engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[Connection]:
        """Yield a connection in a write transaction, committed at the end.

        Args:
            durable: on SQLite, survive a power cut from the moment of the commit (submissions do).
        """
        with translated(self.db_engine):
            if self.writer is None:
                with self.db_engine.begin() as connection:
                    yield connection
                return
            options = {"promptmill_write": "FULL" if durable else "NORMAL"}
            with (
                self.writer.held(),
                self.db_engine.connect() as connection,
                connection.execution_options(**options).begin(),
            ):
                yield connection


def database_exists(settings: Settings) -> bool:
    """Whether there is a database to ask; of a server nobody knows before it is asked, so that counts."""
    path = settings.database_path
    if settings.database_url is not None:
        try:
            url = make_url(settings.database_url)
        except ArgumentError:
            return True  # who opens it says what is wrong
        if url.get_backend_name() != "sqlite" or not url.database:
            return True
        path = Path(url.database)
    return path.is_file() and path.stat().st_size > 0


def open_database(settings: Settings, *, check: bool = True, connections: int = CONNECTIONS) -> Database:
    """Open the database of these settings; an embedded one is made from nothing on first use.

    Args:
        settings: where it is.
        check: whether its schema has to be ours.
        connections: the most that are open at a time; who wants one more waits.

    Raises:
        UnreachableError: it is down, or its folder cannot be used.
        SchemaError: its schema is older (`promptmill db upgrade` mends that), or asks for a newer promptmill.
    """
    database = _connect(settings, connections)
    try:
        if check:
            _check_schema(database, settings)
    except BaseException:  # also an interrupt: no connection stays open
        database.db_engine.dispose()
        raise
    return database


def _check_schema(database: Database, settings: Settings) -> None:
    current = current_revision(database)
    if database.writer is not None and current is not None and current < HEAD:
        with database.writer.held():  # somebody may be making or upgrading it just now, step by step
            current = current_revision(database)
    if current is None and database.is_sqlite:
        upgrade(settings)
    elif current != HEAD and not (current is not None and current > HEAD and _is_allowed(database)):
        raise SchemaError(_schema_sentence(database, current))


def _is_allowed(database: Database) -> bool:
    """Whether a newer schema lets us go on; one whose tables older code would harm raises `oldest_worker`."""
    from storage.version import is_older_than  # noqa: PLC0415  (slow to import, and rarely asked)

    with database.read() as connection:
        oldest = connection.execute(text("SELECT value FROM meta WHERE key = 'oldest_worker'")).scalar()
    return oldest is not None and not is_older_than(str(oldest))


def _schema_sentence(database: Database, current: str | None) -> str:
    where = safe_database_url(database.db_engine.url)
    if current is None:
        return f"The database {where} has no promptmill tables yet; run `promptmill db upgrade`."
    if current < HEAD:
        ours = f"this promptmill needs {HEAD}; run `promptmill db upgrade`"
    else:
        ours = f"newer than this promptmill's {HEAD}; upgrade promptmill here"
    return f"The database {where} has schema {current}, {ours}."


def _connect(settings: Settings, connections: int) -> Database:
    if settings.database_url is None:
        ensure_home(settings)
        return _sqlite(settings.database_path, connections)
    try:
        url = make_url(settings.database_url)
        if url.get_backend_name() == "sqlite":
            if not url.database or url.database == ":memory:":
                raise BadInputError(
                    "PROMPTMILL_DATABASE_URL names a database in memory; name a file, or PostgreSQL."
                )
            return _sqlite(Path(url.database).absolute(), connections)
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        given = {name: value for name, value in POSTGRES_OPTIONS.items() if name not in url.query}
        db_engine = create_engine(
            url, pool_size=connections, max_overflow=0, pool_pre_ping=True, connect_args=given
        )
    except ModuleNotFoundError as error:
        raise BadInputError(
            f"PROMPTMILL_DATABASE_URL needs a driver that is not installed ({error}); for PostgreSQL run "
            f"`pip install 'promptmill[postgres]'`."
        ) from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise BadInputError(
            f"PROMPTMILL_DATABASE_URL cannot be used ({error}); "
            f"write sqlite:///FILE or postgresql://USER@HOST/NAME."
        ) from error
    event.listen(db_engine, "connect", _limit_idling(min(IDLE_IN_TRANSACTION, settings.lease)))
    return Database(db_engine=db_engine)


def _limit_idling(seconds: float) -> Callable[[Any, Any], None]:
    """Let the server end a transaction of ours whose process says nothing any more."""

    def configure(connection: Any, _record: Any) -> None:
        # Not in the connection string: PgBouncer refuses such options there.
        try:
            with closing(connection.cursor()) as cursor:
                cursor.execute(f"SET idle_in_transaction_session_timeout = {round(seconds * 1000)}")
            connection.commit()
        except BaseException:  # nobody else has it yet
            connection.close()
            raise

    return configure


def _sqlite(path: Path, connections: int) -> Database:
    return Database(
        db_engine=sqlite_engine(path, connections),
        writer=WriterLock(path.with_name(path.name + ".writer")),
    )


def current_revision(database: Database) -> str | None:
    """Return the schema's revision, None for an empty database."""
    with database.read() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def schema_state(settings: Settings) -> tuple[str | None, str]:
    """Return the database's schema revision (None: no tables) and the one that this code needs."""
    database = open_database(settings, check=False)
    try:
        return current_revision(database), HEAD
    finally:
        database.db_engine.dispose()


def upgrade(settings: Settings) -> str:
    """Bring the schema to HEAD and return one sentence that says what was done.

    A SQLite file with an older schema is copied beside itself first.
    """
    from alembic import command  # noqa: PLC0415  (takes 0.3 s to import; only upgrades need it)
    from alembic.config import Config  # noqa: PLC0415  (likewise)
    from alembic.util import CommandError  # noqa: PLC0415  (likewise)

    database = open_database(settings, check=False)
    where = safe_database_url(database.db_engine.url)
    lock = database.writer.held() if database.writer else nullcontext()
    try:
        with translated(database.db_engine), lock:
            before = current_revision(database)
            if before == HEAD:
                return f"The database {where} is at schema {HEAD} already."
            if before is not None and before > HEAD:
                raise SchemaError(_schema_sentence(database, before))
            backup = _back_up(database) if before is not None and database.is_sqlite else None
            config = Config()
            config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
            with database.db_engine.connect() as connection:
                config.attributes |= {"connection": connection, "applied": []}
                command.upgrade(config, HEAD)
            if not config.attributes["applied"]:  # somebody else was faster
                return f"The database {where} is at schema {HEAD} already."
            kept = f" (backup: {backup})" if backup else ""
            return f"Upgraded {where} from {before or 'nothing'} to schema {HEAD}{kept}."
    except CommandError as error:
        raise SchemaError(
            f"The database {where} cannot be upgraded ({error}); restore a backup of it."
        ) from error
    except SQLAlchemyError as error:
        raise UnreachableError(f"The database {where} cannot be upgraded: {error}.") from error
    finally:
        database.db_engine.dispose()


def migrations_path() -> Path:
    """Return the folder of Alembic's environment and versions."""
    import migrations  # noqa: PLC0415  (only upgrades need it)

    return Path(str(migrations.__file__)).parent


def _back_up(database: Database) -> Path:
    source = Path(str(database.db_engine.url.database))
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    target = source.with_name(f"{source.name}.{stamp}.backup")
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # as private as the original
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
    return target
