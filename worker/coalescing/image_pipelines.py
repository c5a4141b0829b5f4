"""A model's other pipelines: its very parts, in diffusers' own code for jobs that begin with a picture."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import diffusers

from worker.coalescing.pictures import Kind
from worker.models.controlnet import ControlNet
from worker.models.load import LoadedModel
from worker.models.pipeline import LoadedPipeline
from worker.models.variant import plain_unet
from worker.stages.tokens import tokenizer_lock

_NEVER: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "requires_safety_checker": False,
    "add_watermarker": False,
}
# What a ControlNet has in common with the denoiser whose copy it begins as, where both say it.
_SHARED_SIZES = ("block_out_channels", "cross_attention_dim", "joint_attention_dim")


def class_name(model: LoadedModel | LoadedPipeline, kind: Kind) -> str | None:
    """Name diffusers' class for a kind of job; None where it has none for this model.

    Its classes are called alike: `FluxPipeline`, `FluxImg2ImgPipeline`, `FluxControlNetInpaintPipeline`.
    Their names are known before any is imported, which takes seconds for all of them.
    """
    name = f"{_family(model).removesuffix('Pipeline')}{kind.value}Pipeline"
    return name if name in dir(diffusers) else None


def possible_kinds(model: LoadedModel | LoadedPipeline, controlnet: ControlNet | None) -> frozenset[Kind]:
    """Return the kinds of jobs that a model can render, text apart."""
    kinds = [kind for kind in Kind if kind is not Kind.TEXT]
    if controlnet is None:
        kinds = [kind for kind in kinds if not _is_controlled(kind)]
    return frozenset(kind for kind in kinds if class_name(model, kind) is not None)


def image_pipeline(
    model: LoadedModel | LoadedPipeline, kind: Kind, controlnet: ControlNet | None
) -> LoadedPipeline:
    """Return a model as its pipeline for a kind of job, one of `possible_kinds`; it shares all weights.

    Args:
        model: as it is run for jobs from a prompt alone.
        kind: of the jobs.
        controlnet: the worker's.

    Raises:
        TypeError, ValueError: when the class cannot be made of the model's parts.
    """
    name = class_name(model, kind)
    if name is None:
        raise ValueError(f"diffusers has no {kind} pipeline for {_family(model)}")
    found = getattr(diffusers, name)
    controlled = controlnet if _is_controlled(kind) else None
    offered = _NEVER | _parts(model) | ({"controlnet": controlled.network} if controlled else {})
    takes = inspect.signature(found.__init__).parameters
    pipeline = found(**{name: part for name, part in offered.items() if name in takes})
    pipeline.set_progress_bar_config(disable=True)
    denoiser_name = model.denoiser_name if isinstance(model, LoadedPipeline) else "unet"
    facts = {"controlnet": controlled.name, "controlnet_revision": controlled.revision} if controlled else {}
    if isinstance(model, LoadedPipeline):
        facts = model.facts | facts
    elif model.config_revision is not None:  # of a model in one file, whose revision is that file's alone
        facts["config_revision"] = model.config_revision
    return LoadedPipeline(
        name=model.name,
        source=model.source,
        revision=model.revision,
        family=found.__name__,
        pipeline=pipeline,
        denoiser_name=denoiser_name,
        device=model.device,
        dtype=model.dtype,
        mixed=model.mixed,
        native_size=model.native_size,
        defaults=model.defaults,
        layout=model.layout,
        facts=facts,
        loras=model.loras,
    )


def other_architecture(model: LoadedModel | LoadedPipeline, controlnet: ControlNet) -> str:
    """Say where a ControlNet is built otherwise than the denoiser that it would steer; "" where it is not."""
    denoiser = model.denoiser if isinstance(model, LoadedPipeline) else plain_unet(model.unet)
    for name in _SHARED_SIZES:
        own, its = (_listed(getattr(part, "config", {}).get(name)) for part in (denoiser, controlnet.network))
        if None not in (own, its) and own != its:
            return f"it has {name} {its}, and not {own}"
    return ""


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_controlled(kind: Kind) -> bool:
    return kind in (Kind.CONTROL, Kind.CONTROL_IMG2IMG, Kind.CONTROL_INPAINT)


def _family(model: LoadedModel | LoadedPipeline) -> str:
    """Return the class of the pipeline that a model was made for."""
    if isinstance(model, LoadedPipeline):
        return model.family
    return "StableDiffusionXLPipeline" if model.text_encoder_2 is not None else "StableDiffusionPipeline"


def _parts(model: LoadedModel | LoadedPipeline) -> dict[str, Any]:
    """Return what a pipeline is made of: its components, and what its config says besides."""
    if isinstance(model, LoadedPipeline):
        config = {name: value for name, value in model.pipeline.config.items() if not name.startswith("_")}
        return {**config, **model.pipeline.components}
    scheduler_class = getattr(diffusers, str(model.scheduler_config["_class_name"]))
    dtype = model.text_encoder.dtype
    with tokenizer_lock:
        tokenizer, tokenizer_2 = copy.deepcopy((model.tokenizer, model.tokenizer_2))
    second = {
        "text_encoder_2": model.text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "force_zeros_for_empty_prompt": model.force_zeros_for_empty_prompt,
    }
    return {
        **(second if model.text_encoder_2 is not None else {}),
        # One that is kept in float32 is the loop's; the pipeline moves its own between dtypes.
        "vae": model.vae if model.vae.dtype == dtype else copy.deepcopy(model.vae).to(dtype),
        "text_encoder": model.text_encoder,
        # Other threads call the model's own, and it takes only one at a time.
        "tokenizer": tokenizer,
        "unet": plain_unet(model.unet),
        "scheduler": scheduler_class.from_config(model.scheduler_config),
    }
