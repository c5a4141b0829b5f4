"""A model folder in diffusers layout: which of its files count, what is wrong with it, its revision."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from storage.errors import ModelLoadError
from storage.model_families import read_pipeline, rebuilt_pipeline

COMPONENTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")  # of a model whose loop is rebuilt
WITHOUT_WEIGHTS = ("tokenizer", "scheduler")  # and the second tokenizer

# What determines pictures of Stable Diffusion: downloaded from the hub, and hashed in a folder. READMEs,
# sample pictures, dotfiles, pickles, single-file checkpoints, the safety checker and `promptmill.json`
# (every job records what it took from there) are left out: editing a README does not make another model.
MODEL_FILES = (
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*.json",
    "tokenizer/*.txt",
    "text_encoder/*.json",
    "text_encoder/*.safetensors",
    "unet/*.json",
    "unet/*.safetensors",
    "vae/*.json",
    "vae/*.safetensors",
)
COMPONENT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")  # of any component, likewise
VARIANT_FILES = ("*.fp16.*", "*.bf16.*", "*.non_ema.*")  # other precisions of the same weights, never loaded
SINGLE_FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


def file_patterns(folder: Path) -> tuple[str, ...]:
    """Return the patterns of the files that belong to a model, as its `model_index.json` says."""
    if read_pipeline(folder) in (None, "StableDiffusionPipeline"):
        return MODEL_FILES
    names = sorted(components(read_json(folder / "model_index.json")))
    return ("model_index.json", *(f"{name}/{pattern}" for name in names for pattern in COMPONENT_FILES))


def components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the components that a `model_index.json` names, each with its library and class."""
    return {
        name: (str(value[0]), str(value[1]))
        for name, value in index.items()
        # Library and class; the name is a folder's too.
        if name.isidentifier() and isinstance(value, list) and len(value) == 2 and all(value)  # noqa: PLR2004
    }


def model_files(folder: Path, patterns: tuple[str, ...] = ()) -> list[Path]:
    """List the files of `folder` that belong to the model, sorted by their name inside it."""
    found = {
        path
        for pattern in patterns or file_patterns(folder)
        for path in folder.glob(pattern)
        if path.is_file()
    }
    kept = (p for p in found if not any(fnmatch.fnmatch(p.name, variant) for variant in VARIANT_FILES))
    return sorted(
        (p for p in kept if not p.name.startswith(".")), key=lambda p: p.relative_to(folder).as_posix()
    )


def folder_revision(folder: Path, patterns: tuple[str, ...] = ()) -> str:
    """Return a local model's revision: sha256 over the names and contents of its files, 64 hex digits.

    Args:
        folder: of the model.
        patterns: of its files; by default what its `model_index.json` says.
    """
    return _hash(folder, model_files(folder, patterns))


def config_revision(folder: Path) -> str:
    """Return the sha256 over a folder's files but for weights, 64 hex digits."""
    return _hash(folder, [path for path in model_files(folder) if path.suffix != ".safetensors"])


def _hash(folder: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Check all that can be seen without loading the model.

    Args:
        folder: of the model.
        weights: whether it has to have any, and not configs alone.

    Raises:
        ModelLoadError: one sentence about the first thing that is wrong.
    """
    _check_is_folder(folder)
    index = read_json(folder / "model_index.json")
    rebuilt = rebuilt_pipeline(folder)
    needed = components(index) if rebuilt is None else {**dict.fromkeys(COMPONENTS), **rebuilt.parts}
    for component in needed:
        _check_component(folder, component)
    if rebuilt is None:
        return
    for component in needed:
        if weights and not component.startswith(WITHOUT_WEIGHTS):
            check_weights(folder / component)
    _check_unet(read_json(folder / "unet" / "config.json"), folder)


def _check_component(folder: Path, component: str) -> None:
    if not (folder / component).is_dir():
        raise ModelLoadError(
            f"{folder} has no {component} folder, so it is not a complete model in diffusers layout; "
            f"download it again."
        )


def _check_is_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelLoadError(f"There is no model folder {folder}; check the path, or pass a hub repo id.")
    if not (folder / "model_index.json").is_file():
        raise ModelLoadError(
            f"{folder} has no model_index.json, so it is not a model in diffusers layout; pass the folder "
            f"that holds unet, vae, text_encoder, tokenizer and scheduler."
        )


def _check_unet(config: dict[str, Any], folder: Path) -> None:
    unet_class, channels = config.get("_class_name"), config.get("in_channels", 4)
    if unet_class != "UNet2DConditionModel" or channels != 4:  # noqa: PLR2004 - text-to-image latents
        raise ModelLoadError(
            f"The unet of {folder} is a {unet_class} with {channels} input channels; supported now is a "
            f"UNet2DConditionModel with 4 (text to image; inpainting and instruction models have more)."
        )


def check_weights(folder: Path, patterns: tuple[str, ...] = ()) -> None:
    """Check that a component has safetensors and that each is complete.

    Args:
        folder: of the component.
        patterns: of its files, where it is no part of a model.

    Raises:
        ModelLoadError: when it has none, or a damaged one.
    """
    found_ones = model_files(folder, patterns) if patterns else model_files(folder.parent)
    files = [path for path in found_ones if path.parent == folder and path.suffix == ".safetensors"]
    if not files:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in SINGLE_FILES)
        found = f"only {', '.join(pickled)}" if pickled else "none"
        raise ModelLoadError(
            f"{folder} must hold weights as safetensors and has {found}; convert the model with diffusers' "
            f"save_pretrained(FOLDER, safe_serialization=True), as loading a pickle can run foreign code."
        )
    for path in files:
        check_safetensors(path)


def check_safetensors(path: Path) -> None:
    """Read a file's header, which also compares the length it promises with the file's.

    Raises:
        ModelLoadError: when it is not complete.
    """
    try:
        with safe_open(path, framework="np"):
            return
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            pointer = file.read(64).startswith(b"version https://git-lfs")
        hint = "it is a git-lfs pointer, so run `git lfs pull`" if pointer else "download it again"
        raise ModelLoadError(f"{path} is not a complete safetensors file ({error}); {hint}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a config file, or raise ModelLoadError naming it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON ({error}); download the model again.") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} holds no JSON object; download the model again.")
    return content
