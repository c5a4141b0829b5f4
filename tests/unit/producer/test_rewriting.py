"""Styles, presets and templates on the command line: what a line becomes, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from storage.jobstore import JobStore
from storage.parameters import JobParameters

Invoke = Callable[..., Result]
PRESETS = """
[styles.watercolor]
prefix = "a watercolor painting of "
negative = "photo"
steps = 12
[presets.fast]
steps = 8
guidance = 5
eta = 0.5
sampler = "ddim"
"""


@pytest.fixture(autouse=True)
def _files() -> None:
    Path("presets.toml").write_text(PRESETS)
    Path("words").mkdir()
    Path("words/animal.txt").write_text("otter\n# no animal\nfox\nowl\n")


@pytest.fixture
def jobs_of(invoke: Invoke, store: JobStore) -> Callable[..., list[JobParameters]]:
    """Submit with these arguments and return the jobs."""

    def submitted(*arguments: str) -> list[JobParameters]:
        done = invoke("submit", *arguments)
        assert done.exit_code == 0, done.stderr
        return [job.parameters for job in store.jobs(done.stdout.strip())]

    return submitted


Submitted = Callable[..., list[JobParameters]]


def test_all_makes_every_prompt_and_keeps_the_template(jobs_of: Submitted) -> None:
    """In the order of nested loops; each is a prompt of its own."""
    template = "a {red|blue} __animal__"
    jobs = jobs_of("-p", template, "-p", "a bee", "--templates", "all", "--wildcards", "words", "--seed", "3")
    assert [job.prompt for job in jobs] == [
        *(f"a {colour} {animal}" for colour in ("red", "blue") for animal in ("otter", "fox", "owl")),
        "a bee",
    ]
    assert [job.extra for job in jobs] == [{"template": template}] * 6 + [{}]


def test_random_draws_a_prompt_for_each_picture_that_keeps_its_seed(jobs_of: Submitted) -> None:
    """The recorded seed draws the same again, and the pictures' seeds are those that they had without."""
    flags = ("-p", "a {red|blue|green|grey} __animal__", "--images", "6", "--seed", "10,20")
    drawn = (*flags, "--templates", "random", "--wildcards", "words")
    first = jobs_of(*drawn)
    assert [job.seed for job in first] == [*range(10, 16), *range(20, 26)]
    assert len({job.prompt for job in first}) > 3
    seeds = {job.extra["template_seed"] for job in first}
    assert len(seeds) == 1
    again = jobs_of(*drawn, "--template-seed", str(*seeds), "--again")
    assert again == first
    other = jobs_of(*drawn, "--template-seed", "1")
    assert [job.prompt for job in other] != [job.prompt for job in first]


def test_a_lines_own_seeds_and_images_are_kept(jobs_of: Submitted) -> None:
    """And --seed-per-prompt counts the lines of the list, not what they become."""
    Path("list.csv").write_text('prompt,seed,images\n"{a|b} fox","5,50",2\n{a|b} owl,,\n')
    flags = ("list.csv", "--templates", "random", "--seed", "100", "--seed-per-prompt", "--images", "3")
    assert [job.seed for job in jobs_of(*flags)] == [5, 6, 50, 51, 101, 102, 103]


def test_images_and_seeds_of_a_line_are_checked_before_they_are_drawn(invoke: Invoke) -> None:
    """Neither a line that vanishes nor one that fills the disk."""
    for images in ("0", "-4", "1000000000"):
        Path("list.csv").write_text(f"prompt,images\nan otter,{images}\na fox,\n")
        done = invoke("submit", "list.csv", "--templates", "random")
        assert done.exit_code == 2
        assert f"list.csv:2: {images} images are out of range" in done.stderr


def test_a_flag_that_says_the_default_beats_a_preset(jobs_of: Submitted) -> None:
    """Typed is typed."""
    (job,) = jobs_of("-p", "a fox", "--preset", "fast", "--eta", "0")
    assert job.options == {}


def test_a_swept_sampler_does_not_get_a_presets_schedule(jobs_of: Submitted) -> None:
    """It was meant for the preset's own."""
    Path("presets.toml").write_text('[presets.fast]\nsampler = "DPM++ 2M Karras"\n')
    jobs = jobs_of("-p", "a fox", "--preset", "fast", "--sweep", "sampler=euler,ddim")
    assert [(job.sampler, job.schedule) for job in jobs] == [("euler", "default"), ("ddim", "default")]


