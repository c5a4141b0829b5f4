"""The engine's promises, tried with faults put into the UNet's forward pass."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from storage.errors import BadInputError
from storage.parameters import JobParameters
from worker.engine import engine as engine_module
from worker.engine import request as request_module
from worker.engine.batch import Batch, _lane_indices
from worker.engine.engine import Engine
from worker.engine.errors import (
    Cancelled,
    DeadlineError,
    EngineDeadError,
    OutOfMemoryError,
    Released,
    RenderError,
)
from worker.engine.request import Request
from worker.engine.ticket import Ticket
from worker.models.load import LoadedModel
from worker.stages import tables
from worker.stages.history import History
from worker.stages.schedule import NoiseSchedule
from worker.stages.text import TextStage

# numpy warns about torch's __array__ where diffusers hands it tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def _job(**settings: Any) -> JobParameters:
    chosen = {"prompt": "a fox", "seed": 1, "sampler": "euler", "num_inference_steps": 4} | settings
    return JobParameters(**chosen)


def _run(engine: Engine) -> None:
    while engine.step():
        pass


@pytest.fixture
def engine(model: LoadedModel) -> Engine:
    """Return an engine of four lanes."""
    return Engine(model, lanes=4)


def test_a_request_becomes_a_picture(engine: Engine) -> None:
    """The future holds pixels, timings and a numerics record with the lanes."""
    ticket = engine.submit(_job())
    _run(engine)
    result = ticket.future.result(timeout=0)
    assert result.pixels.shape == (8, 8, 3)
    assert set(result.seconds) == {"encode", "denoise", "decode"}
    assert result.numerics["lanes"] == 4
    assert ticket.progress == 1.0


@pytest.mark.parametrize("settings", [{}, {"width": 128}], ids=["native size", "another size"])
def test_the_record_is_known_before_the_picture(
    model: LoadedModel, unet: Any, settings: dict[str, Any]
) -> None:
    """So that a picture which is there already can be found; fewer lanes show in it once they are fewer."""
    engine = Engine(model, lanes=8)
    first = engine.submit(_job(**settings))
    assert engine.numerics_of(_job(**settings)) == {**engine.numerics, "lanes": 8}
    _run(engine)
    assert engine.numerics_of(_job(**settings)) == first.future.result(timeout=0).numerics
    unet.fits = 4 * 64  # the native size's memory
    second = engine.submit(_job(**settings))
    _run(engine)
    assert engine.numerics_of(_job(**settings)) == second.future.result(timeout=0).numerics


def test_requests_share_forward_passes(engine: Engine) -> None:
    """Two guided requests of different steps and samplers take no more passes than the longer one."""
    engine.submit(_job(num_inference_steps=6))
    engine.submit(_job(num_inference_steps=3, sampler="ddim"))
    _run(engine)
    assert engine.steps == 6


def test_who_joins_has_the_batch_gathered_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three companies are three batches, although the oldest request joins last."""
    companies: list[list[int]] = []

    class Watched(Batch):
        def __init__(self, requests: Sequence[Request], *arguments: Any, **options: Any) -> None:
            companies.append([request.arrival for request in requests])
            super().__init__(requests, *arguments, **options)

    monkeypatch.setattr(engine_module, "Batch", Watched)
    for steps in (3, 20, 10):
        engine.submit(_job(num_inference_steps=steps))
    _run(engine)
    assert companies == [[2, 3], [2, 1], [2]]


def _by_width(sample: torch.Tensor) -> torch.Tensor:
    """Make every width of a forward pass show in its results."""
    return sample * (1 + len(sample) / 1000)


def test_exact_mode_runs_all_lanes_where_a_width_shows(model: LoadedModel, unet: Any) -> None:
    """One unguided request among idle lanes still runs the full shape."""
    unet.before = _by_width
    engine = Engine(model, lanes=4)
    unet.widths.clear()
    engine.submit(_job(guidance_scale=1.0))
    _run(engine)
    assert set(unet.widths) == {4}


