"""Mixed work: the engine against diffusers and Ray Data, and against the limit of the same UNet.

Jobs of 4 samplers, 5 step counts and 3 guidance scales, no two alike, to pictures in memory. Rivals, in
turns, same dtype and threads, all warmed up: a pipeline call a prompt; pipeline calls of equal settings, up
to R / 2 prompts each (but no two are equal here); Ray Data's `map_batches` over the same (where Ray is
installed, `pip install "ray[data]"`; the time inside its actor). The limit is what the same jobs cost at
least: their lanes in full forward passes of R, their prompts' encodings and their decodes, bare. Prompts are
new in every round, so that the engine encodes them as all others do. Its own lines say its lanes/s while
requests waited, and its steps against an ideal list schedule.

A machine's speed can change by a tenth within seconds (seen: the same bare passes took 33 to 37 ms within
half a minute), more than the engine is off the limit. So the limit's work is done a piece at a time between
the engine's steps, off the engine's clock; what is "of the limit" compares these two.
"""

from __future__ import annotations

import heapq
import importlib.util
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import numpy as np
import torch
from engines import (
    call,
    demo_model,
    device_arguments,
    encode_all,
    fresh,
    mixed_jobs,
    pipeline_of,
    second_model,
    settle,
)
from report import median, seconds, show

from storage.parameters import JobParameters
from worker.engine.engine import Engine
from worker.engine.trial import nothing
from worker.models.load import LoadedModel
from worker.stages.decode import decode
from worker.stages.tables import Tables

LANES = 8
PASSES = 4  # that are timed together: a GPU works on one while the next is launched
TABLES = Tables()


@dataclass
class Watched:
    """What the engine did for a list of jobs.

    Attributes:
        seconds: for all of it.
        queue: lanes/s while requests waited.
        steps: forward passes.
    """

    seconds: float
    queue: float
    steps: int


def by_engine(
    engine: Engine, jobs: list[JobParameters], *, between: Callable[[], object] = nothing, every: int = 1
) -> Watched:
    """Submit everything, step until all is done.

    Args:
        engine: not started.
        jobs: to be rendered.
        between: called after so many steps each time, and not counted; the device has done them by then.
        every: how many.
    """
    before, began = engine.steps, time.perf_counter()
    tickets = [engine.submit(job) for job in jobs]
    taken, queue, busy, step = time.perf_counter() - began, 0.0, True, 0
    while busy:
        step += 1
        due = step % every == 0
        began = time.perf_counter()
        busy = engine.step()
        if due:
            settle(engine.model)
        taken += time.perf_counter() - began
        if queue == 0.0 and engine.load[0] == 0:
            done = sum(t.progress * (j.num_inference_steps or 0) for t, j in zip(tickets, jobs, strict=True))
            queue = 2 * done / taken
        if due:
            between()
    for ticket in tickets:
        ticket.future.result(timeout=0)
    return Watched(taken, queue, engine.steps - before)


