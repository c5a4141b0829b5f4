"""What a model recommends for its jobs: its native size, and a `promptmill.json` that may lie beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from storage.errors import BadInputError, ModelLoadError
from storage.parameters import (
    DEFAULT_GUIDANCE,
    DEFAULT_SAMPLER,
    DEFAULT_SCHEDULE,
    DEFAULT_STEPS,
    JobParameters,
    check_guidance,
    check_size,
    check_steps,
)
from storage.samplers import SAMPLERS, check_schedule

DEFAULTS_FILE = "promptmill.json"


def fill_defaults(parameters: JobParameters, defaults: Mapping[str, Any]) -> JobParameters:
    """Fill every field that is None from the model's `defaults`.

    A model's recommended schedule belongs to its recommended sampler, so it is not carried to another one.
    """
    missing = {
        field.name: defaults[field.name]
        for field in dataclasses.fields(parameters)
        if field.name in defaults and getattr(parameters, field.name) is None
    }
    filled = dataclasses.replace(parameters, **missing)
    chosen = SAMPLERS.get(filled.sampler or "")
    if "schedule" in missing and chosen and filled.schedule not in chosen.schedules:
        return dataclasses.replace(filled, schedule=DEFAULT_SCHEDULE)
    return filled


def read_defaults(folder: Path, *, width: int, height: int) -> dict[str, Any]:
    """Return the defaults of the model in `folder`, whose native size in pixels is given.

    `promptmill.json` beside the model may hold `{"defaults": {...}}` with sampler, schedule, guidance_scale,
    num_inference_steps, width and height.

    Raises:
        ModelLoadError: when that file cannot be read or holds something else.
    """
    defaults: dict[str, Any] = {
        "sampler": DEFAULT_SAMPLER,
        "schedule": DEFAULT_SCHEDULE,
        "guidance_scale": DEFAULT_GUIDANCE,
        "num_inference_steps": DEFAULT_STEPS,
        "width": width,
        "height": height,
    }
    path = folder / DEFAULTS_FILE
    if not path.is_file():
        return defaults
    try:
        recommended = json.loads(path.read_text(encoding="utf-8")).get("defaults", {})
        defaults |= {name: _check(name, value) for name, value in recommended.items()}
        check_schedule(defaults["sampler"], defaults["schedule"])
    except (ValueError, TypeError, AttributeError, OSError, BadInputError) as error:
        raise ModelLoadError(f"{path} cannot be used ({error}); mend or remove it.") from error
    return defaults


def _check(name: str, value: Any) -> Any:
    """Return a recommended value if it is a valid one of that name."""
    checks: dict[str, Callable[[Any], Any]] = {
        "sampler": _check_sampler,
        "schedule": str,
        "guidance_scale": check_guidance,
        "num_inference_steps": check_steps,
        "width": check_size,
        "height": lambda height: check_size(height, what="height"),
    }
    if name not in checks:
        raise BadInputError(f"there is no default {name!r}; choose of {', '.join(checks)}")
    return checks[name](value)


def _check_sampler(name: str) -> str:
    if name not in SAMPLERS:
        raise BadInputError(f"there is no sampler {name!r}")
    return name
