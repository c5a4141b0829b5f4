"""The limits of a job's parameters, and the names of samplers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadInputError
from storage.parameters import (
    JobParameters,
    check_guidance,
    check_job,
    check_prompt,
    check_seed,
    check_size,
    check_steps,
    draw_seed,
)
from storage.samplers import SAMPLERS, SCHEDULES, check_schedule, resolve_sampler

OTTER = JobParameters(prompt="an otter", seed=1)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_seed, [0, 2**63 - 1], [-1, 2**63]),
        (check_size, [64, 72, 2048], [0, 56, 65, 513, 2056, -64]),
        (check_steps, [1, 1000], [0, -1, 1001]),
        (check_guidance, [0, 1, 7.5, 100.0], [-0.1, 100.1, float("nan"), float("inf"), 10**400]),
        (check_prompt, ["x", "x" * 10_000], ["", "  \n", "x" * 10_001, "a\0b", "caf\udce9"]),
    ],
)
def test_each_limit_holds_exactly(check: Callable[[Any], Any], good: list[Any], bad: list[Any]) -> None:
    """What the documentation allows passes; one past it is refused in one sentence."""
    for value in good:
        assert check(value) == value
    for value in bad:
        with pytest.raises(BadInputError):
            check(value)


def test_a_wrong_size_names_the_nearest_right_one() -> None:
    """The sentence about a size says which one would do."""
    with pytest.raises(BadInputError, match=r"Width 513 .*nearest is 512"):
        check_size(513)
    with pytest.raises(BadInputError, match=r"Height 3 .*nearest is 64"):
        check_size(3, what="height")


def test_white_space_around_a_prompt_goes_and_a_negative_prompt_may_be_empty() -> None:
    """A prompt is stripped; only the prompt itself must say something."""
    assert check_prompt("  an otter\n") == "an otter"
    assert check_prompt("  ", what="negative prompt") == ""


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": ""},
        {"negative_prompt": "\0"},
        {"seed": -1},
        {"num_inference_steps": 0},
        {"guidance_scale": 101.0},
        {"width": 63},
        {"height": 2049},
        {"sampler": "nosuch"},
        {"sampler": "ddim", "schedule": "karras"},
        {"schedule": "nosuch"},
        {"sampler": "lcm", "num_inference_steps": 51},
        {"sampler": "lms", "options": {"eta": 0.5}},
        {"sampler": "ddim", "options": {"eta": 1.5}},
        {"options": {"guidance_rescale": -0.1}},
        {"options": {"guidance_rescale": True}},
        {"options": {"guidance_interval": [0.5, 0.5]}},
        {"options": {"guidance_interval": [0.5, float("nan")]}},
        {"options": {"guidance_interval": 0.5}},
        {"options": {"clip_skip": 2}},
        {"options": {"prompt_syntax": "compel"}},
        {"options": {"image_format": "gif"}},
        {"options": {"image_format": "jpeg", "quality": 0}},
        {"options": {"image_format": "jpeg", "quality": 101}},
        {"options": {"image_format": "webp", "quality": 80.5}},
        {"options": {"image_format": "webp", "quality": True}},
        {"options": {"quality": 80}},
        {"options": {"prompt_syntax": "weighted"}, "prompt": "(an otter:11)"},
        {"options": {"prompt_syntax": "weighted"}, "negative_prompt": "(blue:-1)"},
    ],
)
def test_a_job_is_checked_in_every_field(change: dict[str, Any]) -> None:
    """One wrong field or combination is enough to refuse a job."""
    with pytest.raises(BadInputError):
        check_job(replace(OTTER, **change))


def test_what_is_left_open_passes() -> None:
    """A field that the worker will choose is not judged."""
    left_open = dict.fromkeys(
        ("num_inference_steps", "guidance_scale", "width", "height", "sampler", "schedule")
    )
    job = replace(OTTER, **left_open)
    assert check_job(job) == job


@pytest.mark.parametrize(
    "options",
    [
        {"eta": 1},
        {"guidance_rescale": 0.7},
        {"guidance_interval": [0, 1.0]},
        {"guidance_interval": (0.2, 0.8)},
        {"prompt_syntax": "plain"},
        {"prompt_syntax": "weighted"},
        {"image_format": "png"},
        {"image_format": "webp"},
        {"image_format": "jpeg", "quality": 1},
    ],
)
def test_options_in_range_pass(options: dict[str, Any]) -> None:
    """With a sampler that takes eta, and where the sampler is not chosen yet."""
    for sampler in ("ddim", None):
        check_job(replace(OTTER, sampler=sampler, options=options))


def test_drawn_seeds_have_32_bits_and_differ() -> None:
    """Seeds that nobody chose are small enough for every other program."""
    seeds = {draw_seed() for _ in range(50)}
    assert len(seeds) > 45
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    ("text", "resolved"),
    [
        ("lms", ("lms", None)),
        ("LMS Karras", ("lms", "karras")),
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("dpm++  2m   sde exponential", ("dpmpp_2m_sde", "exponential")),
        ("Euler a", ("euler_a", None)),
        ("EULER", ("euler", None)),
        ("PLMS", ("pndm", None)),
        ("DPM2 a Karras", ("dpm2_a", "karras")),
        ("UniPC", ("unipc", None)),
        ("dpmpp_2m beta", ("dpmpp_2m", "beta")),
    ],
)
def test_names_of_other_programs_are_understood(text: str, resolved: tuple[str, str | None]) -> None:
    """Our names and A1111's, in any case, with the schedule at the end where there is one."""
    assert resolve_sampler(text) == resolved


@pytest.mark.parametrize(
    "text", ["", "karras", "nosuch", "Euler a Karras", "DDIM Karras", "lms karras karras"]
)
def test_what_is_no_sampler_is_one_sentence(text: str) -> None:
    """An unknown sampler, or one without that schedule, is refused with a way on."""
    with pytest.raises(BadInputError, match="promptmill samplers"):
        resolve_sampler(text)


def test_every_sampler_is_found_by_both_of_its_names() -> None:
    """The two names of a sampler lead to it, with each schedule that it offers."""
    for sampler in SAMPLERS.values():
        assert resolve_sampler(sampler.name) == resolve_sampler(sampler.infotext) == (sampler.name, None)
        for schedule in sampler.schedules[1:]:
            text = f"{sampler.infotext} {SCHEDULES[schedule]}"
            assert resolve_sampler(text) == (sampler.name, check_schedule(sampler.name, schedule))


@given(st.text(max_size=30))
def test_any_text_is_a_sampler_or_a_sentence(text: str) -> None:
    """Whatever is typed, the answer is a sampler of the table or BadInputError."""
    try:
        name, schedule = resolve_sampler(text)
    except BadInputError:
        return
    assert name in SAMPLERS
    assert schedule is None or schedule in SAMPLERS[name].schedules


def test_a_models_own_sampler_has_no_schedules() -> None:
    """`default` names the noise scheduler of a model's own pipeline, whose spacing is its own too."""
    assert resolve_sampler("Default") == ("default", None)
    own = replace(OTTER, sampler="default", schedule="default", options={"eta": 0.5})
    assert check_job(own) == own
    with pytest.raises(BadInputError, match="Sampler default has no karras schedule"):
        check_job(replace(own, schedule="karras"))
