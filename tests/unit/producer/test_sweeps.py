"""Lists, ranges and sweeps, as the command line says them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from producer.sweeps import MAX_VALUES, combine, parse_axis, parse_seeds, split_values
from storage.errors import BadInputError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("3,5,7.5", ["3", "5", "7.5"]),
        ("10..50:10", ["10", "20", "30", "40", "50"]),
        ("1..3, 8", ["1", "2", "3", "8"]),
        ("0..1:0.25", ["0", "0.25", "0.5", "0.75", "1"]),
        ("10..45:10", ["10", "20", "30", "40"]),
        ("3..1:-1", ["3", "2", "1"]),
        ("blurry, dark|photo", ["blurry, dark", "photo"]),
    ],
)
def test_values(text: str, values: list[str]) -> None:
    """Commas, ranges with their ends, and | where a value holds commas."""
    assert split_values(text) == values


def test_words_have_no_ranges_and_may_be_empty() -> None:
    """A negative prompt is any text, and none."""
    axis = parse_axis("negative=|blurry, dark|a...b")
    assert [setting["negative_prompt"] for setting in axis.settings] == ["", "blurry, dark", "a...b"]


def test_a_range_is_decimal() -> None:
    """Ten steps of 0.1 end at 1, not at 0.9999999999999999."""
    assert [float(value) for value in split_values("0..1:0.1")][-1] == 1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("guidance", "write NAME=VALUES"),
        ("guidence=3,5", r"did you mean guidance\?"),
        ("magic=1", "with one of steps, guidance"),
        ("guidance=3,,5", "a value is empty"),
        ("guidance=", "a value is empty"),
        ("guidance=three", "'three' is no number"),
        ("steps=7.5", "'7.5' is no whole number"),
        ("steps=1..2:0.5", "'1.5' is no whole number"),
        ("steps=50..10", "empty range; write the smaller end first"),
        ("steps=1..2..3", "is no range"),
        ("steps=1..5:0", "is no range"),
        ("guidance=1.5..3", "is no range; write FIRST..LAST:STEP"),
        ("guidance=nan..inf", "is no range"),
        ("steps=1..1000000", "has 1,000,000 values"),
        ("sampler=lms,magic", "There is no sampler 'magic'"),
        ("size=512", "size '512' is no size"),
        ("schedule=magic", "there is no schedule 'magic'"),
        ("steps=10,20,10", "num_inference_steps 10 is there twice"),
        ("guidance=3,3.0", "guidance_scale 3.0 is there twice"),
        ("seed=-5", "Seed -5 is out of range"),
        ("negative=" + "x" * 10_001, "10,001 characters"),
    ],
)
def test_an_axis_that_cannot_be_used_gets_one_sentence(text: str, said: str) -> None:
    """Which, why, and what would do."""
    with pytest.raises(BadInputError, match=said):
        parse_axis(text)


def test_all_with_all_the_last_axis_fastest() -> None:
    """As nested loops would."""
    axes = [parse_axis("sampler=LMS Karras,euler"), parse_axis("size=64x64,128x64"), parse_axis("eta=0,1")]
    combinations = combine(axes)
    assert len(combinations) == 8
    assert combinations[0] == {
        "sampler": "lms", "schedule": "karras", "width": 64, "height": 64, "options": {"eta": 0.0},
    }  # fmt: skip
    assert combinations[1]["options"] == {"eta": 1.0}
    assert "schedule" not in combinations[-1]


def test_options_of_two_axes_are_both_kept() -> None:
    """They are one field of a job, and two settings."""
    axes = [parse_axis("eta=0.5"), parse_axis("guidance_rescale=0.7")]
    assert combine(axes) == ({"options": {"eta": 0.5, "guidance_rescale": 0.7}},)


def test_zipped_axes_pair_their_values() -> None:
    """First with first, second with second."""
    axes = [parse_axis("steps=10,20"), parse_axis("guidance=3,5")]
    assert combine(axes, zipped=True) == (
        {"num_inference_steps": 10, "guidance_scale": 3.0},
        {"num_inference_steps": 20, "guidance_scale": 5.0},
    )
    with pytest.raises(BadInputError, match="these have steps 2, guidance 1"):
        combine([axes[0], parse_axis("guidance=3")], zipped=True)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["steps=1,2", "num_inference_steps=3"], "both set num_inference_steps"),
        (["sampler=LMS Karras", "schedule=beta"], "both set schedule"),
        (["size=64x64", "width=128"], "both set width"),
        (["steps=1..1000", "guidance=0..10:0.1"], "make 101,000 combinations"),
    ],
)
def test_axes_that_do_not_go_together(axes: list[str], said: str) -> None:
    """One sentence."""
    with pytest.raises(BadInputError, match=said):
        combine([parse_axis(text) for text in axes])


def test_seeds() -> None:
    """One, a list, a range, or none of ours."""
    assert parse_seeds("42") == (42,)
    assert parse_seeds("1, 5,7..9") == (1, 5, 7, 8, 9)
    assert parse_seeds("random") == parse_seeds("-1") == ()


@given(text=st.text(alphabet="0123456789.,:|-eEnaif ", max_size=30))
@example("1..9e999999999")
@example("1e999999..2e999999")
@example("1..2:1e-999999")
@example("Infinity..1")
def test_any_text_is_values_or_one_sentence(text: str) -> None:
    """Nothing hangs, nothing else is raised."""
    for name in ("guidance", "steps", "seed", "guidance_interval", "size"):
        with suppress(BadInputError):
            assert len(parse_axis(f"{name}={text}").settings) <= MAX_VALUES
