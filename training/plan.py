"""How much of everything: the run that makes the model, and a small one that tests the way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much of everything.

    Attributes:
        variants: pictures of each training triple.
        limit: triples to draw, None for all.
        crop_steps, whole_steps, diffusion_steps, calibration_steps, judge_steps: optimiser steps
            of each training.
        crops, latents: in a step of one process.
        prompts: for each line of the table.
        steps: of the sampler, in the evaluation.
    """

    variants: int
    limit: int | None
    crop_steps: int
    whole_steps: int
    diffusion_steps: int
    calibration_steps: int
    judge_steps: int
    crops: int
    latents: int
    prompts: int
    steps: int


FULL = Plan(
    variants=6,
    limit=None,
    crop_steps=4600,
    whole_steps=1000,
    diffusion_steps=10000,
    calibration_steps=900,
    judge_steps=1600,
    crops=12,
    latents=12,
    prompts=200,
    steps=30,
)
QUICK = Plan(
    variants=1,
    limit=200,
    crop_steps=60,
    whole_steps=120,
    diffusion_steps=60,
    calibration_steps=40,
    judge_steps=60,
    crops=16,
    latents=16,
    prompts=2,
    steps=3,
)
