"""What a worker process writes of itself into its row: what was ordered, and what it is once loaded."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog

from storage.inputs import TAKES
from storage.loras import OPTION
from storage.model_families import way_of
from storage.models import parse_model
from storage.pipeline_limits import LIMITS
from storage.records import Worker, WorkerState
from storage.scheduler_limits import Limits, SchedulerLimits
from storage.served import ServedModel
from storage.version import promptmill_version
from worker.coalescing.arguments import limits_of
from worker.coalescing.engines import Engines
from worker.models.device import device_facts
from worker.models.loras import LoadedLora
from worker.models.memory import weights_bytes
from worker.models.pipeline import LoadedPipeline
from worker.orders import ChildOrder

log = structlog.get_logger()

SAVING = 2  # jobs that may be encoded and written while the engine renders others
LOOK_AHEAD = 2  # jobs that wait in the engine, so that freed lanes are filled at once


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
        models=_only_several([ServedModel(name=parse_model(text).name) for text in options.models]),
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


def loaded_worker(
    order: ChildOrder,
    engine: Engines,
    *,
    state: WorkerState,
    concurrency: int,
    models: Sequence[ServedModel] = (),
) -> Worker:
    """Return the row of a process that renders with this engine's model, and serves `models`."""
    model = engine.model
    device = device_facts(model.device)
    return dataclasses.replace(
        ordered_worker(order),
        device=device["name"],
        device_uuid=device["uuid"],
        models=_only_several(models),
        revision=model.revision,
        family=model.family,
        defaults=_published(engine),
        dtype=model.precision,
        lanes=engine.lanes,
        concurrency=concurrency,
        state=state,
    )


def _published(engine: Engines) -> dict[str, Any]:
    """Return what submits have to know of a model: recommendations, what it takes, its limits and LoRAs."""
    model = engine.model
    loras = {OPTION: _revisions(model.loras)} if model.loras else {}
    limits: Limits
    if isinstance(model, LoadedPipeline):
        limits = limits_of(model.pipeline)
    else:
        limits = SchedulerLimits.of(model.scheduler_config)
    return {**model.defaults, TAKES: engine.takes, LIMITS: dataclasses.asdict(limits), **loras}


def _revisions(loras: Mapping[str, LoadedLora]) -> dict[str, str]:
    return {name: lora.sha256 for name, lora in loras.items()}


def served_model_of(engine: Engines, *, name: str) -> ServedModel:
    """Return what a row says of one of several models, once its engine is there."""
    model = engine.model
    return ServedModel(
        name=name,
        loaded=True,
        revision=model.revision,
        family=model.family,
        defaults=_published(engine),
        dtype=model.precision,
        lanes=engine.lanes,
        concurrency=concurrency_of(engine),
        bytes=weights_bytes(model),
    )


def facts_of(models: Sequence[ServedModel], name: str) -> dict[str, Any]:
    """Return the columns of a row that are about the model of this name, as far as it is known."""
    known = next(model for model in models if model.name == name)
    columns = ("revision", "family", "defaults", "dtype", "lanes", "concurrency")
    return {column: getattr(known, column) for column in columns}


def concurrency_of(engine: Engines) -> int:
    """How many jobs a process holds at once: in lanes, waiting for lanes, and being saved.

    For jobs that are guided as the model recommends; of a guided model's jobs without guidance, 16 lanes
    get 12.
    """
    # Lanes that most of the model's jobs take. A worker that holds many more jobs than it has lanes for
    # would keep them from others at the end of a list, and make suspects of them all if it crashed.
    return max(1, engine.lanes // engine.lanes_per_job) + LOOK_AHEAD + SAVING


def log_ready(engine: Engines, *, mode: str) -> None:
    """Log what a process begins to render with."""
    model = engine.model
    log.info(
        "worker ready",
        action="ready",
        model=model.name,
        family=model.family,
        way=way_of(model.family),
        revision=model.revision[:12],
        device=str(model.device),
        dtype=model.precision,
        layout=model.layout,
        lanes=engine.lanes,
        threads=engine.numerics["threads"],
        mode=mode,
    )


def _only_several(models: Sequence[ServedModel]) -> tuple[ServedModel, ...]:
    """A worker of one model says all of it in its own columns."""
    return tuple(models) if len(models) > 1 else ()
