"""Whether this worker may work on the database's schema."""

from __future__ import annotations

from storage.errors import SchemaError
from storage.jobstore import JobStore
from storage.version import is_older_than, promptmill_version


def check_version(jobs: JobStore) -> None:
    """Refuse to work on a schema that wants a newer worker, with SchemaError."""
    oldest = jobs.oldest_worker_version()
    if is_older_than(oldest):
        raise SchemaError(
            f"This worker is promptmill {promptmill_version()}; the database asks for {oldest} or newer: "
            f"upgrade it."
        )
