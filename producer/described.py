"""What is said of submissions, jobs and workers, under the same names wherever it is said.

The command line prints these fields, as they are with `--json`; the HTTP API answers with them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from producer.jobs import settings_of
from producer.models import models_of
from producer.output import duration, timestamp
from storage.loras import published_loras, told_options
from storage.model_families import way_of
from storage.records import Job, Status, Worker
from storage.served import ServedModel, served_by
from storage.status_object import derived_state


def submission_row(status: Status) -> dict[str, Any]:
    """Return a submission's line in a list of them."""
    submission = status.submission
    return {
        "id": submission.id,
        "name": submission.name,
        "model": submission.model,
        "state": derived_state(status),
        "total": submission.total,
        **{str(name): number for name, number in status.counts.items()},
        "created": timestamp(submission.created_at),
        "source": submission.source,
        "priority": submission.priority,
        "weight": submission.weight,
        "max_running": submission.max_running,
        "note": submission.note,
    }


def job_fields(job: Job) -> dict[str, Any]:
    """Return all that is known of a job, its picture apart."""
    parameters = job.parameters
    return {
        "job": job.label,
        "status": str(job.status),
        "prompt": parameters.prompt,
        **settings_of(parameters),
        "options": told_options(parameters.options),
        "extra": parameters.extra,
        "attempt": job.attempt,
        "failures": job.failures,
        "progress": job.progress,
        "incarnation": job.incarnation,
        "created": timestamp(job.created_at),
        "queued": timestamp(job.queued_at),
        "started": timestamp(job.started_at),
        "finished": timestamp(job.finished_at),
        "lost_sha256": job.lost_sha256,
        "not_before": timestamp(job.not_before),
        "warnings": job.warnings,
        "error_type": job.error_type,
        "error_message": job.error_message,
        "traceback": job.traceback,
    }


def image_fields(job: Job) -> dict[str, Any]:
    """Return all that is known of a job's picture, but where it is; nothing where it has none."""
    if job.image is None:
        return {}
    image = job.image
    return {
        "format": image.format,
        "bytes": image.bytes,
        "file_sha256": image.file_sha256,
        "pixel_sha256": image.pixel_sha256,
        "copied_from": image.copied_from,
        "seconds": image.seconds,
        "numerics": image.numerics,
    }


def worker_fields(found: Worker, *, alive: bool, rate: float) -> dict[str, Any]:
    """Return all that is known of a worker.

    Args:
        found: the worker.
        alive: whether its heart beats (`producer.models.is_alive`).
        rate: its images/s.
    """
    age = max(0.0, (datetime.now(UTC) - found.beat_at).total_seconds())
    return {
        "incarnation": found.incarnation,
        "name": found.name,
        "host": found.host,
        "pid": found.pid,
        "model": found.model,
        "serves": models_of(found),
        "models": [_served(found, model) for model in served_by(found)],
        "revision": found.revision,
        "family": found.family,
        "way": way_of(found.family),
        "device": found.device,
        "device_uuid": found.device_uuid,
        "dtype": found.dtype,
        "mode": found.mode,
        "lanes": found.lanes,
        "lanes_used": found.lanes_used,
        "loras": sorted(published_loras(found.defaults)),
        "images_per_second": round(rate, 2),
        "concurrency": found.concurrency,
        "state": str(found.state),
        "alive": alive,
        "heartbeat": f"{duration(age)} ago",
        "heartbeat_age_seconds": round(age, 1),
        "started": timestamp(found.started_at),
        "running": len(found.progress),
        "version": found.version,
        "note": found.note,
    }


def _served(found: Worker, model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "active": model.name == found.model,
        "loaded": model.loaded,
        "bytes": model.bytes,
        "revision": model.revision,
        "family": model.family,
        "dtype": model.dtype,
        "lanes": model.lanes,
        "concurrency": model.concurrency,
        "problem": model.problem,
    }
