"""From pixels to a file's bytes; the same pixels and texts always give the same bytes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from storage.parameters import DEFAULT_QUALITY, JPEG, PNG, WEBP
from storage.picture_metadata import INFOTEXT, Texts, exif_of, jpeg_segments, xmp_of
from storage.picture_record import RECORD

# Fixed: other settings would make another file of the same picture.
COMPRESS_LEVEL = 6
# Colours at full resolution: halved, they bleed at the sharp edges that prompts ask for. Baseline, with the
# standard Huffman tables: any decoder reads it, and Pillow need not guess how large the file may become.
JPEG_SETTINGS: Mapping[str, Any] = {"subsampling": 0, "progressive": False, "optimize": False}
WEBP_SETTINGS: Mapping[str, Any] = {"method": 4, "lossless": False}

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def encode_picture(pixels: Pixels, texts: Texts, options: Mapping[str, Any]) -> bytes:
    """Write a picture in the format that its job asks for.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        texts: what it says of itself.
        options: of the job; `image_format` and `quality` count.

    Returns:
        The file's bytes; nothing in them depends on time or machine.
    """
    quality = options.get("quality", DEFAULT_QUALITY)
    match options.get("image_format", PNG):
        case "jpeg":
            return _jpeg(pixels, texts, quality)
        case "webp":
            return _webp(pixels, texts, quality)
    return encode_png(pixels, {INFOTEXT: texts.infotext, RECORD: texts.record})


def encode_png(pixels: Pixels, text: Mapping[str, str]) -> bytes:
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


def encoder_versions(image_format: str) -> dict[str, str]:
    """Name the library that writes a lossy format, and its version: another one may make other bytes."""
    if image_format == JPEG:
        turbo = features.version("libjpeg_turbo")
        return {"libjpeg_turbo": turbo} if turbo else {"libjpeg": features.version("jpg") or "unknown"}
    return {"libwebp": features.version("webp") or "unknown"} if image_format == WEBP else {}


def pixel_sha256(pixels: Pixels) -> str:
    """Hash a picture's raw RGB bytes, row by row, as they were rendered.

    It is what any reader gets from a decoded PNG; of JPEG and WebP, which are lossy, nobody does.
    """
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _jpeg(pixels: Pixels, texts: Texts, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, **JPEG_SETTINGS)
    data = buffer.getvalue()
    # Pillow refuses EXIF and XMP of more than one segment. Ours go behind JFIF's, which has to be the first.
    first = 4 + int.from_bytes(data[4:6], "big")
    return data[:first] + jpeg_segments(texts) + data[first:]


def _webp(pixels: Pixels, texts: Texts, quality: int) -> bytes:
    buffer = io.BytesIO()
    exif, xmp = exif_of(texts.infotext), xmp_of(texts.record)
    Image.fromarray(pixels).save(buffer, format="WEBP", quality=quality, exif=exif, xmp=xmp, **WEBP_SETTINGS)
    return buffer.getvalue()
