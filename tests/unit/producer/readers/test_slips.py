"""Columns whose names are slips of one that means something."""

from __future__ import annotations

from typing import Any

import pytest

from producer.lines import Line
from producer.readers.slips import Slips


def remarks(slips: Slips, file: str = "list.csv", **extra: Any) -> list[str]:
    """Return what is said of a line with these unknown columns."""
    return list(slips.of(Line(file=file, line=2, prompt="an otter", extra=extra)))


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("stpes", "20", "steps"),
        ("Step", 20, "steps"),
        ("promt", "a fox", "prompt"),
        ("negativ", "blurry", "negative"),
        ("negative-promt", "blurry", "negative_prompt"),
        ("cfgscale", "7.5", "cfg_scale"),
        ("guidence", "7.5", "guidance"),
        ("guidanceScale", 7.5, "guidance_scale"),
        ("seeds", "1,2", "seed"),
        ("szie", "64x64", "size"),
        ("hieght", "64", "height"),
        ("scheduler", "karras", "schedule"),
    ],
)
def test_a_slip_is_told_with_what_may_have_been_meant(name: str, value: Any, meant: str) -> None:
    """One letter too many, missing, another or swapped, or another way to part the words."""
    said = f"list.csv: column {name!r} is not known and kept as extra; did you mean {meant}?"
    assert remarks(Slips(), **{name: value}) == [said]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Category", "Animals"),
        ("id", 7),
        ("weight", 3),
        ("test", "yes"),
        ("need", 3),
        ("image", "otter.png"),
        ("sample", "S1"),
        ("steps taken", "20"),
        ("stpes", "many"),
    ],
)
def test_a_column_of_its_own_is_kept_without_a_word(name: str, value: Any) -> None:
    """Another word, or a value that would not do under the name that it resembles."""
    assert remarks(Slips(), **{name: value}) == []


def test_it_is_said_once_a_file() -> None:
    """However many lines a file has; another file is another one."""
    slips = Slips()
    assert len(remarks(slips, stpes=20)) == 1
    assert remarks(slips, stpes=30) == []
    assert len(remarks(slips, stpes=30, sede=1)) == 1
    assert len(remarks(slips, file="other.csv", stpes=30)) == 1
