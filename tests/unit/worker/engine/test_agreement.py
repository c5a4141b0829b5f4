"""Fewer lanes may stand for R only where nothing tells them apart, in any layer and for any content."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from worker.engine import digests
from worker.engine.agreement import agreeing
from worker.engine.digests import lane_digests
from worker.engine.forward import Lanes
from worker.engine.trial import native_group, random_lanes, try_lanes
from worker.models.load import LoadedModel


class Layered(torch.nn.Module):
    """Two layers, the second of which may hide what the first did; what a width changes is the test's."""

    config = SimpleNamespace(in_channels=4, time_cond_proj_dim=None, cross_attention_dim=2)

    def __init__(
        self, first: Callable[[torch.Tensor], torch.Tensor], last: Callable[..., Any], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=dtype), requires_grad=False)
        self.inner, self.outer = _Layer(first), _Layer(last)

    def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        """Answer as UNet2DConditionModel does with return_dict=False."""
        return (self.outer(self.inner(sample)),)


class _Layer(torch.nn.Module):
    def __init__(self, does: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._does = does

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Do it."""
        return self._does(sample)


Found = Callable[..., tuple[int, ...]]


@pytest.fixture
def found(model: LoadedModel) -> Found:
    """Return a function that finds the widths that agree with 16."""

    def run(
        first: Callable[[torch.Tensor], torch.Tensor],
        last: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[int, ...]:
        layered = replace(model, unet=Layered(first, last, dtype), dtype=dtype)
        return agreeing(layered, try_lanes(layered, 16))

    return run


def test_what_nothing_changes_agrees(found: Found) -> None:
    """At every width below R."""
    assert found(torch.tanh) == (2, 4, 8, 12)


def test_what_a_later_layer_hides_is_found(found: Found) -> None:
    """Rounded away at the end this time, another sum in the middle still shows."""

    def other_sum(sample: torch.Tensor) -> torch.Tensor:
        return torch.nextafter(sample, torch.tensor(math.inf)) if len(sample) == 4 else sample.clone()

    assert found(other_sum, torch.sign) == (2, 8, 12)


def test_sums_that_make_up_for_each_other_are_found(found: Found) -> None:
    """One number rounded up and another down."""

    def two_differ(sample: torch.Tensor) -> torch.Tensor:
        sample = sample.abs() + 1
        if len(sample) == 8:
            infinity = torch.tensor([math.inf, -math.inf])
            sample[:, 0, 0, :2] = torch.nextafter(sample[:, 0, 0, :2], infinity)
        return sample

    assert found(two_differ) == (2, 4, 12)


@pytest.mark.parametrize(("dtype", "draws"), [(torch.float32, 2), (torch.bfloat16, 4)])
def test_what_shows_in_the_last_draw_only_is_found(
    dtype: torch.dtype, draws: int, found: Found, model: LoadedModel
) -> None:
    """In half precision most lanes agree by chance, so more of them are tried."""
    group = native_group(model)
    drawn = [Lanes.stack(random_lanes(model, 16, group, seed=seed)).sample for seed in range(draws)]
    largest = [sample.to(dtype).flatten(1).amax(dim=0) for sample in drawn]
    before = torch.stack(largest[:-1]).amax(dim=0)
    number = int((largest[-1] > before).nonzero()[0])  # of a lane, larger in the last draw than in any other

    def rare(sample: torch.Tensor) -> torch.Tensor:
        loud = sample.flatten(1)[:, number] > before[number]
        changed = sample * torch.where(loud, 1.5, 1.0)[:, None, None, None].to(sample.dtype)
        return changed if len(sample) == 12 else sample.clone()

    assert found(rare, dtype=dtype) == (2, 4, 8)


def test_memory_that_runs_out_leaves_what_was_found(found: Found) -> None:
    """R fits, so what is missing is only what nobody needs."""

    def does_not_fit(sample: torch.Tensor) -> torch.Tensor:
        if len(sample) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sample.clone()

    assert found(does_not_fit) == (2, 4)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made meanwhile.

    Attributes:
        numbers: of it, those of views of a given tensor left aside.
    """

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self._given = given.untyped_storage().data_ptr()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked, and look at what comes out."""
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() != self._given:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_look_at_a_wide_layer_takes_little_memory(
    dtype: torch.dtype, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at piece by piece, and in pieces or not every number counts at its place."""
    output = torch.randn(3, 10, 8, 4).to(dtype)
    whole = lane_digests(output)
    monkeypatch.setattr(digests, "MOST", 100)  # three of the channels
    formatted = output.to(memory_format=layout)
    with Largest(formatted) as largest:
        found = lane_digests(formatted)
    assert torch.equal(found, whole)
    assert largest.numbers == 96
    for number in range(0, 320, 31):
        changed = output.clone()
        changed[1].view(-1)[number] += 1
        assert (lane_digests(changed) == whole).tolist() == [True, False, True]
