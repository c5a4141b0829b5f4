"""Latency under load: jobs of mixed step counts that arrive at random, the engine against static batching.

The rival collects requests of one step count (a diffusers call has one) until a batch is full or the oldest
has waited for a window, then renders them in one call; of five windows the best one counts, for each load.
What a call takes is measured here, in the same run, for every batch size and step count; its queue is then
computed, without any overhead, from the same arrivals that the engine gets in real time. Loads are shares of
the rival's capacity: full batches of every step count in turn.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from engines import call, demo_model, device_arguments, pipeline_of, second_model
from report import seconds, show

from storage.parameters import JobParameters
from worker.engine.engine import Engine
from worker.models.load import LoadedModel

BATCH = 4
STEPS = (10, 20, 30)
WINDOWS = (0.0, 0.25, 0.5, 1.0, 2.0)  # times what a call of one takes
LOADS = (0.5, 0.7, 0.9)
Service = dict[tuple[int, int], float]  # (batch size, steps): seconds of a call


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One job and when it comes, in seconds from the start."""

    at: float
    job: JobParameters

    @property
    def steps(self) -> int:
        """Its step count."""
        return self.job.num_inference_steps or 0


def measure(pipeline: Any, size: int, rounds: int) -> Service:
    """Time diffusers' calls: the best of some rounds for each batch size and step count."""
    taken: Service = {}
    for _ in range(rounds + 1):  # the first round warms up, and counts only if nothing was faster
        for batch, steps in itertools.product(range(1, BATCH + 1), STEPS):
            time_ = seconds(partial(call, pipeline, [make_job(seed, steps, size) for seed in range(batch)]))
            taken[batch, steps] = min(time_, taken.get((batch, steps), time_))
    return taken


def make_job(seed: int, steps: int, size: int) -> JobParameters:
    """Make a job of the benchmark's settings."""
    return JobParameters(
        prompt="a watercolor painting of an otter",
        seed=seed,
        sampler="dpmpp_2m",
        schedule="karras",
        num_inference_steps=steps,
        guidance_scale=5.0,
        width=size,
        height=size,
    )


def arrivals(count: int, rate: float, size: int) -> list[Arrival]:
    """Draw jobs that arrive as a Poisson process of `rate` jobs/s."""
    draw = random.Random(count)  # noqa: S311 - test data
    at, arriving = 0.0, []
    for seed in range(count):
        at += draw.expovariate(rate)
        arriving.append(Arrival(at=at, job=make_job(seed, draw.choice(STEPS), size)))
    return arriving


def static_batching(arriving: list[Arrival], service: Service, window: float) -> list[float]:
    """Compute the latencies of a server that renders batches of equal step counts, one batch at a time."""
    now, latencies = 0.0, []
    coming, waiting = list(arriving), []
    while coming or waiting:
        while coming and coming[0].at <= now:
            waiting.append(coming.pop(0))
        groups = [[a for a in waiting if a.steps == steps] for steps in STEPS]
        ripe = [g[:BATCH] for g in groups if g and (len(g) >= BATCH or g[0].at + window <= now)]
        if not ripe:
            events = [group[0].at + window for group in groups if group]
            now = min([*events, *(arrival.at for arrival in coming[:1])])
            continue
        batch = min(ripe, key=lambda group: group[0].at)
        now += service[len(batch), batch[0].steps]
        latencies += [now - arrival.at for arrival in batch]
        waiting = [arrival for arrival in waiting if arrival not in batch]
    return latencies


def continuous(engine: Engine, arriving: list[Arrival]) -> list[float]:
    """Submit to a running engine as the jobs arrive, and measure their latencies."""
    began, latencies = time.perf_counter(), []
    futures: list[Future[Any]] = []

    def note(at: float) -> Callable[[Future[Any]], None]:
        return lambda _: latencies.append(time.perf_counter() - began - at)

    for arrival in arriving:
        time.sleep(max(0.0, began + arrival.at - time.perf_counter()))
        future = engine.submit(arrival.job).future
        future.add_done_callback(note(arrival.at))
        futures.append(future)
    for future in futures:
        future.result()
    while len(latencies) < len(arriving):  # a future wakes its waiters before it calls back
        time.sleep(0.001)
    return latencies


def rows(
    name: str, model: LoadedModel, size: int, *, count: int, rounds: int, loads: tuple[float, ...]
) -> Iterator[dict[str, Any]]:
    """Measure all loads with one model."""
    service = measure(pipeline_of(model), size, rounds)
    capacity = BATCH * len(STEPS) / sum(service[BATCH, steps] for steps in STEPS)
    engine = Engine(model)
    engine.start()
    # Warms up, with every step count: a worker has read a sampler's tables before, once for each of them.
    continuous(engine, [Arrival(at=0.0, job=make_job(0, steps, size)) for steps in STEPS])
    for load in loads:
        arriving = arrivals(count, load * capacity, size)
        ours = continuous(engine, arriving)
        windows = [window * service[1, STEPS[0]] for window in WINDOWS]
        rivals = {window: static_batching(arriving, service, window) for window in windows}
        window, best = min(rivals.items(), key=lambda item: p95(item[1]))
        yield {
            "UNet": name,
            "load": f"{load:.0%}",
            "jobs/s": load * capacity,
            "R": engine.lanes,
            "engine mean s": statistics.mean(ours),
            "engine p95 s": p95(ours),
            "static mean s": statistics.mean(best),
            "static p95 s": p95(best),
            "window s": window,
            "p95, ratio": p95(ours) / p95(best),
        }
    engine.close()


def p95(values: list[float]) -> float:
    """Return what 95 % of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 95 // 100) - 1)]


def main() -> None:
    """Print the table."""
    options = device_arguments(__doc__ or "").parse_args()
    model = demo_model(device=options.device)
    if options.quick:
        show(list(rows("demo, 64x64", model, 64, count=20, rounds=1, loads=(0.7,))), as_json=options.json)
        return
    table = list(rows("demo, 64x64", model, 64, count=100, rounds=3, loads=LOADS))
    name, larger, side = second_model(model)
    table += rows(name, larger, side, count=40, rounds=1, loads=LOADS)
    show(table, as_json=options.json)


if __name__ == "__main__":
    main()
