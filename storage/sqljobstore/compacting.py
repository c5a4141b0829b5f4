"""Room on the disk: a SQLite file keeps the pages of removed rows until it is told to give them back."""

from __future__ import annotations

import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select, text

from storage.database_faults import translated
from storage.errors import BadInputError
from storage.records import Room
from storage.sqljobstore.base import BREATH, WORKERS, SqlBase, now
from storage.sqljobstore.progress import ALIVE

PAGES_AT_ONCE = 2_000  # of 4 kB: a commit that nobody waits for
INCREMENTAL = 2  # what SQLite calls `PRAGMA auto_vacuum=INCREMENTAL`
LATELY = timedelta(minutes=5)  # since its last beat: who is silent for longer uses no file


class Compacting(SqlBase):
    """Give room back."""

    def compact(self, *, whole: bool = False) -> Room:
        """See `storage.keeping.Keeping.compact`."""
        before = self._bytes()
        if not self.database.is_sqlite:
            if whole:
                self._vacuum_server()
        elif self._pragma("auto_vacuum") == INCREMENTAL:
            self._give_back_pages()
        elif whole:
            self._write_anew()
        return Room(before=before, after=self._bytes())

    def _vacuum_server(self) -> None:
        with (
            translated(self.database.db_engine),
            self.database.db_engine.connect() as plain,
            plain.execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            connection.execute(text("VACUUM (ANALYZE) submissions, jobs, images, workers"))

    def _give_back_pages(self) -> None:
        while self._pragma("freelist_count"):
            self._alone(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})")
            time.sleep(BREATH)
        self._alone("PRAGMA wal_checkpoint(TRUNCATE)")  # only then the file gets shorter

    def _write_anew(self) -> None:
        used = select(WORKERS.c.name).where(WORKERS.c.state.in_(ALIVE), WORKERS.c.beat_at > now() - LATELY)
        with self.database.read() as connection:
            names = sorted(connection.execute(used).scalars())
        if names:
            raise BadInputError(
                f"The database has to be written anew, and workers use it ({', '.join(names)}); stop them "
                f"with `promptmill worker drain`, then repeat this."
            )
        self._alone("PRAGMA auto_vacuum=INCREMENTAL", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)")

    def _alone(self, *statements: str) -> None:
        """Run what SQLite refuses inside a transaction, while nobody writes."""
        lock = self.database.writer.held() if self.database.writer else nullcontext()
        with translated(self.database.db_engine), lock:
            pooled = self.database.db_engine.raw_connection()
            try:
                # As a script, or an incremental vacuum would end with its first page.
                pooled.cursor().executescript(";".join(statements))
            finally:
                pooled.close()

    def _pragma(self, name: str) -> int:
        with self.database.read() as connection:
            return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())

    def _bytes(self) -> int:
        if self.database.is_sqlite:
            path = str(self.database.db_engine.url.database)
            return sum(file.stat().st_size for file in (Path(path), Path(f"{path}-wal")) if file.exists())
        with self.database.read() as connection:
            return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
