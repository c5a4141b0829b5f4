"""The bookkeeping around CUDA graphs, with something else that captures: there is no GPU here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worker.models.graphed import GraphedUnet

Outputs = tuple[torch.Tensor, ...]


class Unet:
    """Adds up its inputs."""

    config = "the UNet's own"

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """Answer as UNet2DConditionModel does with return_dict=False."""
        assert not return_dict
        total = sample + timestep[:, None] + encoder_hidden_states.sum(dim=(1, 2))[:, None]
        return (total if timestep_cond is None else total + timestep_cond,)


def capture(function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
    """Work on the same memory every time, as a graph does."""
    outputs = tuple(output.clone() for output in function())
    return outputs, lambda: [place.copy_(new) for place, new in zip(outputs, function(), strict=True)]


def inputs(lanes: int, value: float, cond: float | None = None) -> dict[str, Any]:
    """Return what a forward pass takes."""
    return {
        "sample": torch.full((lanes, 3), value),
        "timestep": torch.full((lanes,), 10 * value),
        "encoder_hidden_states": torch.full((lanes, 1, 1), 100 * value),
        "timestep_cond": None if cond is None else torch.full((lanes, 1), cond),
    }


@pytest.mark.parametrize("cond", [None, 1000.0])
def test_every_call_gives_what_the_unet_gives(cond: float | None) -> None:
    """New inputs, other shapes, and outputs that stay when the next call writes to the same place."""
    graphed, plain = GraphedUnet(Unet(), capture), Unet()
    given = [inputs(lanes, value, cond) for lanes, value in ((2, 1.0), (2, 2.0), (4, 3.0), (2, 4.0))]
    ours = [graphed(**each)[0] for each in given]
    assert all(torch.equal(out, plain(**each)[0]) for out, each in zip(ours, given, strict=True))


def test_a_shape_is_captured_once() -> None:
    """The second call of a shape captures nothing; another shape does."""
    captures = []

    def counting(function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        captures.append(function)
        return capture(function)

    graphed = GraphedUnet(Unet(), counting)
    for lanes in (2, 2, 4, 2, 4):
        graphed(**inputs(lanes, 1.0))
    assert len(captures) == 2
    graphed.clear()
    graphed(**inputs(2, 1.0))
    assert len(captures) == 3


def test_it_answers_for_the_unet() -> None:
    """What else is asked of a UNet is the wrapped one's."""
    assert GraphedUnet(Unet(), capture).config == "the UNet's own"
    with pytest.raises(ValueError, match="tuples"):
        GraphedUnet(Unet(), capture)(**inputs(2, 1.0), return_dict=True)
