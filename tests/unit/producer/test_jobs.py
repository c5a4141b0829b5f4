"""Flags and prompts make jobs: seeds, order, limits."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.jobchecks import check_line, check_seeds
from producer.jobs import build_jobs, count_jobs, job_options
from producer.lines import Line
from storage.errors import BadInputError
from storage.parameters import MAX_SEED

FLAGS: dict[str, Any] = {
    "negative": "", "seed": None, "seed_per_prompt": False, "images": 1, "steps": None,
    "guidance": None, "sampler": None, "schedule": None, "size": None, "width": None, "height": None,
    "eta": None, "guidance_rescale": None, "guidance_interval": None, "prompt_syntax": None,
    "image_format": None, "quality": None, "sweep": (), "zipped": False,
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
    assert seeds(seed="42", images=2) == [42, 43, 42, 43]


def test_seed_per_prompt_adds_the_prompts_number() -> None:
    """With the flag, prompts differ too."""
    assert seeds(seed="42", images=2, seed_per_prompt=True) == [42, 43, 43, 44]


def test_several_seeds_render_each_prompt_with_each() -> None:
    """Lists and ranges; image i of a seed has seed + i."""
    assert seeds(seed="7,1..3") == [7, 1, 2, 3] * 2
    assert seeds(seed="10,20", images=2, seed_per_prompt=True) == [10, 11, 20, 21, 11, 12, 21, 22]


def test_a_lines_own_seeds_and_images_win() -> None:
    """As kohya's --d and a table's columns say them."""
    line = Line(file="f", line=1, prompt="an otter", seeds=(5, 9), images=2)
    options = job_options(**FLAGS | {"seed": "1"})
    assert [job.seed for job in build_jobs([line], options, {})] == [5, 6, 9, 10]


def test_a_sweep_renders_each_prompt_with_each_combination_on_the_same_seeds() -> None:
    """Only so do two pictures of one prompt show what the setting does."""
    options = job_options(**FLAGS | {"sweep": ["guidance=3,7.5", "steps=10..30:10"], "images": 2})
    jobs = list(build_jobs(LINES, options, {}))
    assert len(jobs) == 2 * 6 * 2
    first = jobs[:12]
    assert {job.prompt for job in first} == {"an otter"}
    assert [(job.guidance_scale, job.num_inference_steps) for job in first[::2]] == [
        (guidance, steps) for guidance in (3.0, 7.5) for steps in (10, 20, 30)
    ]
    assert [job.seed for job in first] == [first[0].seed, first[1].seed] * 6
    assert jobs[12].seed != first[0].seed


def test_a_swept_seed_is_the_first_of_its_images() -> None:
    """As --seed is."""
    options = job_options(**FLAGS | {"sweep": ["seed=1,100"], "images": 2})
    assert [job.seed for job in build_jobs(LINES[:1], options, {})] == [1, 2, 100, 101]


@given(
    wanted=st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(1, 3)), min_size=1, max_size=4),
    images=st.integers(1, 3),
    seed=st.sampled_from([None, "4", "1..3"]),
    sweep=st.sampled_from([(), ("steps=1..3",), ("seed=7,70", "guidance=1,2")]),
)
def test_jobs_are_counted_without_making_them(
    wanted: list[tuple[int, int | None]], images: int, seed: str | None, sweep: tuple[str, ...]
) -> None:
    """Whatever lines and flags say."""
    swept = bool(sweep) and "seed" in sweep[0]
    lines = [
        Line(file="f", line=1, prompt="x", seeds=() if swept else tuple(range(n)), images=own)
        for n, own in wanted
    ]
    flags = {"images": images, "seed": None if swept else seed, "sweep": sweep}
    options = job_options(**FLAGS | flags)
    counted = count_jobs(Counter((len(line.seeds), line.images) for line in lines), options)
    assert counted == len(list(build_jobs(lines, options, {})))


def test_a_line_and_a_sweep_cannot_both_say_it() -> None:
    """Which of them would win is a guess."""
    options = job_options(**FLAGS | {"sweep": ["steps=5,10"]})
    check_line(Line(file="f", line=1, prompt="x", settings={"sampler": "ddim"}), options)
    with pytest.raises(BadInputError, match="sets num_inference_steps, and so does a --sweep"):
        check_line(Line(file="f", line=1, prompt="x", settings={"num_inference_steps": 7}), options)


def test_a_line_is_checked_with_every_combination() -> None:
    """Its sampler may not go with one of them."""
    options = job_options(**FLAGS | {"sweep": ["schedule=default,karras"]})
    with pytest.raises(BadInputError, match=r"With schedule karras of --sweep: .*has no karras"):
        check_line(Line(file="f", line=1, prompt="x", settings={"sampler": "ddim"}), options)


def test_a_lines_sampler_does_not_get_the_schedule_of_the_flags_sampler() -> None:
    """It was meant for that one; a schedule that stands alone is meant for all."""
    line = Line(file="f", line=1, prompt="x", settings={"sampler": "euler"})
    for flags, schedule in (
        ({"sampler": "DPM++ 2M Karras"}, None),
        ({"sampler": "Euler Karras"}, "karras"),
        ({"schedule": "karras"}, "karras"),
    ):
        (job,) = build_jobs([line], job_options(**FLAGS | flags), {})
        assert job.schedule == schedule


@pytest.mark.parametrize(
    ("flags", "own", "options"),
    [
        ({"image_format": "png"}, {}, {}),
        ({"image_format": "jpeg"}, {}, {"image_format": "jpeg"}),
        ({"image_format": "jpeg", "quality": 95}, {}, {"image_format": "jpeg"}),
        ({"image_format": "webp", "quality": 80}, {}, {"image_format": "webp", "quality": 80}),
        ({"image_format": "jpeg", "quality": 80}, {"quality": 60}, {"image_format": "jpeg", "quality": 60}),
        ({"image_format": "jpeg", "quality": 80}, {"image_format": "webp"}, {"image_format": "webp"}),
        ({"image_format": "jpeg", "quality": 80}, {"image_format": "png"}, {}),
        ({}, {"image_format": "webp", "quality": 5}, {"image_format": "webp", "quality": 5}),
    ],
)
def test_a_quality_goes_with_its_format(
    flags: dict[str, Any], own: dict[str, Any], options: dict[str, Any]
) -> None:
    """A line's format does not get the quality of the flags' format; defaults leave no trace."""
    line = Line(file="f", line=1, prompt="x", settings={"options": own} if own else {})
    asked = job_options(**FLAGS | flags)
    check_line(line, asked)
    (job,) = build_jobs([line], asked, {})
    assert job.options == options


@pytest.mark.parametrize("quality", [0, 101, 80, 95])
def test_png_has_no_quality(quality: int) -> None:
    """Whatever it is: the pictures would not be what was asked for."""
    with pytest.raises(BadInputError, match="quality"):
        job_options(**FLAGS | {"quality": quality})


def test_a_quality_can_be_swept_and_a_format_with_one_quality() -> None:
    """Unless a format has none."""
    with pytest.raises(BadInputError, match=r"With options .*PNG keeps every pixel and has no quality"):
        job_options(**FLAGS | {"quality": 80, "sweep": ["image_format=jpeg,png"]})
    options = job_options(**FLAGS | {"image_format": "jpeg", "sweep": ["quality=50,95"]})
    swept = [job.options for job in build_jobs(LINES[:1], options, {})]
    assert swept == [{"image_format": "jpeg", "quality": 50}, {"image_format": "jpeg"}]


def test_a_line_that_asks_for_a_drawn_seed_gets_one() -> None:
    """Whatever the flags say: -1 is how other tools write it."""
    lines = [Line(file="f", line=1, prompt="x", drawn=True), Line(file="f", line=2, prompt="x")]
    options = job_options(**FLAGS | {"seed": "42,43"})
    jobs = [job.seed for job in build_jobs(lines, options, {})]
    assert len(jobs) == 3
    assert jobs[1:] == [42, 43]
    assert jobs[0] not in (42, 43)


def test_every_setting_of_a_sweep_counts_for_what_a_line_may_not_say() -> None:
    """Also what only some of its values bring."""
    options = job_options(**FLAGS | {"sweep": ["sampler=lms|DPM++ 2M Karras"]})
    with pytest.raises(BadInputError, match="sets schedule, and so does a --sweep"):
        check_line(Line(file="f", line=1, prompt="x", settings={"schedule": "exponential"}), options)


def test_a_lines_images_count_for_the_last_seed() -> None:
    """With the flags' seeds and a sweep's."""
    for flags in ({"seed": str(MAX_SEED)}, {"sweep": [f"seed={MAX_SEED}"]}):
        options = job_options(**FLAGS | flags)
        check_seeds(options, 1)
        with pytest.raises(BadInputError, match="last job's seed"):
            check_seeds(options, 1, [(0, 3)])


def test_a_line_with_seeds_of_its_own_says_nothing_about_the_flags_seeds() -> None:
    """Its images go with its own; where all lines have some, the flags' are not used."""
    options = job_options(**FLAGS | {"seed": f"1,3,{MAX_SEED}"})
    check_seeds(options, 2, [(0, 1), (1, 5)])
    check_seeds(options, 1, [(2, 5)])
    with pytest.raises(BadInputError, match="make a picture twice"):
        check_seeds(job_options(**FLAGS | {"seed": "1,3"}), 2, [(0, 5), (1, 1)])


