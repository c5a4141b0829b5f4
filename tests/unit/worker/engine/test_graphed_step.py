"""A captured step does what the engine does operation by operation, to the bit; captured on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from storage.parameters import JobParameters
from tests.unit.worker.engine.conftest import FakeUnet
from tests.unit.worker.engine.test_lane_parts import Conv, beyond
from worker.engine import tuning
from worker.engine.engine import Engine
from worker.models.graphed import GraphedUnet
from worker.models.load import LoadedModel
from worker.stages import tables
from worker.stages.condition import Condition

Outputs = tuple[torch.Tensor, ...]


class Captures:
    """Captures as CUDA does: what runs again works on the memory that it saw, and on nothing else."""

    def __init__(self) -> None:
        self.count = self.replays = self.resets = 0

    def reset(self) -> None:
        """Count."""
        self.resets += 1

    def __call__(self, function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        """Run a function; returns its outputs, and what runs it again into them."""
        self.count += 1
        outputs = tuple(output.clone() for output in function())

        def replay() -> None:
            self.replays += 1
            for place, new in zip(outputs, function(), strict=True):
                place.copy_(new)

        return outputs, replay


class TellingUnet(FakeUnet):
    """Predicts something that every input shows in."""

    def __call__(self, sample: torch.Tensor, *rest: Any, **named: Any) -> tuple[torch.Tensor]:
        """Answer as UNet2DConditionModel does with return_dict=False."""
        told = rest[0] / 1000 + named["encoder_hidden_states"].sum(dim=(1, 2))
        if named["timestep_cond"] is not None:
            told = told + named["timestep_cond"].sum(dim=1)
        for added in named.get("added_cond_kwargs", {}).values():
            told = told + added.sum(dim=1) / 1000
        mixed = sample + sample.roll(1, dims=-1) + told[:, None, None, None]
        return super().__call__(torch.tanh(mixed) * 8, *rest, **named)


class TellingText:
    """Embeds a text as its length; for Stable Diffusion XL pooled too."""

    def __init__(self, *, pooled: bool) -> None:
        self.pooled = pooled

    def __call__(self, text: str, *, what: str) -> tuple[Condition, str | None]:
        """Answer as TextStage does."""
        assert what
        embeds, pooled = torch.full((1, 4, 2), 0.01 * len(text)), torch.full((1, 3), 40.0 * len(text))
        return Condition(prompt_embeds=embeds, text_embeds=pooled if self.pooled else None), None


@pytest.fixture
def unet() -> FakeUnet:
    """Return a UNet in whose prediction every input shows."""
    return TellingUnet()


@pytest.fixture
def captures() -> Captures:
    """Return what captures."""
    return Captures()


Make = Callable[..., Engine]


@pytest.fixture
def make(model: LoadedModel, captures: Captures, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function that makes engines, plain ones or such that run graphs."""

    def launched(model: LoadedModel, launch: str) -> LoadedModel:
        if launch == "eager":
            return model
        return replace(model, unet=GraphedUnet(model.unet, captures), launch=launch)

    monkeypatch.setattr(tuning, "launched", launched)

    def made(*, graphed: bool, family: str = "sd", **named: Any) -> Engine:
        second = SimpleNamespace(config=SimpleNamespace(projection_dim=3))
        own = replace(model, family=family, text_encoder_2=second)
        engine = Engine(own, launch="cuda_graphs" if graphed else "eager", **named)
        engine._text = TellingText(pooled=family == "sdxl")  # type: ignore[assignment]
        return engine

    return made


def _job(**changes: Any) -> JobParameters:
    job = JobParameters(
        prompt="a fox",
        seed=1,
        sampler="euler",
        schedule="default",
        num_inference_steps=4,
        guidance_scale=7.5,
        width=64,
        height=64,
    )
    return replace(job, **changes)


