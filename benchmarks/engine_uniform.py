"""Uniform work: 64 jobs of equal settings by the engine, and by diffusers' pipeline at the same batch size.

In turns within a round, a call of diffusers' after as many steps of the engine as a call has, since the
machine's speed changes meanwhile. Each job has a prompt of its own, another one in every round, so that both
encode all of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from engine_mixed import LANES, by_engine
from engines import call, demo_model, device_arguments, fresh, pipeline_of, second_model
from report import median, seconds, show

from storage.parameters import JobParameters
from worker.engine.engine import Engine
from worker.models.load import LoadedModel


def measure(
    name: str, model: LoadedModel, *, size: int, count: int, steps: int, rounds: int
) -> dict[str, object]:
    """Time both at R lanes."""
    job = JobParameters(
        prompt="a fox", seed=1, sampler="dpmpp_2m", num_inference_steps=steps, width=size, height=size
    )
    jobs = [replace(job, seed=seed, prompt=f"a fox, number {seed}") for seed in range(count)]
    engine, pipeline = Engine(model, lanes=LANES), pipeline_of(model)
    by_engine(engine, jobs[: LANES // 2])
    call(pipeline, jobs[: LANES // 2])
    ours, theirs = [], []
    for take in range(rounds):
        new = [fresh(job, take) for job in jobs]
        rival = Rival(pipeline, new)
        ours.append(by_engine(engine, new, between=rival.render, every=steps).seconds)
        theirs.append(rival.finish())
    return {
        "model": name,
        "jobs": count,
        "engine images/s": count / median(ours),
        "diffusers images/s": count / median(theirs),
        "ratio": median([his / own for own, his in zip(ours, theirs, strict=True)]),
    }


class Rival:
    """diffusers' pipeline, which renders R / 2 jobs in each of its turns."""

    def __init__(self, pipeline: Any, jobs: list[JobParameters]) -> None:
        batches = [jobs[start : start + LANES // 2] for start in range(0, len(jobs), LANES // 2)]
        self._calls = [partial(call, pipeline, batch) for batch in batches]
        self._taken = 0.0

    def render(self) -> None:
        """Make a call, if any is left."""
        if self._calls:
            self._taken += seconds(self._calls.pop(0))

    def finish(self) -> float:
        """Render what is left; returns the seconds of all calls."""
        while self._calls:
            self.render()
        return self._taken


def main() -> None:
    """Print the table."""
    options = device_arguments(__doc__ or "").parse_args()
    model = demo_model(device=options.device)
    if options.quick:
        rows = [measure("demo, 64x64", model, size=64, count=12, steps=8, rounds=2)]
    else:
        name, larger, size = second_model(model)
        rows = [
            measure("demo, 64x64", model, size=64, count=64, steps=20, rounds=3),
            measure(name, larger, size=size, count=64, steps=5, rounds=3),
        ]
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
