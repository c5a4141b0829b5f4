"""LoRAs: diffusers' own pictures in any company, and the very bytes of the model itself where none is on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from storage.lora_files import parse_lora_file
from storage.models import ModelReference
from storage.parameters import JobParameters
from tests.device import DEVICE
from tests.loras import write_lora
from tests.pipelines import fresh_tiny, loaded, tiny
from tests.reference.conftest import DEMO
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.engine.engine import Engine
from worker.engine.request import RenderResult
from worker.models.device import MIXED
from worker.models.load import LoadedModel, load_model
from worker.models.loras import load_loras
from worker.models.variant import Variant, run_as

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")

Sets = list[list[list[Any]]]
SETS: Sets = [[], [["a", 1.0]], [["b", -0.5]], [["a", 0.5], ["b", 0.7]]]


def fresh() -> LoadedModel:
    """Load the demo model, not to be shared: LoRAs change its networks."""
    return load_model(ModelReference(name="demo", source=str(DEMO)), device=DEVICE)


def jobs_of(sets: Sets = SETS) -> list[JobParameters]:
    """Return jobs of mixed LoRAs, prompts, samplers, steps and guidance."""
    return [
        JobParameters(
            prompt=("a fox", "an otter")[number % 2],
            seed=number,
            num_inference_steps=3 + number % 3,
            guidance_scale=(5.0, 1.0, 3.0)[number % 3],
            width=64,
            height=64,
            sampler=("lms", "euler")[number % 2],
            options={"loras": loras} if loras else {},
        )
        for number, loras in enumerate(sets * 2)
    ]


def together(engine: Engine | PipelineEngine, jobs: list[JobParameters]) -> list[RenderResult]:
    """Render jobs side by side, stepped in the test's own thread."""
    tickets = [engine.submit(job) for job in jobs]
    while engine.step():
        pass
    return [ticket.future.result(timeout=0) for ticket in tickets]


