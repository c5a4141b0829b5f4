"""A ControlNet comes from a folder that the worker's command line names."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch

from storage.errors import ModelLoadError
from storage.models import ModelReference
from tests.pipelines import tiny
from worker.models.controlnet import load_controlnet

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ControlNet of random weights, as diffusers saves it."""
    network = diffusers.ControlNetModel.from_unet(
        tiny("stable_diffusion").unet, conditioning_embedding_out_channels=(4, 4, 4, 4)
    )
    network.save_pretrained(tmp_path / "canny", safe_serialization=True)
    return tmp_path / "canny"


def reference(path: Path) -> ModelReference:
    """Name a folder."""
    return ModelReference(name="canny", source=str(path))


def test_a_folder_is_loaded_and_its_revision_tells_weights_apart(folder: Path) -> None:
    """In eval mode, in the dtype that was asked for; another file is another revision."""
    loaded = load_controlnet(reference(folder), device=CPU, dtype=torch.bfloat16)
    assert (loaded.name, loaded.network.dtype, loaded.network.training) == ("canny", torch.bfloat16, False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"note": "changed"}))
    assert load_controlnet(reference(folder), device=CPU, dtype=torch.float32).revision != loaded.revision


def test_what_is_no_controlnet_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    """A folder without config, another network, pickled weights."""
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        load_controlnet(reference(tmp_path / "gone"), device=CPU, dtype=torch.float32)
    (weights,) = folder.glob("*.safetensors")
    weights.rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_controlnet(reference(folder), device=CPU, dtype=torch.float32)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ModelLoadError, match="is a UNet2DConditionModel, which is no ControlNet"):
        load_controlnet(reference(folder), device=CPU, dtype=torch.float32)
