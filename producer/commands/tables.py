"""`promptmill samplers` and `models`: what can be asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from producer.models import known_models
from producer.output import listing
from producer.session import Session, pass_session
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
        "native_size": "NATIVE SIZE",
    },
    empty="There are no models.",
    short={"revision": lambda revision: revision[:12]},
)
@pass_session
def models(session: Session) -> Iterator[dict[str, Any]]:
    """List the models that can be asked for: the built-in one, configured ones, and what workers load."""
    for model in known_models(session.settings, session.jobs.workers()).values():
        reference, size = model.reference, model.native_size
        yield {
            "name": model.name,
            "source": reference.source if reference else None,
            "revision": model.revision or (reference.revision if reference else None),
            "live_workers": model.live_workers,
            "native_size": f"{size[0]}x{size[1]}" if size else None,
            "defaults": model.defaults,
        }
