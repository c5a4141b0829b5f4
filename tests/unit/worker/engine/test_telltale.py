"""Numbers that show which instructions computed them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worker.engine.lane_parts import exact_trial
from worker.engine.telltale import TelltaleInputs
from worker.models.load import LoadedModel

SHOWS = -3.140625  # the only input for which it matters which instructions compute the function
SHARE = 5  # the last numbers of a tensor go through others
SEEN: list[tuple[int, ...]] = []  # strides of what the function was given


def _careless(x: torch.Tensor) -> torch.Tensor:
    """Return x, but for one input, and that only where it is not computed together with many others."""
    SEEN.append(x.stride())
    alone = torch.zeros(x.numel(), dtype=torch.bool)
    alone[0 if x.stride(-1) != 1 else x.numel() - SHARE :] = True
    return torch.where((x == SHOWS) & alone.reshape(x.shape), x * 1.5, x)


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[None]:
    """Tell torch of the function, and of one that works in place."""
    library = torch.library.Library("promptmill_tests", "DEF")
    library.define("careless(Tensor x) -> Tensor", tags=(torch.Tag.pointwise,))
    library.impl("careless", _careless, "CPU")
    library.define("careless_(Tensor(a!) x) -> Tensor(a!)", tags=(torch.Tag.pointwise,))
    library.impl("careless_", lambda x: x.copy_(_careless(x)), "CPU")
    yield
    library._destroy()


def careless(x: torch.Tensor) -> torch.Tensor:
    """Call the function as torch's own are called."""
    found: torch.Tensor = torch.ops.promptmill_tests.careless(x)
    return found


def shown(output: torch.Tensor) -> list[bool]:
    """Tell of each number whether it was computed as the last ones are."""
    return (output.flatten() != SHOWS).tolist()


def test_a_function_is_given_the_input_that_shows() -> None:
    """As long as this lasts: no random number would have shown its last five."""
    given = torch.zeros(2, 8, dtype=torch.bfloat16)
    assert torch.equal(careless(given), given)
    with TelltaleInputs():
        output = careless(given)
    assert shown(output) == [False] * 11 + [True] * SHARE
    assert torch.equal(careless(given), given)


def test_what_is_given_lies_in_memory_as_before() -> None:
    """Half a tensor goes through other kernels than a whole one, and one in place writes where it has to."""
    whole = torch.zeros(2, 8, dtype=torch.bfloat16)
    with TelltaleInputs():
        half = careless(whole.chunk(2, dim=1)[1])
        strides = SEEN[-1]
        in_place = torch.ops.promptmill_tests.careless_(whole)
    assert strides == (8, 1)
    assert shown(half) == [False] * 3 + [True] * SHARE
    assert in_place is whole
    assert shown(whole) == [False] * 11 + [True] * SHARE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_operations_are_left_alone(dtype: torch.dtype) -> None:
    """Those in float32, of several tensors, with one result wherever they run, and those that draw."""
    given = torch.randn(2, 8).to(dtype)
    torch.manual_seed(1)
    right = [given + given, given.relu(), given.to(torch.float64), torch.bernoulli(given.sigmoid())]
    torch.manual_seed(1)
    with TelltaleInputs():
        ours = [given + given, given.relu(), given.to(torch.float64), torch.bernoulli(given.sigmoid())]
        if dtype == torch.float32:
            right, ours = [*right, given], [*ours, careless(given)]
    assert all(torch.equal(a, b) for a, b in zip(ours, right, strict=True))


class _Careless(torch.nn.Module):
    """A layer of the function."""

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Call it."""
        return careless(sample)


class Network(torch.nn.Module):
    """A UNet of one product and one function."""

    config = SimpleNamespace(in_channels=4, time_cond_proj_dim=None, cross_attention_dim=2)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5, dtype=dtype), requires_grad=False)
        self.act = _Careless()

    def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        """Answer as UNet2DConditionModel does with return_dict=False."""
        return (self.act(sample * self.scale),)


def test_a_layer_that_shows_places_for_few_inputs_is_called_in_parts(model: LoadedModel) -> None:
    """Random lanes have none of them; in float32, where most inputs show, only they are asked."""
    half = replace(model, unet=Network(torch.bfloat16), dtype=torch.bfloat16)
    trial = exact_trial(half, 4)
    assert trial.exact
    assert trial.parts == (("act", 1),)
    assert exact_trial(replace(model, unet=Network(torch.float32)), 4).parts == ()
