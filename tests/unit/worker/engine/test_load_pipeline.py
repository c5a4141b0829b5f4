"""Loading pipelines other than Stable Diffusion's: whole, safe, with their own defaults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.errors import ModelLoadError
from storage.model_defaults import read_defaults, read_native_size
from storage.models import ModelReference
from tests.pipelines import tiny
from worker.models.choice import load
from worker.models.folder import model_files
from worker.models.load import LoadedModel
from worker.models.pipeline import LoadedPipeline

DEMO = Path(__file__).parents[4] / "models" / "demo"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion XL model, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("xl")
    tiny("stable_diffusion_xl").save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copied = tmp_path / "xl"
    shutil.copytree(saved, copied)
    return copied


def loaded(folder: Path) -> LoadedModel | LoadedPipeline:
    """Load the model in a folder on the CPU."""
    reference = ModelReference(name="xl", source=str(folder))
    return load(reference, device=torch.device("cpu"), dtype=torch.float32)


def change(path: Path, **values: Any) -> None:
    """Change values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_way_follows_the_index(saved: Path) -> None:
    """Stable Diffusion gets its loop rebuilt, any other pipeline runs as it is."""
    assert isinstance(loaded(DEMO), LoadedModel)
    model = loaded(saved)
    assert isinstance(model, LoadedPipeline)
    assert (model.family, model.denoiser_name) == ("StableDiffusionXLPipeline", "unet")
    assert len(model.revision) == 64


def test_defaults_are_the_pipelines_own(saved: Path) -> None:
    """What a job leaves open is what the pipeline's own code would take."""
    assert loaded(saved).defaults == {
        "sampler": "default", "schedule": "default", "guidance_scale": 5.0, "num_inference_steps": 50,
        "width": 64, "height": 64,
    }  # fmt: skip


def test_recommendations_beat_the_pipelines_defaults(folder: Path) -> None:
    """A promptmill.json counts for pipelines too, and is all that a machine without torch knows of one."""
    recommended = {"num_inference_steps": 8, "sampler": "euler", "width": 128, "height": 64}
    (folder / "promptmill.json").write_text(json.dumps({"defaults": recommended}))
    model = loaded(folder)
    assert {name: model.defaults[name] for name in recommended} == recommended
    assert model.native_size == (128, 64)
    assert read_defaults(folder, size=read_native_size(folder)) == recommended


def test_every_component_counts(saved: Path) -> None:
    """The second text encoder and its tokenizer belong to the model as the first ones do."""
    names = {path.relative_to(saved).as_posix() for path in model_files(saved)}
    assert {"model_index.json", "text_encoder_2/model.safetensors", "tokenizer_2/tokenizer.json"} <= names


def test_a_missing_component(folder: Path) -> None:
    """A folder that lacks a component is not a complete model."""
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(ModelLoadError, match="has no text_encoder_2 folder"):
        loaded(folder)


def test_pickled_weights(folder: Path) -> None:
    """Weights in a pickle are refused, whichever component has them."""
    path = folder / "text_encoder_2" / "model.safetensors"
    path.rename(path.with_name("pytorch_model.bin"))
    with pytest.raises(ModelLoadError, match=r"only pytorch_model\.bin; convert"):
        loaded(folder)


def test_weights_that_are_cut_off(folder: Path) -> None:
    """A damaged file is named."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="not a complete safetensors file"):
        loaded(folder)


def test_a_class_that_diffusers_lacks(folder: Path) -> None:
    """A pipeline of a newer diffusers, or of somebody's own, is refused by name."""
    change(folder / "model_index.json", _class_name="MarvelPipeline")
    with pytest.raises(ModelLoadError, match=r"is a MarvelPipeline, which diffusers .* does not have"):
        loaded(folder)


def test_a_component_with_code_of_its_own(folder: Path) -> None:
    """A component that neither library has is refused, and no code is run."""
    change(folder / "model_index.json", unet=["my_unet", "MyUnet"])
    (folder / "unet" / "my_unet.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelLoadError, match="is a MyUnet of my_unet, which neither"):
        loaded(folder)


def test_a_pipeline_that_wants_a_picture(folder: Path) -> None:
    """A pipeline that edits pictures or makes films is no text-to-image model."""
    change(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
    with pytest.raises(ModelLoadError, match=r"makes no pictures from prompts alone \(it takes image\)"):
        loaded(folder)
