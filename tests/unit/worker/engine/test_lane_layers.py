"""Layers over lanes run with R rows, all others and all other times as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional

from worker.engine.lane_layers import lane_layers


class Net(torch.nn.Module):
    """A layer over lanes, and one over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = torch.nn.Linear(8, 8)
        self.token = torch.nn.Linear(8, 8)

    def forward(self, lanes: torch.Tensor) -> torch.Tensor:
        """Run both."""
        return self.lane(lanes)[:, None] + self.token(lanes[:, None].expand(-1, 3, -1))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return how many rows each call had, with the dimensions of its input."""
    seen: list[tuple[int, int]] = []
    linear = functional.linear

    def spy(inputs: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((inputs.dim(), len(inputs)))
        return linear(inputs, *rest)

    monkeypatch.setattr(functional, "linear", spy)
    return seen


@torch.no_grad()
def test_layers_over_lanes_get_rows_of_zeros_beside_them(rows: list[tuple[int, int]]) -> None:
    """What they compute is what they always do, and outside of the `with` nothing is added."""
    net, lanes = Net(), torch.randn(2, 8)
    expected = net(lanes)
    rows.clear()
    with lane_layers(net, 2, full=16):
        inside = net(lanes)
    assert rows == [(2, 16), (3, 2)]
    rows.clear()
    assert torch.equal(net(lanes), expected)
    assert rows == [(2, 2), (3, 2)]
    assert torch.allclose(inside, expected, atol=1e-6)


@torch.no_grad()
def test_a_pass_that_is_wide_enough_is_left_alone(rows: list[tuple[int, int]]) -> None:
    """R rows are R rows."""
    net = Net()
    with lane_layers(net, 2, full=4):
        net(torch.randn(6, 8))
    assert rows == [(2, 6), (3, 6)]


@torch.no_grad()
def test_a_copy_stands_for_itself(rows: list[tuple[int, int]]) -> None:
    """Variants of a model are copies of it: each has its own weights and its own rows."""
    net = Net()
    with lane_layers(net, 2, full=4):
        net(torch.randn(2, 8))
    other = copy.deepcopy(net)
    other.lane.weight.zero_()
    other.lane.bias.zero_()
    rows.clear()
    with lane_layers(net, 2, full=4):
        assert not other.lane(torch.ones(2, 8)).any()
    assert rows == [(2, 2)]


@torch.no_grad()
def test_after_an_error_everything_is_as_it_was(rows: list[tuple[int, int]]) -> None:
    """A failed forward pass is tried again in another mode, perhaps."""
    net = Net()
    with pytest.raises(RuntimeError), lane_layers(net, 2, full=4):
        raise RuntimeError("out of memory")
    net(torch.randn(2, 8))
    assert rows == [(2, 2), (3, 2)]
