"""The families of models whose denoising loop is rebuilt here, told by a folder's `model_index.json`.

The command line, which has no torch, needs their defaults, and the worker the way in which a model is
rendered. What a family is to the loop is in `worker.models.families`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.parameters import DEFAULT_GUIDANCE, DEFAULT_SAMPLER, DEFAULT_SCHEDULE, DEFAULT_STEPS

GENERAL_DEFAULTS: dict[str, Any] = {
    "sampler": DEFAULT_SAMPLER,
    "schedule": DEFAULT_SCHEDULE,
    "guidance_scale": DEFAULT_GUIDANCE,
    "num_inference_steps": DEFAULT_STEPS,
}
_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


@dataclass(frozen=True, kw_only=True, slots=True)
class RebuiltPipeline:
    """A pipeline of diffusers that is rendered without its own code.

    Attributes:
        family: what records and rows call its models.
        defaults: what its jobs get that leave something open.
        parts: the components that it has to have, each with the classes that are known; a pipeline with
            others is rendered by its own code.
    """

    family: str
    defaults: Mapping[str, Any] = field(default_factory=lambda: GENERAL_DEFAULTS)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


REBUILT: dict[str, RebuiltPipeline] = {
    "StableDiffusionPipeline": RebuiltPipeline(family="sd"),
    "StableDiffusionXLPipeline": RebuiltPipeline(
        family="sdxl",
        defaults=GENERAL_DEFAULTS | {"guidance_scale": 5.0},  # that pipeline's own
        parts={
            "tokenizer": _CLIP_TOKENIZERS,
            "tokenizer_2": _CLIP_TOKENIZERS,
            "text_encoder": ("CLIPTextModel",),
            "text_encoder_2": ("CLIPTextModelWithProjection",),
            "unet": ("UNet2DConditionModel",),
            "vae": ("AutoencoderKL",),
        },
    ),
}
_FAMILIES = {rebuilt.family for rebuilt in REBUILT.values()}


def way_of(family: str | None) -> str | None:
    """Name the way in which models of a family are rendered, None before a worker has loaded its model.

    `vectorised`: the loop of Stable Diffusion 1.x and 2.x (family `sd`) and of Stable Diffusion XL (`sdxl`)
    is rebuilt, and all requests of a step are updated together. `coalescing`: each request runs its own
    pipeline; they share forward passes.
    """
    if family is None:
        return None
    return "vectorised" if family in _FAMILIES else "coalescing"


def read_pipeline(folder: Path) -> str | None:
    """Return the pipeline's class that a model's `model_index.json` names; None if none can be read."""
    name = _index(folder).get("_class_name")
    return name if isinstance(name, str) else None


def rebuilt_pipeline(folder: Path) -> RebuiltPipeline | None:
    """Return how the model in `folder` is rebuilt; None if its own pipeline renders it, or there is none."""
    index = _index(folder)
    rebuilt = REBUILT.get(str(index.get("_class_name")))
    known = rebuilt is not None and all(
        _class_of(index.get(part)) in classes for part, classes in rebuilt.parts.items()
    )
    return rebuilt if known else None


def family_defaults(folder: Path) -> Mapping[str, Any]:
    """Return what holds for jobs of the model in `folder`; nothing where only its pipeline's code knows."""
    if read_pipeline(folder) is None:
        return GENERAL_DEFAULTS
    rebuilt = rebuilt_pipeline(folder)
    return rebuilt.defaults if rebuilt else {}


def _index(folder: Path) -> dict[str, Any]:
    """Read a folder's index; an empty one where there is none: the worker says what is wrong with it."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}


def _class_of(component: Any) -> str | None:
    """Return the class of an index's entry, which is a library and a class."""
    match component:
        case [str(), str(name)]:
            return name
    return None
