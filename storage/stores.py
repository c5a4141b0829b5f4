"""Open the stores that the settings name: one place, so that every command and worker opens the same ones."""

from __future__ import annotations

from storage.imagestore import FsspecImageStore, ImageStore
from storage.jobstore import JobStore
from storage.settings import Settings, ensure_home


def open_job_store(settings: Settings, *, connections: int | None = None) -> JobStore:
    """Open the database; the embedded SQLite file is created from nothing on first use.

    Args:
        settings: where it is.
        connections: the most that are open at a time; None for what suits a command or a worker.

    Raises:
        UnreachableError: when it is down, or its folder cannot be used.
        SchemaError: when its schema has another version; says `promptmill db upgrade`.
    """
    from storage.database import CONNECTIONS, open_database  # noqa: PLC0415  (SQLAlchemy takes 0.3 s to import)
    from storage.sqljobstore import SqlJobStore  # noqa: PLC0415  (likewise)

    return SqlJobStore(open_database(settings, connections=connections or CONNECTIONS))


def open_image_store(settings: Settings) -> ImageStore:
    """Open the picture store: `store_url`, else a folder in the home."""
    if settings.store_url:
        return FsspecImageStore(settings.store_url)
    ensure_home(settings, settings.images_path)
    return FsspecImageStore(f"file://{settings.images_path}")
