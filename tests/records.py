"""Records as a worker would write them, for tests and benchmarks without one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from storage.records import Worker, WorkerState


def worker_record(incarnation: str = "w1", **changes: Any) -> Worker:
    """Return a ready worker for the model `demo`, of four lanes."""
    moment = datetime.now(UTC)
    fields: dict[str, Any] = {
        "name": "demo@host", "host": "host", "pid": 1, "device": "cpu", "device_uuid": None, "model": "demo",
        "revision": None, "family": None, "defaults": {"width": 64, "height": 64}, "mode": "exact",
        "dtype": "float32", "lanes": 4, "concurrency": 6, "version": "0.1.0", "state": WorkerState.READY,
        "beat": 0, "beat_at": moment, "started_at": moment,
    }  # fmt: skip
    return Worker(incarnation=incarnation, **{**fields, **changes})
