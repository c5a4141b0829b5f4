"""Stable Diffusion XL is rebuilt where its parts are the usual ones; else its own pipeline renders it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from storage.errors import ModelLoadError
from storage.model_defaults import read_defaults
from storage.model_families import way_of
from storage.models import ModelReference
from tests.pipelines import clip_tokenizer, stable_diffusion_xl
from worker.models.choice import load
from worker.models.load import LoadedModel
from worker.models.pipeline import LoadedPipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion XL model with CLIP's tokenizers, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("xl")
    stable_diffusion_xl((clip_tokenizer(), clip_tokenizer())).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "xl"))


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedModel | LoadedPipeline:
    """Load the model in a folder on the CPU."""
    return load(ModelReference(name="xl", source=str(folder)), device=torch.device("cpu"), dtype=dtype)


def change(path: Path, **values: Any) -> None:
    """Change values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_its_loop_is_rebuilt(saved: Path) -> None:
    """Both encoders are loaded, and its jobs have the general defaults but for the guidance."""
    model = loaded(saved)
    assert isinstance(model, LoadedModel)
    assert (model.family, way_of(model.family)) == ("sdxl", "vectorised")
    assert model.text_encoder_2.config.projection_dim == 16
    assert (model.max_length, model.native_size, model.vae_scale_factor) == (32, (64, 64), 8)
    assert model.force_zeros_for_empty_prompt
    assert model.defaults == read_defaults(saved, size=(64, 64))
    assert model.defaults == {
        "sampler": "lms", "schedule": "default", "guidance_scale": 5.0, "num_inference_steps": 30,
        "width": 64, "height": 64,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("part", "entry"),
    [
        ("text_encoder", [None, None]),
        ("vae", ["diffusers", "AutoencoderTiny"]),
        ("tokenizer_2", ["transformers", "PreTrainedTokenizerFast"]),
    ],
)
def test_other_parts_are_left_to_its_pipeline(folder: Path, part: str, entry: list[str | None]) -> None:
    """A command line without torch knows it too: such a model has no general defaults."""
    change(folder / "model_index.json", **{part: entry})
    assert read_defaults(folder, size=None) == {}
    if part == "tokenizer_2":  # the files are the same, so that it can be loaded
        assert isinstance(loaded(folder), LoadedPipeline)


@pytest.mark.parametrize(
    ("config", "dtype", "decoded"),
    [
        ({"force_upcast": True}, torch.float16, torch.float32),
        ({"force_upcast": False}, torch.float16, torch.float16),
        ({"force_upcast": True}, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_vae_that_float16_would_overflow_is_float32(
    config: dict[str, bool], dtype: torch.dtype, decoded: torch.dtype, folder: Path
) -> None:
    """As its config says; no other part is, and it stays so."""
    change(folder / "vae" / "config.json", **config)
    model = loaded(folder, dtype)
    assert isinstance(model, LoadedModel)
    assert {model.unet.dtype, model.text_encoder.dtype, model.text_encoder_2.dtype} == {dtype}
    assert model.vae.dtype == decoded


def test_its_noise_scheduler_is_left_as_it_is(folder: Path) -> None:
    """Its pipeline mends no old configs."""
    change(folder / "scheduler" / "scheduler_config.json", steps_offset=0)
    model = loaded(folder)
    assert isinstance(model, LoadedModel)
    assert model.scheduler_config["steps_offset"] == 0


def test_an_inpainting_unet_is_refused(folder: Path) -> None:
    """Nine channels want a picture."""
    change(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(ModelLoadError, match="9 input channels"):
        loaded(folder)


def test_encoders_that_do_not_fit_the_unet_are_refused(folder: Path) -> None:
    """A projection of another width is found when the model is loaded, and not in the first job."""
    config = folder / "text_encoder_2" / "config.json"
    change(config, projection_dim=8)
    path = folder / "text_encoder_2" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["text_projection.weight"] = weights["text_projection.weight"][:8].clone()
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="takes 40 added numbers, and its second text encoder gives 32"):
        loaded(folder)


def test_tokenizers_of_other_words_are_refused(folder: Path) -> None:
    """A weighted prompt is cut once for both."""
    change(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=16)
    with pytest.raises(ModelLoadError, match="two tokenizers have other words or lengths"):
        loaded(folder)


def test_missing_weights_of_the_second_encoder(folder: Path) -> None:
    """A component without safetensors is named."""
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="text_encoder_2 must hold weights as safetensors and has none"):
        loaded(folder)
