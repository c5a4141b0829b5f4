"""`make model` in small: every stage runs, its losses fall, and what comes out is a model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from storage.model_defaults import read_defaults
from training.art import fetch_art
from training.errors import TrainingError
from training.evaluate import load_pipeline
from training.export import DEFAULTS, MAX_BYTES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder that holds the art."""
    if shutil.which("npm") is None:
        pytest.skip("the art is an npm package, and npm is not installed")
    try:
        fetch_art(tmp_path / "art")
    except TrainingError as error:
        if not str(error).startswith("npm cannot fetch"):
            raise
        pytest.skip(f"the npm registry cannot be reached: {error}")
    return tmp_path


def test_a_quick_training_makes_a_model(work: Path) -> None:
    """A run in small ends with a complete folder: it exits with an error where a loss did not fall."""
    model = work / "demo"
    command = [sys.executable, "-m", "training", "--quick", "--work", str(work), "--model", str(model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| triples | lms | karras | 7.5 |" in done.stdout
    assert sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) < MAX_BYTES
    assert read_defaults(model, size=(64, 64)) == DEFAULTS
    picture = load_pipeline(model)("an otter", num_inference_steps=2).images[0]
    assert picture.size == (64, 64)
    assert "draws 107 things" in (model / "README.md").read_text(encoding="utf-8")

    weights = {str(path): path.read_bytes() for path in model.rglob("*.safetensors")}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count(": done before") == 8
    assert {str(path): path.read_bytes() for path in model.rglob("*.safetensors")} == weights
