"""A checkpoint in one file renders what the folder renders that it was made of, and needs no hub for it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch

from storage.errors import ModelLoadError
from storage.model_defaults import read_defaults, read_native_size
from storage.models import ModelReference, parse_model
from storage.parameters import JobParameters
from tests.chaos.tiny import make_tiny_model
from tests.checkpoints import save_checkpoint
from tests.pipelines import clip_tokenizer, stable_diffusion_xl
from worker.engine.engine import Engine
from worker.models import hub
from worker.models.choice import load
from worker.models.folder import config_revision
from worker.models.load import LoadedModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a folder, as a file, and its configs alone."""
    home = tmp_path_factory.mktemp("models")
    folder = make_tiny_model(home / "folder")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    save_checkpoint(pipeline, home / "tiny.safetensors")
    shutil.copytree(folder, home / "configs", ignore=shutil.ignore_patterns("*.safetensors"))
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "models"))


def loaded(text: str) -> LoadedModel:
    """Load what `--model` says.

    Into memory of its own: weights that are mapped from a file lie where the file has them, and a CPU may
    round otherwise where they are not aligned.
    """
    model = load(parse_model(text), device=CPU, dtype=torch.float32)
    assert isinstance(model, LoadedModel)
    for part in (model.unet, model.vae, model.text_encoder, model.text_encoder_2):
        for weight in part.parameters() if part is not None else ():
            weight.data = weight.data.clone()
    return model


def picture(model: LoadedModel) -> tuple[bytes, dict[str, Any]]:
    """Render a job; returns its pixels and its numerics record."""
    engine = Engine(model, lanes=4)
    ticket = engine.submit(
        JobParameters(prompt="a fox", negative_prompt="grey", seed=1, num_inference_steps=4, sampler="euler")
    )
    while engine.step():
        pass
    result = ticket.future.result(timeout=0)
    return result.pixels.tobytes(), result.numerics


def test_a_file_renders_what_its_folder_renders(made: Path) -> None:
    """The same bytes; its revision is the file's own hash, and its configs are in the record too."""
    file = made / "tiny.safetensors"
    single = loaded(f"tiny={file}@{made / 'configs'}")
    ours, numerics = picture(single)
    theirs, others = picture(loaded(f"tiny={made / 'folder'}"))
    assert ours == theirs
    configs = config_revision(made / "configs")
    assert configs == config_revision(made / "folder")
    own = {"model_revision": hashlib.sha256(file.read_bytes()).hexdigest(), "config_revision": configs}
    assert numerics == others | own
    assert single.repo is None


def test_a_file_of_stable_diffusion_xl_too(tmp_path: Path) -> None:
    """Two encoders, and the second one's in its own layout, come from one file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Encoders are told apart by their width, and the model by its layers.
        tokenizers = (clip_tokenizer(), clip_tokenizer(pad_token="!"))  # noqa: S106 - no secret
        pipeline = stable_diffusion_xl(tokenizers, second={"hidden_size": 24, "num_hidden_layers": 11})
    pipeline.save_pretrained(tmp_path / "xl", safe_serialization=True)
    save_checkpoint(pipeline, tmp_path / "xl.safetensors")
    single = loaded(f"xl={tmp_path / 'xl.safetensors'}@{tmp_path / 'xl'}")
    assert single.family == "sdxl"
    assert picture(single)[0] == picture(loaded(f"xl={tmp_path / 'xl'}"))[0]


def test_its_configs_say_what_its_jobs_get(home: Path) -> None:
    """A promptmill.json lies beside them, and the command line reads it there."""
    recommended = {"sampler": "euler", "num_inference_steps": 7}
    (home / "configs" / "promptmill.json").write_text(json.dumps({"defaults": recommended}))
    reference = parse_model(f"tiny={home / 'tiny.safetensors'}@{home / 'configs'}")
    assert reference.folder is not None
    known = read_defaults(reference.folder, size=read_native_size(reference.folder))
    assert loaded(str(reference)).defaults == known
    assert known["num_inference_steps"] == 7


def test_without_a_folder_the_hub_has_the_configs(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the repo that diffusers takes for a Stable Diffusion 1.x, or of the one that is named."""
    asked: list[tuple[str, list[str]]] = []

    def download(repo: str, **options: Any) -> str:
        asked.append((repo, options["allow_patterns"]))
        return str(made / "configs")

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    loaded(f"tiny={made / 'tiny.safetensors'}")
    loaded(f"tiny={made / 'tiny.safetensors'}@owner/configs")
    assert [repo for repo, _ in asked] == ["stable-diffusion-v1-5/stable-diffusion-v1-5", "owner/configs"]
    assert not any(pattern.endswith(("safetensors", "*")) for _, patterns in asked for pattern in patterns)


