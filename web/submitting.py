"""From what a form or a program has sent to a submission: by the command line's own readers and checks."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints

from producer.limits import Most
from producer.models import choose_model, named_model
from producer.options import MAX_KEY_LENGTH
from producer.ordering import order_of, read_asked
from producer.output import hearing
from producer.readers.opening import Source, Upload
from producer.submitting import submit_order
from storage.errors import BadInputError
from storage.records import Submission
from web.site import Site

MAX_PROMPTS = 100_000  # of a JSON body; a file may have more
MAX_NAME = 200  # characters of a file's name that are kept
# A short request can ask for very much: templates, sweeps and images multiply.
MOST = Most(jobs=1_000_000, characters=256_000_000, instead="split it, or use `promptmill submit`")
InputFormat = Literal["text", "kohya", "a1111", "csv", "tsv", "jsonl", "json", "parquet"]
_Text = Annotated[str, StringConstraints(max_length=10_000)]
_Texts = Annotated[list[_Text], Field(max_length=100)]


class Flags(BaseModel):
    """What the flags of `promptmill submit` say, by the same names; what is left out is left to the model."""

    model_config = ConfigDict(extra="forbid", title="Settings")

    model: _Text | None = Field(default=None, description="By its name; the only known one may be left out.")
    negative: _Text = ""
    images: int = Field(default=1, description="Pictures of each prompt, or of each of its seeds.")
    seed: str | int | None = Field(default=None, description="`42`, `1,2,5..9` or `random`.")
    seed_per_prompt: bool = False
    sweep: _Texts = Field(default_factory=list, description="`guidance=3,5,7.5`; all combinations.")
    zip: bool = Field(default=False, description="Pair the values of the sweeps instead.")
    steps: int | None = None
    guidance: float | None = None
    sampler: _Text | None = None
    schedule: Literal["default", "karras", "exponential", "beta"] | None = None
    size: _Text | None = Field(default=None, description="`512x768`.")
    eta: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: _Text | None = Field(default=None, description="`0.2:0.8`.")
    prompt_syntax: Literal["plain", "weighted"] | None = None
    loras: _Texts = Field(default_factory=list, description="`NAME:WEIGHT`, of those that workers have.")
    image_format: Literal["png", "jpeg", "webp"] | None = None
    quality: int | None = None
    styles: _Texts = Field(default_factory=list, description="Of the home's presets.toml.")
    presets: _Texts = Field(default_factory=list, description="Likewise.")
    templates: Literal["off", "random", "all"] = "off"
    template_seed: int | None = None
    name: _Text | None = None
    priority: int = 0
    weight: float = 1.0
    max_running: int | None = None
    key: Annotated[str, StringConstraints(max_length=MAX_KEY_LENGTH)] | None = Field(
        default=None, description="Idempotency key; the header `Idempotency-Key` says the same."
    )
    again: bool = False
    reuse: bool = False
    skip_bad: bool = False
    input_format: InputFormat | None = Field(
        default=None, description="Of a file; seen from its content otherwise."
    )


class NewSubmission(Flags):
    """Prompts with their flags."""

    model_config = ConfigDict(extra="forbid", title="NewSubmission")

    prompts: Annotated[
        list[_Text | dict[str, Any]], Field(min_length=1, max_length=MAX_PROMPTS), FailFast()
    ] = Field(
        description="Each a text, or an object with the columns of a prompt file: prompt, seed, steps, …"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """What became of it.

    Attributes:
        new: whether jobs were added; False where the same was submitted before.
        remarks: what the command line would have said on stderr.
    """

    submission: Submission
    new: bool
    remarks: list[str]


def submit(site: Site, flags: Flags, sources: Sequence[Source], texts: Sequence[str] = ()) -> Submitted:
    """Read, check and submit prompts; what is written first is safe before anything is answered.

    Raises:
        BadInputError: listing what cannot be used; nothing was written.
    """
    with hearing() as remarks:
        given = _as_flags(flags) | {"files": tuple(sources), "texts": tuple(texts)}
        asked = read_asked(site.settings, given, may_name_files=False, most=MOST)
        model = choose_model(site.models(), named_model(asked.prompts.model, flags.model or None))
        order = order_of(asked, model)
        submission, new = submit_order(site.jobs, order, committed=lambda _: None)
    told = [site.discretion.text(one) for one in remarks]
    return Submitted(submission=submission, new=new, remarks=told)


def _as_flags(flags: Flags) -> dict[str, Any]:
    """Return the flags as the command line has them: paths are not for callers from elsewhere to say."""
    given = flags.model_dump(exclude={"model", "prompts"})
    given["zipped"] = given.pop("zip")
    given["seed"] = None if flags.seed is None else str(flags.seed)
    return given | {"width": None, "height": None, "pictures": (), "presets_file": None, "wildcards": None}


def as_upload(prompts: Sequence[str | dict[str, Any]], *, name: str) -> Upload:
    """Return prompts as the JSON file that they could have come in."""
    return Upload(name=name, file=io.BytesIO(json.dumps(list(prompts)).encode()))


def named_upload(name: str | None, file: BinaryIO) -> Upload:
    """Return a file that was sent; its name is for messages only."""
    last = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    return Upload(name=last[:MAX_NAME] or "upload", file=file)


def with_key(flags: Flags, header: str | None) -> Flags:
    """Return the flags with the idempotency key of the header.

    Raises:
        BadInputError: when the two say different keys.
    """
    if header is None:
        return flags
    if flags.key not in (None, header):
        raise BadInputError("The header Idempotency-Key and `key` differ; leave one of them out.")
    return flags.model_copy(update={"key": header})
