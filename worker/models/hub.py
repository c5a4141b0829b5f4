"""A model from the Hugging Face hub: its files, pinned to a commit, and its errors in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from storage.errors import ModelLoadError
from storage.model_defaults import DEFAULTS_FILE
from storage.models import ModelReference
from worker.models.folder import MODEL_FILES, VARIANT_FILES, file_patterns

PART_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")  # of a single network's repo
_TOKEN_HINT = "set HF_TOKEN to a token that may read it, or run `hf auth login`"  # noqa: S105 - a sentence


def fetch(reference: ModelReference) -> tuple[Path, str]:
    """Bring a repo's model files into the local cache.

    The cache, the token and offline mode are huggingface_hub's own (`HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`).

    What other pipelines have beside Stable Diffusion's parts is named in `model_index.json`, so it is asked
    for once that is here.

    Returns:
        The folder of the snapshot, and its commit.

    Raises:
        ModelLoadError: one sentence with the hint that fits.
    """
    with _explained(reference):
        folder = _download(reference.source, reference.revision, MODEL_FILES)
        patterns = file_patterns(folder)
        if patterns != MODEL_FILES:
            folder = _download(reference.source, folder.name, patterns)
    # huggingface_hub names a snapshot's folder for its commit.
    return folder, folder.name


def fetch_part(reference: ModelReference) -> tuple[Path, str]:
    """Bring a repo of a single network, like a ControlNet, into the local cache; as `fetch` otherwise."""
    with _explained(reference):
        folder = _download(reference.source, reference.revision, PART_FILES)
    return folder, folder.name


@contextmanager
def _explained(reference: ModelReference) -> Iterator[None]:
    """Turn what goes wrong with a download into a ModelLoadError."""
    disable_progress_bars()
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        # Besides its own errors huggingface_hub lets those of its HTTP library and of the disk through.
        raise ModelLoadError(_explain(reference, error)) from error


def fetch_configs(repo: str) -> Path:
    """Bring all configs of a repo into the local cache, and none of its weights.

    Returns:
        The folder of the snapshot.

    Raises:
        ModelLoadError: one sentence with the hint that fits.
    """
    disable_progress_bars()
    try:
        return _download(repo, None, ("*.json", "*.txt"))
    except Exception as error:
        # As for `fetch`.
        raise ModelLoadError(_explain(ModelReference(name="configs", source=repo), error)) from error


def _download(repo: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    folder = huggingface_hub.snapshot_download(
        repo,
        revision=revision,
        allow_patterns=[*patterns, DEFAULTS_FILE],
        ignore_patterns=list(VARIANT_FILES),
    )
    return Path(folder)


def _explain(reference: ModelReference, error: Exception) -> str:  # noqa: PLR0911 - one return a reason
    """Say in one sentence why the hub did not give us the repo, most specific reason first."""
    repo = reference.source
    if isinstance(error, GatedRepoError):
        return (
            f"Model {repo} is gated: accept its terms at https://huggingface.co/{repo}, then {_TOKEN_HINT}."
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"Model {repo} has no revision {reference.revision!r}; pass a branch, tag or commit that it has, "
            f"or leave @REVISION out."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is neither a folder nor a hub model {repo!r} that we may read; check the name, and if it "
            f"is private {_TOKEN_HINT}."
        )
    if _is_offline(error):
        return (
            f"Model {repo} is not complete in the local cache and HF_HUB_OFFLINE is set; unset it to "
            f"download the model, or pass a local folder."
        )
    if isinstance(error, HFValidationError):
        return f"{repo!r} is not a hub repo id; write OWNER/REPO, or a path that starts with './' or '/'."
    if isinstance(error, LocalEntryNotFoundError) or _is_transport_error(error):
        return (
            f"Model {repo} is not complete in the local cache and the Hugging Face hub cannot be reached; "
            f"check the network (or HF_ENDPOINT), or pass a local folder."
        )
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"Model {repo} could not be downloaded ({reason}); try again, or pass a local folder."


def _is_transport_error(error: Exception) -> bool:
    """Tell whether the network failed; by name, since huggingface_hub changed its HTTP library before."""
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)


def _is_offline(error: BaseException | None) -> bool:
    """Tell whether offline mode, asked for by the user, is what lies behind `error`."""
    if isinstance(error, OfflineModeIsEnabled):
        return True
    asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if isinstance(error, LocalEntryNotFoundError) and asked:
        return True
    return error is not None and error.__cause__ is not None and _is_offline(error.__cause__)
