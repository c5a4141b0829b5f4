"""What the engine benchmarks share: two models, mixed jobs, and diffusers' pipeline of the same parts."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
from report import arguments

from storage.models import ModelReference, builtin_model_path
from storage.parameters import JobParameters
from storage.samplers import SAMPLERS, SCHEDULE_OPTIONS
from worker.models.device import choose_device, choose_dtype, make_repeatable
from worker.models.load import LoadedModel, load_model
from worker.stages.text import TextStage

MIXED_SAMPLERS = ("lms", "euler", "dpmpp_2m", "euler_a")
MIXED_STEPS = (10, 15, 20, 25, 30)
MIXED_GUIDANCE = (3.0, 5.0, 7.5)


def device_arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark understands, and the device."""
    parser = arguments(description)
    parser.add_argument(
        "--device",
        default="cpu",
        help="cpu (the default), or cuda: a larger model, in a worker's own dtype",
    )
    return parser


def demo_model(dtype: str = "auto", device: str = "cpu") -> LoadedModel:
    """Load the project's model, every part in one dtype; `auto` is what a worker takes on that device."""
    make_repeatable()
    chosen = choose_device(device)
    reference = ModelReference(name="demo", source=str(builtin_model_path()))
    return load_model(reference, device=chosen, dtype=choose_dtype(dtype, chosen))


def larger_model(model: LoadedModel) -> LoadedModel:
    """Give a model a UNet of random weights, 17 M parameters, for the same text encoder and VAE."""
    torch.manual_seed(0)
    config = dict(model.unet.config) | {"block_out_channels": (64, 160, 256), "norm_num_groups": 32}
    unet = UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    return replace(model, unet=_like(model, unet))


def sd_sized(model: LoadedModel) -> LoadedModel:
    """Give a model a UNet of Stable Diffusion 1.x's size, 860 M parameters, with random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=model.unet.config.cross_attention_dim,
        attention_head_dim=8,
    )
    side = 64 * model.vae_scale_factor  # of the demo model's VAE, which diffusers' pipeline goes by as well
    return replace(model, unet=_like(model, unet), native_size=(side, side))


def _like(model: LoadedModel, unet: Any) -> Any:
    return unet.to(model.device, model.dtype).eval().requires_grad_(requires_grad=False)


def second_model(model: LoadedModel) -> tuple[str, LoadedModel, int]:
    """Return a model of the same parts that keeps its device busy: name, model, size of pictures."""
    if model.device.type == "cpu":
        # R is chosen at the native size, which for a model of one's own is that of its pictures.
        return "17 M, random, 128x128", replace(larger_model(model), native_size=(128, 128)), 128
    own = sd_sized(model)
    side, _ = own.native_size
    return f"860 M, random, {side}x{side}", own, side


def settle(model: LoadedModel) -> None:
    """Wait until the device has done what it was told."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


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


def fresh(job: JobParameters, take: int) -> JobParameters:
    """Give a job a prompt that no engine has kept yet, as a new prompt list has; all else is the same.

    Args:
        job: of a benchmark.
        take: a number of its own for each time that the job is rendered.
    """
    return replace(job, prompt=f"{job.prompt}, take {take}")


@torch.no_grad()
def encode_all(model: LoadedModel, jobs: list[JobParameters]) -> None:
    """Encode every prompt, bare: a text stage of its own has kept none."""
    text = TextStage(model.kind.prompt_encoder(model))
    for job in jobs:
        text(job.prompt, what="prompt")
    settle(model)


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
