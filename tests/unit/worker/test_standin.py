"""What a pipeline finds in its denoiser's place, and how its calls reach another thread."""

from __future__ import annotations

import threading
from typing import Any

import diffusers
import pytest
import torch

from tests.pipelines import tiny
from worker.coalescing.baton import Baton
from worker.coalescing.call import Call, Modes, run
from worker.coalescing.standin import StandIn, changes_of
from worker.engine.errors import Released


def test_a_stand_in_looks_like_the_denoiser() -> None:
    """Class, config, dtype and submodules are the denoiser's own."""
    unet = tiny("stable_diffusion").unet
    standin: Any = StandIn(unet, lambda _inputs: None)
    assert isinstance(standin, diffusers.UNet2DConditionModel)
    assert isinstance(standin, torch.nn.Module)
    assert standin.config is unet.config
    assert (standin.dtype, standin.device) == (torch.float32, torch.device("cpu"))
    assert standin.conv_in is unet.conv_in
    with pytest.raises(AttributeError):
        _ = standin.nothing_of_that_name


def test_calls_look_alike_however_they_were_made() -> None:
    """Positional and named arguments of one call are the same arguments."""
    calls: list[dict[str, Any]] = []
    standin = StandIn(tiny("stable_diffusion").unet, calls.append)
    standin(1, 2, encoder_hidden_states=3)
    standin.forward(sample=1, timestep=2, encoder_hidden_states=3)
    assert calls == [{"sample": 1, "timestep": 2, "encoder_hidden_states": 3}] * 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        standin(1, 2, 3, wrong=4)


class Loose(torch.nn.Module):
    """A denoiser that takes whatever comes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return it."""
        return args, kwargs


class Named(torch.nn.Module):
    """A denoiser with further named arguments."""

    def forward(self, x: Any, **kwargs: Any) -> Any:
        """Return them."""
        return x, kwargs


@pytest.mark.parametrize("denoiser", [Loose(), Named()])
def test_loose_signatures_get_what_they_were_called_with(denoiser: torch.nn.Module) -> None:
    """A denoiser that takes any arguments is called as the pipeline called it."""
    modes = Modes.here("cpu")
    standin = StandIn(denoiser, lambda inputs: run(denoiser, inputs, modes))
    assert standin(1, y=2) == denoiser(1, y=2)


def test_what_a_pipeline_sets_is_noticed() -> None:
    """An attribute that a pipeline sets reaches the denoiser, and is remembered."""
    denoiser = Loose()
    standin: Any = StandIn(denoiser, lambda _inputs: None)
    standin.mark = 5
    assert denoiser.mark == 5
    assert changes_of(standin) == ["mark"]


def test_cache_contexts_stay_apart() -> None:
    """The context of one job's call is not set on a denoiser that others share."""
    seen: list[str] = []

    class Caching(Loose):
        def cache_context(self, name: str) -> Any:
            seen.append(name)
            return torch.no_grad()

    with StandIn(Caching(), lambda _inputs: None).cache_context("cond"):
        assert seen == []
    with StandIn(Caching(), lambda _inputs: None, shared=False).cache_context("cond"):
        assert seen == ["cond"]


@pytest.mark.parametrize("inference", [False, True])
def test_the_callers_modes_hold_in_the_engines_thread(inference: bool) -> None:  # noqa: FBT001 - a case
    """Autocast, grad mode and inference mode are the job's, wherever its forward pass runs."""
    baton, heard = Baton(), []
    denoiser = Loose()

    def job() -> None:
        with baton.held(), torch.inference_mode(inference), torch.no_grad():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                call = Call(owner=None, inputs={}, modes=Modes.here("cpu"))
            heard.append(baton.post(call))

    baton.announce()
    thread = threading.Thread(target=job)
    thread.start()
    (call,) = baton.calls()
    with call.modes.applied():
        found = Modes.here("cpu")
    assert found == Modes(grad=False, inference=inference, autocast=torch.bfloat16, device_type="cpu")
    baton.answer(call, run(denoiser, call.inputs, call.modes))
    thread.join(10)
    assert heard == [((), {})]
    assert baton.calls() == []


def test_one_thread_at_a_time_runs_and_the_engine_when_none_does() -> None:
    """Threads that hold the baton never overlap, and the engine sees all calls that there will be."""
    baton, inside, overlaps = Baton(), [0], []

    def job(number: int) -> None:
        with baton.held():
            for _ in range(3):
                inside[0] += 1
                overlaps.append(inside[0] > 1)
                inside[0] -= 1
                baton.post(Call(owner=number, inputs={}, modes=Modes.here("cpu")))

    for number in range(4):
        baton.announce()
        threading.Thread(target=job, args=(number,), daemon=True).start()
    for _ in range(3):
        calls = baton.calls()
        assert sorted(call.owner for call in calls) == [0, 1, 2, 3]
        assert inside == [0]
        for call in calls:
            baton.answer(call)
    assert baton.calls() == []
    assert not any(overlaps)


def test_an_ended_baton_answers_everybody() -> None:
    """Whoever waits when the engine closes gets the error, and whoever comes later too."""
    baton, errors = Baton(), []

    def job() -> None:
        with baton.held():
            for _ in range(2):
                try:
                    baton.post(Call(owner=None, inputs={}, modes=Modes.here("cpu")))
                except Released as error:
                    errors.append(error)

    baton.announce()
    threading.Thread(target=job, daemon=True).start()
    baton.calls()
    baton.end(Released("closed"))
    assert baton.calls() == []
    assert len(errors) == 2
