"""Calls of a denoiser on trial: places, company, odd places, and what is drawn for it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

from worker.coalescing.axes import Axes, Batch, Branch, Common, Listed, Scalar
from worker.coalescing.call import Modes
from worker.coalescing.proof import Recording
from worker.coalescing.trying import Trials, smallest_calls

MODES = Modes(grad=False, inference=False, autocast=None, device_type="cpu")
ONE = Fraction(1)
ROW = Batch(axis=0, share=ONE)
AXES = Axes(
    inputs=Branch(kind=dict, names=("sample", "t", "ids"), parts=(ROW, Scalar(), Common())),
    outputs=ROW,
)


class Layer(torch.nn.Module):
    """A layer that does what it is told."""

    def __init__(self, does: Any) -> None:
        super().__init__()
        self.does = does

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Do it."""
        result: torch.Tensor = self.does(sample)
        return result


class Denoiser(torch.nn.Module):
    """Layers one after the other; `final` stands behind them, as a function."""

    def __init__(self, *layers: Any, final: Any = torch.clone) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(map(Layer, layers))
        self.final = final
        self.widths: list[int] = []

    def forward(self, sample: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Denoise."""
        self.widths.append(len(sample))
        for layer in self.layers:
            sample = layer(sample)
        result: torch.Tensor = self.final(sample) + t.reshape(-1, 1) * 0 + ids.sum() * 0
        return result


def call(lanes: int, *, t: float = 900.0) -> Recording:
    """Return a call with so many lanes."""
    sample = torch.randn(lanes, 6, generator=torch.Generator().manual_seed(lanes))
    inputs = {"sample": sample, "t": torch.tensor(t), "ids": torch.arange(4)}
    return Recording(inputs=inputs, modes=MODES, outputs=None)


def last_lanes(sample: torch.Tensor) -> torch.Tensor:
    """Change the last bits of the last two lanes."""
    return torch.cat([sample[:-2], sample[-2:] * (1 + 1e-6)])


def odd_lanes(sample: torch.Tensor) -> torch.Tensor:
    """Change the last bits of every other lane."""
    scale = torch.ones(len(sample), 1)
    scale[1::2] += 1e-6
    return sample * scale


def test_what_goes_by_lanes_alone_is_exact() -> None:
    """In three passes: two places, and idle company."""
    denoiser = Denoiser(torch.tanh, torch.sin)
    assert Trials(denoiser, call(2), AXES, 8).exact_parts() == ()
    assert denoiser.widths == [8, 8, 8]


@pytest.mark.parametrize("does", [last_lanes, odd_lanes])
def test_a_layer_that_goes_by_places_is_found(does: Any) -> None:
    """Odd places too, where a call with guidance stands beside one without."""
    trials = Trials(Denoiser(torch.tanh, does), call(2), AXES, 8)
    parts = trials.exact_parts()
    assert parts == (("layers.0", 1), ("layers.1", 1))  # all of a class
    calls = trials._drawn(5)
    whole = trials.run(calls, parts)
    assert all(
        torch.equal(result, trials.run([one], parts)[0]) for result, one in zip(whole, calls, strict=True)
    )


@pytest.mark.parametrize(
    "final",
    [
        last_lanes,  # outside of every layer
        lambda sample: sample + 1e-6 * sample.sum(),  # company shows
        lambda sample: sample * (1 + 1e-6 * torch.rand(())),  # nothing repeats itself
    ],
)
def test_what_is_in_no_layer_cannot_be_mended(final: Any) -> None:
    """Such calls run alone."""
    assert Trials(Denoiser(torch.tanh, final=final), call(2), AXES, 8).exact_parts() is None


def test_what_hides_in_few_bits_is_seen_in_the_layers() -> None:
    """A result that rounds it away says nothing of the next job's."""
    hidden = Denoiser(last_lanes, final=lambda sample: sample.round())
    assert Trials(hidden, call(1), AXES, 8).exact_parts() == (("layers.0", 1),)


def test_parts_that_change_the_result_are_none() -> None:
    """Rows that were no lanes, although there were as many: then nothing is divided."""
    mixes = Denoiser(lambda sample: sample + 1e-1 * sample.mean(dim=0, keepdim=True))
    assert Trials(mixes, call(1), AXES, 4).exact_parts() is None


def test_alone_there_is_no_company() -> None:
    """One call that fills the pass needs no trial."""
    denoiser = Denoiser(last_lanes)
    trials = Trials(denoiser, call(1), AXES, 1)
    assert trials.exact_parts() == ()
    assert denoiser.widths == []


def test_as_many_rows_as_lanes_that_are_none() -> None:
    """Tokens: what a layer makes of them stays where it is."""

    class Tokens(Denoiser):
        def forward(self, sample: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            """Look at the positions of four tokens."""
            return super().forward(sample, t, self.layers[0](ids.float()))

    assert Trials(Tokens(torch.tanh), call(1), AXES, 4).exact_parts() == ()


def test_content_is_drawn_from_the_form_alone() -> None:
    """So it does not depend on the job that comes first which layers are called in parts."""
    trials = [Trials(Denoiser(), sample, AXES, 4) for sample in (call(1, t=900), call(2, t=20))]
    drawn = [trial._drawn(3) for trial in trials]
    for ours, theirs in zip(*drawn, strict=True):
        assert torch.equal(ours["sample"], theirs["sample"])
        assert torch.equal(ours["t"], theirs["t"])
    small = Trials(Denoiser(), call(1, t=0.5), AXES, 4)._drawn(3)
    assert all(0 <= one["t"] <= 1 for one in small)
    assert any(one["t"] > 1 for one in drawn[0])


def test_a_call_is_divided_where_its_pieces_are_of_its_form() -> None:
    """Guidance and prompt are two lanes; prompts of two lengths in one list stay together."""
    assert len(smallest_calls(call(2).inputs, AXES)) == 2
    listed = Axes(
        inputs=Branch(kind=dict, names=("x", "p"), parts=(ROW, Listed(kind=list, share=ONE))), outputs=ROW
    )
    alike = {"x": torch.ones(2, 3), "p": [torch.ones(4, 2), torch.ones(4, 2)]}
    ragged = {"x": torch.ones(2, 3), "p": [torch.ones(4, 2), torch.ones(5, 2)]}
    assert len(smallest_calls(alike, listed)) == 2
    assert len(smallest_calls(ragged, listed)) == 1
    half = Axes(
        inputs=Branch(kind=dict, names=("x", "p"), parts=(ROW, Batch(axis=0, share=ONE / 2))), outputs=ROW
    )
    assert len(smallest_calls({"x": torch.ones(4, 3), "p": torch.ones(2, 3)}, half)) == 2
