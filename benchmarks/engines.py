"""What the engine benchmarks share: two models, mixed jobs, and diffusers' pipeline of the same parts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel

from storage.models import ModelReference, builtin_model_path
from storage.parameters import JobParameters
from storage.samplers import SAMPLERS, SCHEDULE_OPTIONS
from worker.models.device import choose_device, choose_dtype, make_repeatable
from worker.models.load import LoadedModel, load_model

MIXED_SAMPLERS = ("lms", "euler", "dpmpp_2m", "euler_a")
MIXED_STEPS = (10, 15, 20, 25, 30)
MIXED_GUIDANCE = (3.0, 5.0, 7.5)


def demo_model(dtype: str = "float32") -> LoadedModel:
    """Load the project's model on the CPU, every part in one dtype."""
    make_repeatable()
    device = choose_device("cpu")
    reference = ModelReference(name="demo", source=str(builtin_model_path()))
    return load_model(reference, device=device, dtype=choose_dtype(dtype, device))


def larger_model(model: LoadedModel) -> LoadedModel:
    """Give a model a UNet of random weights, 17 M parameters, for the same text encoder and VAE."""
    torch.manual_seed(0)
    config = dict(model.unet.config) | {"block_out_channels": (64, 160, 256), "norm_num_groups": 32}
    unet = UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    return replace(model, unet=unet.eval().requires_grad_(requires_grad=False))


def mixed_jobs(count: int, *, size: int, steps: tuple[int, ...] = MIXED_STEPS) -> list[JobParameters]:
    """Make jobs of 4 samplers, 5 step counts and 3 guidance scales, no two settings side by side."""
    settings = itertools.cycle(itertools.product(steps, MIXED_GUIDANCE, MIXED_SAMPLERS))
    return [
        JobParameters(
            prompt=f"a watercolor painting of an otter, number {i}",
            seed=i,
            sampler=sampler,
            num_inference_steps=count_,
            guidance_scale=guidance,
            width=size,
            height=size,
        )
        for i, (count_, guidance, sampler) in zip(
            range(count), itertools.islice(settings, 0, None, 7), strict=False
        )
    ]


def pipeline_of(model: LoadedModel) -> Any:
    """Build what a diffusers user has of the same parts."""
    pipeline = diffusers.StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=diffusers.PNDMScheduler.from_config(dict(model.scheduler_config)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline: Any, jobs: list[JobParameters]) -> Any:
    """Render jobs of equal settings in one call of diffusers' pipeline."""
    first = jobs[0]
    sampler = SAMPLERS[first.sampler or ""]
    options = dict(sampler.overrides)
    if first.schedule in SCHEDULE_OPTIONS:
        options[SCHEDULE_OPTIONS[first.schedule]] = True
    pipeline.scheduler = getattr(diffusers, sampler.scheduler_class).from_config(
        pipeline.scheduler.config, **options
    )
    return pipeline(
        [job.prompt for job in jobs],
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        width=first.width,
        height=first.height,
        generator=[torch.Generator().manual_seed(job.seed) for job in jobs],
        output_type="np",
    ).images
