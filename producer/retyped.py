"""A job as a command line that renders it anywhere, to be copied from where it is looked at."""

from __future__ import annotations

import shlex

from producer.lines import Problem
from producer.readers.text import parse_line
from storage.inputs import CONTROL_SCALE, MASK_IMAGE
from storage.loras import OPTION as LORAS
from storage.loras import lora_set, written_weight
from storage.records import Job, Submission

_FLAGS = {MASK_IMAGE: "mask", CONTROL_SCALE: "control-scale"}  # those that are not called as their option


def render_command(job: Job, submission: Submission) -> str | None:
    """Return the `promptmill render` that asks for the very same picture.

    None where a shell cannot say it: a prompt of several lines, or one in which `--prompt` reads options.
    """
    asked = job.parameters
    alone = parse_line(asked.prompt, "", 0)
    if isinstance(alone, Problem) or alone.prompt != asked.prompt or alone.settings or alone.seeds:
        return None
    flags: dict[str, object] = {
        "prompt": asked.prompt,
        "negative": asked.negative_prompt or None,
        "model": submission.model,
        "seed": asked.seed,
        "steps": asked.num_inference_steps,
        "guidance": asked.guidance_scale,
        "sampler": asked.sampler,
        "schedule": asked.schedule,
        "width": asked.width,
        "height": asked.height,
    }
    for name, value in asked.options.items():
        if name == LORAS:
            continue
        said = ":".join(map(str, value)) if name == "guidance_interval" else value
        flags[_FLAGS.get(name, name.replace("_", "-"))] = said
    given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    given += [f"--lora={name}:{written_weight(weight)}" for name, weight in lora_set(asked.options)]
    return shlex.join(["promptmill", "render", *given, "--out", f"{job.submission}-{job.index}"])


def reproduce_command(job: Job) -> str:
    """Return the command that renders a stored picture again and compares the two."""
    return shlex.join(["promptmill", "reproduce", job.label])
