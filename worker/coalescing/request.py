"""A request: one job whose pipeline runs in a thread of its own, from submit to picture."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from storage.errors import BadInputError
from storage.inputs import check_inputs_together
from storage.loras import LoraSet
from storage.model_defaults import fill_defaults
from storage.parameters import JobParameters, check_options
from worker.coalescing.arguments import call_arguments, own_scheduler
from worker.coalescing.pictures import Pictures, fitted
from worker.device_faults import is_out_of_memory
from worker.engine.errors import EngineError, OutOfMemoryError, RenderError
from worker.engine.request import RenderResult
from worker.models.loras import loras_of
from worker.models.pipeline import LoadedPipeline


@dataclass(kw_only=True, slots=True, eq=False)
class PipelineRequest:
    """One job inside the engine.

    Attributes:
        parameters: with no field None.
        arrival: its place in the order of submits; higher `priority` goes before it.
        loras: what is turned on in the model for it.
        lanes: of its last call of the denoiser; before the first one, what such calls took at the start.
        width: R of its widest forward pass, whoever else was in it.
        parts: layers that were called for some lanes at a time, see `worker.engine.lane_parts`.
        pictures: what it begins with, in its size.
        keys: of its calls so far.
        steps: how many have ended, of how many.
        spent: seconds that its forward passes have taken, those that it sat out left aside.
        shrunk: a sentence about the lanes that it lost, or "".
        started_at: monotonic time at which its thread began; None while it waits.
        first_call, last_answer: likewise, of its calls.
    """

    parameters: JobParameters
    priority: int
    on_progress: Callable[[float], None] | None
    lanes: int
    loras: LoraSet = ()
    pictures: Pictures = field(default_factory=dict)
    arrival: int = 0
    future: Future[RenderResult] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)
    width: int = 0
    parts: set[tuple[str, int]] = field(default_factory=set)
    keys: set[Hashable] = field(default_factory=set)
    steps: tuple[int, int] = (0, 1)
    calls: int = 0
    spent: float = 0.0
    shrunk: str = ""
    started_at: float | None = None
    first_call: float | None = None
    last_answer: float | None = None

    @property
    def size(self) -> tuple[int | None, int | None, LoraSet]:
        """(width, height) in pixels, and LoRAs: requests of others hardly share a forward pass."""
        return self.parameters.width, self.parameters.height, self.loras

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller goes first."""
        return -self.priority, self.arrival

    @property
    def started(self) -> bool:
        """Whether its thread runs, so that draining waits for it."""
        return self.started_at is not None

    @property
    def progress(self) -> float:
        """Share of its steps that are done, 0 to 1."""
        done, of = self.steps
        return min(1.0, done / max(1, of))

    def start(self) -> None:
        """Note that its thread runs from now on."""
        self.started_at = time.perf_counter()

    def note_call(self) -> None:
        """Count a call of the denoiser."""
        self.calls += 1
        self.first_call = self.first_call or time.perf_counter()

    def note_step(self, done: int, of: int) -> None:
        """Note how many steps have ended, and tell the submitter."""
        self.steps = done, max(done, of)
        if self.on_progress is not None:
            self.on_progress(self.progress)

    def begin_again(self) -> None:
        """Go back to the first step."""
        self.keys, self.parts, self.calls, self.width = set(), set(), 0, 0
        self.steps, self.first_call, self.spent = (0, 1), None, 0.0

    def seconds(self) -> dict[str, float]:
        """Return the seconds of `encode`, `denoise` (first call to last answer) and `decode`."""
        now = time.perf_counter()
        marks = [self.started_at or now, self.first_call or now, self.last_answer or now, now]
        names = ("encode", "denoise", "decode")
        return {name: end - begin for name, begin, end in zip(names, marks, marks[1:], strict=False)}


def prepare_request(
    model: LoadedPipeline,
    parameters: JobParameters,
    *,
    lanes: int,
    priority: int = 0,
    on_progress: Callable[[float], None] | None = None,
    pictures: Pictures | None = None,
) -> PipelineRequest:
    """Check a job against its model, and make a request of it.

    Raises:
        BadInputError: when the job cannot be rendered with this model.
    """
    job = fill_defaults(parameters, model.defaults)
    if None in (job.width, job.height, job.sampler, job.num_inference_steps, job.guidance_scale):
        raise BadInputError(f"A job's settings are incomplete even with the model's defaults: {job}.")
    check_options(job)
    check_inputs_together(job.options, job.num_inference_steps)
    own_scheduler(model.pipeline, job)
    call_arguments(model.pipeline, job, on_step=lambda _done, _of: None)
    return PipelineRequest(
        parameters=job,
        priority=priority,
        on_progress=on_progress,
        lanes=lanes,
        pictures=fitted(pictures or {}, job),
        loras=loras_of(model, job),
    )


def explain(request: PipelineRequest, error: Exception, *, family: str) -> EngineError:
    """Turn what a pipeline raised for one request into the error for its future."""
    if isinstance(error, EngineError):
        return error
    job = request.parameters
    if isinstance(error, BadInputError):
        return RenderError(str(error), permanent=True)
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"The device ran out of memory in {family} at {job.width}x{job.height} with "
            f"{max(request.width, request.lanes)} lanes; start the worker with fewer --lanes, or ask for a "
            f"smaller picture."
        )
    reason = " ".join(str(error).split())[:300] or "no reason given"
    return RenderError(
        f"The job failed in {family} after step {request.steps[0]} of {job.num_inference_steps} with sampler "
        f"{job.sampler} at {job.width}x{job.height} ({type(error).__name__}: {reason}); try other settings.",
        permanent=True,
    )


def checked_pixels(images: Any, request: PipelineRequest) -> Any:
    """Return a pipeline's picture as it would be saved, (height, width, 3) uint8.

    The rounding is that of diffusers' `numpy_to_pil`.

    Args:
        images: (1, height, width, 3) float32 in 0..1.
        request: for what it asked.

    Raises:
        RenderError: when values are not finite, or the picture has another size or shape.
    """
    job = request.parameters
    image = np.asarray(images[0])
    if image.shape != (job.height, job.width, 3):
        rendered = "x".join(str(size) for size in reversed(image.shape[:2]))
        raise RenderError(
            f"The model renders {rendered} where {job.width}x{job.height} was asked for; ask for a size that "
            f"it has, or for a multiple of 16 or 32.",
            permanent=True,
        )
    if not np.isfinite(image).all():
        raise RenderError(
            f"The picture is not finite (sampler {job.sampler}, guidance {job.guidance_scale:g}); try lower "
            f"guidance, other steps, or --dtype float32.",
            permanent=True,
        )
    return (image * 255).round().astype("uint8")
