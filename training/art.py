"""Fetch the art: Noto Emoji, Apache-2.0, as the npm package emoji-datasource-google carries it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from training.errors import TrainingError
from training.vocabulary import EMOJI_NAMES, NOUNS

PACKAGE = "emoji-datasource-google"
VERSION = "16.0.0"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
NOTICE = (
    f"Trained on images derived from Noto Emoji v2.048 (Google, Apache License 2.0), as packaged by the npm "
    f"package {PACKAGE} {VERSION} (package code: MIT).\n"
)
ART_SIZE = 64  # pixels, each picture's width and height


def fetch_art(folder: Path) -> Path:
    """Download the package into `folder` unless it is there, check it, and return the tarball's path.

    Raises:
        TrainingError: when npm is missing or fails, or the package is not the one that was trained on.
    """
    path = folder / f"{PACKAGE}-{VERSION}.tgz"
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise TrainingError(f"The art is an npm package; install npm, or put {path.name} into {folder}.")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            command = [npm, "pack", "--loglevel=error", f"{PACKAGE}@{VERSION}"]
            done = subprocess.run(  # noqa: S603 - a fixed command
                command, cwd=partial, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise TrainingError(f"npm cannot fetch {PACKAGE} {VERSION}: {done.stderr.strip()}")
            (Path(partial) / path.name).rename(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise TrainingError(f"{path} is not the package that was trained on (sha256 {digest}); remove it.")
    return path


def read_art(tarball: Path) -> dict[str, np.ndarray]:
    """Return each noun's picture: float32 RGBA in 0..1, shape (64, 64, 4), not premultiplied."""
    with tarfile.open(tarball) as archive:
        index = json.load(_open(archive, "package/emoji.json"))
        files = {entry["short_name"]: entry["image"] for entry in index}
        return {noun: _read(archive, files[EMOJI_NAMES.get(noun, noun)]) for noun in NOUNS}


def _open(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    if file is None:
        raise TrainingError(f"The package has no file {name}.")
    return file


def _read(archive: tarfile.TarFile, name: str) -> np.ndarray:
    with Image.open(_open(archive, f"package/img/google/64/{name}")) as picture:
        return np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
