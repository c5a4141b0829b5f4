"""The same job gives the same bytes, whatever its company."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from storage.parameters import JobParameters
from storage.samplers import SAMPLERS
from tests.device import DEVICE
from worker.engine.engine import Engine
from worker.engine.request import RenderResult
from worker.engine.trial import try_lanes
from worker.models.device import MIXED
from worker.models.load import LoadedModel
from worker.models.variant import Variant, run_as
from worker.stages.picture import encode_png
from worker.stages.tables import Tables

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, at the rounded end points
]

LANES = 8


def random_jobs(
    count: int, draw: random.Random | None = None, *, most_steps: int = 11
) -> list[JobParameters]:
    """Make jobs that differ in everything a job can differ in."""
    draw = draw or random.Random(5)

    def options(sampler: str) -> dict[str, Any]:
        drawn: dict[str, Any] = {
            "eta": draw.choice([0.0, 0.5]) if SAMPLERS[sampler].takes_eta else 0.0,
            "guidance_rescale": draw.choice([0.0, 0.7]),
            "guidance_interval": draw.choice([None, [0.3, 0.9], [0.0, 0.5]]),
        }
        return {name: value for name, value in drawn.items() if value}

    samplers = [draw.choice(sorted(SAMPLERS)) for _ in range(count)]
    return [
        JobParameters(
            prompt=draw.choice(
                ["a fox", "pixel art of a penguin", "a neon sign of a fox on a red background"]
            ),
            negative_prompt=draw.choice(["", "blue"]),
            seed=draw.randrange(2**63),
            num_inference_steps=draw.randint(3, most_steps),
            guidance_scale=draw.choice([1.0, 3.0, 7.5]),
            width=draw.choice([64, 64, 72]),
            height=64,
            sampler=sampler,
            schedule=draw.choice(SAMPLERS[sampler].schedules),
            options=options(sampler),
        )
        for sampler in samplers
    ]


@pytest.fixture(scope="module")
def engine(model: LoadedModel) -> Engine:
    """Return one engine for many examples; what ran in it before is company too."""
    return Engine(model, lanes=LANES)


def _bytes(result: RenderResult) -> tuple[bytes, bytes]:
    """Return the file, and the latents, whose last bits a picture of 8 bits hides."""
    assert result.latents is not None
    png = encode_png(result.pixels, {"parameters": "same", "promptmill": str(result.numerics)})
    return png, result.latents.numpy().tobytes()


def test_bytes_do_not_depend_on_company(
    model: LoadedModel, render: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve jobs give equal files together, in reverse with stragglers, and alone.

    One sampler has lost its table, and keeps its scheduler.
    """
    find = Tables.__getitem__
    monkeypatch.setattr(
        Tables,
        "__getitem__",
        lambda tables, settings: None if settings.sampler == untabled else find(tables, settings),
    )
    jobs = random_jobs(12)
    untabled = jobs[0].sampler
    together = [_bytes(result) for result in render(jobs, lanes=LANES)]

    engine = Engine(model, lanes=LANES)
    late = {}
    for job in reversed(jobs):
        late[job.seed] = engine.submit(job, keep_latents=True)
        engine.step()  # each next one joins later
    while engine.step():
        pass
    assert [_bytes(late[job.seed].future.result(timeout=0)) for job in jobs] == together

    for job, company in list(zip(jobs, together, strict=True))[:4]:
        assert _bytes(render([job], lanes=LANES)[0]) == company


@given(draw=st.randoms(use_true_random=False), count=st.integers(2, 5))
@hypothesis_settings(max_examples=8, deadline=None)
def test_whatever_the_company_the_bytes_are_the_same(draw: random.Random, count: int, engine: Engine) -> None:
    """Any jobs, in any order of arrival and its reverse, each any number of steps after the one before."""
    jobs = [replace(job, seed=n) for n, job in enumerate(random_jobs(count, draw, most_steps=6))]
    arriving = draw.sample(jobs, count)
    companies = []
    for order in (arriving, arriving[::-1]):
        tickets = {}
        for job in order:
            tickets[job.seed] = engine.submit(job, keep_latents=True)
            for _ in range(draw.randint(0, 4)):
                engine.step()
        while engine.step():
            pass
        companies.append([_bytes(tickets[job.seed].future.result(timeout=0)) for job in jobs])
    assert companies[0] == companies[1]


def test_bytes_do_not_depend_on_the_thread(model: LoadedModel, render: Any) -> None:
    """The engine's own thread gives the same bytes as a test that steps by itself."""
    jobs = random_jobs(3)
    engine = Engine(model, lanes=LANES)
    engine.start()
    tickets = [engine.submit(job, keep_latents=True) for job in jobs]
    threaded = [_bytes(ticket.future.result(timeout=120)) for ticket in tickets]
    engine.close()
    assert threaded == [_bytes(result) for result in render(jobs, lanes=LANES)]


@pytest.mark.usefixtures("odd_threads")
@pytest.mark.skipif(DEVICE.type != "cpu", reason="products in bfloat16 beside float32 are a CPU's")
def test_bytes_in_mixed_precision_do_not_depend_on_company(model: LoadedModel) -> None:
    """What a worker takes where the CPU multiplies bfloat16; with three threads, layers run in parts."""
    mixed = run_as(model, Variant(dtype=MIXED, layout="contiguous"))
    places_show = not try_lanes(mixed, LANES).exact
    jobs = [replace(job, width=64) for job in random_jobs(7, random.Random(7), most_steps=6)]
    engine = Engine(mixed, lanes=LANES)
    companies = []
    for order, together in ((jobs, 2), (jobs[::-1], len(jobs)), (jobs, 1)):
        tickets = {}
        for number, job in enumerate(order):
            tickets[job.seed] = engine.submit(job, keep_latents=True)
            while number % together == together - 1 and engine.step():
                pass
            engine.step()
        while engine.step():
            pass
        results = [tickets[job.seed].future.result(timeout=0) for job in jobs]
        companies.append([_bytes(result) for result in results])
    assert results[0].numerics["dtype"] == MIXED
    assert ("parts" in results[0].numerics) or not places_show
    assert companies[0] == companies[1] == companies[2]


@pytest.mark.usefixtures("odd_threads")
@pytest.mark.skipif(DEVICE.type != "cpu", reason="threads are a CPU's")
def test_layers_that_go_by_places_run_in_parts(model: LoadedModel) -> None:
    """What used to be refused: in company and alone the same bytes, whose record says that layers did."""
    if try_lanes(model, LANES).exact:
        pytest.skip("on this processor no layer goes by places, not even with three threads")
    engine = Engine(model, lanes=LANES)
    jobs = random_jobs(4, most_steps=5)
    tickets = [engine.submit(job, keep_latents=True) for job in jobs]
    while engine.step():
        pass
    together = [ticket.future.result(timeout=0) for ticket in tickets]
    assert "parts" in engine.numerics_of(replace(jobs[0], width=64, height=64, options={}))
    for job, company in zip(jobs, together, strict=True):
        alone = engine.submit(job, keep_latents=True)
        while engine.step():
            pass
        assert _bytes(alone.future.result(timeout=0)) == _bytes(company)