@pytest.mark.parametrize(("requests", "widths"), [(1, {4}), (2, {4}), (3, {8}), (5, {16})])
def test_exact_mode_runs_no_more_lanes_than_make_a_difference(
    requests: int, widths: set[int], model: LoadedModel, unet: Any
) -> None:
    """Here 2 and 12 lanes have bits of their own, and 4, 8 and 16 agree: the bytes are those of R anyway."""
    unet.before = lambda sample: _by_width(sample) if len(sample) in (2, 12) else sample
    engine = Engine(model, lanes=16)
    wide = [engine.submit(_job(seed=seed), keep_latents=True) for seed in range(8)]
    _run(engine)
    unet.widths.clear()
    narrow = [engine.submit(_job(seed=seed), keep_latents=True) for seed in range(requests)]
    _run(engine)
    assert set(unet.widths) == widths
    for one, other in zip(narrow, wide, strict=False):
        result, expected = one.future.result(timeout=0), other.future.result(timeout=0)
        assert result.latents is not None
        assert torch.equal(result.latents, expected.latents)
        assert result.numerics == expected.numerics


def test_a_narrow_width_has_to_be_exact_itself(model: LoadedModel, unet: Any) -> None:
    """At 8 lanes the last position shows: that width is not taken, though the probe agrees elsewhere."""

    def last_shows(sample: torch.Tensor) -> torch.Tensor:
        if len(sample) == 8:
            sample = sample.clone()
            sample[-1] *= 1.01
        return sample

    unet.before = last_shows
    engine = Engine(model, lanes=16)
    unet.widths.clear()
    for seed in range(3):
        engine.submit(_job(seed=seed))
    _run(engine)
    assert set(unet.widths) == {12}


@pytest.mark.parametrize(("guidance_scale", "width"), [(7.5, 2), (1.0, 1)])
def test_reference_mode_does_not_pad(
    guidance_scale: float, width: int, model: LoadedModel, unet: Any
) -> None:
    """The reference loop runs two halves for a guided request and one lane for an unguided one, alone."""
    engine = Engine(model, mode="reference")
    engine.submit(_job(guidance_scale=guidance_scale))
    engine.submit(_job(guidance_scale=guidance_scale))
    _run(engine)
    assert set(unet.widths) == {width}
    assert engine.steps == 8


def test_throughput_mode_does_not_pad(model: LoadedModel, unet: Any) -> None:
    """Throughput mode runs only the lanes that are needed."""
    engine = Engine(model, mode="throughput", lanes=6)
    engine.submit(_job(guidance_scale=1.0))
    _run(engine)
    assert set(unet.widths) == {1}


def test_lanes_in_use_are_those_of_one_step(engine: Engine) -> None:
    """Requests of another size that sit a step out, or that will need two lanes, are not counted."""
    for size in (64, 128):
        for seed in range(2):
            engine.submit(_job(seed=seed, width=size))
    growing = {"guidance_interval": [0.5, 1.0]}
    for seed in range(4):
        engine.submit(_job(seed=seed, options=growing), priority=-1)
    used = []
    while engine.step():
        used.append(engine.lanes_used)
    assert engine.load == (0, 0)
    assert max(used) == 4
    assert used[-1] == 0


def test_progress_is_reported(engine: Engine) -> None:
    """The submitter hears of every step."""
    seen: list[float] = []
    engine.submit(_job(), on_progress=seen.append)
    _run(engine)
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_cancel_takes_effect_at_the_next_step(engine: Engine) -> None:
    """A cancelled request leaves and its neighbour is finished."""
    cancelled, neighbour = engine.submit(_job()), engine.submit(_job(seed=2))
    engine.step()
    cancelled.cancel()
    _run(engine)
    assert isinstance(cancelled.future.exception(timeout=0), Cancelled)
    assert cancelled.progress == 0.25
    neighbour.future.result(timeout=0)


