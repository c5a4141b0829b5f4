"""Layers that treat places differently are found, and called for as few lanes as it takes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from storage.errors import BadInputError
from storage.parameters import JobParameters
from worker.engine import lane_parts
from worker.engine.agreement import agreeing
from worker.engine.engine import Engine
from worker.engine.forward import Lanes, predict_noise
from worker.engine.lane_layers import lane_layers
from worker.engine.lane_parts import exact_trial
from worker.engine.layer_search import LayerSearch
from worker.engine.trial import native_group, random_lanes, try_lanes
from worker.engine.tuning import Wishes, tune
from worker.models.load import LoadedModel

Does = Callable[[torch.Tensor], torch.Tensor]


def beyond(first: int) -> Does:
    """Return what changes the last bits of all lanes but the first so many."""

    def change(sample: torch.Tensor) -> torch.Tensor:
        scale = torch.ones(len(sample))
        scale[first:] += 1e-6
        return sample * scale[:, None, None, None]

    return change


class Conv(torch.nn.Conv2d):
    """A convolution whose kernel goes by places."""

    def __init__(self, does: Does) -> None:
        super().__init__(4, 4, 1)
        self._does = does
        self.seen: list[int] = []

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Convolve, then show places."""
        self.seen.append(len(sample))
        return self._does(super().forward(sample))


class Activation(torch.nn.Module):
    """Element-wise work."""

    def __init__(self, does: Does = torch.tanh) -> None:
        super().__init__()
        self._does = does

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Do it."""
        return self._does(sample)


class Block(torch.nn.Module):
    """What is given a tuple as well, which cannot be divided."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, sample: torch.Tensor, others: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Add both."""
        return self.inner(sample) + others[0] * 0


class Net(torch.nn.Module):
    """A UNet of a few layers."""

    config = SimpleNamespace(in_channels=4, time_cond_proj_dim=None, cross_attention_dim=2)
    dtype = torch.float32
    attn_processors: ClassVar[dict[str, object]] = {}

    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        """Answer as UNet2DConditionModel does with return_dict=False."""
        for layer in self.layers:
            sample = layer(sample, (sample,)) if isinstance(layer, Block) else layer(sample)
        return (sample,)


@pytest.fixture
def made(model: LoadedModel) -> Callable[..., LoadedModel]:
    """Return a function that makes a model of layers."""

    def make(*layers: torch.nn.Module) -> LoadedModel:
        torch.manual_seed(0)
        return replace(model, unet=Net(*layers).requires_grad_(requires_grad=False))

    return make


def test_where_no_place_shows_all_layers_run_at_once(made: Any) -> None:
    """Nothing is called in parts."""
    trial = exact_trial(made(Activation(), Activation()), 8)
    assert (trial.exact, trial.compared, trial.parts) == (True, True, ())


@pytest.mark.parametrize(("first", "size"), [(4, 4), (2, 2), (1, 1), (6, 4)])
def test_a_convolution_is_called_for_as_many_lanes_as_are_alike(first: int, size: int, made: Any) -> None:
    """A half, a quarter, one; other layers are left as they are."""
    model = made(Activation(), Conv(beyond(first)), Conv(torch.clone))
    assert not try_lanes(model, 8).exact
    trial = exact_trial(model, 8)
    assert (trial.exact, trial.parts) == (True, (("layers.1", size),))
    assert agreeing(model, trial) == (2, 4)  # a part is filled up with idle lanes


def test_what_one_activation_does_all_of_its_class_do(made: Any) -> None:
    """What shows in one of them only by chance does not show in the others today."""
    model = made(Activation(beyond(6)), Conv(torch.clone), Activation())
    trial = exact_trial(model, 8)
    assert trial.parts == (("layers.0", 1), ("layers.2", 1))
    assert trial.exact


def test_a_layer_of_that_class_that_is_over_something_else_is_left_alone(made: Any) -> None:
    """Three rows of tokens are not eight lanes: they are neither called eight times nor cut."""

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Activation()

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            """Add what is the same for all lanes."""
            return sample + self.inner(torch.ones(3, 4)).sum()

    model = made(Activation(beyond(6)), Tokens())
    trial = exact_trial(model, 8)
    assert trial.parts == (("layers.0", 1), ("layers.1.inner", 1))
    assert torch.allclose(trial.noise_pred, try_lanes(model, 8).noise_pred, rtol=1e-4)


