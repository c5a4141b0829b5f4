"""What a step costs besides the networks' forward passes: its share of the time, and tensor operations, by R.

All samplers share the steps, in exact mode, at other guidance scales. Three kinds of steps: steady, where the
company stays (the first step, with its prompts, and the last ones, with their decoding, are left out); steady
with all guidance rescaled; and those at which requests join, leave, or both. What encoding and decoding take
there is no overhead, and has a column of its own: `step ms` and `share` are without it. Rival: the same
samplers' own noise schedulers, called one after the other as diffusers does, on latents and outputs of the
same shape, and guidance for each; it is not asked for what nobody joins or leaves.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from engines import demo_model, device_arguments, second_model, settle
from report import median, show
from torch.utils._python_dispatch import TorchDispatchMode

from storage.parameters import JobParameters
from storage.samplers import SAMPLERS
from worker.engine.engine import Engine
from worker.engine.ticket import Ticket
from worker.introduction import LOOK_AHEAD
from worker.models.load import LoadedModel
from worker.stages.guidance import guide, rescale_guided
from worker.stages.noise import job_generator
from worker.stages.sampler import SamplerSettings
from worker.stages.schedule import NoiseSchedule
from worker.stages.tables import Tables

STEPS = 12
MEASURED = STEPS - 3
COUNTED = 4  # every fourth step is counted instead of timed
RESCALE = 0.7
NAMES = [name for name in SAMPLERS if name not in ("dpmpp_sde", "heun", "dpm2", "dpm2_a")]  # one pass a step
STEADY, RESCALED, CHANGING = "steady", "guidance rescaled", "joining, leaving"
TABLES = Tables()  # a worker has read most of them before


class Counted(TorchDispatchMode):
    """Counts tensor operations while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.on = 0, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        self.count += self.on
        return func(*args, **(kwargs or {}))


class Networks:
    """Notes how long a model's networks run, and keeps their tensor operations out of a count.

    Attributes:
        denoising: seconds in the UNet, since `reset`.
        coding: seconds in the text encoder and the VAE's decoder, likewise.
        counted: what counts operations, if anything does.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self.counted: Counted | None = None
        self.reset()

    def reset(self) -> None:
        """Begin with the next step."""
        self.denoising, self.coding, self._began = 0.0, 0.0, 0.0

    @contextmanager
    def watched(self) -> Iterator[Networks]:
        """Watch them meanwhile."""
        vae = self._model.vae
        networks = (self._model.unet, self._model.text_encoder, vae.post_quant_conv, vae.decoder)
        hooks = [network.register_forward_pre_hook(self._begin) for network in networks]
        hooks += [network.register_forward_hook(self._end) for network in networks]
        yield self
        for hook in hooks:
            hook.remove()

    def _begin(self, _network: Any, _inputs: Any) -> None:
        if self.counted is not None:
            self.counted.on = False
        settle(self._model)
        self._began = time.perf_counter()

    def _end(self, network: Any, _inputs: Any, _output: Any) -> None:
        settle(self._model)
        taken = time.perf_counter() - self._began
        if network is self._model.unet:
            self.denoising += taken
        else:
            self.coding += taken
        if self.counted is not None:
            self.counted.on = True


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What steps of one kind took.

    Attributes:
        outside: seconds of each, outside of the networks.
        denoising: seconds of each, in the UNet.
        coding: seconds of each, in the text encoder and the VAE.
        operations: tensor operations outside of the networks, of each that was counted and not timed.
    """

    outside: list[float] = field(default_factory=list)
    denoising: list[float] = field(default_factory=list)
    coding: list[float] = field(default_factory=list)
    operations: list[int] = field(default_factory=list)

    @property
    def due(self) -> bool:
        """Whether the next step is to be counted."""
        return len(self.outside) >= (COUNTED - 1) * (len(self.operations) + 1)

    @property
    def complete(self) -> bool:
        """Whether enough steps were measured."""
        return len(self.outside) + len(self.operations) >= MEASURED


def job(i: int, size: int, *, steps: int = STEPS, rescale: float = 0.0) -> JobParameters:
    """One of a mixed list."""
    return JobParameters(
        prompt=f"a fox, number {i}",
        seed=i,
        sampler=NAMES[i % len(NAMES)],
        num_inference_steps=steps,
        guidance_scale=3.0 + i % len(NAMES),
        width=size,
        height=size,
        options={"guidance_rescale": rescale} if rescale else {},
    )


def steady_jobs(places: int, size: int, *, rescale: float = 0.0) -> Iterator[JobParameters]:
    """Make as many jobs as there are places."""
    return (job(i, size, rescale=rescale) for i in range(places))


