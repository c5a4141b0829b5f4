"""Load a diffusers text-to-image pipeline whole, part by part, without remote code and without pickles."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from worker.models import device as _device  # noqa: F401 - sets what torch reads from the environment at import

# isort: split
import diffusers
import torch
import transformers

from storage.errors import ModelLoadError
from storage.model_defaults import read_defaults
from storage.models import ModelReference
from storage.parameters import DEFAULT_GUIDANCE, DEFAULT_STEPS
from storage.samplers import OWN_SAMPLER
from worker.models.folder import check_folder, check_weights, components, folder_revision, read_json
from worker.models.load import hush, load_weights
from worker.models.pipeline import DENOISERS, LoadedPipeline, guidance_argument
from worker.models.threads import in_passing_thread

# What a picture from a prompt alone cannot have: other inputs, or frames.
_OTHER_INPUTS = ("image", "mask_image", "control_image", "num_frames", "audio_length_in_s", "video")
_USUAL_SIZE = 1024  # of pipelines whose components say none
_LEFT_OUT: dict[str, Any] = {
    "safety_checker": None,  # as for Stable Diffusion: it replaces pictures by black ones
    "requires_safety_checker": False,
    "add_watermarker": False,
}


def load_pipeline(
    reference: ModelReference, folder: Path, commit: str | None, *, device: torch.device, dtype: torch.dtype
) -> LoadedPipeline:
    """Load the pipeline in `folder`.

    Args:
        reference: how its user named it.
        folder: in diffusers layout.
        commit: where it comes from the hub.
        device: from `choose_device`.
        dtype: from `choose_dtype`; every part gets it.

    Raises:
        ModelLoadError: when it is incomplete, corrupt, unsafe, or makes no pictures from prompts.
    """
    return in_passing_thread(lambda: _load_pipeline(reference, folder, commit, device, dtype))


def _load_pipeline(
    reference: ModelReference, folder: Path, commit: str | None, device: torch.device, dtype: torch.dtype
) -> LoadedPipeline:
    hush()
    check_folder(folder)
    index = read_json(folder / "model_index.json")
    pipeline_class, denoiser_name = _pipeline_class(index, folder)
    recommended = read_defaults(folder, size=None, general={})  # before the weights, which take their time
    parts = {
        name: _load_part(folder / name, library, part, device, dtype)
        for name, (library, part) in components(index).items()
        if name not in _LEFT_OUT
    }
    pipeline = _assemble(
        pipeline_class, folder, {name: part for name, part in parts.items() if part is not None}
    )
    pipeline.set_progress_bar_config(disable=True)
    defaults = _defaults(pipeline, denoiser_name) | recommended
    return LoadedPipeline(
        name=reference.name,
        source=reference.source,
        revision=commit or folder_revision(folder),
        family=pipeline_class.__name__,
        pipeline=pipeline,
        denoiser_name=denoiser_name,
        device=device,
        dtype=dtype,
        native_size=(defaults["width"], defaults["height"]),
        defaults=defaults,
    )


def _pipeline_class(index: dict[str, Any], folder: Path) -> tuple[Any, str]:
    """Return the class that a `model_index.json` names, and which of its components is the denoiser."""
    name = str(index.get("_class_name"))
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise ModelLoadError(
            f"{folder} is a {name}, which diffusers {diffusers.__version__} does not have; "
            f"update diffusers, or take a model without code of its own."
        )
    takes = inspect.signature(found.__call__).parameters
    others = [other for other in _OTHER_INPUTS if other in takes]
    denoiser = next((part for part in DENOISERS if part in components(index)), None)
    if "prompt" not in takes or others or denoiser is None:
        wants = f" (it takes {others[0]})" if others else ""
        raise ModelLoadError(
            f"{folder} is a {name}, which makes no pictures from prompts alone{wants}; take a text-to-image "
            f"model."
        )
    return found, denoiser


def _load_part(folder: Path, library: str, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a component with weights; None for one without, which the pipeline loads itself."""
    libraries = {"diffusers": diffusers, "transformers": transformers}
    # A pipeline's own module of diffusers may have components too.
    home = libraries.get(library) or getattr(diffusers.pipelines, library, None)
    found = getattr(home, name, None)
    if not isinstance(found, type):
        raise ModelLoadError(
            f"{folder} is a {name} of {library}, which neither diffusers nor transformers has; update them, "
            f"or take a model without code of its own."
        )
    if not issubclass(found, torch.nn.Module):
        return None
    check_weights(folder)
    if issubclass(found, diffusers.ModelMixin):
        return load_weights(found, folder, device, torch_dtype=dtype)
    return load_weights(found, folder, device, dtype=dtype)


def _assemble(pipeline_class: Any, folder: Path, parts: dict[str, Any]) -> Any:
    takes = inspect.signature(pipeline_class.__init__).parameters
    left_out = {name: value for name, value in _LEFT_OUT.items() if name in takes}
    try:
        return pipeline_class.from_pretrained(folder, local_files_only=True, **parts, **left_out)
    except Exception as error:
        # diffusers and transformers raise almost anything for a damaged file.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelLoadError(f"{folder} cannot be loaded ({reason}); download the model again.") from error


def _defaults(pipeline: Any, denoiser_name: str) -> dict[str, Any]:
    """Return what a pipeline's own code renders by default."""
    takes = inspect.signature(pipeline.__call__).parameters

    def default(name: str | None) -> Any:
        found = takes[name].default if name is not None and name in takes else None
        return None if found is inspect.Parameter.empty else found

    width, height = _native_size(pipeline, denoiser_name)
    guidance = guidance_argument(takes)
    scale = DEFAULT_GUIDANCE if default(guidance) is None else default(guidance)
    return {
        "sampler": OWN_SAMPLER,
        "schedule": "default",
        "guidance_scale": float(scale) if guidance else 1.0,
        "num_inference_steps": default("num_inference_steps") or DEFAULT_STEPS,
        "width": default("width") or width,
        "height": default("height") or height,
    }


def _native_size(pipeline: Any, denoiser_name: str) -> tuple[int, int]:
    """Return (width, height) in pixels, as pipelines work it out that are given none."""
    config = getattr(pipeline, denoiser_name).config
    size = getattr(pipeline, "default_sample_size", None) or config.get("sample_size")
    factor = getattr(pipeline, "vae_scale_factor", None)
    if size is None or factor is None:
        return _USUAL_SIZE, _USUAL_SIZE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(width * factor), int(height * factor)
