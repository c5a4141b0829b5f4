"""Whether this worker may work on the database's schema."""

from __future__ import annotations

from storage.errors import SchemaError
from storage.jobstore import JobStore
from storage.version import promptmill_version


def check_version(jobs: JobStore) -> None:
    """Refuse to work on a schema that wants a newer worker, with SchemaError."""
    ours, oldest = promptmill_version(), jobs.oldest_worker_version()
    if _numbers(ours) < _numbers(oldest):
        raise SchemaError(
            f"This worker is promptmill {ours}; the database asks for {oldest} or newer: upgrade it."
        )


def _numbers(version: str) -> tuple[int, ...]:
    release = version.split("+", maxsplit=1)[0].split(".")
    return tuple(int(part) for part in release if part.isdecimal())
