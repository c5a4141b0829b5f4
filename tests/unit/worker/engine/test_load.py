"""A model is loaded part by part, with the dtype that was asked for and the pipeline's own fix-ups."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from storage.errors import BadInputError, ModelLoadError
from storage.models import ModelReference
from worker.models import load as load_module
from worker.models.device import MIXED, choose_device, choose_dtype, device_facts, faster_precisions
from worker.models.folder import folder_revision
from worker.models.load import LoadedModel, load_model

DEMO = Path(__file__).parents[4] / "models" / "demo"
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the demo model, to be changed."""
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def _reference(folder: Path) -> ModelReference:
    return ModelReference(name="demo", source=str(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_part_has_the_dtype(dtype: torch.dtype) -> None:
    """Text encoder, UNet and VAE all get the dtype, whatever their configs say."""
    model = load_model(_reference(DEMO), device=CPU, dtype=dtype)
    assert {model.text_encoder.dtype, model.unet.dtype, model.vae.dtype} == {dtype}
    assert (model.native_size, model.vae_scale_factor, model.max_length) == ((64, 64), 4, 32)
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_old_scheduler_configs_are_fixed_as_the_pipeline_does(folder: Path) -> None:
    """A steps_offset of 0 becomes 1 and clip_sample becomes False."""
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps_offset": 0, "clip_sample": True}))
    config = load_model(_reference(folder), device=CPU).scheduler_config
    assert (config["steps_offset"], config["clip_sample"]) == (1, False)


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    """A weights file that lacks a tensor is refused, where from_pretrained would draw random numbers."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights.pop("conv_in.weight")
    safetensors.torch.save_file(weights, path)
    with pytest.raises(ModelLoadError, match=r"unet lacks 1 weights .*conv_in\.weight"):
        load_model(_reference(folder), device=CPU)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    """Weights that do not fit the config are refused with the folder's name."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = min(weights)
    weights[name] = torch.zeros(3)
    safetensors.torch.save_file(weights, path)
    with pytest.raises(ModelLoadError, match=r"vae cannot be loaded"):
        load_model(_reference(folder), device=CPU)


def test_files_that_cannot_be_read_are_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails, or a file that belongs to somebody else, is named."""

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(load_module, "check_folder", refuse)
    with pytest.raises(ModelLoadError, match=f"{folder} cannot be read .Permission denied."):
        load_model(_reference(folder), device=CPU)


def test_recommendations_are_read_and_a_wrong_one_is_found_before_the_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loaded model carries them; its native size and revision stay what they are."""
    file = folder / "promptmill.json"
    file.write_text('{"defaults": {"sampler": "euler", "schedule": "karras", "width": 72}}')
    model = load_model(_reference(folder), device=CPU)
    assert model.defaults == {
        "sampler": "euler", "schedule": "karras", "guidance_scale": 7.5, "num_inference_steps": 30,
        "width": 72, "height": model.native_size[1],
    }  # fmt: skip
    assert model.revision == folder_revision(folder)
    file.write_text('{"defaults": {"sampler": "magic"}}')
    monkeypatch.setattr(load_module, "load_weights", None)
    with pytest.raises(ModelLoadError, match=r"promptmill\.json cannot be used .There is no sampler 'magic'"):
        load_model(_reference(folder), device=CPU)


def test_a_unet_that_does_not_say_its_size_is_refused(folder: Path) -> None:
    """Nobody can guess what size its pictures have."""
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": None}))
    with pytest.raises(ModelLoadError, match=r"config\.json names no sample_size"):
        load_model(_reference(folder), device=CPU)


def test_only_a_model_from_the_hub_says_where_it_came_from(model: LoadedModel) -> None:
    """A folder's path may be private, and its revision is known by its length."""
    assert model.repo is None
    assert dataclasses.replace(model, source="owner/repo", revision="a" * 40).repo == "owner/repo"


def test_a_path_that_is_missing_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    """An absolute path that does not exist is a missing folder."""
    with pytest.raises(ModelLoadError, match="There is no model folder"):
        load_model(_reference(tmp_path / "nowhere"), device=CPU)


@pytest.mark.parametrize("wanted", ["cuda:63", "63", "gpu", "cpu:1"])
def test_a_device_that_is_not_here_is_refused(wanted: str) -> None:
    """A GPU that does not exist, or a word that names no device, is bad input."""
    with pytest.raises(BadInputError):
        choose_device(wanted)


def test_the_cpu_is_float32_by_default() -> None:
    """The CPU gets float32 unless another dtype is asked for, and reference mode nothing else."""
    assert choose_dtype("auto", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    assert choose_dtype("auto", torch.device("cuda"), mode="reference") == torch.float32
    with pytest.raises(BadInputError, match="float32 only"):
        choose_dtype("float16", CPU, mode="reference")
    with pytest.raises(BadInputError, match="no dtype"):
        choose_dtype("float8", CPU)


@pytest.mark.parametrize(
    ("can", "precisions"),
    [
        ({"amx_bf16": True}, (MIXED,)),
        ({"avx512_bf16": True}, (MIXED,)),
        ({"avx2": True}, ()),
    ],
)
def test_bfloat16_is_tried_where_the_cpu_multiplies_it(
    can: dict[str, bool], precisions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only if the dtype was left open, and not in reference mode."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert faster_precisions("auto", CPU) == precisions
    assert faster_precisions("float32", CPU) == ()
    assert faster_precisions("auto", CPU, mode="reference") == ()
    assert faster_precisions("auto", torch.device("cuda")) == ()


def test_device_facts_name_the_cpu() -> None:
    """A CPU has a name and no UUID."""
    facts = device_facts(CPU)
    assert facts["type"] == "cpu"
    assert facts["name"]
    assert facts["uuid"] is None
