"""Models with v prediction, zero terminal SNR and a timestep spacing of their own, against diffusers.

The weights are the demo's, which were trained for epsilon: what they draw is no picture of anything, but
diffusers has to draw the same.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from itertools import cycle
from typing import Any

import diffusers
import pytest

from storage.errors import BadInputError
from storage.parameters import JobParameters
from storage.samplers import SAMPLERS, SCHEDULE_OPTIONS
from tests.parity import assert_same, diffusers_latents, tolerance
from worker.engine.engine import Engine
from worker.engine.request import RenderResult
from worker.models.load import LoadedModel

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, at the rounded end points
]

# What the noise scheduler configs of the models say.
LEADING = {"prediction_type": "v_prediction", "timestep_spacing": "leading"}
ZERO_SNR = {
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}


def _takes(sampler: str, option: str) -> bool:
    scheduler_class = getattr(diffusers, SAMPLERS[sampler].scheduler_class)
    return option in inspect.signature(scheduler_class.__init__).parameters


def _jobs() -> dict[str, JobParameters]:
    """Make a job of each sampler that knows v prediction, and one with another schedule where it has any."""
    names = [name for name in SAMPLERS if _takes(name, "prediction_type")]
    spacings = cycle(SCHEDULE_OPTIONS)
    chosen = [(name, "default") for name in names]
    chosen += [(name, next(spacings)) for name in names if SAMPLERS[name].spaced]
    chosen.append(("euler", "beta"))  # that others cannot be asked for with zero terminal SNR
    return {
        f"{name}, {schedule}": JobParameters(
            prompt="a watercolor painting of a fox",
            seed=i,
            num_inference_steps=4 + i % 3,
            guidance_scale=(3.0, 7.5, 1.0)[i % 3],
            width=64,
            height=64,
            sampler=name,
            schedule=schedule,
        )
        for i, (name, schedule) in enumerate(chosen)
    }


JOBS = _jobs()
CASES = [("leading", case) for case in JOBS]
# What does not know zero terminal SNR goes by the config as if it said nothing of it.
REFUSED = "dpmpp_2m, beta"  # there, since from 4 steps on two of them would be one
CASES += [("zero SNR", case) for case in JOBS if case != REFUSED]


class Rendered:
    """What one model renders, here and by diffusers.

    Attributes:
        scheduler: the pipeline's own, by whose config both go.
        together: of all jobs in one engine.
        alone: of each with nobody else in it.
    """

    def __init__(self, model: LoadedModel, pipeline: Any, change: dict[str, Any], jobs: list[str]) -> None:
        """Change the config of the model's noise scheduler, and render."""
        self.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, **change)
        engine = Engine(replace(model, scheduler_config=dict(self.scheduler.config)), lanes=8)
        self.together = self._render(engine, jobs)
        self.alone = {job: self._render(engine, [job])[job] for job in jobs}

    @staticmethod
    def _render(engine: Engine, jobs: list[str]) -> dict[str, RenderResult]:
        tickets = {job: engine.submit(JOBS[job], keep_latents=True) for job in jobs}
        while engine.step():
            pass
        return {job: ticket.future.result(timeout=0) for job, ticket in tickets.items()}


@pytest.fixture(scope="module")
def rendered(model: LoadedModel, pipeline: Any) -> dict[str, Rendered]:
    """Render the jobs of both models."""
    return {
        name: Rendered(model, pipeline, change, [case for of, case in CASES if of == name])
        for name, change in {"leading": LEADING, "zero SNR": ZERO_SNR}.items()
    }


@pytest.mark.parametrize(("model_name", "case"), CASES)
def test_a_models_own_config_gives_diffusers_picture(
    model_name: str,
    case: str,
    rendered: dict[str, Rendered],
    pipeline: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In mixed company and alone, latents agree within 1e-4 and the picture within 1 of 255."""
    both, job = rendered[model_name], JOBS[case]
    monkeypatch.setattr(pipeline, "scheduler", both.scheduler)
    theirs = diffusers_latents(pipeline, job)
    assert_same(both.together[case], theirs, pipeline, within=tolerance(job.sampler))
    assert_same(both.alone[case], theirs, pipeline, within=tolerance(job.sampler))


def test_steps_that_would_be_one_are_refused(model: LoadedModel) -> None:
    """With a first sigma of 4096, beta spacing has steps that differ by less than a timestep."""
    odd = replace(model, scheduler_config={**model.scheduler_config, **ZERO_SNR})
    with pytest.raises(BadInputError, match="no 5 different steps with schedule beta"):
        Engine(odd, lanes=2).submit(replace(JOBS[REFUSED], num_inference_steps=5))


def test_all_that_can_be_asked_for_is_among_the_cases() -> None:
    """Every schedule with v prediction, and every sampler that knows zero terminal SNR."""
    assert {job.schedule for job in JOBS.values()} == {"default", *SCHEDULE_OPTIONS}
    knowing = {name for name in SAMPLERS if _takes(name, "rescale_betas_zero_snr")}
    zero_snr = [JOBS[case] for of, case in CASES if of == "zero SNR"]
    assert knowing <= {job.sampler for job in zero_snr}
    assert {job.schedule for job in zero_snr if job.sampler in knowing} == {"default", *SCHEDULE_OPTIONS}
    assert {"ddim", "euler", "dpmpp_2m", "unipc"} <= knowing
