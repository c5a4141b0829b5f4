"""A model's recommendations fill what a job leaves open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.errors import ModelLoadError
from storage.parameters import JobParameters
from worker.models.defaults import fill_defaults, read_defaults


def _write(folder: Path, defaults: object) -> Path:
    (folder / "promptmill.json").write_text(json.dumps({"defaults": defaults}))
    return folder


def test_native_size_without_a_file(tmp_path: Path) -> None:
    """Without promptmill.json the defaults are the project's, at the model's native size."""
    defaults = read_defaults(tmp_path, width=512, height=768)
    assert (defaults["width"], defaults["height"], defaults["sampler"]) == (512, 768, "lms")


def test_recommendations_win(tmp_path: Path) -> None:
    """What promptmill.json recommends replaces the project's default."""
    folder = _write(tmp_path, {"sampler": "euler", "schedule": "karras", "guidance_scale": 4})
    defaults = read_defaults(folder, width=64, height=64)
    assert (defaults["sampler"], defaults["schedule"], defaults["guidance_scale"]) == ("euler", "karras", 4.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampler": "magic"},
        {"num_inference_steps": 0},
        {"guidance_scale": "high"},
        {"sampler": "ddim", "schedule": "karras"},
        {"cfg": 4},
        ["sampler"],
    ],
)
def test_a_wrong_recommendation_names_the_file(tmp_path: Path, wrong: object) -> None:
    """A promptmill.json that makes no sense is refused with its path."""
    with pytest.raises(ModelLoadError, match=r"promptmill\.json cannot be used"):
        read_defaults(_write(tmp_path, wrong), width=64, height=64)


def test_only_open_fields_are_filled(tmp_path: Path) -> None:
    """A job keeps what it names and gets the rest from the model."""
    defaults = read_defaults(_write(tmp_path, {"guidance_scale": 4}), width=64, height=72)
    job = JobParameters(prompt="a fox", seed=1, guidance_scale=None, num_inference_steps=7)
    filled = fill_defaults(job, defaults)
    assert (filled.width, filled.height, filled.guidance_scale, filled.num_inference_steps) == (
        64,
        72,
        4.0,
        7,
    )


def test_a_recommended_schedule_stays_with_its_sampler(tmp_path: Path) -> None:
    """A job that names a sampler without that schedule gets the sampler's default one."""
    defaults = read_defaults(_write(tmp_path, {"sampler": "lms", "schedule": "karras"}), width=64, height=64)
    job = JobParameters(prompt="a fox", seed=1, sampler="ddim", schedule=None)
    assert fill_defaults(job, defaults).schedule == "default"
