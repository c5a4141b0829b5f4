"""The two engines beside each other on one Stable Diffusion: its loop rebuilt, and its pipeline as it is.

Mixed jobs, at 8 and 16 lanes. Of each: images/s, the share of the time outside the UNet's forward passes, and
lanes of jobs in a forward pass. Rival of both: the pipeline called for one job after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

from engines import call, demo_model, larger_model, mixed_jobs, pipeline_of
from report import arguments, show

from storage.parameters import JobParameters
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.engine.engine import Engine
from worker.models.load import LoadedModel
from worker.models.pipeline import LoadedPipeline
from worker.stages.tables import Tables


def as_pipeline(model: LoadedModel) -> LoadedPipeline:
    """Return the model as a worker would hold it that runs its pipeline."""
    width, height = model.native_size
    return LoadedPipeline(
        name=model.name,
        source=model.source,
        revision=model.revision,
        family="StableDiffusionPipeline",
        pipeline=pipeline_of(model),
        denoiser_name="unet",
        device=model.device,
        dtype=model.dtype,
        native_size=(width, height),
        defaults={},
    )


def through(engine: Engine | PipelineEngine, jobs: Sequence[JobParameters]) -> None:
    """Render jobs in one engine, stepped here."""
    tickets = [engine.submit(job) for job in jobs]
    while engine.step():
        pass
    for ticket in tickets:
        ticket.future.result(timeout=0)


def row(
    name: str, lanes: int, model: LoadedModel, jobs: Sequence[JobParameters], run: Callable[[], object]
) -> dict[str, object]:
    """Time one way; its lanes are what the jobs take in all, divided by its forward passes."""
    unet = model.unet
    original = unet.forward
    needed = sum(job.num_inference_steps * 2 for job in jobs if job.num_inference_steps)
    watched = {"seconds": 0.0, "passes": 0}

    @wraps(original)  # an engine asks for its signature
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = original(*args, **kwargs)
        watched["seconds"] += time.perf_counter() - began
        watched["passes"] += 1
        return result

    unet.forward = timed
    try:
        began = time.perf_counter()
        run()
        spent = time.perf_counter() - began
    finally:
        del unet.__dict__["forward"]
    return {
        "way": name,
        "R": lanes,
        "images/s": len(jobs) / spent,
        "outside forwards %": 100 * (1 - watched["seconds"] / spent),
        "lanes a forward": needed / watched["passes"],
    }


def measure(model: LoadedModel, *, size: int, count: int) -> list[dict[str, object]]:
    """Time all ways on one model, in turns."""
    jobs = mixed_jobs(count, size=size)
    pipeline = pipeline_of(model)
    rows = [row("one by one", 2, model, jobs, lambda: [call(pipeline, [job]) for job in jobs])]
    tables = Tables()  # a host's workers keep them, so they are not what is measured
    reading = Engine(model, lanes=8, tables=tables)
    for job in jobs:
        reading.submit(job)
    for lanes in (8, 16):
        engines = {
            "vectorised": Engine(model, lanes=lanes, tables=tables),
            "coalescing": PipelineEngine(as_pipeline(model), lanes=lanes),
        }
        for name, engine in engines.items():
            through(engine, jobs[:2])
            rows.append(row(name, lanes, model, jobs, partial(through, engine, jobs)))
    return rows


def main() -> None:
    """Print the table."""
    options = arguments(__doc__ or "").parse_args()
    model = demo_model()
    found = measure(model, size=64, count=8 if options.quick else 32)
    rows = [{"model": "demo, 64x64", **line} for line in found]
    if not options.quick:
        larger = larger_model(model)
        found = measure(larger, size=128, count=16)
        rows += [{"model": "17 M, random, 128x128", **line} for line in found]
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
