"""Every sampler gives diffusers' picture, rendered here in mixed company and there alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from storage.parameters import JobParameters
from storage.samplers import SAMPLERS, SCHEDULE_OPTIONS
from tests.device import DEVICE
from worker.engine.request import RenderResult

# numpy warns about torch's __array__ and __array_wrap__ where diffusers hands it tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, at the rounded end points
]


def _job(sampler: str, *, schedule: str = "default", **settings: Any) -> JobParameters:
    chosen = {"prompt": "a watercolor painting of a fox", "seed": 11, "num_inference_steps": 20} | settings
    return JobParameters(sampler=sampler, schedule=schedule, width=64, height=64, **chosen)


# A GPU has other kernels for a pass of eight lanes than for one of two, and LCM starts anew in every step.
TOLERANCES = {} if DEVICE.type == "cpu" else {"lcm": 5e-4}

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


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: on a busy machine two wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rendered(render: Any) -> dict[str, RenderResult]:
    """Render all cases in one engine, in an order that mixes samplers, steps, guidance and seeds."""
    names = random.Random(1).sample(sorted(CASES), k=len(CASES))
    return dict(zip(names, render([CASES[name] for name in names]), strict=True))


def _diffusers_latents(pipeline: Any, job: JobParameters) -> torch.Tensor:
    """Render `job` as a diffusers user does: `from_config` with the options, then the pipeline."""
    sampler = SAMPLERS[job.sampler or ""]
    options = dict(sampler.overrides)
    if job.schedule != "default":
        options[SCHEDULE_OPTIONS[job.schedule or ""]] = True
    if sampler.name == "dpmpp_sde":
        options["noise_sampler_seed"] = job.seed
    first = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, sampler.scheduler_class).from_config(first.config, **options)
    try:
        latents: torch.Tensor = pipeline(
            job.prompt,
            negative_prompt=job.negative_prompt or None,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            width=job.width,
            height=job.height,
            generator=torch.Generator("cpu").manual_seed(job.seed),
            output_type="latent",
        ).images
    finally:
        pipeline.scheduler = first
    return latents.cpu()


@torch.no_grad()
def _diffusers_picture(pipeline: Any, latents: torch.Tensor) -> np.ndarray[Any, Any]:
    latents = latents.to(pipeline.vae.device)
    image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    return np.asarray(pipeline.image_processor.postprocess(image, output_type="pil")[0])


@pytest.mark.parametrize("case", CASES)
def test_sampler_in_company_matches_diffusers_alone(
    case: str, rendered: dict[str, RenderResult], pipeline: Any
) -> None:
    """Latents agree within 1e-4 and the picture within 1 of 255."""
    ours = rendered[case]
    theirs = _diffusers_latents(pipeline, CASES[case])
    assert ours.latents is not None
    error = (ours.latents - theirs).norm() / theirs.norm()
    picture = _diffusers_picture(pipeline, theirs)
    assert error < TOLERANCES.get(CASES[case].sampler or "", 1e-4)
    assert np.abs(ours.pixels.astype(int) - picture.astype(int)).max() <= 1
