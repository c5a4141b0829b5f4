"""A model's recommendations are read beside it, checked, and fill what a job leaves open."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from storage.errors import ModelLoadError
from storage.model_defaults import fill_defaults, read_defaults, read_native_size
from storage.model_families import read_pipeline
from storage.parameters import JobParameters

RECOMMENDED = {
    "sampler": "lms",
    "schedule": "karras",
    "guidance_scale": 4.0,
    "num_inference_steps": 12,
    "width": 128,
    "height": 96,
}


def _write(folder: Path, defaults: object) -> Path:
    (folder / "promptmill.json").write_text(json.dumps({"defaults": defaults}))
    return folder


def _open_job(**chosen: Any) -> JobParameters:
    """Return a job that leaves open what is not chosen."""
    return JobParameters(prompt="a fox", seed=1, **dict.fromkeys(RECOMMENDED) | chosen)


def test_native_size_without_a_file(tmp_path: Path) -> None:
    """Without promptmill.json the defaults are the project's, at the model's native size."""
    assert read_defaults(tmp_path, size=(512, 768)) == {
        "sampler": "lms",
        "schedule": "default",
        "guidance_scale": 7.5,
        "num_inference_steps": 30,
        "width": 512,
        "height": 768,
    }
    assert "width" not in read_defaults(tmp_path, size=None)


def test_recommendations_win(tmp_path: Path) -> None:
    """What promptmill.json recommends replaces the general default and the native size, each on its own."""
    assert read_defaults(_write(tmp_path, RECOMMENDED), size=(64, 64)) == RECOMMENDED
    assert read_defaults(_write(tmp_path, {"width": 72}), size=(64, 64))["height"] == 64
    guidance = read_defaults(_write(tmp_path, {"guidance_scale": 4}), size=None)["guidance_scale"]
    assert isinstance(guidance, float)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sampler": "magic"}, "There is no sampler 'magic'; see `promptmill samplers`"),
        ({"sampler": ["lms"]}, 'sampler is ["lms"], not a name'),
        ({"schedule": "fast"}, "There is no schedule 'fast'; choose one of default, karras"),
        (
            {"sampler": "ddim", "schedule": "karras"},
            "Sampler ddim has no karras schedule; leave the schedule",
        ),
        ({"num_inference_steps": 0}, "0 steps are out of range; choose 1 to 1000"),
        ({"num_inference_steps": 30.0}, "num_inference_steps is 30.0, not a whole number"),
        ({"num_inference_steps": True}, "num_inference_steps is true, not a whole number"),
        ({"sampler": "lcm", "num_inference_steps": 60}, "Sampler lcm knows at most 50 steps, not 60"),
        ({"guidance_scale": "high"}, 'guidance_scale is "high", not a number'),
        ({"guidance_scale": float("nan")}, "Guidance nan is out of range"),
        ({"width": 100}, "Width 100 is not a multiple of 8"),
        ({"height": None}, "height is null, not a whole number"),
        ({"cfg": 4}, "there is no default 'cfg'; choose of sampler, schedule, guidance_scale"),
        (["sampler"], 'it is not of the form {"defaults": {"sampler": "euler", ...}}'),
    ],
)
def test_a_wrong_recommendation_is_named_with_its_file(tmp_path: Path, wrong: object, said: str) -> None:
    """A promptmill.json that makes no sense is refused in one sentence with its path."""
    with pytest.raises(ModelLoadError) as refused:
        read_defaults(_write(tmp_path, wrong), size=(64, 64))
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'promptmill.json'} cannot be used ({said}")
    assert message.endswith("); mend or remove it.")
    assert ".)" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"{'sampler': 'lms'}", "Expecting property name"),
        (b'{"sampler": "lms"}', "it is not of the form"),
        (b"[]", "it is not of the form"),
        (b"\xff", "can't decode byte 0xff"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    """Whatever lies there under that name, the answer is a sentence."""
    (tmp_path / "promptmill.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=f"promptmill.json cannot be used .*{said}"):
        read_defaults(tmp_path, size=None)


def test_a_folder_of_that_name_is_said(tmp_path: Path) -> None:
    """What cannot be read at all is said in the system's words."""
    (tmp_path / "promptmill.json").mkdir()
    with pytest.raises(ModelLoadError, match=r"cannot be used \(Is a directory\)"):
        read_defaults(tmp_path, size=None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else_is_said(tmp_path: Path) -> None:
    """Permissions are said as such."""
    (_write(tmp_path, RECOMMENDED) / "promptmill.json").chmod(0)
    with pytest.raises(ModelLoadError, match=r"cannot be used \(Permission denied\)"):
        read_defaults(tmp_path, size=None)


def test_other_keys_of_the_file_are_for_others(tmp_path: Path) -> None:
    """A later version may keep more beside the defaults."""
    (tmp_path / "promptmill.json").write_text('{"defaults": {"sampler": "euler"}, "about": "a model"}')
    assert read_defaults(tmp_path, size=None)["sampler"] == "euler"


def test_only_open_fields_are_filled() -> None:
    """A job keeps what it names, zeros included, and gets the rest from the model."""
    filled = fill_defaults(_open_job(guidance_scale=0.0, num_inference_steps=7), RECOMMENDED)
    assert (filled.guidance_scale, filled.num_inference_steps) == (0.0, 7)
    assert (filled.sampler, filled.schedule, filled.width, filled.height) == ("lms", "karras", 128, 96)
    assert fill_defaults(filled, {"sampler": "ddim", "width": 8}) == filled


@pytest.mark.parametrize(
    ("sampler", "schedule", "filled"),
    [
        (None, None, ("lms", "karras")),
        ("lms", None, ("lms", "karras")),
        ("euler", None, ("euler", "default")),
        ("ddim", None, ("ddim", "default")),
        ("euler", "beta", ("euler", "beta")),
        (None, "default", ("lms", "default")),
    ],
)
def test_a_recommended_schedule_stays_with_its_sampler(
    sampler: str | None, schedule: str | None, filled: tuple[str, str]
) -> None:
    """A job that names another sampler gets that one's default schedule, whatever it could do."""
    job = fill_defaults(_open_job(sampler=sampler, schedule=schedule), RECOMMENDED)
    assert (job.sampler, job.schedule) == filled


def test_what_the_model_does_not_say_stays_open() -> None:
    """Nothing is known of a model that nobody has loaded."""
    assert fill_defaults(_open_job(sampler="euler"), {}) == _open_job(sampler="euler")
    assert fill_defaults(_open_job(sampler="euler"), {"width": 64}).schedule is None


def _configs(folder: Path, unet: object, vae: object) -> Path:
    for part, config in (("unet", unet), ("vae", vae)):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("unet", "vae", "size"),
    [
        ({"sample_size": 64}, {"block_out_channels": [1, 2, 3, 4]}, (512, 512)),
        ({"sample_size": 16}, {"block_out_channels": [1, 2, 3]}, (64, 64)),
        ({"sample_size": [96, 64]}, {"block_out_channels": [1, 2, 3, 4]}, (512, 768)),
        (
            {"sample_size": 32, "_diffusers_version": "0.6.0"},
            {"block_out_channels": [1, 2, 3, 4]},
            (512, 512),
        ),
        (
            {"sample_size": 32, "_diffusers_version": "0.10.2"},
            {"block_out_channels": [1, 2, 3, 4]},
            (256, 256),
        ),
        ({"sample_size": 32, "_diffusers_version": "0.9.0.dev0"}, {"block_out_channels": [1, 2]}, (64, 64)),
        ({"sample_size": "64"}, {"block_out_channels": [1]}, None),
        ({"sample_size": [64]}, {"block_out_channels": [1]}, None),
        ({"sample_size": 64}, {"block_out_channels": 4}, None),
        ({}, {}, None),
        ([], {}, None),
    ],
)
def test_native_size_is_read_from_the_configs(
    tmp_path: Path, unet: object, vae: object, size: tuple[int, int] | None
) -> None:
    """Width and height in pixels, as StableDiffusionPipeline reads them; None where no config says it."""
    assert read_native_size(_configs(tmp_path, unet, vae)) == size


def test_native_size_of_nothing_is_not_known(tmp_path: Path) -> None:
    """A folder without configs is no error here: the worker says what is missing."""
    assert read_native_size(tmp_path) is None


def test_a_model_that_its_own_pipeline_renders_has_no_general_defaults(tmp_path: Path) -> None:
    """What its jobs get that say nothing is in the pipeline's code; a file beside it is read all the same."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert read_defaults(tmp_path, size=None) == {}
    (tmp_path / "promptmill.json").write_text(
        '{"defaults": {"sampler": "default", "num_inference_steps": 4}}'
    )
    assert read_defaults(tmp_path, size=None) == {"sampler": "default", "num_inference_steps": 4}
    assert read_defaults(tmp_path, size=(64, 72), general={"guidance_scale": 3.5}) == {
        "guidance_scale": 3.5, "width": 64, "height": 72, "sampler": "default", "num_inference_steps": 4,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", "{", '{"_class_name": 5}'])
def test_an_index_that_says_nothing_names_no_pipeline(tmp_path: Path, text: str) -> None:
    """The command line leaves it to the worker to say what is wrong with an index."""
    (tmp_path / "model_index.json").write_text(text)
    assert read_pipeline(tmp_path) is None
