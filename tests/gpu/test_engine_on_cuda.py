"""The shared step on a GPU: the same bytes in any company, captured or not; nothing waits inside a step."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from storage.parameters import JobParameters
from tests.reference.test_same_bytes import random_jobs
from worker.engine.engine import Engine
from worker.engine.errors import RenderError
from worker.engine.request import RenderResult
from worker.models.graphed import GraphedUnet
from worker.models.load import LoadedModel
from worker.stages.picture import pixel_sha256
from worker.stages.tables import Tables

LANES = 8
TABLES = Tables()
Demo = dict[str, LoadedModel]


def job(**changes: Any) -> JobParameters:
    """Return a job of few steps."""
    plain = JobParameters(
        prompt="a fox",
        seed=1,
        sampler="euler",
        num_inference_steps=6,
        guidance_scale=4.0,
        width=64,
        height=64,
    )
    return replace(plain, **changes)


def own(model: LoadedModel) -> LoadedModel:
    """Return a model whose UNet is nobody else's: its layout may change."""
    return replace(model, unet=copy.deepcopy(model.unet))


def render(engine: Engine, jobs: list[JobParameters], *, apart: int = 0) -> list[RenderResult]:
    """Render jobs, each `apart` steps after the one before."""
    tickets = []
    for each in jobs:
        tickets.append(engine.submit(each, keep_latents=True))
        for _ in range(apart):
            engine.step()
    while engine.step():
        pass
    return [ticket.future.result(timeout=0) for ticket in tickets]


def hashes(results: list[RenderResult]) -> list[str]:
    """Return what tells pictures apart."""
    return [pixel_sha256(result.pixels) for result in results]


