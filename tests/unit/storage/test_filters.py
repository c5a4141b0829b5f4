"""Filters: a part of the prompt, and values of columns as people type them."""

from __future__ import annotations

from typing import Any

import pytest

from storage.filters import JobFilter, column_of
from storage.parameters import JobParameters


def job(prompt: str = "an otter", **others: Any) -> JobParameters:
    """Return a job of 64x48 pixels."""
    return JobParameters(**{"prompt": prompt, "seed": 7, "width": 64, "height": 48, **others})


@pytest.mark.parametrize(
    ("match", "prompt"),
    [
        ("OTTER", "an otter"),
        ("émile", "ÉMILE and an otter"),
        ("É", "e\N{COMBINING ACUTE ACCENT}mile"),
        ("strasse", "Eine Straße"),
        ("狐", "狐狸"),
        ("100%", "100% cotton"),
        ("a_b", "a_b"),
        ("", "anything"),
    ],
)
def test_a_part_of_the_prompt_is_found_in_any_case_and_script(match: str, prompt: str) -> None:
    """Upper and lower case are the same, also outside ASCII, and so are two ways to write an accent."""
    assert JobFilter(match=match).keeps(job(prompt))


@pytest.mark.parametrize(("match", "prompt"), [("100%", "100 cotton"), ("a_b", "axb"), ("fox", "an otter")])
def test_every_character_stands_for_itself(match: str, prompt: str) -> None:
    """What a database would read as a wildcard is none."""
    assert not JobFilter(match=match).keeps(job(prompt))


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [
        ("seed", "9223372036854775807", 9223372036854775807),
        ("guidance", "7.50", 7.5),
        ("steps", "30", 30),
        ("size", "64x48", None),
        ("eta", "0.5", 0.5),
        ("genre", "neon", "neon"),
        ("genre", "", None),
        ("genre", "", ""),
        ("rated", "TRUE", True),
        ("tags", '["a", "b"]', ["a", "b"]),
        ("extra_seed", "mine", "mine"),
    ],
)
def test_a_column_has_a_value(column: str, text: str, value: Any) -> None:
    """Settings by short names, options, columns of the prompt file; an empty text means no value."""
    places: dict[str, dict[str, Any]] = {
        "seed": {"seed": value},
        "guidance": {"guidance_scale": value},
        "steps": {"num_inference_steps": value},
        "size": {},
        "eta": {"options": {"eta": value}},
        "extra_seed": {"extra": {"seed": value}},
    }
    one = job(**places.get(column, {"extra": {column: value}}))
    assert JobFilter(where={column: (text,)}).keeps(one)
    assert not JobFilter(where={column: (f"{text}1",)}).keeps(one)


def test_a_seed_of_nineteen_digits_is_not_rounded() -> None:
    """A float would take its neighbour for it."""
    assert not JobFilter(where={"seed": ("9223372036854775806",)}).keeps(job(seed=9223372036854775807))


def test_values_of_one_column_are_alternatives_and_columns_go_together() -> None:
    """Any of the values, of every column."""
    both = JobFilter(where={"genre": ("neon", "oil"), "sampler": ("lms",)})
    assert both.keeps(job(sampler="lms", extra={"genre": "oil"}))
    assert not both.keeps(job(sampler="euler", extra={"genre": "oil"}))
    assert not both.keeps(job(sampler="lms", extra={"genre": "pixel"}))


def test_a_column_that_a_job_does_not_have_is_none() -> None:
    """Not every line of a prompt file has the same columns."""
    assert column_of(job(), "genre") is None
    assert column_of(job(width=None), "size") is None
