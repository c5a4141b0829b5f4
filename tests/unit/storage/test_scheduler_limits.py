"""What samplers can do with a model's noise scheduler config; diffusers is asked in `tests/reference`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from storage.errors import BadInputError
from storage.parameters import JobParameters
from storage.scheduler_limits import SchedulerLimits, read_limits

SD = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "_use_default_values": ["prediction_type", "beta_schedule", "timestep_spacing"],
}
V = {"prediction_type": "v_prediction", "_use_default_values": []}


def _published(**changes: Any) -> SchedulerLimits:
    """Return what a submit reads of a model with this config."""
    said = dataclasses.asdict(SchedulerLimits.of(SD | changes))
    limits = read_limits(json.loads(json.dumps(said)))
    assert isinstance(limits, SchedulerLimits)
    return limits


def _job(sampler: str | None, **settings: Any) -> JobParameters:
    return JobParameters(prompt="a fox", seed=1, sampler=sampler, **settings)


@pytest.mark.parametrize(
    ("changes", "sampler", "settings", "reason"),
    [
        ({}, "ddim", {"num_inference_steps": 1000}, "one step less than 1000 .* ask for 999 steps"),
        ({}, "default", {"num_inference_steps": 1000}, "Sampler pndm has one step less than 1000"),
        ({}, "default", {"schedule": "karras"}, "Sampler default has no karras schedule"),
        ({}, "default", {"options": {"eta": 0.5}}, "Sampler pndm has no eta"),
        ({"skip_prk_steps": False}, "default", {}, r"\(PNDMScheduler\) is none that sampler default could"),
        ({"_class_name": "LCMScheduler"}, "default", {"num_inference_steps": 51}, "at most 50 steps"),
        ({"variance_type": "learned_range"}, "ddpm", {}, r"predicts its variance \(learned_range\)"),
        ({"rescale_betas_zero_snr": True}, "euler", {}, "zero terminal SNR with epsilon prediction"),
        (V, "ipndm", {}, "ipndm knows prediction type epsilon only, not this model's v_prediction"),
        (V | {"prediction_type": "sample"}, "pndm", {}, "epsilon and v_prediction only, not .* sample"),
    ],
)
def test_what_a_sampler_cannot_do_with_a_model_is_refused(
    changes: dict[str, Any], sampler: str, settings: dict[str, Any], reason: str
) -> None:
    """One sentence names the sampler, and what to do instead."""
    with pytest.raises(BadInputError, match=reason):
        _published(**changes).check(_job(sampler, **settings))


@pytest.mark.parametrize(
    ("changes", "sampler", "settings"),
    [
        ({}, "ddim", {"num_inference_steps": 999}),
        ({}, "lms", {"num_inference_steps": 1000}),
        ({}, None, {"num_inference_steps": 1000}),
        ({}, "ddim", {"num_inference_steps": None}),
        ({"timestep_spacing": "trailing", "_use_default_values": []}, "ddim", {"num_inference_steps": 1000}),
        ({"steps_offset": 0}, "ddim", {"num_inference_steps": 1000}),
        ({"variance_type": "learned_range"}, "lms", {}),
        ({"rescale_betas_zero_snr": True}, "lms", {}),
        (V | {"rescale_betas_zero_snr": True}, "euler", {}),
        # What is there by default only does not reach another class.
        ({"prediction_type": "v_prediction"}, "ipndm", {}),
        ({"steps_offset": 1, "_use_default_values": ["steps_offset"]}, "ddim", {"num_inference_steps": 1000}),
    ],
)
def test_what_a_sampler_can_do_with_a_model_is_let_through(
    changes: dict[str, Any], sampler: str | None, settings: dict[str, Any]
) -> None:
    """So is what is not known yet."""
    _published(**changes).check(_job(sampler, **settings))


def test_only_what_is_read_is_published() -> None:
    """Rows of workers stay short, and say the same whatever order diffusers has."""
    kept = SchedulerLimits.of(SD | {"_use_default_values": ["timestep_spacing", "x", "prediction_type"]})
    assert set(kept.scheduler_config) == SD.keys() - {"beta_start"}
    assert kept.scheduler_config["_use_default_values"] == ["prediction_type", "timestep_spacing"]


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {"scheduler_config": None},
        {"scheduler_config": {"steps_offset": "one"}},
        {"scheduler_config": {"_use_default_values": 1}},
    ],
)
def test_what_another_version_says_is_no_limit(said: Any) -> None:
    """The worker itself will say what it cannot do."""
    assert read_limits(said) is None


def test_a_sampler_that_is_not_known_here_is_left_to_other_checks() -> None:
    """A newer worker may recommend one; what is no sampler at all is said in a sentence of its own."""
    _published().check(_job("dpm3", num_inference_steps=20))
