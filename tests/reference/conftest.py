"""The demo model, loaded once, as promptmill loads it and as a diffusers pipeline of the same parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# Before torch starts, as the worker does it: on shared cores spinning threads would take most of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# isort: split
import diffusers
import pytest
import torch

from storage.models import ModelReference
from storage.parameters import JobParameters
from tests.device import DEVICE
from worker.engine.engine import Engine
from worker.engine.request import RenderResult
from worker.models.device import choose_dtype, make_repeatable
from worker.models.load import LoadedModel, load_model

DEMO = Path(__file__).parents[2] / "models" / "demo"

Render = Callable[..., list[RenderResult]]


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    """Load the demo model in float32."""
    make_repeatable()
    reference = ModelReference(name="demo", source=str(DEMO))
    return load_model(reference, device=DEVICE, dtype=choose_dtype("float32", DEVICE))


@pytest.fixture(scope="session")
def pipeline(model: LoadedModel) -> Any:
    """Build what a diffusers user would build from the same weights."""
    built = diffusers.StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=diffusers.PNDMScheduler.from_pretrained(DEMO / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    built.set_progress_bar_config(disable=True)
    return built


@pytest.fixture(scope="session")
def render(model: LoadedModel) -> Render:
    """Return a function that renders jobs together in one engine, stepped in the test's own thread."""

    def run(jobs: Iterable[JobParameters], *, mode: str = "exact", lanes: int = 8) -> list[RenderResult]:
        engine = Engine(model, mode=mode, lanes=None if mode == "reference" else lanes)
        tickets = [engine.submit(job, keep_latents=True) for job in jobs]
        while engine.step():
            pass
        return [ticket.future.result(timeout=0) for ticket in tickets]

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread: parallel regions of a small model, and on a busy machine, mostly wait for each other."""
    yield from _threads(1)


@pytest.fixture
def odd_threads() -> Iterator[None]:
    """Three threads: element-wise layers divide their numbers at places that no lane begins at."""
    yield from _threads(3)


def _threads(count: int) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(threads)
