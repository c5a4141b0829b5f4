"""Flags and prompts make jobs: seeds, order, limits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from producer.jobs import build_jobs, check_line, check_seeds, job_options
from producer.lines import Line
from storage.errors import BadInputError
from storage.parameters import MAX_SEED

FLAGS: dict[str, Any] = {
    "negative": "", "seed": None, "seed_per_prompt": False, "images": 1, "steps": None,
    "guidance": None, "sampler": None, "schedule": None, "size": None, "width": None, "height": None,
    "eta": None, "guidance_rescale": None, "guidance_interval": None, "prompt_syntax": None,
}  # fmt: skip
LINES = [Line(file="f", line=1, prompt="an otter"), Line(file="f", line=2, prompt="a fox")]


def seeds(**flags: Any) -> list[int]:
    """Return the seeds of two prompts' jobs."""
    return [job.seed for job in build_jobs(LINES, job_options(**FLAGS | flags), {})]


def test_jobs_are_prompt_major() -> None:
    """All images of a prompt come before the next prompt's."""
    jobs = build_jobs(LINES, job_options(**FLAGS | {"images": 2}), {})
    assert [job.prompt for job in jobs] == ["an otter", "an otter", "a fox", "a fox"]


def test_seed_starts_every_prompt_and_grows_by_image() -> None:
    """Image i of a prompt has seed + i."""
    assert seeds(seed=42, images=2) == [42, 43, 42, 43]


def test_seed_per_prompt_adds_the_prompts_number() -> None:
    """With the flag, prompts differ too."""
    assert seeds(seed=42, images=2, seed_per_prompt=True) == [42, 43, 43, 44]


def test_without_a_seed_each_job_draws_its_own() -> None:
    """Drawn seeds have 32 bits and differ."""
    drawn = seeds(images=50)
    assert len(set(drawn)) > 95
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_a1111_name_brings_its_schedule() -> None:
    """The alias names sampler and schedule at once."""
    options = job_options(**FLAGS | {"sampler": "DPM++ 2M Karras"})
    assert (options.sampler, options.schedule) == ("dpmpp_2m", "karras")


def test_seldom_options_are_kept_only_where_they_say_something() -> None:
    """A default that was typed makes the same job as one that was not."""
    typed = {"eta": 0.3, "sampler": "ddim", "guidance_rescale": 0.7, "guidance_interval": "0.25:1"}
    typed["prompt_syntax"] = "weighted"
    (job,) = build_jobs(LINES[:1], job_options(**FLAGS | typed), {})
    assert job.options == {
        "eta": 0.3, "guidance_rescale": 0.7, "guidance_interval": [0.25, 1.0], "prompt_syntax": "weighted",
    }  # fmt: skip
    defaults = {"eta": 0.0, "guidance_rescale": 0.0, "guidance_interval": "0:1", "prompt_syntax": "plain"}
    (job,) = build_jobs(LINES[:1], job_options(**FLAGS | defaults), {})
    assert job.options == {}


def test_size_sets_width_and_height() -> None:
    """WxH is read in pixels."""
    options = job_options(**FLAGS | {"size": "512x768"})
    assert (options.width, options.height) == (512, 768)


def test_settings_of_a_line_win_over_flags() -> None:
    """What a file says of one prompt holds for its jobs, and unknown columns are kept."""
    line = Line(
        file="f", line=1, prompt="an otter", settings={"num_inference_steps": 5}, extra={"challenge": "x"}
    )
    (job,) = build_jobs([line], job_options(**FLAGS | {"steps": 7}), {"num_inference_steps": 9})
    assert (job.num_inference_steps, job.extra) == (5, {"challenge": "x"})


def test_weighted_prompts_are_checked_line_by_line() -> None:
    """Whether the flag or the line asks for the grammar; a line may also take the flag back."""
    heavy = Line(file="f", line=1, prompt="an (otter:11)")
    plain, weighted = ({"options": {"prompt_syntax": syntax}} for syntax in ("plain", "weighted"))
    by_flag = job_options(**FLAGS | {"prompt_syntax": "weighted"})
    check_line(heavy, job_options(**FLAGS))
    with pytest.raises(BadInputError, match="The prompt gives 'otter' the weight 11"):
        check_line(heavy, by_flag)
    with pytest.raises(BadInputError, match="weight 11"):
        check_line(dataclasses.replace(heavy, settings=weighted), job_options(**FLAGS))
    back = dataclasses.replace(heavy, settings=plain)
    check_line(back, by_flag)
    assert [job.options for job in build_jobs([back], by_flag, {})] == [{}]


def test_what_is_not_said_comes_from_the_model_line_by_line() -> None:
    """A line's own sampler keeps the recommended schedule of another one away from its jobs."""
    defaults = {"sampler": "lms", "schedule": "karras", "guidance_scale": 4.0}
    own = Line(file="f", line=3, prompt="an owl", settings={"sampler": "ddim"})
    jobs = list(build_jobs([*LINES, own], job_options(**FLAGS), defaults))
    assert [(job.sampler, job.schedule) for job in jobs] == [
        ("lms", "karras"), ("lms", "karras"), ("ddim", "default"),
    ]  # fmt: skip
    assert {job.guidance_scale for job in jobs} == {4.0}
    assert {job.num_inference_steps for job in jobs} == {None}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"seed": -1}, "Seed -1 is out of range"),
        ({"seed": MAX_SEED + 1}, "out of range"),
        ({"width": 513}, "Width 513 is not a multiple of 8"),
        ({"size": "512"}, "write WIDTHxHEIGHT"),
        ({"size": "512x512", "width": 512}, "leave --width and --height out"),
        ({"steps": 0}, "0 steps are out of range"),
        ({"guidance": float("nan")}, "Guidance nan is out of range"),
        ({"sampler": "magic"}, "There is no sampler 'magic'"),
        ({"sampler": "ddim", "schedule": "karras"}, "has no karras schedule"),
        ({"sampler": "DPM++ 2M Karras", "schedule": "beta"}, "leave one out"),
        ({"sampler": "lcm", "steps": 51}, "at most 50 steps"),
        ({"eta": 0.5, "sampler": "lms"}, "Sampler lms has no eta; leave it out, or take ddim or tcd"),
        ({"guidance_rescale": 1.5}, "guidance_rescale 1.5 is out of range"),
        ({"guidance_interval": "0.5"}, "write A:B, for example 0.2:0.8"),
        ({"guidance_interval": "a:b"}, "write A:B"),
        ({"guidance_interval": "0.8:0.2"}, "the smaller one first"),
        ({"prompt_syntax": "weighted", "negative": "(a:11)"}, "The negative prompt gives 'a' the weight 11"),
        ({"images": 0}, "--images 0 is out of range"),
        ({"seed_per_prompt": True}, "give --seed as well"),
        ({"negative": "x" * 10_001}, "A negative prompt has 10,001 characters"),
    ],
)
def test_flag_that_cannot_be_used_gets_one_sentence(flags: dict[str, Any], said: str) -> None:
    """Each error names the flag's value and what would do."""
    with pytest.raises(BadInputError, match=said):
        job_options(**FLAGS | flags)


def test_last_seed_must_stay_in_range() -> None:
    """A list may not run past the largest seed."""
    options = job_options(**FLAGS | {"seed": MAX_SEED - 1, "images": 2})
    check_seeds(options, 10)
    options = job_options(**FLAGS | {"seed": MAX_SEED - 1, "seed_per_prompt": True})
    check_seeds(options, 2)
    with pytest.raises(BadInputError, match="last job's seed"):
        check_seeds(options, 3)
