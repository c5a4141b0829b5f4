"""What a job begins with besides its prompt: which kind of job that makes, and what its pipeline is given."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from storage.errors import BadInputError
from storage.inputs import (
    CONTROL_IMAGE,
    CONTROL_SCALE,
    DEFAULT_CONTROL_SCALE,
    INIT_IMAGE,
    MASK_IMAGE,
    STRENGTH,
    as_rgb,
    with_strength,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from storage.parameters import JobParameters

Pictures = Mapping[str, "Image"]  # decoded, by their name in `storage.inputs.INPUTS`


class Kind(StrEnum):
    """What a job makes its picture of; the value is what a pipeline's class is called for it."""

    TEXT = ""
    IMG2IMG = "Img2Img"
    INPAINT = "Inpaint"
    CONTROL = "ControlNet"
    CONTROL_IMG2IMG = "ControlNetImg2Img"
    CONTROL_INPAINT = "ControlNetInpaint"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names in INPUTS of what such a job has."""
        return _NEEDS[self]


_NEEDS = {
    Kind.TEXT: (),
    Kind.IMG2IMG: (INIT_IMAGE,),
    Kind.INPAINT: (INIT_IMAGE, MASK_IMAGE),
    Kind.CONTROL: (CONTROL_IMAGE,),
    Kind.CONTROL_IMG2IMG: (INIT_IMAGE, CONTROL_IMAGE),
    Kind.CONTROL_INPAINT: (INIT_IMAGE, MASK_IMAGE, CONTROL_IMAGE),
}


def kind_of(options: Mapping[str, Any]) -> Kind:
    """Return which kind of job has these options."""
    named = tuple(name for name in (INIT_IMAGE, MASK_IMAGE, CONTROL_IMAGE) if name in options)
    found = next((kind for kind, needs in _NEEDS.items() if needs == named), None)
    if found is None:
        raise BadInputError("A mask is about an init image, and this job has none; leave the mask out.")
    return found


def fitted(pictures: Pictures, job: JobParameters) -> dict[str, Any]:
    """Return pictures in a job's size and in RGB, resized as diffusers' VaeImageProcessor does (Lanczos)."""
    from PIL import Image  # noqa: PLC0415  (only inputs need it)

    if job.width is None or job.height is None:
        raise BadInputError("A job's size is not known even with the model's defaults; give one.")
    size = job.width, job.height
    plain = {name: as_rgb(picture) for name, picture in pictures.items()}
    return {
        name: picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
        for name, picture in plain.items()
    }


def picture_arguments(
    job: JobParameters, pictures: Pictures | None, parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Return the arguments of a pipeline's call that are about pictures.

    Args:
        job: with no field None.
        pictures: in its size; None where only the arguments are to be checked.
        parameters: what the pipeline takes. Its `image` is the init image; where there is none, and it has no
            `control_image`, the control image.
    """
    kind = kind_of(job.options)
    if kind is Kind.TEXT:
        return {}
    names = {INIT_IMAGE: "image", MASK_IMAGE: "mask_image"}
    names[CONTROL_IMAGE] = "control_image" if "control_image" in parameters else "image"
    found: dict[str, Any] = {names[name]: (pictures or {}).get(name) for name in kind.needs}
    if INIT_IMAGE in kind.needs:
        found["strength"] = with_strength(job.options)[STRENGTH]
    if CONTROL_IMAGE in kind.needs:
        scale = job.options.get(CONTROL_SCALE, DEFAULT_CONTROL_SCALE)
        found["controlnet_conditioning_scale"] = float(scale)
    return found


def example(kind: Kind, size: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return options and pictures of a job of a kind, to see how its pipeline calls its denoiser.

    Args:
        kind: of the job.
        size: (width, height) in pixels.
    """
    from PIL import Image  # noqa: PLC0415  (likewise)

    options: dict[str, Any] = dict.fromkeys(kind.needs, "0" * 64)
    if INIT_IMAGE in kind.needs:
        options[STRENGTH] = 1.0
    grey = {INIT_IMAGE: 96, MASK_IMAGE: 255, CONTROL_IMAGE: 160}
    return options, {name: Image.new("RGB", size, (grey[name],) * 3) for name in kind.needs}
