"""Forty jobs that alternate four sets of LoRAs: one engine, and a loop over diffusers' pipeline.

The engine holds as many jobs at once as a worker does, and switches when another set has its turn; the rival
calls `load_lora_weights` once and `set_adapters` for each job, as its users do. Of each: images/s, how often
the set was switched and how long one switch took; and the largest difference of a pixel from the rival's, of
255. The last row is the engine with the same jobs and no LoRA: what they cost apart from switching.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines import call, demo_model, larger_model, mixed_jobs, pipeline_of
from peft import LoraConfig, get_peft_model_state_dict
from report import arguments, show

from storage.lora_files import lora_files
from storage.parameters import JobParameters
from worker.engine.engine import Engine
from worker.engine.request import RenderResult
from worker.models.load import LoadedModel
from worker.models.loras import load_loras

SETS: tuple[list[list[Any]], ...] = ([], [["a", 1.0]], [["b", 0.8]], [["a", 0.5], ["b", 0.5]])
LANES = 8
HELD = LANES // 2 + 4  # jobs of a worker: in lanes, waiting for lanes, being saved
TARGETS = {"unet": ("to_q", "to_k", "to_v", "to_out.0"), "text_encoder": ("q_proj", "k_proj", "v_proj")}


def write_loras(folder: Path, larger: bool) -> list[str]:  # noqa: FBT001 - the two models of all benchmarks
    """Write two LoRAs of rank 8 with random weights, as `NAME=PATH`."""
    pipeline = pipeline_of(_model(larger))
    for name, seed in (("a", 1), ("b", 2)):
        generator = torch.Generator().manual_seed(seed)
        found: dict[str, Any] = {}
        for part, targets in TARGETS.items():
            network = getattr(pipeline, part)
            network.add_adapter(
                LoraConfig(r=8, lora_alpha=8, target_modules=list(targets)), adapter_name=name
            )
            weights = get_peft_model_state_dict(network, adapter_name=name)
            found[f"{part}_lora_layers"] = {
                key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in weights.items()
            }
        pipeline.save_lora_weights(folder, weight_name=f"{name}.safetensors", **found)
        pipeline.unload_lora_weights()
    return [f"{name}={folder / name}.safetensors" for name in "ab"]


def _model(larger: bool) -> LoadedModel:  # noqa: FBT001 - see above
    return larger_model(demo_model()) if larger else demo_model()


def in_engine(engine: Engine, jobs: Sequence[JobParameters]) -> dict[int, RenderResult]:
    """Render jobs in their order, as many at once as a worker holds; return the results by seed."""
    waiting, held = list(reversed(jobs)), {}
    done: dict[int, RenderResult] = {}
    while waiting or held:
        while waiting and len(held) < HELD:
            job = waiting.pop()
            held[job.seed] = engine.submit(job)
        engine.step()
        for seed in [seed for seed, ticket in held.items() if ticket.future.done()]:
            done[seed] = held.pop(seed).future.result(timeout=0)
    return done


def engine_row(name: str, engine: Engine, jobs: Sequence[JobParameters]) -> tuple[dict[str, Any], Any]:
    """Time the engine, each set tried out before."""
    in_engine(engine, [replace(job, num_inference_steps=2) for job in jobs[: len(SETS)]])
    switch, began = engine.lora_switch, time.perf_counter()
    before = switch.switches, switch.seconds
    results = in_engine(engine, jobs)
    seconds = time.perf_counter() - began
    pictures = {seed: result.pixels.astype(int) for seed, result in results.items()}
    row = _row(name, len(jobs), seconds, switch.switches - before[0], switch.seconds - before[1])
    return row, pictures


def rival_row(
    pipeline: Any, files: Sequence[str], jobs: Sequence[JobParameters]
) -> tuple[dict[str, Any], Any]:
    """Time a loop over diffusers' pipeline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # several LoRAs are the point
        for text in files:
            name, _, path = text.partition("=")
            pipeline.load_lora_weights(path, adapter_name=name)
    pictures: dict[int, Any] = {}
    switching, began = 0.0, time.perf_counter()
    for job in jobs:
        at = time.perf_counter()
        loras = job.options.get("loras")
        if loras:
            pipeline.enable_lora()
            pipeline.set_adapters([name for name, _ in loras], [weight for _, weight in loras])
        else:
            pipeline.disable_lora()
        switching += time.perf_counter() - at
        pictures[job.seed] = (call(pipeline, [job])[0] * 255).round().astype(int)
    seconds = time.perf_counter() - began
    return _row("diffusers, set_adapters per job", len(jobs), seconds, len(jobs), switching), pictures


def _row(name: str, jobs: int, seconds: float, switches: int, switching: float) -> dict[str, Any]:
    return {
        "way": name,
        "jobs": jobs,
        "images/s": jobs / seconds,
        "switches": switches,
        "ms a switch": 1000 * switching / max(1, switches),
        "share of time": switching / seconds,
    }


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--larger", action="store_true", help="a UNet of 17 M parameters")
    options = parser.parse_args()
    steps = (4, 6) if options.quick else (10, 15, 20, 25, 30)
    jobs = [
        replace(job, options={"loras": loras} if loras else {})
        for job, loras in zip(mixed_jobs(40, size=64, steps=steps), SETS * 10, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        files = write_loras(Path(folder), options.larger)
        references = lora_files((), files)
        engine = Engine(load_loras(_model(options.larger), references, asked=references), lanes=LANES)
        ours, pictures = engine_row(f"engine, {LANES} lanes", engine, jobs)
        theirs, right = rival_row(pipeline_of(_model(options.larger)), files, jobs)
        plain, _ = engine_row("engine, no LoRA", engine, [replace(job, options={}) for job in jobs])
    differences = {seed: int(np.abs(pictures[seed] - right[seed]).max()) for seed in right}
    rows = [ours | {"largest difference": max(differences.values())}, theirs, plain]
    show(
        [row | {"largest difference": row.get("largest difference", "")} for row in rows],
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