@pytest.fixture(scope="module")
def files(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write two LoRAs for the demo model, one of which leaves the text encoder alone."""
    folder = tmp_path_factory.mktemp("loras")
    return {
        "a": write_lora(pipeline, folder / "a.safetensors", seed=1),
        "b": write_lora(pipeline, folder / "b.safetensors", seed=2, text=False),
    }


@pytest.fixture(scope="module")
def attach(files: dict[str, Path]) -> Callable[[Any], Any]:
    """Return a function that loads these into a model."""
    references = {name: parse_lora_file(f"{name}={path}") for name, path in files.items()}
    return lambda model: load_loras(model, references, asked=references)


@pytest.fixture(scope="module")
def engine(attach: Callable[[Any], Any]) -> Engine:
    """Return one engine of the demo model with both LoRAs, for many jobs."""
    return Engine(attach(fresh()), lanes=8)


def test_mixed_sets_are_diffusers_own_pictures(engine: Engine, files: dict[str, Path]) -> None:
    """Jobs of four sets in one engine are what load_lora_weights and set_adapters give, within 1 of 255."""
    model = fresh()
    theirs = diffusers.StableDiffusionPipeline(
        vae=model.vae, text_encoder=model.text_encoder, tokenizer=model.tokenizer, unet=model.unet,
        scheduler=diffusers.LMSDiscreteScheduler.from_pretrained(DEMO / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    for name, path in files.items():
        theirs.load_lora_weights(path, adapter_name=name)
    plain: dict[int, Any] = {}
    for job, result in zip(jobs_of(), together(engine, jobs_of()), strict=True):
        kind = diffusers.LMSDiscreteScheduler if job.sampler == "lms" else diffusers.EulerDiscreteScheduler
        theirs.scheduler = kind.from_config(theirs.scheduler.config)
        arguments = {
            "num_inference_steps": job.num_inference_steps,
            "guidance_scale": job.guidance_scale,
            "width": 64,
            "height": 64,
        }
        theirs.disable_lora()
        plain[job.seed] = _render(theirs, job, arguments)
        if job.options:
            names, weights = zip(*job.options["loras"], strict=True)
            theirs.enable_lora()
            theirs.set_adapters(list(names), list(weights))
            right = _render(theirs, job, arguments)
            assert np.abs(right - plain[job.seed]).max() > 8, "the LoRAs change nothing"
        else:
            right = plain[job.seed]
        assert np.abs(result.pixels.astype(int) - right).max() <= 1, job


def _render(pipeline: Any, job: JobParameters, arguments: dict[str, Any]) -> Any:
    generator = torch.Generator().manual_seed(job.seed)
    return np.asarray(pipeline(job.prompt, generator=generator, **arguments).images[0]).astype(int)


def test_bytes_do_not_depend_on_the_company_of_other_loras(engine: Engine) -> None:
    """Each job has equal pixels and records with all others, in another order, and alone."""
    jobs = jobs_of()
    first = together(engine, jobs)
    again = together(engine, jobs[::-1])[::-1]
    for job, one, other in zip(jobs, first, again, strict=True):
        alone = together(engine, [job])[0]
        assert one.pixels.tobytes() == other.pixels.tobytes() == alone.pixels.tobytes(), job
        assert one.numerics == other.numerics == alone.numerics == engine.numerics_of(job)


def test_without_active_loras_it_is_the_model_without_any(engine: Engine) -> None:
    """A job without LoRAs has the bytes and the record of an engine that was never given one."""
    jobs = [job for job in jobs_of() if not job.options]
    plain = together(Engine(fresh(), lanes=8), jobs)
    mixed = [r for job, r in zip(jobs_of(), together(engine, jobs_of()), strict=True) if not job.options]
    for one, other in zip(plain, mixed, strict=True):
        assert one.pixels.tobytes() == other.pixels.tobytes()
        assert one.numerics == other.numerics


@pytest.mark.skipif(DEVICE.type != "cpu", reason="mixed precision is for CPUs")
def test_loras_do_the_same_in_mixed_precision(engine: Engine, attach: Callable[[Any], Any]) -> None:
    """Their products are rounded with the layers' own: nearly float32's picture, and far from the model's."""
    mixed = Engine(run_as(attach(fresh()), Variant(dtype=MIXED, layout="contiguous")), lanes=8)
    pictures = [[r.pixels.astype(int) for r in together(own, jobs_of())] for own in (mixed, engine)]
    plain = together(engine, [replace(job, options={}) for job in jobs_of()])
    for job, ours, right, without in zip(jobs_of(), *pictures, plain, strict=True):
        error = np.abs(ours - right).mean()
        assert 0 < error < 2, job
        if job.options:
            assert np.abs(right - without.pixels.astype(int)).mean() > 4 * error, job


def test_a_set_is_switched_on_once_for_all_its_jobs(engine: Engine) -> None:
    """Jobs that alternate four sets, all there from the start, take one switch a set."""
    together(engine, jobs_of())  # each set has been tried out
    before = engine.lora_switch.switches
    together(engine, jobs_of() * 2)
    assert engine.lora_switch.switches - before <= len(SETS)


def test_a_pipelines_jobs_have_their_loras(tmp_path: Path) -> None:
    """Stable Diffusion XL, by its own code: mixed sets are what diffusers gives alone, within 1 of 255."""
    name = "stable_diffusion_xl"
    files = {
        "a": write_lora(tiny(name), tmp_path / "a.safetensors", seed=3),
        "b": write_lora(tiny(name), tmp_path / "b.safetensors", seed=4, text=False),
    }
    references = {name: parse_lora_file(f"{name}={path}") for name, path in files.items()}
    engine = PipelineEngine(load_loras(loaded(name, fresh_tiny(name)), references, asked=references), lanes=8)
    assert engine.shared
    jobs = [
        JobParameters(
            prompt="a red fox",
            seed=number,
            num_inference_steps=3,
            guidance_scale=5.0,
            sampler="default",
            options={"loras": loras} if loras else {},
        )
        for number, loras in enumerate(SETS * 2)
    ]
    results = together(engine, jobs)
    theirs = fresh_tiny(name)
    for adapter, path in files.items():
        theirs.load_lora_weights(path, adapter_name=adapter)
    size = dict(zip(("width", "height"), engine.model.native_size, strict=True))
    for job, result in zip(jobs, results, strict=True):
        arguments = {"num_inference_steps": 3, "guidance_scale": 5.0, **size}
        if job.options:
            names, weights = zip(*job.options["loras"], strict=True)
            theirs.enable_lora()
            theirs.set_adapters(list(names), list(weights))
        else:
            theirs.disable_lora()
        assert np.abs(result.pixels.astype(int) - _render(theirs, job, arguments)).max() <= 1, job
    assert engine.lanes_run / engine.steps > 2
