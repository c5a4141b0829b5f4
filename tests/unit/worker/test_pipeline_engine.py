"""The engine for pipelines: company, failures, cancels, memory, and models that cannot be shared."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from storage.errors import BadInputError
from storage.parameters import JobParameters
from tests.pipelines import fresh_tiny, load_tiny, loaded, tiny
from worker.coalescing.pipeline_engine import PipelineEngine
from worker.coalescing.trying import Trials
from worker.engine.errors import Cancelled, DeadlineError, Released, RenderError
from worker.engine.request import RenderResult
from worker.engine.ticket import Ticket
from worker.models.pipeline import LoadedPipeline

Forward = Callable[..., Any]
SIZE = {"width": 64, "height": 64}


def job(seed: int = 0, *, steps: int = 2, guidance: float = 5.0, **settings: Any) -> JobParameters:
    """Return a job for the tiny Stable Diffusion."""
    wanted = {"prompt": "a red fox", "sampler": "default", **SIZE, **settings}
    return JobParameters(seed=seed, num_inference_steps=steps, guidance_scale=guidance, **wanted)


@pytest.fixture(scope="module")
def engine() -> PipelineEngine:
    """An engine of eight lanes, stepped in the test's own thread."""
    return PipelineEngine(load_tiny("stable_diffusion"), lanes=8)


@pytest.fixture
def forward() -> Iterator[Callable[[Callable[[Forward], Forward]], None]]:
    """Return a function that puts something before the denoiser's forward, for the length of a test."""
    unet = tiny("stable_diffusion").unet
    original = unet.forward

    def wrap(make: Callable[[Forward], Forward]) -> None:
        unet.forward = functools.wraps(original)(make(original))

    yield wrap
    unet.__dict__.pop("forward", None)


def finish(engine: PipelineEngine, *tickets: Ticket) -> list[RenderResult]:
    """Step until nothing is left, and return the tickets' results."""
    while engine.step():
        pass
    return [ticket.future.result(timeout=0) for ticket in tickets]


@functools.cache
def alone(seed: int, steps: int = 2) -> np.ndarray[Any, Any]:
    """Return what the pipeline itself makes of a job."""
    pipeline = copy.copy(tiny("stable_diffusion"))
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(seed)
    images = pipeline("a red fox", num_inference_steps=steps, guidance_scale=5.0, generator=generator, **SIZE)
    return np.asarray(images.images[0]).astype(int)


def is_right(result: RenderResult, seed: int, steps: int = 2) -> bool:
    """Tell whether a picture is the pipeline's own, within 1 of 255."""
    return bool(np.abs(result.pixels - alone(seed, steps)).max() <= 1)


