"""Small copies of pictures: each made once and kept below the home, where they may be deleted at any time."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import threading
from pathlib import Path

from PIL import Image as Picture

from producer.pictures import read_picture
from storage.errors import UnreachableError
from storage.imagestore import ImageStore
from storage.local_files import room_below
from storage.records import Image, Job

EDGE = 320  # pixels of the longer side: sharp at 160 CSS pixels on a dense screen
QUALITY = 80
AT_ONCE = 2  # pictures that are decoded at a time, each of them up to 16 MB of pixels
MEDIA_TYPE = "image/webp"


class Thumbnails:
    """Makes, keeps and finds thumbnails.

    Args:
        folder: where they are kept, one folder for each submission, so that `prune` can remove it.
        images: where pictures rest.
    """

    def __init__(self, folder: Path, images: ImageStore) -> None:
        self._folder = folder
        self._images = images
        self._makers = threading.BoundedSemaphore(AT_ONCE)

    def find(self, job: Job, image: Image) -> bytes:
        """Return a picture's thumbnail as WebP, made now if there is none.

        Raises:
            UnreachableError: when the picture cannot be read, or is not what it was.
        """
        path = self._path(job, image)
        # Whoever stood in line before this one may have made it.
        if (kept := _kept(path)) is not None:
            return kept
        whole = read_picture(self._images, image)
        with self._makers:
            if (kept := _kept(path)) is not None:
                return kept
            data = _shrunk(whole, image.key)
            with contextlib.suppress(OSError):  # a full disk costs time, not the page
                _keep(path, data)
        return data

    def kept(self, job: Job, image: Image) -> bytes | None:
        """Return a picture's thumbnail if there is one already."""
        return _kept(self._path(job, image))

    def _path(self, job: Job, image: Image) -> Path:
        # Both names come from rows and are made of letters and digits; nothing of a request is in them.
        return self._folder / job.submission / f"{image.file_sha256}.webp"


def thumbnail_tag(image: Image) -> str:
    """Return what stays the same as long as a picture's thumbnail does."""
    return f"{image.file_sha256[:32]}-{EDGE}"


def _shrunk(data: bytes, key: str) -> bytes:
    try:
        with Picture.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (EDGE, EDGE))  # of a JPEG only as much is decoded as is needed
            small = opened.convert("RGB")
    except OSError as error:
        raise UnreachableError(
            f"The picture {key} cannot be decoded ({error}); run `promptmill verify`."
        ) from error
    is_small = max(small.size) <= EDGE
    small.thumbnail((EDGE, EDGE), Picture.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, lossless=is_small)
    return buffer.getvalue()


def _kept(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _keep(path: Path, data: bytes) -> None:
    """Write a thumbnail whole or not at all; nobody needs it to survive a power cut."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if room_below(path.parent) < len(data):
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
