"""The flags of pictures that jobs begin with, which `submit` and `render` share."""

from __future__ import annotations

import click

from producer.options import stacked
from storage.inputs import (
    CONTROL_SCALE,
    DEFAULT_CONTROL_SCALE,
    DEFAULT_MASKED_STRENGTH,
    DEFAULT_STRENGTH,
    MAX_CONTROL_SCALE,
)

input_flags = stacked(
    click.option(
        "--init-image", metavar="FILE",
        help="Picture that the jobs begin with, PNG, JPEG or WebP. Its size is theirs, unless one is given.",
    ),
    click.option(
        "--mask", "mask_image", metavar="FILE", help="Where it is white the init image is painted anew."
    ),
    click.option(
        "--strength", type=float, metavar="X",
        help="How much of the init image is changed, over 0 to 1. "
        f"Default: {DEFAULT_STRENGTH:g}, {DEFAULT_MASKED_STRENGTH:g} with a mask.",
    ),
    click.option(
        "--control-image", metavar="FILE", help="What steers the worker's ControlNet: edges, depth, a pose."
    ),
    click.option(
        "--control-scale", CONTROL_SCALE, type=float, metavar="X",
        help=f"How strongly, 0 to {MAX_CONTROL_SCALE:g}. Default: {DEFAULT_CONTROL_SCALE:g}.",
    ),
)  # fmt: skip