def test_no_picture_is_made_twice() -> None:
    """Image 1 of seed 1 is image 0 of seed 2."""
    for flags in ({"seed": "1,2"}, {"sweep": ["seed=1,2"]}):
        options = job_options(**FLAGS | flags | {"images": 2})
        with pytest.raises(BadInputError, match="make a picture twice"):
            check_seeds(options, 1)
    with pytest.raises(BadInputError, match="Seeds 1 and 1 with 1 images"):
        check_line(Line(file="f", line=1, prompt="x", seeds=(1, 1)), job_options(**FLAGS))


def test_a_swept_grammar_is_checked_with_every_prompt() -> None:
    """As the flag is."""
    options = job_options(**FLAGS | {"sweep": ["prompt_syntax=plain,weighted"]})
    check_line(Line(file="f", line=1, prompt="(fox:2)"), options)
    with pytest.raises(BadInputError, match="gives 'fox' the weight 99"):
        check_line(Line(file="f", line=1, prompt="(fox:99)"), options)


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
        ({"seed": "-2"}, "Seed -2 is out of range"),
        ({"seed": str(MAX_SEED + 1)}, "out of range"),
        ({"seed": "an otter"}, "no whole number"),
        ({"seed": "4,4"}, "names a seed twice"),
        ({"seed": "random", "seed_per_prompt": True}, "give --seed as well"),
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
        ({"sweep": ["steps=0,10"]}, "With num_inference_steps 0 of --sweep: 0 steps are out of range"),
        ({"sweep": ["steps=5,10"], "steps": 7}, "sets num_inference_steps, and so does a flag"),
        ({"sweep": ["eta=0,1"], "eta": 0.5, "sampler": "ddim"}, "sets eta, and so does a flag"),
        ({"sweep": ["seed=1,2"], "seed": "3"}, "sets seed, and so does a flag"),
        ({"zipped": True}, "give them as well"),
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
    options = job_options(**FLAGS | {"seed": str(MAX_SEED - 1), "images": 2})
    check_seeds(options, 10)
    options = job_options(**FLAGS | {"seed": str(MAX_SEED - 1), "seed_per_prompt": True})
    check_seeds(options, 2)
    with pytest.raises(BadInputError, match="last job's seed"):
        check_seeds(options, 3)
