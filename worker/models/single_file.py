"""A checkpoint in one safetensors file: its weights by diffusers' own converters, its configs from elsewhere.

Such a file holds weights only. Configs, tokenizers and the noise scheduler's settings come from a folder in
diffusers layout that its user names, else from the hub's repo that diffusers takes for its kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type
from safetensors import safe_open

from storage.errors import ModelLoadError
from storage.models import SINGLE_FILE, ModelReference
from worker.models.folder import SINGLE_FILES, check_safetensors
from worker.models.hub import fetch_configs

_KINDS = ("v1", "v2", "xl_base")  # of those that diffusers tells apart, what can be rendered here
# What each part's names begin with; without its own weights diffusers would take a config folder's.
_PREFIXES = {
    "UNet": ("model.diffusion_model.",),
    "VAE": ("first_stage_model.", "vae."),
    "text encoder": ("cond_stage_model.", "conditioner.embedders."),
}


def is_checkpoint(reference: ModelReference) -> bool:
    """Tell whether a model is one file, of whatever format."""
    file = Path(reference.source)
    return file.suffix in SINGLE_FILES and (
        file.is_file() or (file.suffix == SINGLE_FILE and not file.is_dir())
    )


def find_checkpoint(reference: ModelReference) -> tuple[Path, Path]:
    """Check a checkpoint, and find its configs.

    Returns:
        The file, and a folder in diffusers layout, whose weights, if it has any, do not count.

    Raises:
        ModelLoadError: when it is missing, no safetensors, incomplete, or no checkpoint of a whole model; or
            when its configs are not to be had.
    """
    file = Path(reference.source)
    if not file.is_file():
        raise ModelLoadError(f"There is no checkpoint {file}; check the path.")
    if file.suffix != SINGLE_FILE:
        raise ModelLoadError(
            f"{file} is no safetensors, and loading anything else can run foreign code; take the model's "
            f"{SINGLE_FILE} file, or convert this one where you trust it, with diffusers' "
            f"StableDiffusionPipeline.from_single_file(...).save_pretrained(FOLDER)."
        )
    check_safetensors(file)
    shapes = _shapes(file)
    for part, prefixes in _PREFIXES.items():
        if not any(name.startswith(prefixes) for name in shapes):
            raise ModelLoadError(
                f"{file} holds no {part}, so it is no checkpoint of a whole Stable Diffusion model; take one "
                f"that has UNet, VAE and text encoders."
            )
    kind = infer_diffusers_model_type(shapes)  # type: ignore[no-untyped-call]  # diffusers has no types for it
    if kind not in _KINDS:
        raise ModelLoadError(
            f"{file} is a checkpoint of the kind {kind}, and single files are rendered of Stable Diffusion "
            f"1.x, 2.x and XL only; take a folder in diffusers layout."
        )
    return file, _configs(reference, DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])


def load_checkpoint(
    file: Path,
    folder: Path,
    pipeline: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
) -> dict[str, Any]:
    """Load the networks of a checkpoint.

    Args:
        file: from `find_checkpoint`.
        folder: likewise.
        pipeline: the class that the folder's index names, of diffusers.
        device: from `choose_device`.
        dtype: of UNet and text encoders.
        vae_dtype: of the VAE.

    Returns:
        The networks by the names of their components, in eval mode, without gradients.

    Raises:
        ModelLoadError: when weights are missing, or do not go with the configs.
    """
    options = {"config": str(folder), "local_files_only": True}
    unused: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
    if pipeline == "StableDiffusionPipeline":
        unused |= {"safety_checker": None, "requires_safety_checker": False}
    else:
        unused |= {"add_watermarker": False}
    try:
        vae = diffusers.AutoencoderKL.from_single_file(
            str(file), subfolder="vae", torch_dtype=vae_dtype, **options
        )
        loaded = getattr(diffusers, pipeline).from_single_file(
            str(file), vae=vae, torch_dtype=dtype, **options, **unused
        )
    except Exception as error:
        # diffusers and transformers raise almost anything for weights that do not go with a config.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelLoadError(
            f"{file} cannot be loaded with the configs in {folder} ({reason}); name those of its own kind of "
            f"model: NAME=FILE{SINGLE_FILE}@FOLDER."
        ) from error
    parts = {name: part for name, part in loaded.components.items() if isinstance(part, torch.nn.Module)}
    for name, part in parts.items():
        _check_complete(file, name, part)
    try:
        return {name: _at_rest(part, device) for name, part in parts.items()}
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{file} does not fit into the device's memory; take --dtype float16."
        ) from error


def checkpoint_revision(file: Path) -> str:
    """Return a single file's revision, its sha256, which Civitai and A1111 know it by too: 64 hex digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _shapes(file: Path) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a file without their contents."""
    with safe_open(file, framework="pt") as opened:
        return {
            name: torch.empty(opened.get_slice(name).get_shape(), device="meta")
            for name in opened.keys()  # noqa: SIM118 - no dict
        }


def _configs(reference: ModelReference, usual: str) -> Path:
    """Return the folder of a checkpoint's configs.

    Args:
        reference: may name it.
        usual: the hub's repo for checkpoints of its kind.
    """
    if reference.folder is not None:
        return reference.folder
    repo = reference.config or usual
    try:
        return fetch_configs(repo)
    except ModelLoadError as error:
        reason = str(error).removesuffix(", or pass a local folder.").rstrip(".")
        raise ModelLoadError(
            f"{reference.source} holds weights only, and its configs could not be had from the hub: "
            f"{reason}; or name a folder in diffusers layout that has them: NAME=FILE{SINGLE_FILE}@FOLDER."
        ) from error


def _check_complete(file: Path, name: str, part: Any) -> None:
    """Refuse a network whose weights were not all there: diffusers leaves those without memory."""
    missing = [weight for weight, tensor in part.state_dict().items() if tensor.is_meta]
    if missing:
        raise ModelLoadError(
            f"{file} lacks {len(missing)} weights of the {name} that its configs name (the first is "
            f"{missing[0]}); name the configs of its own kind of model: NAME=FILE{SINGLE_FILE}@FOLDER."
        )


def _at_rest(part: Any, device: torch.device) -> Any:
    return part.to(device).eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
