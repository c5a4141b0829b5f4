"""Calls of a denoiser on trial: places, company, odd places, and what is drawn for it."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from worker.coalescing.axes import Axes, Batch, Branch, Common, Listed, Scalar
from worker.coalescing.call import Modes
from worker.coalescing.drawing import masks_of, smallest_calls
from worker.coalescing.proof import Recording, near
from worker.coalescing.trying import Trials

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


NAMES = ("sample", "t", "guidance", "mask", "step", "pooled")
FULL = Axes(
    inputs=Branch(kind=dict, names=NAMES, parts=(ROW, Scalar(mixed=False), ROW, ROW, ROW, ROW)), outputs=ROW
)


def full_call(lanes: int, *, t: float, guidance: float, length: int) -> Recording:
    """Return a call as transformers get them: with a guidance, a mask and timesteps in whole numbers."""
    inputs = {
        "sample": torch.full((lanes, 6), t + 1),
        "t": torch.tensor(t),
        "guidance": torch.full((lanes,), guidance, dtype=torch.float16),
        "mask": (torch.arange(7) < length).long().expand(lanes, 7),
        "step": torch.full((lanes,), int(t)),
        "pooled": torch.full((lanes, 3), t // 2),  # zeros, as of an empty prompt, are no mask
    }
    return Recording(inputs=inputs, modes=MODES, outputs=None)


def test_content_is_drawn_from_the_form_and_what_was_learned_alone() -> None:
    """So it does not depend on the job that comes first which layers are called in parts."""
    learned = full_call(2, t=999.0, guidance=5.0, length=7)
    jobs = [
        full_call(1, t=900.0, guidance=3.5, length=3),
        full_call(2, t=1.0, guidance=1.0, length=7),
        full_call(2, t=0.25, guidance=0.0, length=1),
    ]
    drawn = [Trials(Denoiser(), job, FULL, 4, learned=learned)._drawn(3) for job in jobs]
    assert all(len(calls) == 4 for calls in drawn)
    for calls in drawn[1:]:
        for ours, theirs in zip(drawn[0], calls, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in NAMES)
    for name in ("t", "guidance", "step", "mask"):
        assert len({str(one[name]) for one in drawn[0]}) > 1, name  # or else no place could show
        assert {one[name].dtype for one in drawn[0]} == {learned.inputs[name].dtype}
    guidances = torch.cat([one["guidance"] for one in drawn[0]])
    assert (
        float(guidances.max()) <= 5.0
    )  # a larger one than anybody asks for may be past what half precision has
    assert [int(one["mask"].sum()) for one in drawn[0]][:2] == [1, 7]
    assert all(one["mask"].sum() >= 1 for one in drawn[0])


def test_masks_are_drawn_or_those_of_the_call() -> None:
    """Where the longest mask of a pass shows in all of them, only calls of the same masks are company."""

    class Cuts(Denoiser):
        def forward(self, *, mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
            """Cut off what every mask hides."""
            longest = int(mask.sum(dim=1).max())
            return super().forward(inputs["sample"] * (1 + 1e-6 * longest), inputs["t"], inputs["guidance"])

    sample = full_call(1, t=900.0, guidance=3.5, length=3)
    assert Trials(Cuts(torch.tanh), sample, FULL, 4).exact_parts() is None
    assert Trials(Cuts(torch.tanh), sample, FULL, 4, masks=False).exact_parts() == ()
    others = [full_call(1, t=900.0, guidance=3.5, length=length) for length in (3, 4)]
    ours, same, other = (masks_of(FULL.inputs, each.inputs, sample.inputs) for each in (sample, *others))
    assert ours == same != other
    assert masks_of(AXES.inputs, call(2).inputs, call(1).inputs) == ()


def test_every_pass_is_a_sign_of_life() -> None:
    """A trial may take much longer than a forward pass, and is no device that hangs."""
    beats: list[int] = []
    denoiser = Denoiser(odd_lanes)
    trials = Trials(denoiser, call(2), AXES, 8, beat=lambda: beats.append(len(denoiser.widths)))
    assert trials.exact_parts()
    assert len(beats) > 10
    assert max(b - a for a, b in itertools.pairwise(beats)) <= 1


def test_what_cannot_be_tried_out_runs_alone() -> None:
    """A denoiser that takes no random content says so; a device that fails is another matter."""

    def raising(error: Exception) -> Any:
        def does(_sample: torch.Tensor) -> torch.Tensor:
            raise error

        return Trials(Denoiser(does), call(2), AXES, 8)

    with capture_logs() as logs:
        assert raising(ValueError("no such positions")).exact_parts() is None
    assert "no such positions" in logs[0]["reason"]
    with pytest.raises(RuntimeError):
        raising(RuntimeError("CUDA error: an illegal memory access")).exact_parts()
    with pytest.raises(torch.OutOfMemoryError):
        raising(torch.OutOfMemoryError("full")).exact_parts()


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
    odd = Axes(inputs=AXES.inputs, outputs=Batch(axis=0, share=ONE / 2))
    assert len(smallest_calls(call(2).inputs, odd)) == 1


def test_a_denoiser_with_weights_in_half_precision_may_round_more() -> None:
    """Whatever the dtype of its results: products in bfloat16 may be handed on in float32."""
    right = torch.ones(4)
    ours = right * 1.002
    assert not near(ours, right, half=False)
    assert near(ours, right, half=True)
