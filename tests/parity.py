"""What a diffusers user renders for a job, and how near to it ours has to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch

from storage.parameters import JobParameters
from storage.samplers import SAMPLERS, SCHEDULE_OPTIONS
from tests.device import DEVICE
from worker.engine.request import RenderResult


def tolerance(sampler: str | None, *, exact: bool = True) -> float:
    """Return by what share of their norm latents may differ from diffusers'.

    Args:
        sampler: the job's.
        exact: whether it was rendered in exact mode. A GPU, and throughput mode everywhere, has other kernels
            for a pass of eight lanes than for one of two, and LCM starts anew in every step.
    """
    return 5e-4 if sampler == "lcm" and not (exact and DEVICE.type == "cpu") else 1e-4


def diffusers_scheduler(config: Mapping[str, Any], job: JobParameters) -> Any:
    """Build a job's noise scheduler as a diffusers user does: `from_config` of the model's, with options.

    Args:
        config: of the pipeline's own noise scheduler.
        job: with a sampler.
    """
    sampler = SAMPLERS[job.sampler or ""]
    options = dict(sampler.overrides)
    if (job.schedule or "default") != "default":
        options[SCHEDULE_OPTIONS[job.schedule or ""]] = True
    if sampler.name == "dpmpp_sde":
        options["noise_sampler_seed"] = job.seed
    return getattr(diffusers, sampler.scheduler_class).from_config(config, **options)


def diffusers_latents(pipeline: Any, job: JobParameters) -> torch.Tensor:
    """Render a job by diffusers' pipeline, alone.

    Args:
        pipeline: a StableDiffusionPipeline, which is left as it was.
        job: with all of its parameters.

    Returns:
        The last latents, (1, channels, h, w) float32 on the CPU.
    """
    own = pipeline.scheduler
    pipeline.scheduler = diffusers_scheduler(own.config, job)
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
        pipeline.scheduler = own
    return latents.cpu()


@torch.no_grad()
def diffusers_picture(pipeline: Any, latents: torch.Tensor) -> np.ndarray[Any, Any]:
    """Decode latents as the pipeline does; returns (height, width, 3) uint8."""
    latents = latents.to(pipeline.vae.device)
    image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    return np.asarray(pipeline.image_processor.postprocess(image, output_type="pil")[0])


def assert_same(ours: RenderResult, theirs: torch.Tensor, pipeline: Any, *, within: float) -> None:
    """Hold a result against diffusers' latents and the picture that they decode to.

    Args:
        ours: with its latents.
        theirs: from `diffusers_latents`.
        pipeline: that decodes them.
        within: from `tolerance`.

    Raises:
        AssertionError: when the latents differ by `within` or more, or a pixel by more than 1 of 255.
    """
    assert ours.latents is not None
    error = (ours.latents - theirs).norm() / theirs.norm()
    picture = diffusers_picture(pipeline, theirs)
    assert error < within, f"latents differ by {error:.1e}"
    pixels = np.abs(ours.pixels.astype(int) - picture.astype(int)).max()
    assert pixels <= 1, f"pixels differ by {pixels}"
