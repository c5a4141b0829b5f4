"""Latency under load: jobs of mixed step counts that arrive at random, the engine against static batching.

The rival collects requests of one step count (a diffusers call has one) until a batch is full or the oldest
has waited for a window, then renders them in one call; of five windows the best one counts, for each load.
What a call takes is measured here, in the same run, before and after the engine's: the median for every batch
size and step count. Its queue is then computed, without any overhead, from the same arrivals that the engine
gets in real time. Loads are shares of the rival's capacity: full batches of every step count in turn.

The limit is what an engine without any overhead would reach on this device: the same queue of lanes in the
order of the engine's own admission, computed with bare forward passes of every width, bare encodings and bare
decodes. Where lanes cost as much as they bring, sharing a step helps nobody to be done sooner. Every job that
arrives has a prompt of its own, so that the engine encodes it as diffusers does.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from engines import (
    call,
    demo_model,
    device_arguments,
    encode_all,
    fresh,
    pipeline_of,
    second_model,
    settle,
)
from report import seconds, show

from storage.parameters import JobParameters
from worker.engine.admission import Admission, Group, LanePlan
from worker.engine.agreement import NARROWER
from worker.engine.engine import Engine
from worker.engine.forward import Lanes, predict_noise
from worker.engine.trial import native_group, random_lanes
from worker.models.load import LoadedModel
from worker.stages.decode import decode

BATCH = 4
STEPS = (10, 20, 30)
WINDOWS = (0.0, 0.25, 0.5, 1.0, 2.0)  # times what a call of one takes
LOADS = (0.5, 0.7, 0.9)
ALIKE = Group(shape=(1, 1, 1), tokens=1)  # one group: jobs of one size, with plain prompts
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


@dataclass(kw_only=True)
class Simulated:
    """An arrival as admission sees it: a `worker.engine.admission.Candidate`, guided all along."""

    at: float
    arrival: int
    evaluations_left: int
    started: bool = False
    priority: int = 0
    lanes: int = 2
    group: Group = ALIKE


class Clock:
    """Times of calls and forward passes, more of them each time."""

    def __init__(self, model: LoadedModel, size: int, widths: tuple[int, ...]) -> None:
        self._model, self._size = model, size
        self._pipeline = pipeline_of(model)
        native = native_group(model)
        latents = size // model.vae_scale_factor
        group = native._replace(shape=(native.shape[0], latents, latents))
        self._lanes = {width: random_lanes(model, width, group) for width in widths}
        self._times: dict[Any, list[float]] = defaultdict(list)

    def measure(self, rounds: int) -> None:
        """Time everything, in turns; the first time warms up."""
        for number in range(rounds + (not self._times)):
            for batch, steps in itertools.product(range(1, BATCH + 1), STEPS):
                jobs = [make_job(seed, steps, self._size) for seed in range(batch)]
                self._note((batch, steps), partial(call, self._pipeline, jobs), keep=number)
            for width, lanes in self._lanes.items():
                self._note(width, partial(self._forward, lanes), keep=number)
            self._note("encode", partial(encode_all, self._model, [make_job(0, 1, self._size)]), keep=number)
            latents = self._lanes[min(self._lanes)][0].sample
            self._note("decode", partial(decode, self._model.vae, latents), keep=number)

    @property
    def service(self) -> Service:
        """Seconds of a call, by batch size and step count."""
        return {key: times for key, times in self._medians().items() if isinstance(key, tuple)}

    @property
    def passes(self) -> dict[int, float]:
        """Seconds of a forward pass, by its lanes."""
        return {key: times for key, times in self._medians().items() if isinstance(key, int)}

    @property
    def encode(self) -> float:
        """Seconds of a prompt's encoding."""
        return self._medians()["encode"]

    @property
    def decode(self) -> float:
        """Seconds of a picture's decoding."""
        return self._medians()["decode"]

    def _medians(self) -> dict[Any, float]:
        return {key: statistics.median(times) for key, times in self._times.items()}

    def _note(self, key: Any, action: Callable[[], object], *, keep: int) -> None:
        taken = seconds(action)
        if keep or self._times[key]:
            self._times[key].append(taken)

    @torch.no_grad()
    def _forward(self, lanes: list[Lanes]) -> None:
        predict_noise(self._model, Lanes.stack(lanes), width=len(lanes))
        settle(self._model)


def make_job(seed: int, steps: int, size: int) -> JobParameters:
    """Make a job of the benchmark's settings."""
    return JobParameters(
        prompt=f"a watercolor painting of an otter, number {seed}",
        seed=seed,
        sampler="dpmpp_2m",
        schedule="karras",
        num_inference_steps=steps,
        guidance_scale=5.0,
        width=size,
        height=size,
    )