@pytest.mark.parametrize("launch", ["eager", "cuda_graphs", "compiled"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_do_not_depend_on_company(dtype: str, launch: str, demo: Demo) -> None:
    """Together, in reverse with stragglers in another engine, and alone; every sampler is among them."""
    model = own(demo[dtype])
    jobs = random_jobs(20)
    first, second = (Engine(model, lanes=LANES, launch=launch, tables=TABLES) for _ in range(2))
    together = hashes(render(first, jobs))
    assert list(reversed(hashes(render(second, jobs[::-1], apart=1)))) == together
    for one, expected in list(zip(jobs, together, strict=True))[:6]:
        assert hashes(render(first, [one])) == [expected]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_captured_step_is_the_plain_one(dtype: str, demo: Demo) -> None:
    """The same kernels on the same numbers; one graph for all jobs of a size."""
    jobs = [each for each in random_jobs(20) if each.width == 64]
    plain, graphed = (
        Engine(own(demo[dtype]), lanes=LANES, launch=launch, tables=TABLES)
        for launch in ("eager", "cuda_graphs")
    )
    unet = graphed.model.unet
    assert isinstance(unet, GraphedUnet)
    captured = unet.captured
    for ours, theirs in zip(render(graphed, jobs, apart=1), render(plain, jobs, apart=1), strict=True):
        assert ours.latents is not None
        assert theirs.latents is not None
        assert torch.equal(ours.latents, theirs.latents)
    assert unet.captured == captured


@pytest.fixture
def no_waiting() -> Iterator[Any]:
    """Return a function after which every call that waits for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("launch", ["eager", "cuda_graphs"])
def test_nothing_waits_for_the_device_inside_a_step(launch: str, demo: Demo, no_waiting: Any) -> None:
    """In steps of the same company, of samplers that draw noise and of such that do not."""
    engine = Engine(own(demo["bfloat16"]), lanes=LANES, launch=launch, tables=TABLES)
    samplers = ("lms", "euler_a", "dpmpp_sde", "unipc")
    for seed, sampler in enumerate(samplers):
        engine.submit(job(seed=seed, sampler=sampler, num_inference_steps=12))
    engine.step()
    engine.step()
    no_waiting()
    for _ in range(6):
        assert engine.step()
    torch.cuda.set_sync_debug_mode("default")
    assert not engine.dead
    while engine.step():
        pass


def test_a_request_that_is_not_a_number_fails_alone(demo: Demo) -> None:
    """The verdict comes a step late from pinned memory."""
    model = own(demo["float32"])
    engine = Engine(model, lanes=LANES, tables=TABLES)
    (right,) = render(engine, [job(seed=2)])
    sick, well = engine.submit(job(seed=1)), engine.submit(job(seed=2))
    engine.step()
    plain = model.unet.forward

    def poisoned(sample: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        noise_pred = plain(sample, *arguments, **named)[0]
        return (torch.cat([noise_pred[:2] * torch.nan, noise_pred[2:]]),)

    model.unet.forward = poisoned
    engine.step()
    model.unet.forward = plain
    while engine.step():
        pass
    assert isinstance(sick.future.exception(timeout=0), RenderError)
    assert pixel_sha256(well.future.result(timeout=0).pixels) == pixel_sha256(right.pixels)


@pytest.fixture
def little_memory() -> Iterator[Any]:
    """Return a function that leaves torch so many bytes more than it has taken."""

    def leave(more: int) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / total)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("launch", ["eager", "cuda_graphs"])
def test_out_of_memory_in_a_new_size_takes_fewer_lanes(launch: str, demo: Demo, little_memory: Any) -> None:
    """The larger picture comes out with fewer lanes, and says so; the small ones beside it do too."""
    engine = Engine(own(demo["float32"]), lanes=16, launch=launch, tables=TABLES)
    small = [job(seed=seed) for seed in range(3)]
    large = job(seed=9, width=768, height=768, num_inference_steps=2)
    before = hashes(render(engine, small))
    torch.cuda.reset_peak_memory_stats()
    render(Engine(own(demo["float32"]), lanes=2, tables=TABLES), [large])
    two_lanes = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    little_memory(3 * two_lanes)
    *rest, found = render(engine, [*small, large])
    assert hashes(rest) == before
    assert found.numerics["lanes"] < 16


def test_memory_that_runs_out_in_a_step_begins_again_with_fewer_lanes(demo: Demo) -> None:
    """A real torch.OutOfMemoryError of a real allocation in the middle of a render."""
    model = own(demo["float32"])
    engine = Engine(model, lanes=LANES, tables=TABLES)
    tickets = [engine.submit(job(seed=seed)) for seed in range(3)]
    engine.step()
    plain, total = model.unet.forward, torch.cuda.get_device_properties(0).total_memory

    def greedy(sample: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if len(sample) == LANES:
            torch.empty(2 * total, dtype=torch.uint8, device="cuda")
        return plain(sample, *arguments, **named)

    model.unet.forward = greedy
    while engine.step():
        pass
    model.unet.forward = plain
    for ticket in tickets:
        result = ticket.future.result(timeout=0)
        assert result.numerics["lanes"] < LANES
        assert any("out of memory" in warning for warning in result.warnings)


FAULT = """
import torch
from dataclasses import replace
from storage.models import ModelReference, builtin_model_path
from storage.parameters import JobParameters
from worker.engine.engine import Engine
from worker.engine.errors import EngineDeadError
from worker.models.load import load_model

reference = ModelReference(name="demo", source=str(builtin_model_path()))
model = load_model(reference, device=torch.device("cuda:0"))
deaths = []
engine = Engine(model, lanes=4, on_death=deaths.append)
plain = model.unet.forward
calls = 0

def broken(sample, *arguments, **named):
    global calls
    calls += 1
    if calls == 3:
        torch.zeros(4, device="cuda")[torch.full((4,), 99, device="cuda")] += 1
    return plain(sample, *arguments, **named)

model.unet.forward = broken
engine.start()
job = JobParameters(prompt="a fox", seed=0, sampler="euler", num_inference_steps=6, width=64, height=64)
tickets = [engine.submit(replace(job, seed=seed)) for seed in range(3)]
for ticket in tickets:
    error = ticket.future.exception(timeout=60)
    assert isinstance(error, EngineDeadError), error
assert engine.dead and len(deaths) == 1, deaths
print("died as it should:", type(deaths[0]).__name__)
"""


def test_a_device_that_faults_ends_the_engine() -> None:
    """A real assertion in a kernel, in a process of its own: nothing on the device can be used after it."""
    done = subprocess.run([sys.executable, "-c", FAULT], capture_output=True, text=True, check=False)
    assert "died as it should" in done.stdout, done.stdout + done.stderr


def test_a_group_that_is_new_is_captured_beside_the_others(demo: Demo) -> None:
    """Sizes have graphs of their own, which take turns; cleared ones are captured again."""
    engine = Engine(own(demo["bfloat16"]), lanes=4, launch="cuda_graphs", tables=TABLES)
    jobs = [job(seed=i, width=64 + 8 * (i % 3), num_inference_steps=4 + i) for i in range(9)]
    before = hashes(render(engine, jobs, apart=1))
    engine.model.unet.clear()
    assert hashes(render(engine, jobs[::-1]))[::-1] == before
