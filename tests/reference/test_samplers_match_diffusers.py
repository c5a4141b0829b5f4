"""Every sampler gives diffusers' picture, in mixed company and alone, padded and not."""

from __future__ import annotations

import random
from typing import Any

import pytest

from storage.parameters import JobParameters
from storage.samplers import SAMPLERS
from tests.parity import assert_same, diffusers_latents, tolerance
from worker.engine.engine import Engine
from worker.engine.request import RenderResult
from worker.models.load import LoadedModel

# numpy warns about torch's __array__ and __array_wrap__ where diffusers hands it tensors.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, at the rounded end points
]


def _job(sampler: str, *, schedule: str = "default", **settings: Any) -> JobParameters:
    chosen = {"prompt": "a watercolor painting of a fox", "seed": 11, "num_inference_steps": 20} | settings
    return JobParameters(sampler=sampler, schedule=schedule, width=64, height=64, **chosen)


CASES: dict[str, JobParameters] = {}
for _name, _sampler in SAMPLERS.items():
    for _guidance in (3.0, 7.5):
        CASES[f"{_name} at {_guidance:g}"] = _job(_name, guidance_scale=_guidance)
        CASES[f"{_name} at {_guidance:g} with a negative prompt"] = _job(
            _name,
            guidance_scale=_guidance,
            negative_prompt="a green background",
            seed=2**63 - 1,
            num_inference_steps=21,
        )
    for _schedule in _sampler.schedules[1:]:
        CASES[f"{_name} with schedule {_schedule}"] = _job(
            _name, schedule=_schedule, guidance_scale=4.0, num_inference_steps=10
        )
for _name in ("lms", "euler_a"):
    CASES[f"{_name} without guidance"] = _job(_name, guidance_scale=1.0)

# Rendered in more than one way, so of few steps; one in five without guidance, for odd numbers of lanes.
SHORT = {
    f"{name}, {schedule}": _job(
        name,
        schedule=schedule,
        seed=i,
        num_inference_steps=6 + i % 3,
        guidance_scale=(3.0, 7.5, 5.0, 2.0, 1.0)[i % 5],
    )
    for i, (name, schedule) in enumerate(
        (name, schedule) for name, sampler in SAMPLERS.items() for schedule in sampler.schedules
    )
}


@pytest.fixture(scope="module")
def rendered(render: Any) -> dict[str, RenderResult]:
    """Render all cases in one engine, in an order that mixes samplers, steps, guidance and seeds."""
    names = random.Random(1).sample(sorted(CASES), k=len(CASES))
    return dict(zip(names, render([CASES[name] for name in names]), strict=True))


@pytest.fixture(scope="module")
def alone(model: LoadedModel) -> dict[str, RenderResult]:
    """Render the short jobs one after another, with nobody else in the engine."""
    engine = Engine(model, lanes=8)
    results = {}
    for name, job in SHORT.items():
        ticket = engine.submit(job, keep_latents=True)
        while engine.step():
            pass
        results[name] = ticket.future.result(timeout=0)
    return results


@pytest.fixture(scope="module")
def throughput(model: LoadedModel) -> dict[str, RenderResult]:
    """Render the short jobs in throughput mode, each joining a step after the one before."""
    engine = Engine(model, mode="throughput", lanes=7)
    tickets = {}
    for name, job in SHORT.items():
        tickets[name] = engine.submit(job, keep_latents=True)
        engine.step()
    while engine.step():
        pass
    return {name: ticket.future.result(timeout=0) for name, ticket in tickets.items()}


@pytest.mark.parametrize("case", CASES)
def test_sampler_in_company_matches_diffusers_alone(
    case: str, rendered: dict[str, RenderResult], pipeline: Any
) -> None:
    """Latents agree within 1e-4 and the picture within 1 of 255."""
    job = CASES[case]
    assert_same(rendered[case], diffusers_latents(pipeline, job), pipeline, within=tolerance(job.sampler))


@pytest.mark.parametrize("case", SHORT)
def test_sampler_alone_and_in_throughput_mode_matches_diffusers(
    case: str, alone: dict[str, RenderResult], throughput: dict[str, RenderResult], pipeline: Any
) -> None:
    """Without company, and in passes whose lanes change from step to step, it is as near."""
    job = SHORT[case]
    theirs = diffusers_latents(pipeline, job)
    assert_same(alone[case], theirs, pipeline, within=tolerance(job.sampler))
    assert_same(throughput[case], theirs, pipeline, within=tolerance(job.sampler, exact=False))
