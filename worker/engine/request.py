"""A request: one job inside the engine, from submit to picture."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from storage.errors import BadInputError
from storage.model_defaults import fill_defaults
from storage.parameters import JobParameters, check_options
from storage.prompt_syntax import PLAIN
from storage.samplers import OWN_SAMPLER
from storage.scheduler_limits import with_own_sampler
from worker.engine.admission import Group, LatentShape
from worker.models.load import LoadedModel
from worker.models.loras import loras_of
from worker.models.threads import in_passing_thread
from worker.stages.condition import Condition
from worker.stages.guidance import guidance_embedding, guided_evaluations, is_guided
from worker.stages.history import History
from worker.stages.noise import initial_noise, job_generator
from worker.stages.sampler import SamplerSettings
from worker.stages.schedule import NoiseSchedule
from worker.stages.tables import Tables
from worker.stages.text import Nothing, Text
from worker.stages.weighting import level, split


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderResult:
    """What a request's future holds when all went well.

    Attributes:
        pixels: the picture, (height, width, 3) uint8, RGB.
        latents: final latents on the CPU, (1, channels, h, w) float32; only when `keep_latents` was asked.
        warnings: sentences for the user, e.g. that the prompt was truncated.
        seconds: wall-clock seconds of `encode`, `denoise` (first to last step, company included), `decode`.
        numerics: what besides the job's parameters determined the bytes; equal for equal jobs on one kind of
            worker.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    latents: torch.Tensor | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    numerics: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True, eq=False)
class Request:
    """One job inside the engine; only the engine's thread changes it after submit.

    Attributes:
        parameters: with no field None.
        arrival: its place in the order of submits; higher `priority` goes before it.
        group: the shape of its latents, the length of its prompts and its LoRAs; one group shares a pass.
        texts: what is encoded for it, `negative prompt` (where it is guided) and `prompt`, in this order.
        guided: the forward passes in which classifier-free guidance runs, so that it needs two lanes.
        schedule: its sampler's table, or its noise scheduler.
        state: where its latents and what its sampler looks back at are: a history, and its row there. Until
            it is admitted that is unscaled noise on the CPU.
        timestep_cond: guidance scale as a UNet takes it, (1, time_cond_proj_dim) float32, CPU; else None.
        conditions: of its lanes, `[uncond, cond]` or `[cond]`; none until admitted.
        evaluation: how many forward passes it has had.
        record: what of its last forward pass' plan determines its bytes.
        spent: seconds that its steps have taken since its first, those that it sat out left aside.
        shrunk: a sentence about the lanes that it lost, or "".
        started_at: monotonic time of its admission; None while it waits.
    """

    parameters: JobParameters
    priority: int
    group: Group
    texts: dict[str, Text]
    guided: range
    schedule: NoiseSchedule
    state: tuple[History, int]
    timestep_cond: torch.Tensor | None
    keep_latents: bool
    on_progress: Callable[[float], None] | None
    arrival: int = 0
    future: Future[RenderResult] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)
    conditions: list[Condition] = field(default_factory=list)
    evaluation: int = 0
    record: dict[str, int | str] = field(default_factory=dict)
    spent: float = 0.0
    shrunk: str = ""
    started_at: float | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def latents(self) -> torch.Tensor:
        """(1, channels, h, w) float32."""
        history, row = self.state
        return history.latents[0][row : row + 1]

    @property
    def lanes(self) -> int:
        """How many lanes its next step needs."""
        return 2 if self.evaluation in self.guided else 1

    @property
    def evaluations_left(self) -> int:
        """Forward passes that it still needs."""
        return len(self.schedule) - self.evaluation

    @property
    def started(self) -> bool:
        """Whether it was admitted, so that draining waits for it."""
        return self.started_at is not None

    @property
    def denoised(self) -> bool:
        """Whether only the VAE decode is left."""
        return self.evaluation >= len(self.schedule)

    @property
    def progress(self) -> float:
        """Share of its forward passes that are done, 0 to 1."""
        return self.evaluation / len(self.schedule)

    def start(self) -> None:
        """Note that it holds lanes from now on."""
        self.started_at = time.perf_counter()

    def move_to(self, device: torch.device) -> None:
        """Bring all that it holds onto the device, and scale its noise to the sampler's first sigma."""
        scaled = History.start(self.latents.to(device) * self.schedule.init_noise_sigma)
        self.schedule.move_noise(device)
        self.state = (scaled, 0)  # last: where memory runs out it is done again, and nothing is scaled twice

    def hear(self, conditions: Sequence[Condition], model: LoadedModel) -> None:
        """Take the conditions of its texts, in their order, and add what does not come from a text."""
        width, height = cast("int", self.parameters.width), cast("int", self.parameters.height)
        placed = [model.kind.placed(condition, width=width, height=height) for condition in conditions]
        if self.timestep_cond is not None:
            cond = self.timestep_cond.to(model.device)
            placed = [replace(condition, timestep_cond=cond) for condition in placed]
        self.conditions = placed

    def note_end(self) -> None:
        """After the last step, and once the device has finished it: note how long all of them took."""
        if self.denoised and self.started_at is not None:
            self.seconds["denoise"] = time.perf_counter() - self.started_at - self.seconds.get("encode", 0.0)

    def restart(self, model: LoadedModel, tables: Tables | None) -> None:
        """Go back to the first step, with the same noise.

        Raises:
            torch.OutOfMemoryError: when there is no room for its noise.
            BadInputError: as `prepare_request` does.
        """
        fresh = prepare_request(
            model,
            self.parameters,
            priority=self.priority,
            keep_latents=self.keep_latents,
            on_progress=self.on_progress,
            tables=tables,
        )
        self.schedule, self.state, self.evaluation, self.spent = fresh.schedule, fresh.state, 0, 0.0
        self.move_to(model.device)

    def accept(self, history: History, row: int) -> None:
        """Move on by one forward pass, which led to a row of `history`, and tell the submitter."""
        self.state = (history, row)
        self.evaluation += 1
        if self.on_progress is not None:
            self.on_progress(self.progress)


