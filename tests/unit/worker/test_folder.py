"""A folder that cannot be loaded is refused in one sentence, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from storage.errors import ModelLoadError
from worker.models.folder import check_folder, folder_revision

DEMO = Path(__file__).parents[3] / "models" / "demo"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the demo model, to be damaged."""
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_demo_model_passes(folder: Path) -> None:
    """A complete model is not complained about."""
    check_folder(folder)


def test_missing_folder(tmp_path: Path) -> None:
    """A path that does not exist is named."""
    with pytest.raises(ModelLoadError, match="There is no model folder"):
        check_folder(tmp_path / "nowhere")


def test_folder_of_something_else(tmp_path: Path) -> None:
    """A folder without model_index.json is not a model."""
    with pytest.raises(ModelLoadError, match=r"no model_index\.json"):
        check_folder(tmp_path)


@pytest.mark.parametrize("component", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_missing_component(folder: Path, component: str) -> None:
    """A component that is missing is named."""
    shutil.rmtree(folder / component)
    with pytest.raises(ModelLoadError, match=f"has no {component} folder"):
        check_folder(folder)


def test_truncated_weights(folder: Path) -> None:
    """A safetensors file cut short is named."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"unet/diffusion_pytorch_model\.safetensors is not a complete"):
        check_folder(folder)


def test_weights_that_git_lfs_did_not_fetch(folder: Path) -> None:
    """A git-lfs pointer gets the hint to pull."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelLoadError, match="git lfs pull"):
        check_folder(folder)


def test_pickled_weights(folder: Path) -> None:
    """A component that has only a pickle is refused with the way to convert it."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelLoadError, match=r"only diffusion_pytorch_model\.bin; convert"):
        check_folder(folder)


def test_other_pipeline(folder: Path) -> None:
    """Any other pipeline has to have the components that its own index names."""
    encoder = ["transformers", "CLIPTextModelWithProjection"]
    _edit(folder / "model_index.json", _class_name="StableDiffusionXLPipeline", text_encoder_2=encoder)
    with pytest.raises(ModelLoadError, match="has no text_encoder_2 folder"):
        check_folder(folder)


def test_inpainting_unet(folder: Path) -> None:
    """A UNet with more input channels than text to image needs is refused."""
    _edit(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(ModelLoadError, match="9 input channels"):
        check_folder(folder)


def test_broken_json(folder: Path) -> None:
    """A config that is not JSON is named."""
    (folder / "model_index.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"model_index\.json cannot be read as JSON"):
        check_folder(folder)


def test_revision_follows_what_determines_pictures(folder: Path) -> None:
    """The revision is equal for equal copies, ignores what is not the model, and changes with a config."""
    first = folder_revision(folder)
    assert first == folder_revision(DEMO)
    (folder / "README.md").write_text("other words")
    (folder / "promptmill.json").write_text("{}")
    (folder / "unet" / "notes.bin").write_bytes(b"x")
    assert folder_revision(folder) == first
    _edit(folder / "scheduler" / "scheduler_config.json", beta_end=0.013)
    assert folder_revision(folder) != first
