"""What a model recommends for its jobs: its native size, and a `promptmill.json` that may lie beside it.

    {"defaults": {"sampler": "lms", "schedule": "karras", "guidance_scale": 5, "num_inference_steps": 30,
                  "width": 512, "height": 512}}

Each may be left out. A job's own setting beats the recommendation, which beats the general default. The
worker reads the file when it loads the model; the command line, which has no torch, when jobs are submitted.

The general defaults are for models whose denoising loop is rebuilt here (`storage.model_families`). Any other
model is rendered by its own pipeline, whose code has the defaults: only a worker knows those.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.errors import BadInputError, ModelLoadError
from storage.model_families import GENERAL_DEFAULTS, family_defaults
from storage.parameters import DEFAULT_SCHEDULE, JobParameters, check_job

DEFAULTS_FILE = "promptmill.json"
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "sampler": ((str,), "a name"),
    "schedule": ((str,), "a name"),
    "guidance_scale": ((int, float), "a number"),
    "num_inference_steps": ((int,), "a whole number"),
    "width": ((int,), "a whole number"),
    "height": ((int,), "a whole number"),
}
_SMALLEST_OLD_SIZE = 64  # latents, not pixels
_SIZES_COUNT = (0, 9)  # the diffusers version from which on a smaller size in a config is meant


def fill_defaults(parameters: JobParameters, defaults: Mapping[str, Any]) -> JobParameters:
    """Fill every field that is None from the model's `defaults`.

    A recommended schedule belongs to the recommended sampler: a job that names another one gets that one's
    default schedule. (`claim` in `storage.sqljobstore.claiming` says the same in SQL.)
    """
    missing = {
        name: defaults[name] for name in _KINDS if name in defaults and getattr(parameters, name) is None
    }
    if "schedule" in missing and parameters.sampler not in (None, defaults.get("sampler")):
        missing["schedule"] = DEFAULT_SCHEDULE
    return dataclasses.replace(parameters, **missing) if missing else parameters


def read_defaults(
    folder: Path, *, size: tuple[int, int] | None, general: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the defaults of the model in `folder`: what its `promptmill.json` says, else the general ones.

    Args:
        folder: where the model's files are.
        size: its native (width, height) in pixels; None leaves both out where the file does not say them.
        general: where somebody knows better what holds for the model otherwise; without it, a model that its
            own pipeline renders has no general defaults.

    Raises:
        ModelLoadError: when that file cannot be read or holds something else.
    """
    native = {} if size is None else dict(zip(("width", "height"), size, strict=True))
    path = folder / DEFAULTS_FILE
    try:
        recommended = _checked(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        recommended = {}
    except (ValueError, RecursionError, OSError, BadInputError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ModelLoadError(f"{path} cannot be used ({reason}); mend or remove it.") from error
    if general is None:
        general = family_defaults(folder)
    return {**general, **native, **recommended}


def _checked(content: Any) -> dict[str, Any]:
    """Return the recommendations that a `promptmill.json` holds, or raise BadInputError."""
    recommended = content.get("defaults") if isinstance(content, dict) else None
    if not isinstance(recommended, dict):
        raise BadInputError('it is not of the form {"defaults": {"sampler": "euler", ...}}')
    for name, value in recommended.items():
        if name not in _KINDS:
            raise BadInputError(f"there is no default {name!r}; choose of {', '.join(_KINDS)}")
        kinds, said = _KINDS[name]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise BadInputError(f"{name} is {json.dumps(value)[:40]}, not {said}")
    check_job(JobParameters(prompt="any", seed=0, **GENERAL_DEFAULTS | recommended))
    if "guidance_scale" in recommended:
        recommended["guidance_scale"] = float(recommended["guidance_scale"])
    return recommended


def read_native_size(folder: Path) -> tuple[int, int] | None:
    """Return (width, height) in pixels that the UNet in `folder` was made for; None if no config says it.

    StableDiffusionPipeline reads a size below 64 in a config from before diffusers 0.9 as 64.
    """
    try:
        unet, vae = (
            json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
            for part in ("unet", "vae")
        )
        size, scale = unet.get("sample_size"), 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return None  # the worker, which needs it, says what is wrong with a config
    written_by = re.match(r"(\d+)\.(\d+)", str(unet.get("_diffusers_version")))
    if isinstance(size, int):
        if written_by and (int(written_by[1]), int(written_by[2])) < _SIZES_COUNT:
            size = max(size, _SMALLEST_OLD_SIZE)
        size = [size, size]
    match size:
        case [int(height), int(width)]:
            return width * scale, height * scale
    return None
