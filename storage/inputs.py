"""Pictures that jobs begin with: what they are called, where they rest, which ones can be used.

A job names each by the sha256 of its file, under one of `INPUTS` in its options. The file lies in the picture
store under that hash, once, however many jobs share it: `inputs/ab/abcdef…`. Equal files are one input, and
what is read back can be held against its name.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from storage.errors import BadInputError

if TYPE_CHECKING:
    from PIL.Image import Image

TAKES = "takes"  # beside a worker's defaults: which of INPUTS its model can begin with
FOLDER = "inputs"  # of the picture store; no submission has such an id
INIT_IMAGE, MASK_IMAGE, CONTROL_IMAGE = INPUTS = ("init_image", "mask_image", "control_image")
STRENGTH, CONTROL_SCALE = "strength", "controlnet_conditioning_scale"
# What diffusers' StableDiffusionImg2ImgPipeline and StableDiffusionInpaintPipeline take; others take others,
# and a job's strength is always written down, so that it means the same whatever renders it.
DEFAULT_STRENGTH, DEFAULT_MASKED_STRENGTH = 0.8, 1.0
DEFAULT_CONTROL_SCALE = 1.0
MAX_CONTROL_SCALE = 10.0
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000  # decoded they take 256 MB
FORMATS = ("PNG", "JPEG", "WEBP")
_HASH = re.compile(r"[0-9a-f]{64}")
_SHOWN = {INIT_IMAGE: "init image", MASK_IMAGE: "mask", CONTROL_IMAGE: "control image"}
OF_INPUTS = frozenset((*INPUTS, STRENGTH, CONTROL_SCALE))


def shown_input(name: str) -> str:
    """Return what people call one of INPUTS."""
    return _SHOWN[name]


def is_hash(value: Any) -> bool:
    """Whether a value is a sha256 as jobs have it: 64 hexadecimal digits in lower case."""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def input_key(sha256: str) -> str:
    """Return where an input lies in the picture store."""
    if not is_hash(sha256):
        raise BadInputError(f"{sha256[:80]!r} is no hash of an input; those are 64 hexadecimal digits.")
    return f"{FOLDER}/{sha256[:2]}/{sha256}"


def hash_in(name: str) -> str | None:
    """Return the hash of the input that a file of the store is; None for any other file."""
    sha256 = name.rpartition("/")[2]
    return sha256 if is_hash(sha256) and name == input_key(sha256) else None


def inputs_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of a job's inputs, by their name in INPUTS."""
    return {name: options[name] for name in INPUTS if name in options}


def check_input_option(name: str, value: Any) -> None:
    """Check one option of this module by itself.

    Raises:
        BadInputError: when it cannot be used.
    """
    if name in INPUTS:
        if not is_hash(value):
            raise BadInputError(f"The {shown_input(name)} is no sha256 of a file; name the file itself.")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == STRENGTH and not (number and 0 < value <= 1):
        raise BadInputError(f"strength {value} is out of range; choose a number over 0, up to 1.")
    if name == CONTROL_SCALE and not (number and 0 <= value <= MAX_CONTROL_SCALE):
        raise BadInputError(
            f"{CONTROL_SCALE} {value} is out of range; choose a number from 0 to {MAX_CONTROL_SCALE:g}."
        )


def check_inputs_together(options: Mapping[str, Any], steps: int | None) -> None:
    """Check a job's options of this module together: flags and line apart need not be complete.

    Args:
        options: of the job.
        steps: its num_inference_steps, where they are known.

    Raises:
        BadInputError: about what says something of an input that the job does not have.
    """
    if INIT_IMAGE not in options:
        for name, what in ((MASK_IMAGE, "A mask"), (STRENGTH, "strength")):
            if name in options:
                raise BadInputError(
                    f"{what} is about an init image, and this job has none; add one with --init-image or in "
                    f"a column init_image, or leave it out."
                )
    if CONTROL_SCALE in options and CONTROL_IMAGE not in options:
        raise BadInputError(
            f"{CONTROL_SCALE} is about a control image, and this job has none; add one with --control-image "
            f"or in a column control_image, or leave it out."
        )
    strength = options.get(STRENGTH)
    if strength is not None and steps is not None and int(steps * strength) < 1:
        raise BadInputError(
            f"With strength {strength:g} none of {steps} steps is left; ask for more steps or more strength."
        )


def with_strength(options: dict[str, Any]) -> dict[str, Any]:
    """Write down the strength that a job with an init image and no strength of its own has."""
    if INIT_IMAGE not in options or STRENGTH in options:
        return options
    usual = DEFAULT_MASKED_STRENGTH if MASK_IMAGE in options else DEFAULT_STRENGTH
    return {**options, STRENGTH: usual}


def open_input(data: bytes) -> Image:
    """Decode an input whole, as it was meant to be looked at: turned as its EXIF data say.

    Raises:
        BadInputError: one sentence that begins small, after the input's name.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415  (only inputs need it)

    if len(data) > MAX_BYTES:
        raise BadInputError(f"it has {len(data):,} bytes; make it smaller, at most {MAX_BYTES:,}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit is below the one that Pillow warns of
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_shape(picture)
            picture.load()
            return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        raise BadInputError("it is no picture; name a PNG, JPEG or WebP file.") from error
    except Image.DecompressionBombError as error:
        raise BadInputError(_too_large("more")) from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise BadInputError(
            f"it is damaged ({' '.join(str(error).split())[:200]}); save it again."
        ) from error


def as_rgb(picture: Image) -> Image:
    """Return a picture in the colours that pipelines take; what was transparent keeps the colour below."""
    if picture.mode == "P":
        picture = picture.convert("RGBA")  # else Pillow warns of some palettes
    return picture.convert("RGB")


def digest(data: bytes) -> str:
    """Return the sha256 of an input's file."""
    return hashlib.sha256(data).hexdigest()


def _check_shape(picture: Image) -> None:
    """Refuse, before it is decoded, what would not fit into memory or would come out white."""
    pixels = picture.width * picture.height
    if pixels > MAX_PIXELS:
        raise BadInputError(_too_large(f"{pixels:,}"))
    if picture.mode.startswith(("I", "F")):
        raise BadInputError("it has more than 8 bits a channel; save it with 8.")


def _too_large(pixels: str) -> str:
    return f"it has {pixels} pixels, and at most {MAX_PIXELS:,} are taken; make it smaller."