def test_a_step_that_only_drops_requests_says_that_there_was_something(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whoever steps until there is nothing to do leaves nobody behind."""
    engine.submit(_job()).cancel()
    assert engine.step()
    assert not engine.step()
    encode = TextStage.__call__

    def fail(stage: TextStage, text: Any, **named: Any) -> Any:
        if text == "a bear":
            raise ValueError("no bears")
        return encode(stage, text, **named)

    monkeypatch.setattr(TextStage, "__call__", fail)
    sick, well = engine.submit(_job(prompt="a bear")), engine.submit(_job(width=128))
    _run(engine)
    assert "no bears" in str(sick.future.exception(timeout=0))
    well.future.result(timeout=0)


def test_draining_gives_back_what_has_not_begun(engine: Engine) -> None:
    """Requests without lanes are released at once, the others are finished, new ones are refused."""
    tickets = [engine.submit(_job(seed=seed)) for seed in range(3)]
    engine.step()
    assert engine.load == (1, 2)
    assert engine.release_waiting() == 1
    with pytest.raises(Released):
        engine.submit(_job())
    _run(engine)
    assert isinstance(tickets[2].future.exception(timeout=0), Released)
    assert all(ticket.future.exception(timeout=0) is None for ticket in tickets[:2])


def test_closing_gives_back_everything(engine: Engine) -> None:
    """A closed engine leaves no future open."""
    ticket = engine.submit(_job())
    engine.step()
    engine.close()
    assert isinstance(ticket.future.exception(timeout=0), Released)


def test_nan_fails_one_request(engine: Engine, unet: Any) -> None:
    """NaN in one request's lanes fails that request and leaves its neighbour's latents as they would be."""
    alone = engine.submit(_job(seed=2), keep_latents=True)
    _run(engine)

    def poison(sample: torch.Tensor) -> torch.Tensor:
        sample = sample.clone()
        sample[0] = float("nan")
        return sample

    sick, well = engine.submit(_job()), engine.submit(_job(seed=2), keep_latents=True)
    engine.step()
    unet.before = poison
    engine.step()
    unet.before = None
    _run(engine)
    error = sick.future.exception(timeout=0)
    assert isinstance(error, RenderError)
    assert error.permanent
    assert "not finite after step 2 of 4" in str(error)
    ours, theirs = well.future.result(timeout=0).latents, alone.future.result(timeout=0).latents
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)


def test_nan_in_the_last_step_is_no_picture(engine: Engine, unet: Any) -> None:
    """The answer about the last step is read before its picture is decoded."""
    ticket = engine.submit(_job())
    for _ in range(3):
        engine.step()
    unet.before = lambda sample: sample * float("nan")
    _run(engine)
    assert "not finite after step 4 of 4" in str(ticket.future.exception(timeout=0))


def test_a_request_that_takes_too_long_fails_between_two_steps(
    model: LoadedModel, unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbour goes on, and who waits or only has to be decoded is not counted as taking long."""
    now = 0.0
    monkeypatch.setattr(request_module.time, "perf_counter", lambda: now)

    def work(sample: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += 4.0
        return sample

    engine = Engine(model, lanes=4, deadline=10.0)
    unet.before = work
    finishing = [engine.submit(_job(num_inference_steps=3, seed=seed)) for seed in range(2)]
    slow = engine.submit(_job(num_inference_steps=20), priority=-1)
    short = engine.submit(_job(num_inference_steps=2), priority=-2)
    _run(engine)
    assert [ticket.future.exception(timeout=0) for ticket in (*finishing, short)] == [None] * 3
    error = slow.future.exception(timeout=0)
    assert isinstance(error, DeadlineError)
    assert error.permanent
    assert "stopped after step 3 of 20, since its steps took more than 10 s" in str(error)


def test_a_samplers_error_fails_one_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a noise scheduler raises is the request's own failure."""
    monkeypatch.setattr(tables, "probe", lambda *_: None)  # one of those that have no table
    sick, well = engine.submit(_job()), engine.submit(_job(seed=2))

    def fail(*_: Any) -> None:
        raise ValueError("no such sigma")

    monkeypatch.setattr(sick._request.schedule, "step", fail)
    _run(engine)
    with pytest.raises(RenderError, match=r"sampling at step 1 of 4 .*no such sigma"):
        sick.future.result(timeout=0)
    well.future.result(timeout=0)


def test_out_of_memory_fails_only_the_chosen(engine: Engine, unet: Any) -> None:
    """Requests that did not fit fail with a hint, and the engine goes on."""

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    unet.before = fail
    ticket = engine.submit(_job())
    engine.step()
    with pytest.raises(OutOfMemoryError, match="fewer --lanes"):
        ticket.future.result(timeout=0)
    unet.before = None
    ticket = engine.submit(_job())
    _run(engine)
    ticket.future.result(timeout=0)


@pytest.mark.parametrize("mode", ["exact", "throughput"])
def test_out_of_memory_goes_on_with_fewer_lanes(mode: str, model: LoadedModel, unet: Any) -> None:
    """Exact mode starts again under a new, recorded tuning, and throughput mode goes on where it was."""
    unet.fits = 8 * 64
    unet.before = lambda sample: sample * (1 + 1e-3 * len(sample))  # other bits at each width
    engine = Engine(model, lanes=8, mode=mode)
    tickets = [engine.submit(_job(seed=seed), keep_latents=True) for seed in range(4)]
    engine.step()
    unet.fits = 4 * 64
    engine.step()  # fails, and nobody moves
    assert {ticket.progress for ticket in tickets} == ({0.0} if mode == "exact" else {0.25})
    _run(engine)
    results = [ticket.future.result(timeout=0) for ticket in tickets]
    assert {result.numerics["lanes"] for result in results} == {4}
    assert results[0].warnings == ["The device ran out of memory with 8 lanes; rendered with 4."]
    if mode == "exact":
        pinned = Engine(model, lanes=4)
        alone = pinned.submit(_job(seed=3), keep_latents=True)
        _run(pinned)
        ours, theirs = results[3].latents, alone.future.result(timeout=0).latents
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)


def test_what_another_model_holds_costs_no_lanes(model: LoadedModel, unet: Any) -> None:
    """It is unloaded first: in a step, in the trial of a new size, and in a decoding."""
    unloaded: list[float] = []

    def make_room() -> bool:
        unloaded.append(unet.fits)
        unet.fits, before = math.inf, unet.fits
        return before < math.inf

    unet.before = _by_width
    engine = Engine(model, lanes=8, make_room=make_room)
    first = engine.submit(_job())
    engine.step()
    unet.fits = 4 * 64
    engine.step()  # fails, and nobody moves
    assert first.progress == 0.25
    unet.fits = 4 * 32 * 32
    large = engine.submit(_job(width=256, height=256))
    _run(engine)
    for ticket in (first, large):
        result = ticket.future.result(timeout=0)
        assert (result.numerics["lanes"], result.warnings) == (8, [])
    assert unloaded == [4 * 64, 4 * 32 * 32]


@pytest.mark.parametrize("mode", ["exact", "throughput"])
def test_what_keeps_its_scheduler_starts_again_after_out_of_memory(
    mode: str, model: LoadedModel, unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its noise scheduler may be a step ahead of it."""
    monkeypatch.setattr(tables, "probe", lambda *_: None)
    engine = Engine(model, lanes=8, mode=mode)
    ticket = engine.submit(_job())
    engine.step()
    _run_out_of_memory(engine, unet)
    assert ticket.progress == 0.0
    _run(engine)
    assert ticket.future.result(timeout=0).numerics["lanes"] == 4


def _run_out_of_memory(engine: Engine, unet: Any) -> None:
    """Take a step whose forward pass does not fit; the next one does."""

    def full(_: torch.Tensor) -> torch.Tensor:
        unet.before = None
        raise torch.OutOfMemoryError("CUDA out of memory.")

    unet.before = full
    engine.step()


def _latents(ticket: Ticket) -> torch.Tensor:
    latents = ticket.future.result(timeout=0).latents
    assert latents is not None
    return latents


@pytest.mark.parametrize("mode", ["exact", "throughput", "reference"])
def test_a_noise_scheduler_that_is_a_step_ahead_starts_again(
    mode: str, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory ran out after it was called; with the room that others made it is not called twice."""
    monkeypatch.setattr(tables, "probe", lambda *_: None)
    undisturbed = Engine(model, mode=mode)
    expected = undisturbed.submit(_job(), keep_latents=True)
    _run(undisturbed)
    engine = Engine(model, mode=mode, make_room=lambda: True)
    ticket = engine.submit(_job(), keep_latents=True)
    engine.step()
    step, with_latents = NoiseSchedule.step, History.with_latents

    def stepped(*arguments: Any) -> Any:
        monkeypatch.setattr(History, "with_latents", full)
        return step(*arguments)

    def full(*_: Any) -> Any:
        monkeypatch.setattr(NoiseSchedule, "step", step)
        monkeypatch.setattr(History, "with_latents", with_latents)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(NoiseSchedule, "step", stepped)
    engine.step()
    _run(engine)
    assert torch.equal(_latents(ticket), _latents(expected))
    assert ticket.future.result(timeout=0).warnings == []


@pytest.mark.parametrize(("room", "lanes"), [(True, 8), (False, 4)])
@pytest.mark.parametrize("table", [True, False], ids=["table", "scheduler"])
def test_out_of_memory_behind_the_forward_pass_is_no_end(
    table: bool,  # noqa: FBT001 - a parameter of the test
    room: bool,  # noqa: FBT001 - likewise
    lanes: int,
    model: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody moves before latents are asked whether they are finite, so it is as if the pass had failed."""
    if not table:
        monkeypatch.setattr(tables, "probe", lambda *_: None)
    undisturbed = Engine(model, lanes=lanes)
    expected = undisturbed.submit(_job(), keep_latents=True)
    _run(undisturbed)
    engine = Engine(model, lanes=8, make_room=lambda: room)
    ticket = engine.submit(_job(), keep_latents=True)
    engine.step()
    isfinite = torch.isfinite

    def full(_: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(torch, "isfinite", isfinite)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "isfinite", full)
    engine.step()
    _run(engine)
    assert not engine.dead
    assert torch.equal(_latents(ticket), _latents(expected))
    assert ticket.future.result(timeout=0).numerics["lanes"] == lanes


def test_out_of_memory_in_reference_mode_fails_one_request(model: LoadedModel, unet: Any) -> None:
    """There are no fewer lanes to go on with; the next request has the picture that it always has."""
    engine = Engine(model, mode="reference")
    sick, well = (engine.submit(_job(seed=seed), keep_latents=True) for seed in range(2))
    engine.step()
    _run_out_of_memory(engine, unet)
    with pytest.raises(OutOfMemoryError, match="while denoising at 64x64 with 2 lanes"):
        sick.future.result(timeout=0)
    assert (well.progress, engine.dead) == (0.0, False)
    _run(engine)
    undisturbed = Engine(model, mode="reference")
    expected = undisturbed.submit(_job(seed=1), keep_latents=True)
    _run(undisturbed)
    assert torch.equal(_latents(well), _latents(expected))


@pytest.mark.parametrize("stage", ["prompt", "noise"])
def test_an_encoding_without_room_is_done_again(
    stage: str, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once something else has left the device; nothing is heard, said or scaled twice. Else it fails."""
    left = [torch.OutOfMemoryError("CUDA out of memory.")]
    room = [True]
    encode, move_noise = TextStage.__call__, NoiseSchedule.move_noise

    def hear(text_stage: TextStage, text: Any, *, what: str) -> Any:
        if (stage, what) == ("prompt", "prompt") and left:
            raise left.pop()
        return encode(text_stage, text, what=what)[0], f"The {what} is long."

    def move(schedule: NoiseSchedule, device: torch.device) -> None:
        if stage == "noise" and left:
            raise left.pop()
        move_noise(schedule, device)

    monkeypatch.setattr(TextStage, "__call__", hear)
    monkeypatch.setattr(NoiseSchedule, "move_noise", move)
    engine = Engine(model, lanes=4, make_room=lambda: bool(room and room.pop()))
    tickets = [engine.submit(_job(), keep_latents=True) for _ in range(2)]
    _run(engine)
    assert torch.equal(*map(_latents, tickets))
    for ticket in tickets:
        result = ticket.future.result(timeout=0)
        assert result.warnings == ["The negative prompt is long.", "The prompt is long."]
        assert len(ticket._request.conditions) == 2
    left += [torch.OutOfMemoryError("CUDA out of memory.")]
    full = engine.submit(_job())
    _run(engine)
    with pytest.raises(OutOfMemoryError, match="while encoding its prompt"):
        full.future.result(timeout=0)


@pytest.mark.parametrize(("fits", "lanes", "steps"), [(4, 4, 4), (1, 2, 8)])
def test_a_new_size_that_cannot_be_looked_at_gets_fewer_lanes(
    fits: int, lanes: int, steps: int, model: LoadedModel, looking: Any
) -> None:
    """That it fits does not say that it is exact; one request alone is so in any case. First room is made."""
    engine = Engine(model, lanes=8)
    looking.fits = fits
    tickets = [engine.submit(_job(width=128, seed=seed)) for seed in range(2)]
    _run(engine)
    assert [ticket.future.result(timeout=0).numerics["lanes"] for ticket in tickets] == [lanes] * 2
    assert engine.steps == steps

    def make_room() -> bool:
        looking.fits, before = math.inf, looking.fits
        return before < math.inf

    looking.fits = math.inf
    beside = Engine(model, lanes=8, make_room=make_room)
    looking.fits = fits
    ticket = beside.submit(_job(width=128))
    _run(beside)
    assert ticket.future.result(timeout=0).numerics["lanes"] == 8


def test_a_new_size_that_does_not_fit_gets_fewer_lanes(model: LoadedModel, unet: Any) -> None:
    """The trial of a large size runs out of memory at R lanes, and its jobs are rendered with fewer."""
    unet.fits = 4 * 32 * 32
    engine = Engine(model, lanes=8)
    large, small, huge = (engine.submit(_job(width=size, height=size)) for size in (256, 64, 512))
    _run(engine)
    assert large.future.result(timeout=0).numerics["lanes"] == 4
    assert small.future.result(timeout=0).numerics["lanes"] == 8
    with pytest.raises(OutOfMemoryError, match=r"at 512x512 .*smaller picture"):
        huge.future.result(timeout=0)


def test_more_urgent_requests_do_not_wait_for_a_new_size_to_be_tried_out(
    model: LoadedModel, unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for them, but not for ever; a new size that is as urgent as they are is tried out at once."""
    monkeypatch.setattr(engine_module, "POSTPONED", 5)
    engine = Engine(model, lanes=4)
    engine.submit(_job(num_inference_steps=3), priority=1)
    larger = engine.submit(_job(width=128))
    unet.widths.clear()
    for _ in range(3):
        engine.step()
    assert len(unet.widths) == 3
    _run(engine)
    assert larger.future.done()

    engine.submit(_job(num_inference_steps=50), priority=1)
    engine.submit(_job(width=256))
    unet.widths.clear()
    for _ in range(5):
        engine.step()
    assert len(unet.widths) == 5
    engine.step()
    assert len(unet.widths) > 2 * 5

    urgent = engine.submit(_job(width=512, num_inference_steps=1), priority=1)
    engine.step()
    assert urgent._request.group in engine._plans
    _run(engine)


def test_a_passing_fault_while_a_size_is_tried_out_fails_who_asked(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next of that size asks again."""
    engine = Engine(model, lanes=4)
    first, second = (engine.submit(_job(width=128, seed=seed)) for seed in range(2))
    with monkeypatch.context() as patch:

        def fail(_group: object) -> None:
            raise RuntimeError("a passing fault")

        patch.setattr(engine._plans, "add", fail)
        engine.step()
    assert isinstance(first.future.exception(timeout=0), RenderError)
    _run(engine)
    assert second.future.result(timeout=0)


def test_what_takes_no_passes_is_not_put_off(model: LoadedModel) -> None:
    """Without the promise of equal bytes there is nothing to find out about a size."""
    engine = Engine(model, mode="throughput", lanes=4)
    engine.submit(_job(num_inference_steps=9), priority=1)
    larger = engine.submit(_job(width=128))
    engine.step()
    assert larger._request.group in engine._plans
    _run(engine)


def test_a_new_size_without_room_is_tried_out_once_for_all_who_wait_for_it(
    model: LoadedModel, unet: Any
) -> None:
    """All of them fail with the same sentence, and those of the native size go on."""
    unet.fits = 8 * 64
    engine = Engine(model, lanes=4)
    going = engine.submit(_job())
    engine.step()
    unet.widths.clear()
    asked = engine.submit(_job(width=1024, height=1024))
    for _ in range(3):
        engine.step()
    cost = len(unet.widths)
    assert asked.future.done()
    unet.widths.clear()
    others = [engine.submit(_job(width=1024, height=1024, seed=seed)) for seed in range(5)]
    going = engine.submit(_job())
    for _ in range(3):
        engine.step()
    assert len(unet.widths) <= cost
    assert {str(each.future.exception(timeout=0)) for each in others} == {str(asked.future.exception())}
    assert isinstance(asked.future.exception(), OutOfMemoryError)
    _run(engine)
    assert going.future.result(timeout=0)


def test_pictures_do_not_pile_up_where_requests_end_faster_than_one_a_step(model: LoadedModel) -> None:
    """Four requests of one step end in each, and half of those that wait are decoded."""
    engine = Engine(model, lanes=4)
    tickets = [
        engine.submit(_job(seed=seed, num_inference_steps=1, guidance_scale=1.0)) for seed in range(16)
    ]
    waiting = []
    for _ in range(4):
        engine.step()
        waiting.append(sum(ticket._request.denoised and not ticket.future.done() for ticket in tickets))
    assert engine.steps == 4
    assert waiting == [2, 3, 3, 3]
    _run(engine)
    assert [ticket.future.result(timeout=0).seconds["decode"] > 0 for ticket in tickets] == 16 * [True]


def test_starting_again_gives_all_the_time_that_a_request_may_take(model: LoadedModel, unet: Any) -> None:
    """Steps that were thrown away for want of memory do not count against its deadline."""
    unet.fits, unet.before = 8 * 64, _by_width
    engine = Engine(model, lanes=8)
    ticket = engine.submit(_job(num_inference_steps=6))
    for _ in range(3):
        engine.step()
    before = ticket._request.spent
    assert before > 0
    unet.fits = 4 * 64
    engine.step()
    assert (ticket._request.spent, ticket._request.evaluation) == (0.0, 0)
    _run(engine)
    assert ticket.future.result(timeout=0).numerics["lanes"] == 4


def test_lanes_are_placed_in_the_order_of_admission() -> None:
    """One request below the other; who is guided has its uncond lane first."""
    assert _lane_indices([2, 1, 2]) == ([0, 2, 3], [1, 2, 4], [0, 0, 1, 2, 2])


def test_the_guidance_scale_goes_to_a_unet_that_takes_it(model: LoadedModel, unet: Any) -> None:
    """A distilled model has one lane a picture, its embedded scale beside it."""
    seen: list[torch.Tensor] = []
    unet.config.time_cond_proj_dim = 6
    unet.before = _by_width
    engine = Engine(model, lanes=4)
    unet.saw = lambda named: seen.append(named["timestep_cond"])
    engine.submit(_job(guidance_scale=3.0))
    engine.submit(_job(guidance_scale=8.0, seed=2))
    _run(engine)
    assert engine.steps == 4
    assert all(cond.shape == (4, 6) for cond in seen)
    assert not torch.equal(seen[0][0], seen[0][1])
    assert not seen[0][2:].any()  # idle lanes


def test_a_picture_that_is_done_keeps_its_lanes(model: LoadedModel, unet: Any) -> None:
    """Out of memory after its last step is none of its business."""
    unet.fits, unet.before = 8 * 64, _by_width
    engine = Engine(model, lanes=8)
    done = [engine.submit(_job(seed=seed, num_inference_steps=1)) for seed in range(2)]
    going = engine.submit(_job(num_inference_steps=3))
    engine.step()  # both are denoised, one is decoded
    unet.fits = 4 * 64
    _run(engine)
    lanes = [ticket.future.result(timeout=0).numerics["lanes"] for ticket in (*done, going)]
    assert lanes == [8, 8, 4]


def test_a_device_fault_kills_the_engine(model: LoadedModel, unet: Any) -> None:
    """A fault in the forward pass fails every future, is reported once, and nothing more is accepted."""
    deaths: list[BaseException] = []
    engine = Engine(model, lanes=2, on_death=deaths.append)
    tickets = [engine.submit(_job(seed=seed)) for seed in range(3)]

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    unet.before = fail
    assert engine.step() is False
    assert engine.dead
    assert len(deaths) == 1
    for ticket in tickets:
        assert isinstance(ticket.future.exception(timeout=0), EngineDeadError)
    with pytest.raises(EngineDeadError):
        engine.submit(_job())


def test_nothing_changes_when_the_forward_pass_fails(engine: Engine, unet: Any) -> None:
    """A step is transactional: after a failed pass the latents are the ones before it."""
    ticket = engine.submit(_job())
    engine.step()
    before = ticket._request.state

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: unspecified launch failure")

    unet.before = fail
    engine.step()
    assert ticket._request.state is before
    assert ticket._request.evaluation == 1


def test_the_thread_ends_with_the_engine(model: LoadedModel, unet: Any) -> None:
    """A started engine renders by itself, and its thread ends when the engine dies."""
    died = threading.Event()
    engine = Engine(model, lanes=2, on_death=lambda _: died.set())
    engine.start()
    engine.submit(_job()).future.result(timeout=30)

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    unet.before = fail
    ticket = engine.submit(_job())
    assert isinstance(ticket.future.exception(timeout=30), EngineDeadError)
    assert died.wait(30)
    engine.close(timeout=30)
    assert engine._thread is not None
    assert not engine._thread.is_alive()


def test_a_step_that_does_not_end_kills_the_engine(model: LoadedModel, unet: Any) -> None:
    """A device that hangs raises nothing: the watchdog fails every future, and the process can exit."""
    deaths: list[BaseException] = []
    died, goes_on = threading.Event(), threading.Event()

    def on_death(error: BaseException) -> None:
        deaths.append(error)
        died.set()

    def hang(sample: torch.Tensor) -> torch.Tensor:
        assert goes_on.wait(60)
        return sample

    engine = Engine(model, lanes=2, on_death=on_death, stall=2.0)
    engine.start()
    engine.submit(_job()).future.result(timeout=60)  # steps that end are left alone
    unet.before = hang
    ticket = engine.submit(_job())
    error = ticket.future.exception(timeout=60)
    assert isinstance(error, EngineDeadError)
    assert "has not answered for 2 s" in str(error)
    assert died.wait(60)
    goes_on.set()
    engine.close(timeout=60)
    assert len(deaths) == 1


def test_a_size_that_is_not_exact_is_rendered_alone(model: LoadedModel, unet: Any) -> None:
    """A latent shape where company would show runs one request at a time in two lanes, and says so."""

    def uneven_when_large(sample: torch.Tensor) -> torch.Tensor:
        large = sample.shape[-1] > 8
        return sample * torch.linspace(1, 2, len(sample))[:, None, None, None] if large else sample

    unet.before = uneven_when_large
    engine = Engine(model, lanes=4)
    tickets = [engine.submit(_job(width=128, seed=seed)) for seed in range(2)]
    unet.widths.clear()
    _run(engine)
    assert engine.steps == 8
    assert tickets[0].future.result(timeout=0).numerics["lanes"] == 2


def test_the_models_own_sampler_has_to_be_one_of_ours(model: LoadedModel) -> None:
    """A job that asks for `default` gets the sampler that the model's noise scheduler is, or a sentence."""
    config = {**model.scheduler_config, "_class_name": "EulerDiscreteScheduler"}
    engine = Engine(replace(model, scheduler_config=config), lanes=4)
    own, named = (engine.submit(_job(sampler=name), keep_latents=True) for name in ("default", "euler"))
    _run(engine)
    latents = [ticket.future.result(timeout=0).latents for ticket in (own, named)]
    assert torch.equal(*latents)
    for wrong in ({"options": {"eta": 0.5}}, {"schedule": "karras"}):
        with pytest.raises(BadInputError, match=r"Sampler (euler has no eta|default has no karras)"):
            engine.submit(_job(sampler="default", **wrong))
    for strange in ({**config, "_class_name": "MarvelScheduler"}, model.scheduler_config):
        with pytest.raises(BadInputError, match="none that sampler default could stand for"):
            Engine(replace(model, scheduler_config=strange), lanes=4).submit(_job(sampler="default"))