def changing_jobs(places: int, size: int) -> Iterator[JobParameters]:
    """Make jobs without end; the first ones end one after the other, and so do those in their places."""
    steps = shortest(places)
    for i in itertools.count():
        yield job(i, size, steps=steps + (i * steps // places if i < places else 0))


def shortest(places: int) -> int:
    """Return a step count at which one of so many requests ends about every step, but no fewer than 4."""
    return max(4, places)


def engine_steps(engine: Engine, size: int, kind: str) -> Cost:
    """Measure steps of one kind, with full lanes, then render what is left."""
    places = engine.lanes // 2
    coming = {
        STEADY: lambda: steady_jobs(places, size),
        RESCALED: lambda: steady_jobs(places, size, rescale=RESCALE),
        CHANGING: lambda: changing_jobs(places, size),
    }[kind]()
    cost, tickets = Cost(), list[Ticket]()
    with Networks(engine.model).watched() as networks:
        for step in itertools.count():
            if cost.complete:
                break
            tickets = [ticket for ticket in tickets if not ticket.future.done()]
            more = places + (LOOK_AHEAD if kind == CHANGING else 0) - len(tickets)
            tickets += [engine.submit(each) for each in itertools.islice(coming, more)]
            outside, operations = _one_step(engine.step, networks, counted=cost.due)
            # With the first ones all places change at once; from then on there is coding where one changes.
            first = shortest(places) if kind == CHANGING else 1
            if step < first or (networks.coding > 0) != (kind == CHANGING):
                continue
            if operations is not None:
                cost.operations.append(operations)
                continue
            cost.outside.append(outside)
            cost.denoising.append(networks.denoising)
            cost.coding.append(networks.coding)
    while engine.step():
        pass
    return cost


def _one_step(step: Callable[[], object], networks: Networks, *, counted: bool) -> tuple[float, int | None]:
    """Return the seconds outside of the networks and, of a step that is counted, the operations there."""
    networks.reset()
    if counted:  # which takes time of its own
        with Counted() as networks.counted:
            step()
            operations = networks.counted.count
        networks.counted = None
        return 0.0, operations
    began = time.perf_counter()
    step()
    return time.perf_counter() - began - networks.denoising - networks.coding, None


@torch.no_grad()
def rival_step(model: LoadedModel, lanes: int, size: int, *, rescale: float = 0.0) -> float:
    """Return the seconds that the same requests' noise schedulers and guidance take, called one by one."""
    side = size // model.vae_scale_factor
    output, taken = torch.randn((2, 4, side, side), device=model.device), []
    requests = []
    for i in range(lanes // 2):
        settings = job(i, size)
        sampling = SamplerSettings(
            sampler=settings.sampler or "",
            num_inference_steps=STEPS,
            scheduler_config=model.scheduler_config,
        )
        schedule = NoiseSchedule(sampling, seed=i, generator=job_generator(i), tables=None)
        latents = torch.randn((1, 4, side, side), device=model.device)
        requests.append((schedule, latents * schedule.init_noise_sigma))
    for evaluation in range(MEASURED):
        began = time.perf_counter()
        for i, (schedule, latents) in enumerate(requests):
            torch.cat([schedule.scale_input(latents, evaluation)] * 2)
            uncond, cond = output.chunk(2)
            guided = guide(uncond, cond, 7.5)
            if rescale:
                guided = rescale_guided(guided, cond, rescale, 1 - rescale)
            requests[i] = (schedule, schedule.step(guided, evaluation, latents))
        settle(model)
        taken.append(time.perf_counter() - began)
    return median(taken)


def rows(name: str, model: LoadedModel, lanes: int, size: int) -> Iterator[dict[str, Any]]:
    """Measure every kind of step at R lanes."""
    engine = Engine(model, lanes=lanes, tables=TABLES)
    rivals = {
        STEADY: rival_step(model, lanes, size),
        RESCALED: rival_step(model, lanes, size, rescale=RESCALE),
    }
    for kind in (STEADY, RESCALED, CHANGING):
        cost = engine_steps(engine, size, kind)
        outside, rival = median(cost.outside), rivals.get(kind)
        step = median([sum(both) for both in zip(cost.outside, cost.denoising, strict=True)])
        yield {
            "UNet": name,
            "R": lanes,
            "steps": kind,
            "step ms": step * 1000,
            "outside ms": outside * 1000,
            "share": outside / step,
            "operations outside": int(median(cost.operations)),
            "encoding, decoding ms": median(cost.coding) * 1000,
            "schedulers one by one ms": "" if rival is None else rival * 1000,
            "ratio": "" if rival is None else rival / outside,
        }
    engine.close()


def main() -> None:
    """Print the table."""
    options = device_arguments(__doc__ or "").parse_args()
    model = demo_model(device=options.device)
    table: list[dict[str, Any]] = []
    for name, own, size in (("demo, 64x64", model, 64), second_model(model)):
        for lanes in (2, 8) if options.quick else (2, 4, 8, 16, 32):
            table += rows(name, own, lanes, size)
    show(table, as_json=options.json)


if __name__ == "__main__":
    main()