def test_a_presets_quality_goes_with_its_format(jobs_of: Submitted) -> None:
    """Another format, typed or swept, does not get it."""
    Path("presets.toml").write_text('[presets.small]\nimage_format = "jpg"\nquality = 60\n')
    (job,) = jobs_of("-p", "a fox", "--preset", "small")
    assert job.options == {"image_format": "jpeg", "quality": 60}
    (job,) = jobs_of("-p", "a fox", "--preset", "small", "--image-format", "jpeg", "--seed", "1")
    assert job.options == {"image_format": "jpeg", "quality": 60}
    (job,) = jobs_of("-p", "a fox", "--preset", "small", "--image-format", "png")
    assert job.options == {}
    jobs = jobs_of("-p", "a fox", "--preset", "small", "--sweep", "image_format=png,webp")
    assert [job.options for job in jobs] == [{}, {"image_format": "webp"}]


def test_braces_stay_as_they_are_unless_templates_are_asked_for(jobs_of: Submitted) -> None:
    """They are letters like others."""
    (job,) = jobs_of("-p", "a {red|blue} __animal__")
    assert (job.prompt, job.extra) == ("a {red|blue} __animal__", {})


def test_a_flag_beats_a_style_beats_a_preset(jobs_of: Submitted) -> None:
    """And a line beats them all."""
    both = ("--style", "watercolor", "--preset", "fast", "--negative", "blurry")
    Path("list.csv").write_text("prompt,steps\nan otter,\na fox,20\n")
    otter, fox = jobs_of("list.csv", *both, "--guidance", "3")
    assert (otter.prompt, otter.negative_prompt) == ("a watercolor painting of an otter", "blurry, photo")
    assert (otter.num_inference_steps, otter.guidance_scale, otter.options) == (12, 3.0, {"eta": 0.5})
    assert fox.num_inference_steps == 20


def test_a_sweep_beats_a_preset(jobs_of: Submitted) -> None:
    """It is a flag; a line's own setting and a sweep exclude each other."""
    jobs = jobs_of("-p", "a fox", "--preset", "fast", "--sweep", "eta=0,1", "--sweep", "steps=5,6")
    assert [(job.options, job.num_inference_steps) for job in jobs] == [
        ({}, 5), ({}, 6), ({"eta": 1.0}, 5), ({"eta": 1.0}, 6),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "{a", "--templates", "all"], "--prompt 1:1: { is not closed"),
        (["-p", "{a", "--templates", "random"], "--prompt 1:1: { is not closed"),
        (["-p", "__cat__", "--templates", "all", "--wildcards", "words"], "cat"),
        (["-p", "{1|2}" * 20 + "{1|2}", "--templates", "all"], "The template makes 2,097,152 prompts"),
        (["-p", "{1|2}" * 70, "--templates", "all"], "makes over 1,000,000,000,000,000,000 prompts"),
        (["-p", "x", "--wildcards", "words"], "needs --templates random or all"),
        (["-p", "x", "--templates", "all", "--wildcards", "nowhere"], "nowhere"),
        (["-p", "x", "--templates", "all", "--template-seed", "1"], "is for --templates random"),
        (["-p", "x", "--templates", "random", "--template-seed", "-1"], "out of range"),
        (["-p", "x", "--templates", "random", "--sweep", "seed=1,2"], "give them with --seed"),
        (["-p", "x", "--presets", "presets.toml"], "choose of it with --style or --preset"),
        (["-p", "x", "--style", "oil"], "choose one of watercolor"),
        (["-p", "x", "--preset", "slow"], "choose one of fast"),
        (["-p", "x", "--style", "oil", "--presets", "none.toml"], "none.toml cannot be read"),
        (["-p", "x", "--preset", "fast", "--sampler", "lms"], "Sampler lms has no eta"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    arguments: list[str], said: str, invoke: Invoke, store: JobStore
) -> None:
    """Exit code 2, and nothing is written."""
    done = invoke("submit", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert store.submissions() == []


def test_without_a_file_of_presets_the_error_says_where_it_was_looked_for(invoke: Invoke) -> None:
    """Here and in the home."""
    Path("presets.toml").unlink()
    done = invoke("submit", "-p", "x", "--style", "oil")
    assert (done.exit_code, "name one with --presets FILE" in done.stderr) == (2, True)


def test_a_column_that_would_hide_the_template_is_refused(invoke: Invoke) -> None:
    """Nothing of the user's is overwritten."""
    Path("list.csv").write_text("prompt,template\n{a|b} fox,mine\n")
    done = invoke("submit", "list.csv", "--templates", "all")
    assert done.exit_code == 2
    assert "list.csv:2: Its column 'template' would hide what" in done.stderr
