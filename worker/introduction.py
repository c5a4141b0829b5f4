"""What a worker process writes of itself into its row: what was ordered, and what it is once loaded."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime

from storage.inputs import TAKES
from storage.loras import OPTION
from storage.models import parse_model
from storage.records import Worker, WorkerState
from storage.version import promptmill_version
from worker.coalescing.engines import Engines
from worker.models.device import device_facts, dtype_name
from worker.models.loras import LoadedLora
from worker.orders import ChildOrder


def ordered_worker(order: ChildOrder) -> Worker:
    """Return the row of a process that has not loaded its model."""
    now = datetime.now(UTC)
    options = order.options
    return Worker(
        incarnation=order.incarnation,
        name=order.name,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=order.device,
        device_uuid=None,
        model=parse_model(options.model).name,
        revision=None,
        family=None,
        defaults={},
        mode=options.mode,
        dtype=options.dtype,
        lanes=options.lanes or 0,
        concurrency=0,
        version=promptmill_version(),
        state=WorkerState.STARTING,
        beat=0,
        beat_at=now,
        started_at=now,
    )


def loaded_worker(order: ChildOrder, engine: Engines, *, state: WorkerState, concurrency: int) -> Worker:
    """Return the row of a process whose model is loaded."""
    model = engine.model
    device = device_facts(model.device)
    return dataclasses.replace(
        ordered_worker(order),
        device=device["name"],
        device_uuid=device["uuid"],
        revision=model.revision,
        family=model.family,
        defaults={
            **model.defaults,
            TAKES: engine.takes,
            **({OPTION: _revisions(model.loras)} if model.loras else {}),
        },
        dtype=dtype_name(model.dtype),
        lanes=engine.lanes,
        concurrency=concurrency,
        state=state,
    )


def _revisions(loras: Mapping[str, LoadedLora]) -> dict[str, str]:
    return {name: lora.sha256 for name, lora in loras.items()}
