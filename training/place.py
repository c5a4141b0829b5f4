"""The two folders of a run: one that it works in, and one that the model moves into when it is whole."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import TrainingError


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Hold the work folder: two runs in one would write into each other's files."""
    with (work / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(f"Another process makes a model in {work}; name another --work.") from error
        yield


def check_model(model: Path, work: Path) -> None:
    """Refuse a folder that is no model, before anything is made that would take its place.

    Raises:
        TrainingError: one sentence that says which folder.
    """
    _put_back(model)
    if model in (work, *work.parents):
        raise TrainingError(
            f"{model} holds the work folder {work}, and the model replaces it; name another --model."
        )
    if model.exists() and not model.is_dir():
        raise TrainingError(f"{model} is a file, and a folder is wanted; name another --model.")
    if model.is_dir() and any(model.iterdir()) and not (model / "model_index.json").exists():
        raise TrainingError(f"{model} is no model, and would be replaced by one; name another --model.")


def replace(model: Path, exported: Path) -> None:
    """Put a copy of the exported folder in the model's place; a kill leaves the old one or the new one."""
    new, old = _beside(model)
    shutil.rmtree(new, ignore_errors=True)
    model.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(exported, new)
    if model.exists():
        model.rename(old)
    new.rename(model)
    shutil.rmtree(old, ignore_errors=True)


def _put_back(model: Path) -> None:
    """Undo half of a replacement."""
    _, old = _beside(model)
    if old.exists() and not model.exists():
        old.rename(model)
    shutil.rmtree(old, ignore_errors=True)


def _beside(model: Path) -> tuple[Path, Path]:
    return model.with_name(f".{model.name}.new"), model.with_name(f".{model.name}.old")