JOBS = [
    _job(seed=1, sampler="lms", num_inference_steps=6),
    _job(seed=2, sampler="unipc", guidance_scale=3.0, prompt="a fox in the snow"),
    _job(seed=3, sampler="euler_a", num_inference_steps=5, guidance_scale=1.0),
    _job(seed=4, sampler="dpm2_a", num_inference_steps=3),
    _job(seed=5, sampler="dpmpp_2m", options={"guidance_interval": [0.25, 0.75]}),
    _job(seed=6, sampler="ddim", options={"eta": 1.0, "guidance_rescale": 0.7}),
    _job(seed=7, guidance_scale=1.0, num_inference_steps=70),
]


def _render(engine: Engine, *more: JobParameters) -> list[torch.Tensor]:
    tickets = []
    for job in (*more, *JOBS):  # they arrive one step after the other
        tickets.append(engine.submit(job, keep_latents=True))
        engine.step()
    while engine.step():
        pass
    return [ticket.future.result(timeout=0).latents for ticket in tickets]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("mode", ["exact", "throughput"])
@pytest.mark.parametrize("lanes", [4, 8])
def test_a_captured_step_does_the_same(
    lanes: int, mode: str, family: str, make: Make, captures: Captures
) -> None:
    """Joining, leaving, guidance off and on, other lengths, rescaled guidance: one graph for all of them."""
    named = {"lanes": lanes, "mode": mode, "family": family}
    plain, graphed = (make(graphed=graphed, **named) for graphed in (False, True))
    assert captures.count == 1  # at the start, before any request is in it
    for ours, theirs in zip(_render(graphed), _render(plain), strict=True):
        assert torch.equal(ours, theirs)
    assert captures.count == 1
    assert plain.steps == graphed.steps


