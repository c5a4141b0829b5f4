"""From pixels to a file's bytes; the same pixels and text always give the same bytes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

COMPRESS_LEVEL = 6  # fixed: another level would be another file for the same picture


def encode_png(pixels: np.ndarray[Any, np.dtype[np.uint8]], text: Mapping[str, str]) -> bytes:
    """Write a PNG with text chunks.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        text: chunk key -> text, written in this order (e.g. `parameters`, `promptmill`); what Latin-1 cannot
            hold goes into an iTXt chunk.

    Returns:
        The file's bytes; nothing in them depends on time or machine.
    """
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=chunks, compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()


def pixel_sha256(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    """Hash a picture's raw RGB bytes, row by row: what any reader gets from the decoded file."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
