"""Unmodified diffusers pipelines in shared forward passes give the pictures that they give alone."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from storage.parameters import JobParameters
from tests.device import DEVICE
from tests.pipelines import BUILDERS, load_tiny, tiny
from worker.coalescing.arguments import call_arguments, own_scheduler
from worker.coalescing.pipeline_engine import PipelineEngine


def jobs_for(name: str) -> list[JobParameters]:
    """Return jobs of mixed prompts, lengths, seeds, steps and guidance."""
    model = load_tiny(name)
    width, height = model.native_size
    texts = ["a red fox", "a red fox", "an otter with a hat", "a red fox"]
    return [
        JobParameters(
            prompt=text,
            seed=i,
            num_inference_steps=(3, 4, 2, 3)[i],
            guidance_scale=(5.0, 1.0, 3.0, 7.5)[i],
            width=width,
            height=height,
            sampler="default",
        )
        for i, text in enumerate(texts)
    ]


def alone(name: str, job: JobParameters) -> np.ndarray[Any, Any]:
    """Render a job as a user of diffusers would."""
    pipeline = tiny(name)
    pipeline.scheduler = own_scheduler(pipeline, job)
    arguments = call_arguments(pipeline, job, on_step=lambda _done, _of: None)
    del arguments["output_type"]
    return np.asarray(pipeline(**arguments).images[0])


@pytest.mark.parametrize("name", BUILDERS)
def test_mixed_jobs_share_passes_and_keep_their_pictures(name: str) -> None:
    """Jobs of other prompts, steps, guidance and arrival have the pictures of the pipeline called alone."""
    engine = PipelineEngine(load_tiny(name), lanes=8)
    assert engine.shared
    jobs = jobs_for(name)
    tickets = [engine.submit(job) for job in jobs[:2]]
    engine.step()
    tickets += [engine.submit(job) for job in jobs[2:]]
    while engine.step():
        pass
    for job, ticket in zip(jobs, tickets, strict=True):
        picture = ticket.future.result(timeout=0).pixels
        difference = np.abs(picture.astype(int) - alone(name, job).astype(int)).max()
        assert difference <= 1, (name, job)
    assert engine.lanes_run / engine.steps > 1.2


@pytest.mark.usefixtures("odd_threads")
@pytest.mark.skipif(DEVICE.type != "cpu", reason="threads are a CPU's")
@pytest.mark.parametrize("name", ["flux", "pixart_sigma", "sana"])
def test_layers_that_go_by_places_change_no_byte(name: str) -> None:
    """Called for fewer lanes at a time: jobs still share passes, and have their bytes in any company."""
    engine = PipelineEngine(load_tiny(name), lanes=8)
    first, *others = jobs_for(name)

    def render(*jobs: JobParameters) -> list[Any]:
        tickets = [engine.submit(job) for job in jobs]
        while engine.step():
            pass
        return [ticket.future.result(timeout=0) for ticket in tickets]

    (by_itself,) = render(first)
    if "parts" not in by_itself.numerics:
        pytest.skip("on this processor no layer goes by places, not even with three threads")
    before = engine.steps, engine.lanes_run
    in_company = render(*others, first)[-1]
    assert np.array_equal(by_itself.pixels, in_company.pixels)
    assert by_itself.numerics == in_company.numerics
    assert (engine.lanes_run - before[1]) / (engine.steps - before[0]) > 1.2
    assert np.abs(by_itself.pixels.astype(int) - alone(name, first).astype(int)).max() <= 1


def test_where_masks_show_fewer_lanes_stay_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lumina 2 shares among equal masks only; memory that was short once is not asked for again."""
    model = load_tiny("lumina2")
    engine = PipelineEngine(model, lanes=8)
    _, job, *_ = jobs_for("lumina2")  # without guidance: all its calls have one mask

    def rendered() -> Any:
        ticket = engine.submit(job)
        while engine.step():
            pass
        return ticket.future.result(timeout=0)

    assert rendered().numerics["lanes"] == 8
    failures, original = [torch.OutOfMemoryError("full")], model.denoiser.forward

    @functools.wraps(original)
    def once(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return original(*args, **kwargs)

    monkeypatch.setattr(model.denoiser, "forward", once)
    assert rendered().numerics["lanes"] == 4
    assert rendered().numerics["lanes"] == 4