def test_a_request_without_a_table_runs_in_the_same_graph(
    make: Make, captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its noise scheduler is called after it; its company is none the wiser."""
    probe = tables.probe

    def probed(build: Callable[[], Any], *arguments: Any) -> Any:
        return None if "Heun" in type(build()).__name__ else probe(build, *arguments)

    monkeypatch.setattr(tables, "probe", probed)
    plain, graphed = (make(graphed=graphed, lanes=8) for graphed in (False, True))
    odd = _job(seed=8, sampler="heun", num_inference_steps=9)
    for ours, theirs in zip(_render(graphed, odd), _render(plain, odd), strict=True):
        assert torch.equal(ours, theirs)
    assert captures.count == 1


def test_a_scale_that_is_an_input_gets_there(unet: Any, make: Make) -> None:
    """For models whose UNet takes the guidance scale."""
    unet.config.time_cond_proj_dim = 8
    plain, graphed = (make(graphed=graphed, lanes=4) for graphed in (False, True))
    tickets = [
        [engine.submit(_job(guidance_scale=scale), keep_latents=True) for scale in (2.0, 8.0)]
        for engine in (plain, graphed)
    ]
    for engine in (plain, graphed):
        while engine.step():
            pass
    latents = [[ticket.future.result(timeout=0).latents for ticket in some] for some in tickets]
    for theirs, ours in zip(*latents, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(latents[0][0], latents[0][1])


def test_a_request_that_is_not_a_number_leaves_others_alone(make: Make, unet: Any) -> None:
    """Idle requests and lanes beside it too."""
    engine, alone = (make(graphed=graphed, lanes=8) for graphed in (True, False))
    sick, well = (engine.submit(_job(seed=seed), keep_latents=True) for seed in (1, 2))
    unet.before = lambda sample: torch.cat([sample[:2] * torch.nan, sample[2:]])
    engine.step()
    unet.before = None
    while engine.step():
        pass
    assert sick.future.exception(timeout=0) is not None
    expected = alone.submit(_job(seed=2), keep_latents=True)
    while alone.step():
        pass
    latents = well.future.result(timeout=0).latents
    assert latents is not None
    assert torch.equal(latents, expected.future.result(timeout=0).latents)


def test_its_memory_is_given_back_when_there_is_too_little(make: Make, unet: Any, captures: Captures) -> None:
    """A graph of eight lanes would keep what four need."""
    unet.fits = 8 * 64
    engine = make(graphed=True, lanes=8)
    tickets = [engine.submit(_job(seed=seed)) for seed in range(4)]
    engine.step()
    unet.fits = 4 * 64
    while engine.step():
        pass
    assert [ticket.future.result(timeout=0).numerics["lanes"] for ticket in tickets] == [4] * 4
    assert captures.resets
    assert len(engine.model.unet._captured) == 1


def test_a_new_size_is_tried_again_without_the_graphs_of_others(make: Make, unet: Any) -> None:
    """Before it gets fewer lanes than it could have."""
    engine = make(graphed=True, lanes=8)
    graphs = engine.model.unet

    def remember(seen: dict[str, Any]) -> None:
        """There is no room for a large size beside a graph of the small one."""
        beside = any("[8, 4, 8, 8]" in str(key) for key in graphs._captured)
        unet.fits = 0 if beside and seen["sample"].shape[-1] == 16 else 10**9

    unet.saw = remember
    ticket = engine.submit(_job(width=128, height=128))
    while engine.step():
        pass
    assert ticket.future.result(timeout=0).numerics["lanes"] == 8


def test_only_the_last_used_graphs_are_kept(captures: Captures) -> None:
    """A worker that meets many sizes does not fill its memory with them."""
    unet = GraphedUnet(FakeUnet(), captures)
    for size in range(1, 12):
        unet.run("twice", lambda given: (2 * given,), torch.ones(size))
    assert captures.count == 11
    assert torch.equal(
        unet.run("twice", lambda given: (2 * given,), torch.ones(11))[0], torch.full((11,), 2.0)
    )
    assert captures.count == 11
    unet.run("twice", lambda given: (2 * given,), torch.ones(1))
    assert captures.count == 12


@pytest.mark.parametrize("failures", [1, 2])
def test_a_decoding_without_room_takes_that_of_the_graphs(
    failures: int, make: Make, captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: what is still too little then fails the job; graphs are captured again for whoever comes next."""
    engine = make(graphed=True, lanes=4)
    decode = type(engine.model.vae).decode
    left = [torch.OutOfMemoryError("CUDA out of memory.")] * failures

    def greedy(*arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return decode(*arguments, **named)

    monkeypatch.setattr(type(engine.model.vae), "decode", greedy)
    first, second = engine.submit(_job()), engine.submit(_job(num_inference_steps=9))
    while engine.step():
        pass
    assert (first.future.exception(timeout=0) is None) == (failures == 1)
    assert second.future.exception(timeout=0) is None
    assert captures.resets == 1
    assert captures.count == 2


class PlacesUnet(torch.nn.Module):
    """A real module with one layer that goes by places."""

    dtype = torch.float32
    attn_processors: ClassVar[dict[str, object]] = {}
    config = SimpleNamespace(in_channels=4, time_cond_proj_dim=None, cross_attention_dim=2)

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv(beyond(2)).requires_grad_(requires_grad=False)

    def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        """Answer as UNet2DConditionModel does with return_dict=False."""
        return (self.conv(sample),)


def test_a_captured_step_has_its_layers_in_parts(
    model: LoadedModel, captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the plain one; captured once, when it is known which layers."""
    own = replace(model, unet=PlacesUnet())

    def launched(given: LoadedModel, launch: str) -> LoadedModel:
        if launch == "eager":
            return given
        return replace(given, unet=GraphedUnet(given.unet, captures), launch=launch)

    monkeypatch.setattr(tuning, "launched", launched)
    found = []
    for launch in ("eager", "cuda_graphs"):
        engine = Engine(own, lanes=8, launch=launch)
        assert engine.numerics_of(_job())["parts"]
        tickets = [engine.submit(_job(seed=seed), keep_latents=True) for seed in range(4)]
        while engine.step():
            pass
        found.append([ticket.future.result(timeout=0).latents for ticket in tickets])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert captures.count == 1