def arrivals(count: int, rate: float, size: int, *, take: int) -> list[Arrival]:
    """Draw jobs that arrive as a Poisson process of `rate` jobs/s; for `take` see `fresh`."""
    draw = random.Random(count)  # noqa: S311 - test data
    at, arriving = 0.0, []
    for seed in range(count):
        at += draw.expovariate(rate)
        job = fresh(make_job(seed, draw.choice(STEPS), size), take)
        arriving.append(Arrival(at=at, job=job))
    return arriving


def static_batching(arriving: list[Arrival], service: Service, window: float) -> list[float]:
    """Compute the latencies of a server that renders batches of equal step counts, one batch at a time."""
    now, latencies = 0.0, list[float]()
    coming, waiting = list(arriving), list[Arrival]()
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
    """Submit to an engine as the jobs arrive, step it meanwhile, and measure their latencies.

    It is stepped in this thread, which renders with diffusers, too: one of its own would have an OpenMP team
    beside the one that is here already, which a worker never has (`worker.models.threads`).
    """
    began, latencies = time.perf_counter(), []
    futures: list[Future[Any]] = []

    def note(at: float) -> Callable[[Future[Any]], None]:
        return lambda _: latencies.append(time.perf_counter() - began - at)

    def feed() -> None:
        for arrival in arriving:
            time.sleep(max(0.0, began + arrival.at - time.perf_counter()))
            future = engine.submit(arrival.job).future
            future.add_done_callback(note(arrival.at))
            futures.append(future)

    with ThreadPoolExecutor(1) as pool:
        fed = pool.submit(feed)
        while not fed.done() or len(latencies) < len(futures):
            if not engine.step():
                time.sleep(0.0005)
    for future in (fed, *futures):
        future.result()
    return latencies


def without_overhead(arriving: list[Arrival], clock: Clock, lanes: int) -> list[float]:
    """Compute the latencies of an engine that spends nothing but bare encodings, passes and decodes."""
    passes, encoding, decoding = clock.passes, clock.encode, clock.decode
    admission = Admission(lambda _: LanePlan(lanes=lanes))
    coming = [
        Simulated(at=arrival.at, arrival=number, evaluations_left=arrival.steps)
        for number, arrival in enumerate(arriving)
    ]
    now, latencies, left, denoised = 0.0, list[float](), list[Simulated](), list[Simulated]()
    while coming or left or denoised:
        if not left and not denoised:
            now = max(now, coming[0].at)
        while coming and coming[0].at <= now:
            left.append(coming.pop(0))
        chosen, _ = admission.choose(left)
        if chosen:
            now += encoding * sum(not one.started for one in chosen)
            now += passes[min(width for width in passes if width >= 2 * len(chosen))]
        for one in chosen:
            one.started = True
            one.evaluations_left -= 1
        denoised += [one for one in left if not one.evaluations_left]
        left = [one for one in left if one.evaluations_left]
        if denoised:  # at most one picture between two forward passes
            now += decoding
            latencies.append(now - denoised.pop(0).at)
    return latencies


def rows(
    name: str, model: LoadedModel, size: int, *, count: int, rounds: int, loads: tuple[float, ...]
) -> Iterator[dict[str, Any]]:
    """Measure all loads with one model."""
    engine = Engine(model)
    # Warms up, with every step count: a worker has read a sampler's tables before, once for each of them.
    continuous(engine, [Arrival(at=0.0, job=make_job(0, steps, size)) for steps in STEPS])
    widths = tuple(width for width in NARROWER if width < engine.lanes)
    clock = Clock(engine.model, size, (*widths, engine.lanes))
    for take, load in enumerate(loads):
        clock.measure(rounds)
        capacity = BATCH * len(STEPS) / sum(clock.service[BATCH, steps] for steps in STEPS)
        arriving = arrivals(count, load * capacity, size, take=take)
        ours = continuous(engine, arriving)
        clock.measure(rounds)
        service = clock.service
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
            "its limit": p95(without_overhead(arriving, clock, engine.lanes)) / p95(best),
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
        show(list(rows("demo, 64x64", model, 64, count=40, rounds=1, loads=(0.7,))), as_json=options.json)
        return
    table = list(rows("demo, 64x64", model, 64, count=100, rounds=2, loads=LOADS))
    name, larger, side = second_model(model)
    table += rows(name, larger, side, count=40, rounds=1, loads=LOADS)
    show(table, as_json=options.json)


if __name__ == "__main__":
    main()
