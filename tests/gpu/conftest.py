"""What these tests need: an NVIDIA GPU. `make test-gpu` runs them, and the reference tests on the GPU too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from storage.models import ModelReference, builtin_model_path
from worker.models.device import make_repeatable
from worker.models.load import LoadedModel, load_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where there is no GPU, and say so."""
    if torch.cuda.is_available():
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; see docs/unverified.md"))


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The GPU, which repeats itself."""
    make_repeatable()
    return torch.device("cuda:0")


@pytest.fixture(scope="session")
def demo(cuda: torch.device) -> dict[str, LoadedModel]:
    """The demo model on the GPU, by dtype; tests leave it as it is."""
    return {
        name: load_model(
            ModelReference(name="demo", source=str(builtin_model_path())),
            device=cuda,
            dtype=getattr(torch, name),
        )
        for name in ("float32", "bfloat16")
    }
