"""The `parameters` text of a picture ("infotext"), as A1111, Forge, Civitai and most viewers read it.

    prompt
    Negative prompt: what to avoid
    Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 512x512, ...

Nothing in it differs between two renders of the same job, so that equal jobs give equal files. The format
has no escape for prompts: one with a line that starts with "Negative prompt:" reads back differently, and
readers strip each line, which is why there is a record (`storage.picture_record`) beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from storage.errors import BadInputError
from storage.inputs import (
    CONTROL_IMAGE,
    CONTROL_SCALE,
    INIT_IMAGE,
    INPUTS,
    MASK_IMAGE,
    STRENGTH,
    inputs_of,
    is_hash,
)
from storage.loras import OPTION as LORAS
from storage.loras import lora_list, take_tags, write_tags
from storage.parameters import IMAGE_FORMATS, JobParameters
from storage.prompt_syntax import PROMPT_SYNTAXES
from storage.samplers import SCHEDULES, resolve_sampler, sampler_label

_NEGATIVE = "Negative prompt:"
_LORA_HASHES = "Lora hashes"
_MIN_PAIRS = 3  # what readers want to see before they believe that a line holds parameters
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_KEY = re.compile(r"\w[\w \-/]+")
_SIZE = re.compile(r"(\d+)x(\d+)")
_INTEGERS = {"Steps": "num_inference_steps", "Seed": "seed"}
_OPTIONS = {
    "Eta DDIM": "eta",  # A1111's name; its "Eta" belongs to ancestral samplers
    "Guidance rescale": "guidance_rescale",
    "Guidance interval": "guidance_interval",
    "Prompt syntax": "prompt_syntax",
    "Image format": "image_format",
    "Image quality": "quality",
    "Denoising strength": STRENGTH,
    "Init image hash": INIT_IMAGE,
    "Mask image hash": MASK_IMAGE,
    "Control image hash": CONTROL_IMAGE,
    "Control scale": CONTROL_SCALE,
}
_OPTION_LABELS = {name: label for label, name in _OPTIONS.items()}
_WORDS = (*PROMPT_SYNTAXES, *IMAGE_FORMATS)  # values of options that are no JSON
_TEXTS = {"Model": "model", "Model hash": "model_hash", "Version": "version"}
_SCHEDULE_BY_LABEL = {label.casefold(): name for name, label in SCHEDULES.items() if label}


def write_infotext(
    parameters: JobParameters,
    *,
    model: str,
    model_hash: str | None,
    version: str,
    lora_hashes: Mapping[str, str] | None = None,
) -> str:
    """Write the infotext of one picture.

    Args:
        parameters: the job's, all filled in; a field that is None is left out.
        model: the model's name.
        model_hash: short hash of its weights or revision, if known.
        version: promptmill's version.
        lora_hashes: short hashes of the job's LoRAs by name, as far as they are known.

    Returns:
        The prompt with A1111's tags of the LoRAs behind it, the negative prompt where there is one, and the
        line of parameters.
    """
    lines = [parameters.prompt + write_tags(parameters.options)]
    if parameters.negative_prompt:
        lines.append(f"{_NEGATIVE} {parameters.negative_prompt}")
    pairs = _pairs(
        parameters, model=model, model_hash=model_hash, version=version, lora_hashes=lora_hashes or {}
    )
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value))
    return "\n".join(lines)


def read_infotext(text: str) -> dict[str, Any]:
    """Read an infotext, ours or another program's.

    Returns:
        `prompt` and `negative_prompt`; where the text has them `num_inference_steps`, `sampler`, `schedule`,
        `guidance_scale`, `seed`, `width`, `height`, `options`, `model`, `model_hash` and `version`; and under
        `other` every pair that has no place of its own or cannot be understood, as text.
    """
    *body, last = text.strip().split("\n")
    pairs = {match[1]: _unquoted(match[2].strip()) for match in _PAIR.finditer(last)}
    if len(pairs) < _MIN_PAIRS:
        body, pairs = [*body, last], {}
    negative_at = next((at for at, line in enumerate(body) if line.lstrip().startswith(_NEGATIVE)), len(body))
    negative = "\n".join(body[negative_at:]).lstrip().removeprefix(_NEGATIVE)
    prompt = "\n".join(body[:negative_at]).strip()
    return _with_loras({"prompt": prompt, "negative_prompt": negative.strip(), **_fields(pairs)})


def _with_loras(fields: dict[str, Any]) -> dict[str, Any]:
    """Take A1111's tags out of the prompt; those that cannot be read stay there, to be refused."""
    try:
        prompt, pairs = take_tags(fields["prompt"])
        loras = lora_list(pairs)
    except BadInputError:
        return fields
    if not loras:
        return fields | {"prompt": prompt}
    return fields | {"prompt": prompt, "options": {**fields.get("options", {}), LORAS: loras}}


