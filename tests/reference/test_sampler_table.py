"""The table of samplers is true about diffusers, and what cannot be rendered is refused with a reason."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

import diffusers
import pytest
import torch

from storage.errors import BadInputError
from storage.parameters import JobParameters
from storage.samplers import SAMPLERS, SCHEDULE_OPTIONS
from storage.scheduler_limits import SchedulerLimits, read_limits
from worker.models.load import LoadedModel
from worker.stages.history import History
from worker.stages.noise import job_generator
from worker.stages.sampler import SamplerSettings
from worker.stages.schedule import NoiseSchedule
from worker.stages.tables import Tables

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, at the rounded end points
]

TABLES = Tables()


def _build(
    config: Mapping[str, Any], sampler: str, steps: int, schedule: str = "default", *, seed: int = 3
) -> NoiseSchedule:
    settings = SamplerSettings(
        sampler=sampler, schedule=schedule, num_inference_steps=steps, scheduler_config=config
    )
    return NoiseSchedule(settings, seed=seed, generator=job_generator(seed), tables=TABLES)


def _walk(schedule: NoiseSchedule, seed: int) -> torch.Tensor:
    """Run a schedule with a UNet that predicts half of its input."""
    latents = torch.randn((1, 4, 4, 4), generator=job_generator(seed)) * schedule.init_noise_sigma
    schedule.draw_noise((1, 4, 4, 4), torch.device("cpu"))
    history = History.start(latents)
    for evaluation in range(len(schedule)):
        if schedule.table is None:
            output = schedule.scale_input(latents, evaluation) * 0.5
            latents = schedule.step(output, evaluation, latents)
            continue
        output = latents * schedule.table.input_scale[evaluation] * 0.5
        noise = schedule.noise(evaluation)
        noise = torch.zeros_like(latents) if noise is None else noise
        history = history.after(schedule.table.weights[evaluation, :, :, None], output, noise)
        latents = history.latents[0]
    return latents


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_table_is_true(name: str) -> None:
    """The class exists, takes the overrides, and has the spacings that the table says."""
    sampler = SAMPLERS[name]
    accepted = inspect.signature(getattr(diffusers, sampler.scheduler_class).__init__).parameters
    assert set(sampler.overrides) <= set(accepted)
    for option in SCHEDULE_OPTIONS.values():
        assert (option in accepted) == sampler.spaced
    step = getattr(diffusers, sampler.scheduler_class).step
    assert ("eta" in inspect.signature(step).parameters) == sampler.takes_eta


@pytest.mark.parametrize("name", SAMPLERS)
def test_stochastic_means_that_noise_is_drawn(name: str, model: LoadedModel) -> None:
    """Two generators give two results exactly where the table says that noise is drawn in the loop."""
    results = []
    for seed in (1, 2):
        schedule = _build(model.scheduler_config, name, 6, seed=seed)
        results.append(_walk(schedule, seed=0))
    assert torch.equal(*results) != SAMPLERS[name].stochastic


@pytest.mark.parametrize("steps", [1, 2, 3, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_accepted_stays_finite(name: str, steps: int, model: LoadedModel) -> None:
    """At few and many steps every schedule is either refused in words or gives finite latents."""
    for schedule_name in SAMPLERS[name].schedules:
        try:
            schedule = _build(model.scheduler_config, name, steps, schedule_name)
        except BadInputError:
            assert (schedule_name, steps) == ("beta", 50)  # its first timesteps are rounded to the same
            continue
        assert torch.isfinite(_walk(schedule, seed=0)).all()


@pytest.mark.parametrize(
    ("name", "steps", "schedule", "reason"),
    [
        ("lcm", 51, "default", "at most 50 steps"),
        ("tcd", 51, "default", "at most 50 steps"),
        ("ddim", 1000, "default", "ask for 999 steps"),
        ("ddpm", 1000, "default", "ask for 999 steps"),
        ("pndm", 1000, "default", "ask for 999 steps"),
        ("dpmpp_2m", 1000, "default", "no 1000 different steps"),
        ("unipc", 50, "beta", "no 50 different steps"),
        ("ddim", 20, "karras", "has no karras schedule"),
    ],
)
def test_what_diffusers_would_crash_on_is_refused(
    name: str, steps: int, schedule: str, reason: str, model: LoadedModel
) -> None:
    """Combinations that end in an exception or in NaN are refused with what to do instead."""
    with pytest.raises(BadInputError, match=reason):
        _build(model.scheduler_config, name, steps, schedule)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("ddpm", {"variance_type": "learned_range"}, "predicts its variance"),
        ("euler", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("ipndm", {"prediction_type": "v_prediction"}, "prediction type epsilon only"),
    ],
)
def test_models_that_a_sampler_cannot_serve_are_refused(
    name: str, change: dict[str, Any], reason: str, model: LoadedModel
) -> None:
    """A noise scheduler config that the sampler would misread is refused."""
    with pytest.raises(BadInputError, match=reason):
        _build(model.scheduler_config | change, name, 20)


PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction", "original_sample", "unheard_of")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_predictions_are_refused_exactly_where_diffusers_has_no_step_for_them(
    name: str, prediction: str, model: LoadedModel
) -> None:
    """Its classes take any `prediction_type`, and raise when the model's first output comes."""
    config = model.scheduler_config | {"prediction_type": prediction}
    settings = SamplerSettings(sampler=name, num_inference_steps=3, scheduler_config=config)
    assert _refusal(settings) == (None if _steps(name, config) else "knows prediction type")