def raising_at(seed: int, error: Exception) -> Callable[[Forward], Forward]:
    """Fail every forward pass that has the first latents of a job in it."""
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))

    def make(original: Forward) -> Forward:
        def checked(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if any(torch.equal(lane[None], noise) for lane in sample):
                raise error
            return original(sample, *args, **kwargs)

        return checked

    return make


def test_the_numerics_are_known_before_a_job_is_rendered(engine: PipelineEngine) -> None:
    """Or else `--reuse` would not find its picture."""
    (result,) = finish(engine, engine.submit(job(3)))
    assert engine.numerics_of(job(3)) == result.numerics


# -- company


def test_a_job_has_the_same_bytes_alone_and_in_company(engine: PipelineEngine) -> None:
    """In exact mode neither neighbours nor the time of arrival change a bit."""
    (first,) = finish(engine, engine.submit(job(1, steps=3)))
    others = [engine.submit(job(2, steps=4)), engine.submit(job(3, guidance=1.0, sampler="euler"))]
    engine.step()
    second, *_ = finish(engine, engine.submit(job(1, steps=3)), *others)
    assert np.array_equal(first.pixels, second.pixels)
    assert first.numerics == second.numerics
    assert (first.numerics["lanes"], first.numerics["way"]) == (8, "coalescing")


class Uneven(torch.nn.Module):
    """A layer whose kernel goes by places: from the fifth lane on it rounds in another way."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: set[int] = set()

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Do what the inner one does, nearly."""
        self.seen.add(len(sample))
        scale = torch.ones(len(sample))
        scale[4:] += 1e-6
        return self.inner(sample) * scale[:, None, None, None]


@pytest.fixture
def uneven() -> LoadedPipeline:
    """A model with such a layer."""
    pipeline = fresh_tiny("stable_diffusion")
    pipeline.unet.conv_out = Uneven(pipeline.unet.conv_out)
    return loaded("stable_diffusion", pipeline)


def test_layers_that_go_by_places_are_called_for_fewer_lanes(uneven: LoadedPipeline) -> None:
    """So the others still share their passes, in exact mode too, and the record says it."""
    engine = PipelineEngine(uneven, lanes=8)
    with capture_logs() as logs:
        assert engine.numerics_of(job(1)).get("parts") is None
        (first,) = finish(engine, engine.submit(job(1)))
        before = engine.steps, engine.lanes_run
        company = [job(1), job(2), job(3), job(4, guidance=1.0)]
        second, *_ = finish(engine, *map(engine.submit, company))
    assert [log["event"] for log in logs if log["action"] == "plan_shape"] == ["layers run in parts"]
    assert np.array_equal(first.pixels, second.pixels)
    assert is_right(first, 1)
    assert (engine.lanes_run - before[1]) / (engine.steps - before[0]) > 4
    assert first.numerics == second.numerics == engine.numerics_of(job(1))
    assert first.numerics["parts"]


@pytest.mark.parametrize(("repeats", "lanes"), [(True, 16), (False, 4)])
def test_lanes_are_chosen_with_layers_in_parts(
    repeats: bool,  # noqa: FBT001 - a parameter of pytest's
    lanes: int,
    uneven: LoadedPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fastest number is not given up for one layer, unless nothing can be done about it."""
    unet, seeds = uneven.denoiser, torch.Generator().manual_seed(0)
    original = unet.forward

    @functools.wraps(original)
    def random(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        noise = torch.rand((), generator=seeds) if len(sample) > 4 else 0.0
        return original(sample * (1 + 1e-6 * noise), *args, **kwargs)

    if not repeats:
        monkeypatch.setattr(unet, "forward", random)
    monkeypatch.setattr(Trials, "lanes_per_second", lambda trials, **_: float(trials._width))
    assert PipelineEngine(uneven).lanes == lanes


def test_what_no_parts_can_mend_runs_alone(uneven: LoadedPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that answers the same differently each time: the log says so, and the picture is there."""
    noise = torch.Generator().manual_seed(0)
    engine = PipelineEngine(uneven, lanes=8)
    monkeypatch.setattr(
        uneven.denoiser.conv_out,
        "forward",
        lambda sample: uneven.denoiser.conv_out.inner(sample) * (1 + 1e-6 * torch.rand((), generator=noise)),
    )
    with capture_logs() as logs:
        results = finish(engine, engine.submit(job(1)), engine.submit(job(2)))
    assert "size is rendered one job at a time" in [log["event"] for log in logs]
    assert all(is_right(result, seed) for result, seed in zip(results, (1, 2), strict=True))
    assert engine.lanes_run == 2 * engine.steps


@pytest.mark.parametrize(("room", "lanes"), [(False, 4), (True, 8)])
def test_a_trial_that_does_not_fit_is_made_with_fewer_lanes(
    room: bool,  # noqa: FBT001 - a parameter of pytest's
    lanes: int,
    forward: Callable[[Any], None],
) -> None:
    """Unless something else gives up its memory; the job has its picture either way."""
    full = [True]

    def make_room() -> bool:
        full[0] = not room
        return room

    def crowded(original: Forward) -> Forward:
        def checked(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if full[0] and len(sample) > 4:
                raise torch.OutOfMemoryError("full")
            return original(sample, *args, **kwargs)

        return checked

    engine = PipelineEngine(load_tiny("stable_diffusion"), lanes=8, make_room=make_room)
    forward(crowded)
    (result,) = finish(engine, engine.submit(job(1)))
    assert is_right(result, 1)
    assert (result.numerics["lanes"], result.warnings) == (lanes, [])


def test_a_trial_that_fits_nowhere_says_why(forward: Callable[[Any], None]) -> None:
    """Not "places show": whoever reads the log can do something about it."""
    failures = [torch.OutOfMemoryError("full")]

    def once(original: Forward) -> Forward:
        def checked(*args: Any, **kwargs: Any) -> Any:
            if failures:
                raise failures.pop()
            return original(*args, **kwargs)

        return checked

    engine = PipelineEngine(load_tiny("stable_diffusion"), lanes=2)
    forward(once)
    with capture_logs() as logs:
        (result,) = finish(engine, engine.submit(job(1)))
    assert is_right(result, 1)
    (said,) = [log for log in logs if log["event"] == "size is rendered one job at a time"]
    assert "full" in said["reason"]


def test_sizes_take_turns(engine: PipelineEngine) -> None:
    """Jobs of two sizes cannot share a forward pass, and both are rendered."""
    small, large = finish(engine, engine.submit(job(1)), engine.submit(job(1, width=128)))
    assert is_right(small, 1)
    assert large.pixels.shape == (64, 128, 3)


def test_only_as_many_begin_as_there_are_lanes_for(engine: PipelineEngine) -> None:
    """Four guided jobs fill eight lanes; the fifth waits, and can be given back."""
    tickets = [engine.submit(job(seed)) for seed in range(5)]
    engine.step()
    assert engine.load == (1, 4)
    assert engine.lanes_used == 8
    assert all(is_right(result, seed) for seed, result in enumerate(finish(engine, *tickets)))


def test_lanes_in_use_are_those_of_one_step(engine: PipelineEngine) -> None:
    """Calls of another size that sit a step out have no lanes."""
    tickets = [engine.submit(job(seed, width=width)) for width in (64, 128) for seed in range(4)]
    used = []
    while engine.step():
        used.append(engine.lanes_used)
    assert all(ticket.future.done() for ticket in tickets)
    assert max(used) == 8
    assert engine.lanes_used == 0


def test_draining_gives_back_what_has_not_begun() -> None:
    """A drained engine finishes what runs, and takes nothing new."""
    engine = PipelineEngine(load_tiny("stable_diffusion"), lanes=2, mode="throughput")
    first, second = engine.submit(job(1)), engine.submit(job(2))
    engine.step()
    assert engine.release_waiting() == 1
    assert is_right(finish(engine, first)[0], 1)
    with pytest.raises(Released):
        second.future.result(timeout=0)
    with pytest.raises(Released):
        engine.submit(job(3))


def test_a_thread_of_its_own(engine: PipelineEngine) -> None:
    """Started, it renders what is submitted and tells how far it is; closed, it gives back the rest."""
    own = PipelineEngine(engine.model, lanes=8, mode="throughput")
    own.start()
    heard: list[float] = []
    ticket = own.submit(job(1), on_progress=heard.append)
    assert is_right(ticket.future.result(timeout=60), 1)
    assert heard == [0.5, 1.0]
    assert ticket.progress == 1.0
    own.close(timeout=60)
    with pytest.raises(Released):
        own.submit(job(2))


# -- failures


def test_a_job_that_raises_leaves_its_neighbours_alone(
    engine: PipelineEngine, forward: Callable[[Any], None]
) -> None:
    """One failing call fails one job with one sentence, whoever was in the forward pass with it."""
    forward(raising_at(13, ValueError("a bad lane")))
    tickets = [engine.submit(job(seed)) for seed in (1, 13, 2)]
    while engine.step():
        pass
    with pytest.raises(
        RenderError, match=r"failed in StableDiffusionPipeline after step 0 of 2 .* a bad lane"
    ):
        tickets[1].future.result(timeout=0)
    assert is_right(tickets[0].future.result(timeout=0), 1)
    assert is_right(tickets[2].future.result(timeout=0), 2)


def test_a_cancelled_job_leaves_at_its_next_step(engine: PipelineEngine) -> None:
    """A job that is cancelled after its first step never gets a picture, and its neighbour does."""
    tickets: list[Ticket] = []
    tickets.append(engine.submit(job(1, steps=4), on_progress=lambda _share: tickets[0].cancel()))
    tickets.append(engine.submit(job(2)))
    while engine.step():
        pass
    with pytest.raises(Cancelled):
        tickets[0].future.result(timeout=0)
    assert tickets[0].progress == 0.25
    assert is_right(tickets[1].future.result(timeout=0), 2)


def test_a_job_that_waits_can_be_cancelled(engine: PipelineEngine) -> None:
    """A job without lanes is dropped before it begins."""
    tickets = [engine.submit(job(seed)) for seed in range(5)]
    tickets[4].cancel()
    while engine.step():
        pass
    with pytest.raises(Cancelled):
        tickets[4].future.result(timeout=0)


def test_a_job_that_takes_too_long_fails() -> None:
    """Past the deadline a job fails for good and says what can be done."""
    engine = PipelineEngine(load_tiny("stable_diffusion"), lanes=2, mode="throughput", deadline=-1.0)
    ticket = engine.submit(job(1))
    while engine.step():
        pass
    with pytest.raises(DeadlineError, match="raise PROMPTMILL_DEADLINE"):
        ticket.future.result(timeout=0)


def small_memory(original: Forward) -> Forward:
    """Run out of memory with more than four lanes."""

    def small(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(sample) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return original(sample, *args, **kwargs)

    return small


@pytest.mark.parametrize("mode", ["exact", "throughput"])
def test_too_little_memory_means_fewer_lanes(mode: str, forward: Callable[[Any], None]) -> None:
    """Jobs go on with the lanes that fit, in exact mode from their first step, and say so."""
    engine = PipelineEngine(load_tiny("stable_diffusion"), lanes=8, mode=mode)
    tickets = [engine.submit(job(seed, steps=3)) for seed in (1, 2, 3)]
    engine.step()
    forward(small_memory)
    results = finish(engine, *tickets)
    assert all(is_right(result, seed, 3) for seed, result in zip((1, 2, 3), results, strict=True))
    assert "rendered with 4" in results[0].warnings[0]
    assert results[0].numerics["lanes"] == (4 if mode == "exact" else 8)


def test_what_another_model_holds_costs_no_lanes(forward: Callable[[Any], None]) -> None:
    """It is unloaded, and the calls that waited are run as they would have been."""
    full = True

    def crowded(original: Forward) -> Forward:
        def small(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return (small_memory(original) if full else original)(sample, *args, **kwargs)

        return small

    def make_room() -> bool:
        nonlocal full
        full, before = False, full
        return before

    engine = PipelineEngine(load_tiny("stable_diffusion"), lanes=8, make_room=make_room)
    tickets = [engine.submit(job(seed, steps=3)) for seed in (1, 2, 3)]
    engine.step()
    forward(crowded)
    results = finish(engine, *tickets)
    assert [(result.numerics["lanes"], result.warnings) for result in results] == [(8, [])] * 3
    assert not full


def test_a_call_that_fits_no_memory_fails_its_job(
    engine: PipelineEngine, forward: Callable[[Any], None]
) -> None:
    """Where not even one job fits, it fails with what to change, and may be tried again."""
    forward(raising_at(13, torch.OutOfMemoryError("out of memory")))
    own = PipelineEngine(engine.model, lanes=2, mode="throughput")
    ticket = own.submit(job(13))
    while own.step():
        pass
    with pytest.raises(RenderError, match="ran out of memory in StableDiffusionPipeline at 64x64") as caught:
        ticket.future.result(timeout=0)
    assert not caught.value.permanent


# -- what cannot be shared


def test_a_stateful_denoiser_renders_one_job_at_a_time(forward: Callable[[Any], None]) -> None:
    """A denoiser that remembers its last call is found out, said once, and each job has its own picture."""
    last: list[tuple[float, torch.Tensor]] = []

    def make(original: Forward) -> Forward:
        def remembering(sample: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            (noise_pred,) = original(sample, timestep, *args, **kwargs)
            if last and float(timestep) < last[-1][0] and len(last[-1][1]) == len(noise_pred):
                noise_pred = noise_pred + 0.1 * last[-1][1]
            last.append((float(timestep), noise_pred))
            return (noise_pred,)

        return remembering

    forward(make)
    with capture_logs() as logs:
        engine = PipelineEngine(load_tiny("stable_diffusion"), lanes=8)
    assert [entry["reason"] for entry in logs if entry["action"] == "share"] == [
        "its denoiser answers the same call differently"
    ]
    results = finish(engine, *(engine.submit(job(seed, steps=3)) for seed in (1, 2)))
    assert engine.lanes_run == engine.steps == 6
    alone.cache_clear()
    assert is_right(results[0], 1, 3)
    assert is_right(results[1], 2, 3)
    alone.cache_clear()


class OddPipeline(diffusers.StableDiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """Passes its denoiser something that nobody can compare."""

    @functools.wraps(diffusers.StableDiffusionPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Pass it."""
        return super().__call__(*args, **kwargs, cross_attention_kwargs={"odd": object()})


def test_an_unknown_argument_renders_one_job_at_a_time() -> None:
    """A pipeline that passes its denoiser an object of its own renders right, alone, with one log line."""
    model = load_tiny("stable_diffusion")
    pipeline = OddPipeline(**model.pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    odd = LoadedPipeline(
        **{name: getattr(model, name) for name in model.__slots__ if name != "pipeline"}, pipeline=pipeline
    )
    with capture_logs() as logs:
        engine = PipelineEngine(odd, lanes=8)
    assert [entry["reason"] for entry in logs if entry["action"] == "share"] == ["an argument is a object"]
    results = finish(engine, *(engine.submit(job(seed)) for seed in (1, 2)))
    assert is_right(results[0], 1)
    assert is_right(results[1], 2)


# -- what is refused


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("flux", {"sampler": "lms"}, r"cannot be rendered with sampler lms; take default\."),
        ("flux", {"negative_prompt": "grey"}, r"FluxPipeline takes no negative prompt; leave it out\."),
        ("flux", {"options": {"eta": 0.5}}, r"FluxPipeline takes no eta; leave it out\."),
        ("stable_diffusion", {"options": {"prompt_syntax": "weighted"}}, "takes no prompt syntax"),
        ("stable_diffusion", {"schedule": "karras"}, "Sampler default has no karras schedule"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused(name: str, settings: dict[str, Any], sentence: str) -> None:
    """A setting that the pipeline would ignore or trip over is named before anything is rendered."""
    engine = PipelineEngine(load_tiny(name), mode="reference")
    with pytest.raises(BadInputError, match=sentence):
        engine.submit(job(1, **settings))


def test_another_size_than_asked_for_is_no_picture() -> None:
    """A pipeline that rounds the size by itself fails the job, which would be surprised by its picture."""
    engine = PipelineEngine(load_tiny("flux"), mode="reference")
    ticket = engine.submit(job(1, width=72))
    while engine.step():
        pass
    with pytest.raises(RenderError, match="renders 64x64 where 72x64 was asked for"):
        ticket.future.result(timeout=0)


def test_a_pipeline_is_run_as_it_is() -> None:
    """What would change the denoiser is refused when the worker starts."""
    with pytest.raises(BadInputError, match="run as it is, without --compile"):
        PipelineEngine(load_tiny("stable_diffusion"), launch="compiled")


def test_a_file_format_is_no_concern_of_a_pipeline(engine: PipelineEngine) -> None:
    """It is what its picture is saved as."""
    plain, saved = (
        engine.submit(job(4)),
        engine.submit(job(4, options={"image_format": "webp", "quality": 9})),
    )
    first, second = finish(engine, plain, saved)
    assert np.array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("others", [0, 1])
def test_room_is_made_before_sharing_is_given_up(
    others: int, forward: Callable[[Callable[[Forward], Forward]], None]
) -> None:
    """Two prompts at once do not fit beside another model: it leaves, and only without one jobs run alone."""
    left = [*range(others)]
    fits = 2

    def make_room() -> bool:
        nonlocal fits
        fits = 8 if left else fits
        return bool(left and not left.pop())

    def small(original: Forward) -> Forward:
        def run(sample: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            if len(sample) > fits:
                raise RuntimeError("not enough memory: you tried to allocate")
            return original(sample, *arguments, **named)

        return run

    forward(small)
    made = PipelineEngine(load_tiny("stable_diffusion"), lanes=8, make_room=make_room)
    assert made.shared == bool(others)
