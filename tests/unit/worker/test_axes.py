"""What is learned of a denoiser's calls, and how calls are joined and divided by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.coalescing.axes import Axes, NotAlikeError
from worker.coalescing.call import Modes
from worker.coalescing.joining import place
from worker.coalescing.learning import learn
from worker.coalescing.leaves import UnknownValueError

MODES = Modes(grad=False, inference=False, autocast=None, device_type="cpu")


def call(prompts: int, *, fill: float = 0.0, timestep: float = 9.0, words: int = 5) -> dict[str, Any]:
    """Return a call with everything that pipelines were seen to pass, two lanes a prompt."""
    lanes = 2 * prompts
    return {
        "sample": torch.full((lanes, 4, 3), fill),
        "timestep": torch.tensor(timestep),
        "added": {"ids": torch.full((prompts, 6), fill), "nothing": None},
        "features": [torch.full((words, 2), fill) for _ in range(lanes)],
        "shapes": [[(1, 4, 4)]] * lanes,
        "positions": torch.arange(6.0).reshape(3, 2),
        "last": torch.full((7, lanes), fill),
        "return_dict": False,
    }


def result(prompts: int, fill: float = 0.0) -> Any:
    """Return what belongs to such a call."""
    return (
        torch.full((2 * prompts, 4, 3), fill),
        UNet2DConditionOutput(sample=torch.full((prompts, 2), fill)),
    )


@pytest.fixture(scope="module")
def axes() -> Axes:
    """What one prompt and two show."""
    return learn((call(1), result(1)), (call(2), result(2)))


def test_lanes_are_counted_by_the_first_batch(axes: Axes) -> None:
    """A call of three prompts with guidance takes six lanes."""
    assert axes.lanes(call(3)) == 6


def test_calls_are_laid_side_by_side(axes: Axes) -> None:
    """Batches follow each other along their own axis, lists are chained, bare numbers get one per lane."""
    joined = axes.inputs.join([call(1, fill=1.0, timestep=9), call(2, fill=2.0, timestep=4)], [2, 4], 0)
    assert joined["sample"][:, 0, 0].tolist() == [1, 1, 2, 2, 2, 2]
    assert joined["timestep"].tolist() == [9, 9, 4, 4, 4, 4]
    assert joined["added"]["ids"].shape == (3, 6)
    assert joined["added"]["nothing"] is None
    assert [float(feature[0, 0]) for feature in joined["features"]] == [1, 1, 2, 2, 2, 2]
    assert joined["last"].shape == (7, 6)
    assert joined["positions"].shape == (3, 2)
    assert joined["return_dict"] is False


def test_idle_lanes_fill_a_pass_up(axes: Axes) -> None:
    """Spare lanes are copies of the first call's, in every argument."""
    joined = axes.inputs.join([call(1, fill=1.0)], [2], 4)
    assert (len(joined["sample"]), len(joined["timestep"]), len(joined["features"])) == (6, 6, 6)
    assert joined["added"]["ids"].shape == (3, 6)
    assert joined["sample"].eq(1).all()


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), spare=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_each_call_gets_its_own_part_of_the_result(counts: list[int], spare: int) -> None:
    """Whatever is joined, dividing the result gives each call what is its own, and nobody the idle lanes'."""
    axes = learn((call(1), result(1)), (call(2), result(2)))
    wholes = [result(prompts, float(i)) for i, prompts in enumerate([*counts, spare]) if prompts]
    joined = (
        torch.cat([whole[0] for whole in wholes]),
        UNet2DConditionOutput(sample=torch.cat([whole[1].sample for whole in wholes])),
    )
    parts = axes.outputs.split(joined, [2 * prompts for prompts in counts])
    for i, (prompts, part) in enumerate(zip(counts, parts, strict=True)):
        right = result(prompts, float(i))
        assert torch.equal(part[0], right[0])
        assert torch.equal(part[1].sample, right[1].sample)


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({"sample": torch.ones(2, 4, 3)}, True),
        ({"timestep": torch.tensor(3)}, True),
        ({"sample": torch.ones(2, 4, 5)}, False),
        ({"sample": torch.ones(2, 4, 3, dtype=torch.float64)}, False),
        ({"positions": torch.arange(6.0).reshape(3, 2) + 1}, False),
        ({"features": [torch.ones(6, 2), torch.ones(6, 2)]}, False),
        ({"return_dict": True}, False),
        ({"return_dict": 0}, False),
        ({"shapes": [[(1, 4, 8)]] * 2}, False),
        ({"last": torch.ones(7, 3)}, False),
        ({"sample": None}, False),
        ({"timestep": object()}, False),
        ({"extra": 1}, False),
    ],
)
def test_calls_share_a_pass_only_if_they_agree(axes: Axes, change: dict[str, Any], shared: bool) -> None:  # noqa: FBT001 - a case
    """Content of batches and timesteps may differ; sizes, dtypes, prompts' lengths and options may not."""
    home, other = place(call(1), MODES, [axes]), place(call(1) | change, MODES, [axes])
    assert home is not None
    assert (other is not None and other.key == home.key) is shared


def test_modes_are_part_of_the_agreement(axes: Axes) -> None:
    """Calls under another autocast do not share a pass, and those with gradients share with nobody."""
    plain = place(call(1), MODES, [axes])
    cast = Modes(grad=False, inference=False, autocast=torch.bfloat16, device_type="cpu")
    with_grad = Modes(grad=True, inference=False, autocast=None, device_type="cpu")
    other = place(call(1), cast, [axes])
    assert plain is not None
    assert other is not None
    assert plain.key != other.key
    assert place(call(1), with_grad, [axes]) is None


@pytest.mark.parametrize(
    ("one", "two", "reason"),
    [
        ({"x": torch.ones(1, 2)}, {"x": torch.ones(3, 2)}, r"is \(1, 2\) or \(3, 2\)"),
        ({"x": torch.ones(1, 2)}, {"x": torch.ones(2, 4)}, r"is \(1, 2\) or \(2, 4\)"),
        ({"x": torch.ones(1), "n": 1}, {"x": torch.ones(2), "n": 2}, "'n'] is 1 or 2"),
        ({"x": torch.ones(1), "n": [1]}, {"x": torch.ones(2), "n": [1, 1, 1]}, "has 1 elements or 3"),
        ({"x": torch.ones(1), "n": None}, {"x": torch.ones(2), "n": 2}, "is a NoneType or a int"),
        ({"x": torch.ones(3)}, {"x": torch.ones(3)}, "nothing in the call grew"),
    ],
)
def test_what_is_no_batch_is_not_learned(one: Any, two: Any, reason: str) -> None:
    """Calls that differ by more than batch axes are refused with the place."""
    with pytest.raises(NotAlikeError, match=reason):
        learn((one, ()), (two, ()))


def test_an_object_is_not_compared() -> None:
    """What is neither a tensor nor plain could mean anything."""
    one, two = ({"x": torch.ones(size), "odd": object()} for size in (1, 2))
    with pytest.raises(UnknownValueError, match="an argument is a object"):
        learn((one, ()), (two, ()))