def _refusal(settings: SamplerSettings) -> str | None:
    try:
        settings.build()
    except BadInputError as error:
        return "knows prediction type" if "knows prediction type" in str(error) else str(error)
    return None


def _steps(name: str, config: Mapping[str, Any]) -> bool:
    """Tell whether diffusers makes a first step, having heard what the model predicts."""
    scheduler_class = getattr(diffusers, SAMPLERS[name].scheduler_class)
    if "prediction_type" not in inspect.signature(scheduler_class.__init__).parameters:
        return config["prediction_type"] == "epsilon"
    scheduler = scheduler_class.from_config(dict(config), **SAMPLERS[name].overrides)
    scheduler.set_timesteps(3)
    latents, timestep = torch.ones((1, 4, 4, 4)), scheduler.timesteps[0]
    scheduler.scale_model_input(latents, timestep)
    try:
        scheduler.step(latents, timestep, latents)
    except (ValueError, NotImplementedError):
        return False
    return True


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "change",
    [
        {"variance_type": "learned_range"},
        {"rescale_betas_zero_snr": True},
        {"steps_offset": 1, "timestep_spacing": "leading"},
        {"_use_default_values": ["timestep_spacing", "steps_offset", "num_train_timesteps"]},
        {"num_train_timesteps": 500},
    ],
)
def test_a_config_is_refused_for_what_the_samplers_class_takes_of_it(
    name: str, change: dict[str, Any], model: LoadedModel
) -> None:
    """Submit reads the few keys that a worker publishes; diffusers' signatures tell what they come to."""
    config = model.scheduler_config | {"_use_default_values": []} | change
    published = read_limits(json.loads(json.dumps(dataclasses.asdict(SchedulerLimits.of(config)))))
    assert published is not None
    for steps in (20, change.get("num_train_timesteps", 1000)):
        if name in ("lcm", "tcd") and steps > 50:
            continue
        job = JobParameters(prompt="a fox", seed=1, sampler=name, num_inference_steps=steps)
        reason = _expected(name, steps, config)
        if reason is None:
            published.check(job)
            continue
        with pytest.raises(BadInputError, match=reason) as at_submit:
            published.check(job)
        with pytest.raises(BadInputError) as in_worker:
            _build(config, name, steps)
        assert str(at_submit.value) == str(in_worker.value)


def _expected(name: str, steps: int, config: Mapping[str, Any]) -> str | None:
    """Say what is wrong, by what diffusers' class makes of a config."""
    scheduler_class = getattr(diffusers, SAMPLERS[name].scheduler_class)
    takes = inspect.signature(scheduler_class.__init__).parameters
    made = scheduler_class.from_config(dict(config), **SAMPLERS[name].overrides)
    effective = {key: value for key, value in made.config.items() if key in takes}
    if str(effective.get("variance_type")).startswith("learned"):
        return "predicts its variance"
    if effective.get("rescale_betas_zero_snr"):
        return "zero terminal SNR"
    if name not in ("ddim", "ddpm", "pndm"):
        return None
    made.set_timesteps(steps)
    return "has one step less" if made.timesteps.max() >= made.config.num_train_timesteps else None


def test_a_models_own_spacing_gives_way() -> None:
    """A model whose config asks for Karras sigmas can still be rendered with exponential ones."""
    config = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
    wanted = diffusers.EulerDiscreteScheduler(use_exponential_sigmas=True)
    wanted.set_timesteps(10)
    assert _build(config, "euler", 10, "exponential").timesteps == wanted.timesteps.tolist()