def _pairs(
    parameters: JobParameters,
    *,
    model: str,
    model_hash: str | None,
    version: str,
    lora_hashes: Mapping[str, str],
) -> dict[str, str]:
    sampler = sampler_label(parameters.sampler) if parameters.sampler else ""
    size = f"{parameters.width}x{parameters.height}" if parameters.width and parameters.height else ""
    told = sorted((key, value) for key, value in parameters.options.items() if key != LORAS)
    options = {_label(key): _value(value) for key, value in told}
    return {
        "Steps": _number(parameters.num_inference_steps),
        "Sampler": sampler,
        "Schedule type": SCHEDULES.get(parameters.schedule or "default", ""),
        "CFG scale": _number(parameters.guidance_scale),
        "Seed": str(parameters.seed),
        "Size": size,
        "Model hash": model_hash or "",
        "Model": model,
        **{key: value for key, value in options.items() if _KEY.fullmatch(key)},
        _LORA_HASHES: ", ".join(f"{name}: {found}" for name, found in lora_hashes.items()),
        "RNG": "CPU",
        "Version": f"promptmill {version}",
    }


def _fields(pairs: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    other: dict[str, str] = {}
    for key, value in pairs.items():
        try:
            if key in _OPTIONS:
                fields.setdefault("options", {})[_OPTIONS[key]] = _option(_OPTIONS[key], value)
                continue
            fields |= _field(key, value)
        except (ValueError, BadInputError):
            other[key] = value
    _drop_without_input(fields, other)
    # "DPM++ 2M Karras" of older files says the schedule with the sampler; an explicit type wins.
    label = other.get("Schedule type", "")
    if label == "Automatic":
        del other["Schedule type"]
        fields.setdefault("schedule", "default")
    return {**fields, "other": other}


def _option(name: str, value: str) -> Any:
    """Return an option's value; ValueError when it is none of ours."""
    if name not in INPUTS:
        return value if value in _WORDS else json.loads(value)
    if not is_hash(value):  # another program's way to name a picture
        raise ValueError(value)
    return value


def _drop_without_input(fields: dict[str, Any], other: dict[str, str]) -> None:
    """Put aside what is said of a picture that nobody can name: A1111 writes a strength alone."""
    options = fields.get("options", {})
    for label, of in (("Denoising strength", INIT_IMAGE), ("Control scale", CONTROL_IMAGE)):
        if _OPTIONS[label] in options and of not in inputs_of(options):
            other[label] = str(options.pop(_OPTIONS[label]))
    if not options:
        fields.pop("options", None)


def _field(key: str, value: str) -> dict[str, Any]:
    """Return our name(s) for one pair; ValueError or BadInputError when it has no place of its own."""
    if key in _INTEGERS:
        return {_INTEGERS[key]: int(value)}
    if key in _TEXTS:
        return {_TEXTS[key]: value}
    match key:
        case "Sampler":
            sampler, schedule = resolve_sampler(value)
            return {"sampler": sampler, **({"schedule": schedule} if schedule else {})}
        case "Schedule type" if value.casefold() in _SCHEDULE_BY_LABEL:
            return {"schedule": _SCHEDULE_BY_LABEL[value.casefold()]}
        case "CFG scale":
            return {"guidance_scale": float(value)}
        case "Size" if size := _SIZE.fullmatch(value):
            return {"width": int(size[1]), "height": int(size[2])}
    raise ValueError(key)


def _number(value: float | None) -> str:
    """Write a number the way people do (7, not 7.0) without losing a digit."""
    return "" if value is None else repr(value).removesuffix(".0")


def _label(key: str) -> str:
    return _OPTION_LABELS.get(key, key.replace("_", " ").capitalize())


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _quoted(value: str) -> str:
    if value != value.strip() or any(character in value for character in ',:"\n'):
        return json.dumps(value, ensure_ascii=False)
    return value


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value