def ideal_steps(jobs: list[JobParameters]) -> int:
    """Count the steps of a list schedule, longest first, of all jobs on R / 2 places."""
    places = [0] * (LANES // 2)
    for steps in sorted((job.num_inference_steps or 0 for job in jobs), reverse=True):
        heapq.heapreplace(places, places[0] + steps)
    return max(places)


def in_static_batches(pipeline: Any, jobs: list[JobParameters]) -> None:
    """Sort by settings, then call the pipeline for up to R / 2 prompts."""
    groups: dict[Any, list[JobParameters]] = defaultdict(list)
    for job in jobs:
        groups[job.sampler, job.num_inference_steps, job.guidance_scale].append(job)
    for group in groups.values():
        for start in range(0, len(group), LANES // 2):
            call(pipeline, group[start : start + LANES // 2])


class RayRenderer:
    """The actor of Ray Data's rival: a pipeline, called for the equal settings of each batch.

    It renders a job before the first batch: Ray makes an actor for every data set, and each has a first time.
    """

    def __init__(self, warm_up: dict[str, Any], *, larger: bool, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        model = demo_model(device=device)
        self.pipeline = pipeline_of(second_model(model)[1] if larger else model)
        call(self.pipeline, [JobParameters(**warm_up)])

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Render a batch; returns the seconds that it took."""
        jobs = [JobParameters(**item) for item in batch["job"]]
        began = time.perf_counter()
        in_static_batches(self.pipeline, jobs)
        return {"seconds": np.array([time.perf_counter() - began])}


def by_ray(jobs: list[JobParameters], *, larger: bool, device: str) -> float:
    """Return the seconds that Ray Data's actor spends on the jobs."""
    import ray  # noqa: PLC0415 - optional

    fields = ("prompt", "seed", "sampler", "num_inference_steps", "guidance_scale", "width", "height")
    items = [{"job": {name: getattr(job, name) for name in fields}} for job in jobs]
    done = ray.data.from_items(items).map_batches(
        RayRenderer,
        fn_constructor_args=(items[0]["job"],),
        fn_constructor_kwargs={"larger": larger, "threads": torch.get_num_threads(), "device": device},
        num_gpus=int(device == "cuda"),
        batch_size=LANES // 2,
        concurrency=1,
    )
    taken = float(sum(line["seconds"] for line in done.take_all()))
    ray.shutdown()  # its own processes would take time from the next rival
    return taken


class Limit:
    """The bare work of jobs: full forward passes, encodings, decodes, some of it at each call."""

    def __init__(self, model: LoadedModel, jobs: list[JobParameters]) -> None:
        side = (jobs[0].height or 0) // model.vae_scale_factor
        alike = {"device": model.device, "dtype": model.dtype}
        self._model, self._jobs = model, jobs
        self._sample = torch.randn((LANES, 4, side, side), **alike)
        self._embeds = torch.randn((LANES, model.max_length, model.unet.config.cross_attention_dim), **alike)
        self._timesteps = torch.full((LANES,), 500.0, device=model.device)
        self._passes: list[float] = []
        self._coded: list[float] = []

    def piece(self) -> None:
        """Do some passes together, and what the next job needs beside."""
        self._passes.append(seconds(self._forward) / PASSES)
        if len(self._coded) < len(self._jobs):
            self._coded.append(seconds(self._code))

    @torch.no_grad()
    def _forward(self) -> None:
        for _ in range(PASSES):
            self._model.unet(
                self._sample, self._timesteps, encoder_hidden_states=self._embeds, return_dict=False
            )
        settle(self._model)

    @torch.no_grad()
    def _code(self) -> None:
        encode_all(self._model, [self._jobs[len(self._coded)]])
        decode(self._model.vae, self._sample[:1].float())

    def seconds(self, evaluations: int) -> float:
        """Return what all of the work takes.

        Args:
            evaluations: of all jobs together.
        """
        forwards = math.ceil(2 * evaluations / LANES)
        return forwards * mean(self._passes) + len(self._jobs) * mean(self._coded)


def measure(name: str, model: LoadedModel, jobs: list[JobParameters], rounds: int, *, ray: bool) -> list[Any]:
    """Run every rival `rounds` times, in turns, after a warm-up."""
    engine, pipeline = Engine(model, lanes=LANES, tables=TABLES), pipeline_of(model)
    evaluations = sum(job.num_inference_steps or 0 for job in jobs)  # these samplers need one a step
    own = {"larger": not name.startswith("demo"), "device": model.device.type}
    watched: list[Watched] = []
    limits: list[float] = []

    def watch(new: list[JobParameters]) -> float:
        limit = Limit(model, new)
        watched.append(by_engine(engine, new, between=limit.piece, every=PASSES))
        limits.append(limit.seconds(evaluations))
        return watched[-1].seconds

    rivals: dict[str, Callable[[list[JobParameters]], float]] = {
        "promptmill's engine, exact": watch,
        "diffusers, a call a prompt": lambda new: seconds(lambda: [call(pipeline, [job]) for job in new]),
        "diffusers, equal settings together": lambda new: seconds(lambda: in_static_batches(pipeline, new)),
    }
    if ray:
        rivals["Ray Data over diffusers"] = lambda new: by_ray(new, **own)
    # A worker reads a sampler's table once, and finds it from then on; the warm-up reads all of them.
    by_engine(engine, [replace(job, seed=0) for job in jobs])
    call(pipeline, jobs[:1])
    taken: dict[str, list[float]] = {rival: [] for rival in rivals}
    for take in range(rounds):
        new = [fresh(job, take) for job in jobs]
        for rival, run in rivals.items():
            taken[rival].append(run(new))
    work = 2 * evaluations
    mill = median(taken["promptmill's engine, exact"])
    rates = {"limit: bare forwards, full": work / median(limits)}
    rates |= {rival: work / median(times) for rival, times in taken.items()}
    waiting = "promptmill's engine, while requests waited"
    rates[waiting] = median([each.queue for each in watched])
    pairs = list(zip(watched, limits, strict=True))
    of_limit = {rival: rate * median(limits) / work for rival, rate in rates.items()}
    of_limit["promptmill's engine, exact"] = median([limit / each.seconds for each, limit in pairs])
    of_limit[waiting] = median([each.queue * limit / work for each, limit in pairs])
    steps = f"{watched[-1].steps} steps, ideal list schedule {ideal_steps(jobs)}"
    return [
        {
            "model": name,
            "what": what,
            "lanes/s": rate,
            "of the limit": of_limit[what],
            "engine is faster by": work / mill / rate,
            "steps": steps if what == "promptmill's engine, exact" else "",
        }
        for what, rate in rates.items()
    ]


def main() -> None:
    """Print the table."""
    options = device_arguments(__doc__ or "").parse_args()
    ray = importlib.util.find_spec("ray") is not None
    if not ray:
        print('Ray is not installed (pip install "ray[data]"): its line is left out.')
    model = demo_model(device=options.device)
    if options.quick:
        jobs = mixed_jobs(12, size=64, steps=(3, 4, 5, 6, 8))
        rows = measure("demo, 64x64", model, jobs, 1, ray=False)
    else:
        rows = measure("demo, 64x64", model, mixed_jobs(32, size=64), 3, ray=ray)
        name, larger, size = second_model(model)
        rows += measure(name, larger, mixed_jobs(32, size=size), 1, ray=ray)
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
