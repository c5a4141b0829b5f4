"""How a model is named: `NAME=REPO_OR_PATH[@REVISION]`, or a bare repo that derives its name.

A checkpoint in one file may name where its configs are: `NAME=FILE.safetensors@CONFIG`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from storage.errors import BadInputError

BUILTIN_MODEL = "demo"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
SINGLE_FILE = ".safetensors"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReference:
    """A model's name in promptmill and where its files come from.

    Attributes:
        name: what jobs and queues carry; lower case letters, digits, dot, underscore, dash.
        source: a folder in diffusers layout, a checkpoint in one file, or a hub repo id.
        revision: a branch, tag or commit of the repo; None for what is local and for the default branch.
        config: where a single file's configs are, a folder in diffusers layout or a hub repo id; None for the
            repo that diffusers takes for checkpoints of its kind.
    """

    name: str
    source: str
    revision: str | None = None
    config: str | None = None

    def __str__(self) -> str:
        """Render back to `NAME=REPO_OR_PATH[@REVISION]`."""
        behind = self.revision or self.config
        return f"{self.name}={self.source}" + (f"@{behind}" if behind else "")

    @property
    def folder(self) -> Path | None:
        """Where its configs are on this machine; None if they are on the hub."""
        own = self.config if is_single_file(self.source) else self.source
        return None if own is None or not os.path.isabs(own) else Path(own)  # noqa: PTH117  (a repo is no path)


def builtin_model_path() -> Path:
    """Find the model that comes with the project: in the checkout, else beside the installed packages."""
    above = Path(__file__).resolve().parent.parent
    candidates = (above / "models" / BUILTIN_MODEL, above / "promptmill_models" / BUILTIN_MODEL)
    return next((path for path in candidates if path.is_dir()), candidates[0])


def check_model_name(name: str) -> str:
    """Return `name` if it can name a model and its queue, else raise BadInputError."""
    if not _NAME.fullmatch(name):
        raise BadInputError(
            f"{name!r} cannot name a model; use lower case letters, digits, '.', '_' and '-', at most 63."
        )
    return name


def parse_model(text: str) -> ModelReference:
    """Read `NAME=REPO_OR_PATH[@REVISION]`; a bare repo or path derives NAME from its last part.

    `demo` alone is the model that comes with the project.

    Raises:
        BadInputError: when the text names neither a folder nor a repo id.
    """
    name, equals, source = text.strip().partition("=")
    if not equals:
        name, source = "", text.strip()
        if source == BUILTIN_MODEL and not Path(source).is_dir():
            return ModelReference(name=BUILTIN_MODEL, source=str(builtin_model_path()))
    if not source:
        raise BadInputError(f"Model {text!r} names no source; write NAME=REPO_OR_PATH[@REVISION].")
    if is_single_file(source):
        return _parse_file(name, source)
    if _looks_like_path(source):
        path = _absolute(source)
        return ModelReference(name=check_model_name(name or _derive(path.name)), source=str(path))
    repo, at, revision = source.partition("@")
    if not _REPO.fullmatch(repo) or (at and not revision):
        raise BadInputError(
            f"Model source {source!r} is neither a folder nor a repo id; write NAME=OWNER/REPO[@REVISION], "
            f"or a path that starts with './' or '/'."
        )
    return ModelReference(
        name=check_model_name(name or _derive(repo.rsplit("/", 1)[-1])),
        source=repo,
        revision=revision or None,
    )


def is_single_file(text: str) -> bool:
    """Tell whether a source names a checkpoint in one file, with or without its configs."""
    if text.endswith(SINGLE_FILE):
        return not os.path.isdir(text)  # noqa: PTH112  (never raises)
    return f"{SINGLE_FILE}@" in text and not os.path.exists(text)  # noqa: PTH110  (likewise)


def configured_models(texts: Iterable[str]) -> dict[str, ModelReference]:
    """Return the models whose files we can name: the one that comes with the project and configured ones."""
    references = [parse_model(BUILTIN_MODEL), *(parse_model(text) for text in texts)]
    return {reference.name: reference for reference in references}


def _parse_file(name: str, source: str) -> ModelReference:
    """Read `FILE.safetensors[@CONFIG]`."""
    stem, at, config = source.partition(f"{SINGLE_FILE}@")
    path = _absolute(stem + SINGLE_FILE if at else source)
    if _looks_like_path(config):
        config = str(_absolute(config))
    elif at and not _REPO.fullmatch(config):
        raise BadInputError(
            f"{config!r} names no configs of {path}; write NAME=FILE{SINGLE_FILE}@FOLDER with a folder in "
            f"diffusers layout that starts with './' or '/', or @OWNER/REPO."
        )
    return ModelReference(
        name=check_model_name(name or _derive(path.stem)), source=str(path), config=config or None
    )


def _absolute(source: str) -> Path:
    return Path(os.path.expanduser(source)).absolute()  # noqa: PTH111  (an unknown ~user stays a name)


def _looks_like_path(source: str) -> bool:
    # Not pathlib: its `exists` raises for what cannot be a path.
    return source.startswith((".", "/", "~")) or os.path.exists(source)  # noqa: PTH110


def _derive(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or text
