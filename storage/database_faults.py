"""What a database's driver raises, as one sentence that says what to do."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, NotSupportedError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from storage.errors import SchemaError, StoreFullError, UnreachableError
from storage.hints import hint
from storage.safe_url import safe_database_url

_FULL = re.compile(r"disk is full|No space left|disk I/O error")
_NO_SCHEMA = re.compile(r'no such (table|column)|(relation|column) ".*" does not exist')
# What PostgreSQL and its driver say, and what to do about it.
_HINTS = (
    (
        re.compile(r"password authentication failed|no password supplied|role .* does not exist"),
        "check user and password in PROMPTMILL_DATABASE_URL",
    ),
    (
        re.compile(r'database ".*" does not exist'),
        "create it (`createdb`), or check the name in PROMPTMILL_DATABASE_URL",
    ),
    (
        re.compile(r"refused|timeout expired|timed out|resolve|No such file or directory|starting up"),
        "start the server, or check the host in PROMPTMILL_DATABASE_URL",
    ),
    (re.compile(r"too many clients|remaining connection slots"), "raise the server's max_connections"),
)


@contextmanager
def translated(db_engine: Engine) -> Iterator[None]:
    """Turn what the driver raises into one of our sentences; programming errors stay what they are."""
    try:
        yield
    except (IntegrityError, DataError, NotSupportedError):
        raise
    except DBAPIError as error:
        if isinstance(error.orig, (sqlite3.ProgrammingError, sqlite3.InterfaceError)):
            raise
        raise _sentence(db_engine, error) from error
    except (OSError, sqlite3.Error, PoolTimeoutError) as error:
        raise _sentence(db_engine, error) from error
    except (_bare(db_engine, "OperationalError"), _bare(db_engine, "InternalError")) as error:
        raise _sentence(db_engine, error) from error  # of the driver itself, where we call it directly


def _bare(db_engine: Engine, name: str) -> type[Exception]:
    kind: type[Exception] = getattr(db_engine.dialect.loaded_dbapi, name)
    return kind


def _sentence(db_engine: Engine, error: Exception) -> Exception:
    where = safe_database_url(db_engine.url)
    cause = (str(getattr(error, "orig", None) or error).strip() or type(error).__name__).splitlines()[0]
    if _FULL.search(cause):
        return StoreFullError(
            f"The database {where} cannot write ({cause}): free some space on its disk, then go on."
        )
    if _NO_SCHEMA.search(cause):
        return SchemaError(
            f"The database {where} has no promptmill schema of this version; run `promptmill db upgrade`."
        )
    mend = hint(_HINTS, cause) or "see `promptmill doctor`"
    return UnreachableError(f"The database {where} cannot be used: {cause.rstrip('.')}; {mend}.")
