"""Pictures a second of a running promptmill worker against a loop over a diffusers pipeline, same jobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from report import arguments, fresh_home, promptmill, seconds, show, worker

LOOP = """
import os, sys, time, torch
from diffusers import LMSDiscreteScheduler, StableDiffusionPipeline
from storage.models import builtin_model_path
pipe = StableDiffusionPipeline.from_pretrained(builtin_model_path(), torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
pipe.scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
jobs, steps, folder = int(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
began = time.perf_counter()
for job in range(jobs):
    pipe(
        f"A watercolor painting of an otter, number {job}", height=64, width=64, guidance_scale=5.0,
        num_inference_steps=int(steps[job % len(steps)]), generator=torch.Generator("cpu").manual_seed(job),
    ).images[0].save(os.path.join(folder, f"{job}.png"))
print(time.perf_counter() - began)
"""
STEPS = (20, 30, 40)


def main() -> None:
    """Render the same jobs both ways in one run; loading the model is not counted on either side."""
    options = arguments(main.__doc__ or "").parse_args()
    jobs = 24 if options.quick else 96
    with fresh_home() as environment:
        pictures = Path(environment["PROMPTMILL_HOME"]).with_name("loop")  # goes away with the home
        pictures.mkdir()
        looped = subprocess.run(
            [sys.executable, "-c", LOOP, str(jobs), ",".join(map(str, STEPS)), str(pictures)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        loop = jobs / float(looped.stdout)
        with worker(environment):
            mill = jobs / seconds(lambda: _render(environment, jobs))
    show(
        [
            {"what": "diffusers, a pipeline call a prompt", "images/s": loop, "ratio": 1.0},
            {"what": "promptmill, submit to the last picture", "images/s": mill, "ratio": mill / loop},
        ],
        as_json=options.json,
    )


def _render(environment: dict[str, str], jobs: int) -> None:
    shared = ("--model", "demo", "--size", "64x64", "--schedule", "karras", "--guidance", "5")
    for number, steps in enumerate(STEPS):
        mine = range(number, jobs, len(STEPS))
        prompts = "".join(f"A watercolor painting of an otter, number {job}\n" for job in mine)
        own = ("--seed", str(number), "--steps", str(steps), "--name", f"steps-{steps}")
        promptmill(environment, "submit", "-", *shared, *own, given=prompts)
    for steps in STEPS:
        promptmill(environment, "wait", f"steps-{steps}")


main()
