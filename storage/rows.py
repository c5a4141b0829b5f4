"""The tables. `migrations/` makes them; a test compares the two.

Tables only, without SQLAlchemy's ORM: a short command would spend a sixth of its time on importing that.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)

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


METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Facts about the database itself: the oldest worker version that this schema allows.
META = Table(
    "meta",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

# One submitted prompt list.
SUBMISSIONS = Table(
    "submissions",
    METADATA,
    Column("seq", RowId, primary_key=True, autoincrement=True),
    Column("id", String(8), unique=True, nullable=False),
    Column("name", Text, index=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("source", Text, nullable=False),
    Column("model", String(63), nullable=False),
    Column("state", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("weight", Double, nullable=False),
    # Virtual time of stride scheduling: cost already dispatched, divided by weight.
    Column("pass", Double, nullable=False),
    Column("max_running", Integer),
    Column("total", Integer, nullable=False),
    Column("idempotency_key", String(255), unique=True),
    Column("content_hash", String(64), index=True),
    Column("reuse", Boolean, server_default=false(), nullable=False),
    Column("note", Text),
    Index("ix_submissions_model_state", "model", "state"),
)

# One job; the row is the truth, a message only a hint that it may be claimed.
JOBS = Table(
    "jobs",
    METADATA,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("submission", String(8), ForeignKey("submissions.id"), nullable=False),
    Column("index", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("negative_prompt", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("num_inference_steps", Integer),
    Column("guidance_scale", Double),
    Column("width", Integer),
    Column("height", Integer),
    Column("sampler", String(32)),
    Column("schedule", String(32)),
    Column("options", JSON, nullable=False),
    Column("extra", JSON, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("suspect", Boolean, nullable=False),
    Column("incarnation", String(32)),
    Column("not_before", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("queued_at", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("warnings", JSON, nullable=False),
    Column("error_type", Text),
    Column("error_message", Text),
    Column("traceback", Text),
    Column("lost_sha256", String(64)),
    UniqueConstraint("submission", "index"),
    Index("ix_jobs_submission_status", "submission", "status"),
    # Partial on PostgreSQL too, by the migration: to say so here would load its dialect in every command.
    Index("ix_jobs_waiting", "submission", "index", sqlite_where=WAITING),
    Index("ix_jobs_queued", "submission", "id", sqlite_where=QUEUED),
    Index("ix_jobs_running", "incarnation", "id", sqlite_where=RUNNING),
)

# One stored picture; `job` is unique, so that no job ever has two.
IMAGES = Table(
    "images",
    METADATA,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("job", RowId, ForeignKey("jobs.id"), unique=True, nullable=False),
    Column("key", Text, nullable=False),
    Column("file_sha256", String(64), index=True, nullable=False),
    Column("pixel_sha256", String(64), nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("format", String(8), nullable=False),
    Column("seconds", JSON, nullable=False),
    Column("numerics", JSON, nullable=False),
    Column("fingerprint", String(64), index=True),
    Column("copied_from", Text),
    Column("created_at", UtcDateTime, index=True, nullable=False),
)

# One incarnation of a worker process.
WORKERS = Table(
    "workers",
    METADATA,
    Column("incarnation", String(32), primary_key=True),
    Column("name", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("device_uuid", Text),
    Column("model", String(63), nullable=False),
    Column("revision", Text),
    Column("family", Text),
    Column("defaults", JSON, nullable=False),
    Column("mode", String(16), nullable=False),
    Column("dtype", String(16), nullable=False),
    Column("lanes", Integer, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("version", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("beat_at", UtcDateTime, nullable=False),
    Column("progress", JSON, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("note", Text),
    Column("drain_timeout", Double),
    Column("lanes_used", Integer, server_default="0", nullable=False),
    Column("models", JSON),
    Index("ix_workers_state", "state"),
)

# How one kind of worker runs a model (lanes, dtype, layout): bytes may depend on it, so it stays.
TUNINGS = Table(
    "tunings",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("facts", JSON, nullable=False),
    Column("tuning", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# A URL that is told when a submission is done. No foreign key: an older `prune` knows nothing of this table.
HOOKS = Table(
    "hooks",
    METADATA,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("submission", String(8), nullable=False),
    Column("url", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, index=True),
    Column("error", Text),
    UniqueConstraint("submission", "url"),
)
