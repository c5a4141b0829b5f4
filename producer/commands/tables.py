"""`promptmill samplers` and `models`: what can be asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from producer.models import known_models
from producer.output import listing, remark
from producer.session import Session, pass_session
from storage.errors import ModelLoadError
from storage.parameters import DEFAULT_SAMPLER
from storage.samplers import SAMPLERS


@click.command(
    epilog="""\b
Examples:
  promptmill samplers
  promptmill samplers --json | jq -r '.samplers[].name'
"""
)
@listing(
    "samplers",
    {"name": "NAME", "infotext": "A1111 NAME", "schedules": "SCHEDULES", "class": "DIFFUSERS CLASS"},
    empty="There are no samplers.",
)
def samplers() -> Iterator[dict[str, Any]]:
    """List the samplers and their schedules."""
    for sampler in SAMPLERS.values():
        yield {
            "name": sampler.name,
            "infotext": sampler.infotext,
            "class": sampler.scheduler_class,
            "overrides": dict(sampler.overrides),
            "schedules": list(sampler.schedules),
            "stochastic": sampler.stochastic,
            "takes_eta": sampler.takes_eta,
            "default": sampler.name == DEFAULT_SAMPLER,
        }


@click.command(
    epilog="""\b
Examples:
  promptmill models
  PROMPTMILL_MODELS=sd15=stable-diffusion-v1-5/stable-diffusion-v1-5 promptmill models
"""
)
@listing(
    "models",
    {
        "name": "NAME",
        "source": "SOURCE",
        "revision": "REVISION",
        "live_workers": "LIVE WORKERS",
        "defaults.sampler": "SAMPLER",
        "defaults.schedule": "SCHEDULE",
        "defaults.guidance_scale": "GUIDANCE",
        "defaults.num_inference_steps": "STEPS",
        "size": "SIZE",
    },
    empty="There are no models.",
    short={"revision": lambda revision: revision[:12]},
)
@pass_session
def models(session: Session) -> Iterator[dict[str, Any]]:
    """List the models that can be asked for: the built-in one, configured ones, and what workers load.

    Sampler to size are what a job gets that does not say them: the recommendations of the `promptmill.json`
    beside the model, the general defaults, and the model's own size. For a model from the hub they are known
    once a worker has loaded it.
    """
    for model in known_models(session.settings, session.jobs.workers()).values():
        reference, problem = model.reference, None
        try:
            defaults = model.defaults()
        except ModelLoadError as error:  # the other models are none the worse for it
            defaults, problem = {}, str(error)
            remark(f"Model {model.name}: {problem}")
        width, height = defaults.get("width"), defaults.get("height")
        yield {
            "name": model.name,
            "source": reference.source if reference else None,
            "revision": model.revision or (reference.revision if reference else None),
            "live_workers": model.live_workers,
            "size": f"{width}x{height}" if width and height else None,
            "defaults": defaults,
            "problem": problem,
        }