def test_without_a_hub_the_sentence_says_what_to_name(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, with the way out."""

    def refuse(*_: Any, **__: Any) -> None:
        raise hub.LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ModelLoadError, match=r"cannot be reached.*NAME=FILE\.safetensors@FOLDER") as caught:
        loaded(f"tiny={made / 'tiny.safetensors'}")
    assert "\n" not in str(caught.value)


def changed(home: Path, change: Any) -> str:
    """Write the checkpoint anew with other weights; returns what names it."""
    file = home / "tiny.safetensors"
    weights = change(safetensors.torch.load_file(file))
    safetensors.torch.save_file(weights, file)
    return f"tiny={file}@{home / 'folder'}"  # whose weights must not fill what the file lacks


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("cond_stage", "holds no text encoder"),
        ("first_stage", "holds no VAE"),
        ("model.diffusion", "holds no UNet"),
    ],
)
def test_a_part_that_is_missing_is_named(home: Path, prefix: str, said: str) -> None:
    """A UNet alone, a VAE alone or a LoRA is no model, though its folder of configs has all weights."""
    model = changed(home, lambda w: {key: value for key, value in w.items() if not key.startswith(prefix)})
    with pytest.raises(ModelLoadError, match=said):
        loaded(model)


@pytest.mark.parametrize(
    "name",
    ["model.diffusion_model.middle_block.1.proj_in.weight", "first_stage_model.decoder.conv_out.bias",
     "cond_stage_model.transformer.text_model.final_layer_norm.weight"],
)  # fmt: skip
def test_missing_weights_are_not_made_up(home: Path, name: str) -> None:
    """One tensor less is no model, in whichever part."""
    model = changed(home, lambda weights: {key: value for key, value in weights.items() if key != name})
    with pytest.raises(ModelLoadError, match=r"lacks 1 weights|cannot be loaded with the configs in"):
        loaded(model)


def test_configs_of_another_model(home: Path) -> None:
    """Weights of other sizes than the configs say are refused, with both names."""
    path = home / "configs" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [32, 32]}))
    with pytest.raises(ModelLoadError, match="cannot be loaded with the configs in") as caught:
        loaded(f"tiny={home / 'tiny.safetensors'}@{home / 'configs'}")
    assert str(home / "configs") in str(caught.value)


def test_a_checkpoint_of_another_kind(home: Path) -> None:
    """A refiner has no prompts of its own."""
    marker = "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"
    model = changed(home, lambda weights: weights | {marker: torch.zeros(1)})
    with pytest.raises(ModelLoadError, match="of the kind xl_refiner"):
        loaded(model)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    """Loading one can run foreign code."""
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelLoadError, match="is no safetensors, and loading anything else"):
        load(ModelReference(name="x", source=str(tmp_path / name)), device=CPU, dtype=torch.float32)


def test_files_that_are_no_checkpoint(home: Path) -> None:
    """A missing file and one that was cut off are named."""
    with pytest.raises(ModelLoadError, match="There is no checkpoint"):
        loaded(f"x={home / 'nowhere.safetensors'}@{home / 'configs'}")
    file = home / "tiny.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="is not a complete safetensors file"):
        loaded(f"x={file}@{home / 'configs'}")
