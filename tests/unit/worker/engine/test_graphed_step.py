"""A captured step does what the engine does operation by operation, to the bit; captured on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from storage.parameters import JobParameters
from worker.engine.engine import Engine
from worker.engine.shared_step import GraphedStep
from worker.models.load import LoadedModel

Outputs = tuple[torch.Tensor, ...]


class Captures:
    """Captures as CUDA does: what runs again works on the memory that it saw, and on nothing else."""

    def __init__(self) -> None:
        self.count = self.replays = 0

    def __call__(self, function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        """Run a function; returns its outputs, and what runs it again into them."""
        self.count += 1
        outputs = tuple(output.clone() for output in function())

        def replay() -> None:
            self.replays += 1
            for place, new in zip(outputs, function(), strict=True):
                place.copy_(new)

        return outputs, replay


def _job(**changes: Any) -> JobParameters:
    job = JobParameters(
        prompt="a fox",
        seed=1,
        sampler="euler",
        schedule="default",
        num_inference_steps=4,
        guidance_scale=7.5,
        width=64,
        height=64,
    )
    return replace(job, **changes)


JOBS = [
    _job(seed=1, sampler="lms", num_inference_steps=6),
    _job(seed=2, sampler="unipc", guidance_scale=3.0),
    _job(seed=3, sampler="euler_a", num_inference_steps=5, guidance_scale=1.0),
    _job(seed=4, sampler="dpm2_a", num_inference_steps=3),
    _job(seed=5, sampler="dpmpp_2m", options={"guidance_interval": [0.25, 0.75]}),
    _job(seed=6, sampler="ddim", options={"eta": 1.0, "guidance_rescale": 0.7}),
    _job(seed=7, guidance_scale=1.0, num_inference_steps=70),
]


def _render(engine: Engine) -> list[torch.Tensor]:
    tickets = []
    for job in JOBS:  # they arrive one step after the other
        tickets.append(engine.submit(job, keep_latents=True))
        engine.step()
    while engine.step():
        pass
    return [ticket.future.result(timeout=0).latents for ticket in tickets]


@pytest.mark.parametrize("lanes", [4, 8])
def test_a_captured_step_does_the_same(lanes: int, model: LoadedModel, unet: Any) -> None:
    """Joining, leaving, guidance off and on, other lengths; steps that need more run as before."""
    unet.before = lambda sample: torch.tanh(sample + sample.roll(1, dims=-1)) * 8
    captures = Captures()
    plain, graphed = Engine(model, lanes=lanes), Engine(model, lanes=lanes)
    graphed._graph = GraphedStep(model, captures)
    for ours, theirs in zip(_render(graphed), _render(plain), strict=True):
        assert torch.equal(ours, theirs)
    assert captures.count == 2  # up to 64 evaluations, and up to 128
    assert plain.steps == graphed.steps
    assert captures.replays > graphed.steps // 2


def test_a_request_that_is_not_a_number_leaves_others_alone(model: LoadedModel, unet: Any) -> None:
    """Idle requests and lanes beside it too."""
    engine = Engine(model, lanes=8)
    engine._graph = GraphedStep(model, Captures())
    sick, well = (engine.submit(_job(seed=seed), keep_latents=True) for seed in (1, 2))
    unet.before = lambda sample: torch.cat([sample[:2] * torch.nan, sample[2:]])
    engine.step()
    unet.before = None
    while engine.step():
        pass
    assert sick.future.exception(timeout=0) is not None
    alone = Engine(model, lanes=8)
    expected = alone.submit(_job(seed=2), keep_latents=True)
    while alone.step():
        pass
    latents = well.future.result(timeout=0).latents
    assert latents is not None
    assert torch.equal(latents, expected.future.result(timeout=0).latents)


def test_its_memory_is_given_back_when_there_is_too_little(model: LoadedModel, unet: Any) -> None:
    """A graph of eight lanes would keep what four need."""
    unet.fits = 8 * 64
    captures = Captures()
    engine = Engine(model, lanes=8)
    engine._graph = GraphedStep(model, captures)
    tickets = [engine.submit(_job(seed=seed)) for seed in range(4)]
    engine.step()
    unet.fits = 4 * 64
    while engine.step():
        pass
    assert [ticket.future.result(timeout=0).numerics["lanes"] for ticket in tickets] == [4] * 4
    assert captures.count == 2
    assert len(engine._graph._graphed._captured) == 1