def test_the_innermost_layer_is_the_one(made: Any) -> None:
    """What stands around it is as it should be once that is; a block that takes a tuple is not divided."""
    trial = exact_trial(made(Block(Conv(beyond(4)))), 8)
    assert (trial.exact, trial.parts) == (True, (("layers.0.inner", 4),))
    hopeless = Block(Activation())
    hopeless.forward = lambda sample, others: beyond(4)(sample + others[0])  # type: ignore[method-assign]
    assert not exact_trial(made(hopeless), 8).exact


def test_a_layer_that_does_not_repeat_itself_cannot_be_mended(made: Any) -> None:
    """Not even one lane at a time."""
    trial = exact_trial(made(Activation(lambda sample: sample + torch.rand(()))), 4)
    assert not trial.exact


def test_memory_formats_are_kept(made: Any) -> None:
    """A kernel that goes by the format, not by places, is none of these."""

    class Format(torch.nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return sample * (1 if sample.is_contiguous() else 1.5)

    channels_last = Activation(lambda sample: sample.contiguous(memory_format=torch.channels_last))
    # The first convolution makes it look at all of them.
    layers = (Conv(beyond(2)), channels_last, Conv(torch.clone), Format())
    trial = exact_trial(made(*layers), 4)
    assert (trial.exact, trial.parts) == (True, (("layers.0", 2),))


def test_a_part_is_always_equally_wide(made: Any) -> None:
    """In a pass of three lanes too."""
    conv = Conv(beyond(2))
    net = made(conv).unet
    with lane_layers(net, 3, parts=(("layers.0", 2),)):
        (found,) = net(torch.ones(3, 4, 2, 2))
    assert conv.seen == [2, 2]
    assert len(found) == 3
    assert torch.equal(found[0], found[2])
    conv.seen.clear()
    net(torch.ones(3, 4, 2, 2))
    assert conv.seen == [3]


def test_what_a_last_layer_hides_is_looked_for_all_the_same(made: Any) -> None:
    """The trial sees nothing; to compare every layer does."""
    model = made(Conv(beyond(4)), Activation(torch.sign))
    assert try_lanes(model, 8).exact
    assert exact_trial(model, 8).parts == (("layers.0", 4),)


class Outer(torch.nn.Module):
    """Goes by places itself, around a layer that does so, too."""

    def __init__(self, inner: torch.nn.Module, does: Does) -> None:
        super().__init__()
        self.inner, self._does = inner, does

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Do both."""
        return self._does(self.inner(sample))


def test_a_part_may_have_parts(made: Any) -> None:
    """What is inside of a layer in parts sees as many lanes as that one is called for."""
    trial = exact_trial(made(Outer(Conv(beyond(4)), beyond(1))), 8)
    assert (trial.exact, trial.parts) == (True, (("layers.0", 1), ("layers.0.inner", 4)))
    net, sample = made(Outer(Conv(torch.clone), torch.clone)).unet, torch.randn(8, 4, 2, 2)
    plain = net(sample)[0]
    for parts in ((("layers.0", 1), ("layers.0.inner", 4)), (("layers.0", 4), ("layers.0.inner", 1))):
        with lane_layers(net, 8, parts=parts):
            assert torch.allclose(net(sample)[0], plain)


def test_a_layer_that_is_called_twice_does_not_blame_what_it_is_in(made: Any) -> None:
    """It showed nothing the first time; what stands around it has that in its output still."""

    def act(sample: torch.Tensor) -> torch.Tensor:
        little = sample + len(sample) / 1000  # by how many there are, which shows at no place
        return torch.where(sample.abs() > 10, beyond(4)(sample), little)

    class Twice(torch.nn.Module):
        """Calls one activation for little and for much, of which only much shows places."""

        def __init__(self) -> None:
            super().__init__()
            self.act = Activation(act)

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            """Do both."""
            return self.act(self.act(torch.tanh(sample)) * 100)

    model = made(Twice())
    trial = exact_trial(model, 8)
    assert (trial.exact, trial.parts) == (True, (("layers.0.act", 1),))
    search = LayerSearch(model.unet, 8, {})
    drawn = Lanes.stack(random_lanes(model, 8, native_group(model)))
    with lane_layers(model.unet, 8), search.on(1, inside_only=False), torch.no_grad():
        predict_noise(model, drawn, width=8)
    assert search.parts == trial.parts


def test_parts_that_another_worker_found_are_taken_over(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a search; where they do not do, one is made."""
    model = made(Conv(beyond(4)))
    known = exact_trial(model, 8).parts
    with monkeypatch.context() as patch:
        patch.setattr(lane_parts, "search_parts", None)
        assert exact_trial(model, 8, known=known).exact
    assert exact_trial(made(Conv(beyond(2))), 8, known=known).parts == (("layers.0", 2),)


def test_tuning_keeps_the_parts(made: Any) -> None:
    """The next worker of the kind runs the same; one that compiles has to do without."""
    kept: list[dict[str, Any]] = []

    class Kept:
        """Keeps one tuning."""

        def tuning(self, _facts: Any) -> dict[str, Any] | None:
            """Return it."""
            return kept[0] if kept else None

        def keep_tuning(self, _facts: Any, tuning: Any) -> dict[str, Any]:
            """Keep it."""
            kept.append(json.loads(json.dumps(tuning)))
            return kept[0]

    model = made(Conv(beyond(1)))
    _, lanes, trial = tune(model, Wishes(), facts={}, tunings=Kept())
    assert trial is not None
    assert kept[0]["parts"] == [["layers.0", 1]]
    _, again, second = tune(model, Wishes(), facts={}, tunings=Kept())
    assert second is not None
    assert (again, second.parts) == (lanes, trial.parts)
    with pytest.raises(BadInputError, match="exact is not possible"):
        tune(model, Wishes(launch="compiled"), facts={})


def test_two_groups_of_one_unet_have_parts_of_their_own(made: Any) -> None:
    """Those of one are gone when the other runs."""
    conv = Conv(beyond(2))
    net = made(conv).unet
    with lane_layers(net, 4, parts=(("layers.0", 2),)):
        net(torch.ones(4, 4, 2, 2))
    with lane_layers(net, 4, full=8):
        net(torch.ones(4, 4, 2, 2))
    with pytest.raises(KeyError), lane_layers(net, 4, parts=(("nowhere", 2),)):
        pass
    copied = copy.deepcopy(net)
    with lane_layers(copied, 4, parts=(("layers.0", 1),)):
        copied(torch.ones(4, 4, 2, 2))
    net(torch.ones(4, 4, 2, 2))
    assert conv.seen == [2, 2, 4, 4]
    assert copied.layers[0].seen[-4:] == [1, 1, 1, 1]


def job(seed: int) -> JobParameters:
    """Return a job of few steps."""
    return JobParameters(
        prompt="a fox", seed=seed, sampler="euler", schedule="default", num_inference_steps=4,
        guidance_scale=7.5, width=64, height=64,
    )  # fmt: skip


def test_an_engine_runs_what_was_exact_for_nobody(made: Any) -> None:
    """The same bytes in any company; the record says that layers ran in parts, and which."""
    model = made(Conv(beyond(4)))
    engine, other = Engine(model, lanes=8), Engine(made(Conv(beyond(2))), lanes=8)

    def render(seeds: range) -> list[Any]:
        tickets = [engine.submit(job(seed), keep_latents=True) for seed in seeds]
        while engine.step():
            pass
        return [ticket.future.result(timeout=0) for ticket in tickets]

    together = render(range(4))
    for seed in range(4):
        (alone,) = render(range(seed, seed + 1))
        assert torch.equal(alone.latents, together[seed].latents)
        assert alone.numerics == together[seed].numerics == engine.numerics_of(job(seed))
    plain = Engine(made(Conv(torch.clone)), lanes=8)
    assert "parts" not in plain.numerics_of(job(0))
    assert together[0].numerics["parts"] != other.numerics_of(job(0))["parts"]
    assert native_group(model) in engine._plans
