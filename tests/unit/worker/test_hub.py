"""What goes wrong with a hub repo is explained in one sentence that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from storage.errors import ModelLoadError
from storage.models import ModelReference
from worker.models.folder import model_files
from worker.models.hub import fetch


class TransportError(Exception):
    """Stands for what the HTTP library raises when nobody answers."""


REFERENCE = ModelReference(name="sd15", source="owner/repo", revision="v9")


def _http(error: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return error("no", response=MagicMock(headers={}))


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (_http(errors.GatedRepoError), r"is gated: accept its terms at https://huggingface\.co/owner/repo"),
        (_http(errors.RepositoryNotFoundError), "if it is private set HF_TOKEN"),
        (_http(errors.RevisionNotFoundError), "has no revision 'v9'"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (errors.LocalEntryNotFoundError("not cached"), "hub cannot be reached"),
        (errors.HFValidationError("bad id"), "not a hub repo id"),
        (_http(errors.HfHubHTTPError), "could not be downloaded"),
        (OSError("No space left on device"), "No space left on device"),
        (TransportError("refused"), "hub cannot be reached"),
    ],
)
def test_each_failure_gets_its_hint(error: Exception, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gated, private, missing, offline and unreachable repos each get the hint that fits."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelLoadError, match=hint):
        fetch(REFERENCE)


def test_offline_behind_a_missing_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline mode is recognised where huggingface_hub only says that nothing is cached."""

    def fail(*_: Any, **__: Any) -> None:
        raise errors.LocalEntryNotFoundError("not cached") from errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelLoadError, match="HF_HUB_OFFLINE is set"):
        fetch(REFERENCE)


def test_the_commit_is_the_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The resolved commit comes back, and only model files in safetensors are asked for."""
    asked: dict[str, Any] = {}
    snapshot = tmp_path / "snapshots" / ("0" * 40)

    def download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch(REFERENCE) == (snapshot, "0" * 40)
    assert asked["revision"] == "v9"
    assert not any(pattern.endswith((".bin", ".ckpt", ".py")) for pattern in asked["allow_patterns"])


def test_recommendations_are_fetched_and_are_no_part_of_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`promptmill.json` comes with the repo's files; other JSON beside it does not."""
    repo = ["model_index.json", "promptmill.json", "notes.json", "unet/config.json", "old/promptmill.json"]
    fetched: list[str] = []

    def download(_repo: str, **options: Any) -> str:
        # What snapshot_download itself does with the patterns.
        fetched.extend(
            filter_repo_objects(
                repo, allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"]
            )
        )
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    fetch(REFERENCE)
    assert fetched == ["model_index.json", "promptmill.json", "unet/config.json"]
    for name in fetched:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [path.name for path in model_files(tmp_path)] == ["model_index.json", "config.json"]


def test_what_other_pipelines_have_is_fetched_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Components that only the index names come with a second look, pinned to the commit of the first."""
    snapshot = tmp_path / ("0" * 40)
    snapshot.mkdir()
    index = {
        "_class_name": "FluxPipeline",
        "transformer": ["diffusers", "X"],
        "tokenizer_2": ["transformers", "Y"],
    }
    (snapshot / "model_index.json").write_text(json.dumps(index | {"image_encoder": [None, None]}))
    asked: list[dict[str, Any]] = []

    def download(_repo: str, **options: Any) -> str:
        asked.append(options)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch(REFERENCE) == (snapshot, "0" * 40)
    first, second = asked
    assert (first["revision"], second["revision"]) == ("v9", "0" * 40)
    repo = [
        "transformer/a.safetensors",
        "transformer/a.py",
        "tokenizer_2/tokenizer.json",
        "flux1-dev.safetensors",
    ]
    kept = filter_repo_objects(repo, allow_patterns=second["allow_patterns"])
    assert list(kept) == ["transformer/a.safetensors", "tokenizer_2/tokenizer.json"]