def prepare_request(
    model: LoadedModel,
    parameters: JobParameters,
    *,
    priority: int,
    keep_latents: bool,
    on_progress: Callable[[float], None] | None,
    tables: Tables | None,
) -> Request:
    """Do all of a request that needs no device: its sampler's table and all its noise.

    Args:
        model: the one that will render it.
        parameters: fields that are None get the model's defaults.
        priority: see `Engine.submit`.
        keep_latents: likewise.
        on_progress: likewise.
        tables: see `NoiseSchedule`.

    Raises:
        BadInputError: when the job cannot be rendered with this model.
    """
    job = _complete(model, parameters)
    generator = job_generator(job.seed)
    schedule = _schedule(model, job, generator, tables)
    shape = _latent_shape(model, job)
    noise = initial_noise(shape, generator)
    in_passing_thread(lambda: schedule.draw_noise((1, *shape), model.device))
    guided = _guided(model, job, schedule)
    texts, tokens = _texts(model, job, guided=len(guided) > 0)
    guidance_scale, cond_width = cast("float", job.guidance_scale), model.unet.config.time_cond_proj_dim
    return Request(
        parameters=job,
        priority=priority,
        group=Group(shape=shape, tokens=tokens, loras=loras_of(model, job)),
        texts=texts,
        guided=guided,
        schedule=schedule,
        state=(History.start(noise), 0),
        timestep_cond=None if cond_width is None else guidance_embedding(guidance_scale, cond_width),
        keep_latents=keep_latents,
        on_progress=on_progress,
    )


def group_of(model: LoadedModel, parameters: JobParameters, *, tables: Tables | None) -> Group:
    """Return the group that the request of a job is in, without drawing its noise.

    Args:
        model: the one that will render it.
        parameters: as for `prepare_request`.
        tables: likewise.

    Raises:
        BadInputError: when the job cannot be rendered with this model.
    """
    job = _complete(model, parameters)
    tokens = model.max_length
    if job.options.get("prompt_syntax", PLAIN) != PLAIN:
        schedule = _schedule(model, job, job_generator(job.seed), tables)
        _, tokens = _texts(model, job, guided=len(_guided(model, job, schedule)) > 0)
    return Group(shape=_latent_shape(model, job), tokens=tokens, loras=loras_of(model, job))


def _complete(model: LoadedModel, parameters: JobParameters) -> JobParameters:
    """Return the parameters with no field None, or raise BadInputError."""
    job = fill_defaults(parameters, model.defaults)
    if None in (
        job.width,
        job.height,
        job.sampler,
        job.schedule,
        job.num_inference_steps,
        job.guidance_scale,
    ):
        raise BadInputError(f"A job's settings are incomplete even with the model's defaults: {job}.")
    if job.sampler == OWN_SAMPLER:
        job = with_own_sampler(job, model.scheduler_config)
    check_options(job)
    return job


def _latent_shape(model: LoadedModel, job: JobParameters) -> LatentShape:
    width, height = cast("int", job.width), cast("int", job.height)
    scale = model.vae_scale_factor
    return model.unet.config.in_channels, height // scale, width // scale


def _schedule(
    model: LoadedModel, job: JobParameters, generator: torch.Generator, tables: Tables | None
) -> NoiseSchedule:
    settings = SamplerSettings(
        sampler=cast("str", job.sampler),
        schedule=cast("str", job.schedule),
        num_inference_steps=cast("int", job.num_inference_steps),
        scheduler_config=model.scheduler_config,
        eta=job.options.get("eta", 0.0),
    )
    return NoiseSchedule(settings, seed=job.seed, generator=generator, tables=tables)


def _guided(model: LoadedModel, job: JobParameters, schedule: NoiseSchedule) -> range:
    """Return the forward passes in which a job is guided."""
    if not is_guided(cast("float", job.guidance_scale), model.unet.config.time_cond_proj_dim):
        return range(0)
    return guided_evaluations(job.options.get("guidance_interval"), len(schedule))


def _texts(model: LoadedModel, job: JobParameters, *, guided: bool) -> tuple[dict[str, Text], int]:
    """Return what is to be encoded for a job, and the length that each will have in tokens."""
    prompts = {"negative prompt": job.negative_prompt} if guided else {}
    prompts["prompt"] = job.prompt
    texts: dict[str, Text] = dict(prompts)
    count = 1
    if job.options.get("prompt_syntax", PLAIN) != PLAIN:
        chunks = level([split(model.tokenizer, text, what=what) for what, text in prompts.items()])
        texts, count = dict(zip(prompts, chunks, strict=True)), len(chunks[0])
    if guided and model.kind.leaves_out(model, job.negative_prompt):
        texts["negative prompt"] = Nothing(chunks=count)
    return texts, model.max_length * count
