"""Open the file of a SQLite database as promptmill needs it: private, with a write-ahead log, our BEGINs."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from storage.errors import StoreFullError, UnreachableError
from storage.writer_lock import WRITER_PATIENCE


def sqlite_engine(path: Path, connections: int) -> Engine:
    """Return an engine for a file, which is made where there is none.

    Args:
        path: of the file; its folder is there.
        connections: the most that are open at a time.

    Raises:
        StoreFullError, UnreachableError: when it cannot be made or opened.
    """
    try:
        _make_private(path)
    except OSError as error:
        kind = StoreFullError if error.errno == errno.ENOSPC else UnreachableError
        raise kind(
            f"The database {path} cannot be opened: {error.strerror}; set PROMPTMILL_HOME elsewhere."
        ) from error
    db_engine = create_engine(
        URL.create("sqlite", database=str(path)),  # not as text: a folder may be called `what?`
        pool_size=connections,
        max_overflow=0,
        connect_args={"timeout": WRITER_PATIENCE, "check_same_thread": False},
    )
    event.listen(db_engine, "connect", _configure_sqlite)
    event.listen(db_engine, "begin", _begin_sqlite)
    return db_engine


def _make_private(path: Path) -> None:
    """Make a file that only its owner can read, before SQLite makes it: prompts are private.

    One that is there is never opened: to close it would end every lock that this process has on it, those of
    its other connections' SQLite included (POSIX), and whoever closed the database next would take itself for
    the last one and delete the log that those still write to.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: pysqlite would begin too late
    try:
        with closing(connection.cursor()) as cursor:
            if cursor.execute("PRAGMA page_count").fetchone() == (0,):
                # Of a new file; in another it would write, and not wait for whoever writes at the moment.
                cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=NORMAL")
            cursor.execute("PRAGMA foreign_keys=ON")
    except sqlite3.Error:
        connection.close()  # the pool forgets a connection whose listener failed
        raise


def _begin_sqlite(connection: Connection) -> None:
    synchronous = connection.get_execution_options().get("promptmill_write")
    if synchronous:
        connection.exec_driver_sql(f"PRAGMA synchronous={synchronous}")  # only possible outside a transaction
    connection.exec_driver_sql("BEGIN IMMEDIATE" if synchronous else "BEGIN")
