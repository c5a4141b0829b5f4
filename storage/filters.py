"""Which jobs of a submission are meant: by words of their prompt and by the values of their columns.

Every database gives the same answer, since it is given here: SQLite knows upper and lower case of ASCII only,
and PostgreSQL that of its locale.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.loras import told_options
from storage.parameters import JobParameters

SETTINGS = (
    "prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "width", "height",
    "sampler", "schedule",
)  # fmt: skip
OPTIONS = (
    "eta", "guidance_rescale", "guidance_interval", "prompt_syntax", "loras", "init_image", "mask_image",
    "control_image", "strength", "controlnet_conditioning_scale",
)  # fmt: skip
SIZE = "size"
ALIASES = {
    "text": "prompt", "caption": "prompt", "negative": "negative_prompt", "steps": "num_inference_steps",
    "guidance": "guidance_scale", "cfg": "guidance_scale", "cfg_scale": "guidance_scale",
}  # fmt: skip
OWN_COLUMNS = (*SETTINGS, *OPTIONS, SIZE, *ALIASES)
EXTRA = "extra_"  # before the name of a prompt file's column that is called like one of ours


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFilter:
    """What a job must have to be meant; an empty filter means all.

    Attributes:
        match: a part of the prompt, in upper or lower case; every character stands for itself.
        where: for each column the values of which it has one, as a user types them.
    """

    match: str = ""
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.match or self.where)

    def keeps(self, job: JobParameters) -> bool:
        """Whether a job is meant."""
        if self.match and _folded(self.match) not in _folded(job.prompt):
            return False
        return all(
            any(_is(column_of(job, name), text) for text in texts) for name, texts in self.where.items()
        )


def column_of(job: JobParameters, name: str) -> Any:
    """Return the value that a job has in a column: a setting, an option, or one of its prompt file's own.

    Args:
        job: whose value.
        name: as in exports, or one of the short names of `ALIASES`; `size` is WIDTHxHEIGHT.

    Returns:
        The value; None where the job has none.
    """
    if name in SETTINGS:
        return getattr(job, name)
    if name in job.options:
        return told_options(job.options)[name]
    if name in job.extra:
        return job.extra[name]
    if name.startswith(EXTRA):
        return job.extra.get(name.removeprefix(EXTRA))
    if name == SIZE:
        return f"{job.width}x{job.height}" if job.width and job.height else None
    return getattr(job, ALIASES[name]) if name in ALIASES else None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _is(value: Any, text: str) -> bool:
    """Whether a value is what a user's text means; an empty text means no value."""
    match value:
        case None:
            return not text
        case bool():
            return text.casefold() == str(value).casefold()
        case int() | float():
            return value == _number(text)
        case str():
            return value == text
        case _:
            return json.dumps(value, ensure_ascii=False) == text


def _number(text: str) -> int | float | None:
    for kind in (int, float):  # a seed has more digits than a float keeps
        try:
            return kind(text)
        except ValueError:
            continue
    return None
