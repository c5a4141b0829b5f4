"""The tables, as SQLAlchemy classes. `migrations/` makes them; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite numbers rows by itself only in a column that is literally INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")
WAITING = text("status = 'waiting'")
QUEUED = text("status = 'queued'")
RUNNING = text("status = 'running'")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite, which knows no time zones, keeps it naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive datetimes, and store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without time zone cannot be stored")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Common to all tables: constraint names that migrations can rely on."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own way to declare it)
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
        list[str]: JSON(),
        str: Text(),
    }


class MetaRow(Base):
    """Facts about the database itself: the oldest worker version that this schema allows."""

    __tablename__ = "meta"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str]


class SubmissionRow(Base):
    """One submitted prompt list."""

    __tablename__ = "submissions"

    seq: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(8), unique=True)
    name: Mapped[str | None] = mapped_column(Text, index=True)
    created_at: Mapped[datetime]
    source: Mapped[str]
    model: Mapped[str] = mapped_column(String(63))
    state: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int] = mapped_column(Integer)
    weight: Mapped[float]
    # Virtual time of stride scheduling: cost already dispatched, divided by weight.
    pass_: Mapped[float] = mapped_column("pass")
    max_running: Mapped[int | None]
    total: Mapped[int]
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    content_hash: Mapped[str | None] = mapped_column(String(64), index=True)
    note: Mapped[str | None]

    __table_args__ = (Index("ix_submissions_model_state", "model", "state"),)


class JobRow(Base):
    """One job; the row is the truth, a message only a hint that it may be claimed."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    submission: Mapped[str] = mapped_column(String(8), ForeignKey("submissions.id"))
    index: Mapped[int] = mapped_column("index", Integer)
    status: Mapped[str] = mapped_column(String(16))
    prompt: Mapped[str]
    negative_prompt: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    num_inference_steps: Mapped[int | None]
    guidance_scale: Mapped[float | None]
    width: Mapped[int | None]
    height: Mapped[int | None]
    sampler: Mapped[str | None] = mapped_column(String(32))
    schedule: Mapped[str | None] = mapped_column(String(32))
    options: Mapped[dict[str, Any]]
    extra: Mapped[dict[str, Any]]
    attempt: Mapped[int]
    failures: Mapped[int]
    suspect: Mapped[bool]
    incarnation: Mapped[str | None] = mapped_column(String(32))
    not_before: Mapped[datetime | None]
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    warnings: Mapped[list[str]]
    error_type: Mapped[str | None]
    error_message: Mapped[str | None]
    traceback: Mapped[str | None]
    lost_sha256: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        UniqueConstraint("submission", "index"),
        Index("ix_jobs_submission_status", "submission", "status"),
        # Partial on PostgreSQL too, by the migration: to say so here would load its dialect in every command.
        Index("ix_jobs_waiting", "submission", "index", sqlite_where=WAITING),
        Index("ix_jobs_queued", "submission", "id", sqlite_where=QUEUED),
        Index("ix_jobs_running", "incarnation", "id", sqlite_where=RUNNING),
    )


class ImageRow(Base):
    """One stored picture; `job` is unique, so that no job ever has two."""

    __tablename__ = "images"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    job: Mapped[int] = mapped_column(RowId, ForeignKey("jobs.id"), unique=True)
    key: Mapped[str]
    file_sha256: Mapped[str] = mapped_column(String(64), index=True)
    pixel_sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int]
    format: Mapped[str] = mapped_column(String(8))
    seconds: Mapped[dict[str, Any]]
    numerics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(index=True)


class WorkerRow(Base):
    """One incarnation of a worker process."""

    __tablename__ = "workers"

    incarnation: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    device_uuid: Mapped[str | None]
    model: Mapped[str] = mapped_column(String(63))
    revision: Mapped[str | None]
    family: Mapped[str | None]
    defaults: Mapped[dict[str, Any]]
    mode: Mapped[str] = mapped_column(String(16))
    dtype: Mapped[str] = mapped_column(String(16))
    lanes: Mapped[int]
    concurrency: Mapped[int]
    version: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    beat: Mapped[int] = mapped_column(BigInteger)
    beat_at: Mapped[datetime]
    progress: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    note: Mapped[str | None]
    drain_timeout: Mapped[float | None]
    lanes_used: Mapped[int] = mapped_column(server_default="0")

    __table_args__ = (Index("ix_workers_state", "state"),)


class TuningRow(Base):
    """How one kind of worker runs a model (lanes, dtype, layout): bytes may depend on it, so it stays."""

    __tablename__ = "tunings"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    facts: Mapped[dict[str, Any]]
    tuning: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
