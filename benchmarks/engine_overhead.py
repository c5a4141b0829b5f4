"""What a step costs besides the UNet's forward pass: its share of the time, and tensor operations, by R.

All samplers share the steps, at other guidance scales. The first step (prompts) and the last ones (decoding)
are left out. Rival: the same samplers' own noise schedulers, called one after the other as diffusers does, on
latents and outputs of the same shape, and guidance for each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from engines import demo_model, device_arguments, second_model, settle
from report import median, show
from torch.utils._python_dispatch import TorchDispatchMode

from storage.parameters import JobParameters
from storage.samplers import SAMPLERS
from worker.engine.engine import Engine
from worker.models.load import LoadedModel
from worker.stages.guidance import guide
from worker.stages.noise import job_generator
from worker.stages.sampler import SamplerSettings
from worker.stages.schedule import NoiseSchedule

STEPS = 12
COUNTED = 4  # every fourth step is counted instead of timed
NAMES = [name for name in SAMPLERS if name not in ("dpmpp_sde", "heun", "dpm2", "dpm2_a")]  # one pass a step


class Counted(TorchDispatchMode):
    """Counts tensor operations while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.on = 0, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        self.count += self.on
        return func(*args, **(kwargs or {}))


class Timed:
    """A UNet that notes how long it runs."""

    def __init__(self, model: LoadedModel) -> None:
        self.model, self.unet = model, model.unet
        self.config, self.attn_processors = self.unet.config, self.unet.attn_processors
        self.seconds = 0.0
        self.counted: Counted | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Run the UNet."""
        settle(self.model)
        began = time.perf_counter()
        with self._apart():
            answer = self.unet(*arguments, **named)
        settle(self.model)
        self.seconds = time.perf_counter() - began
        return answer

    def to(self, **named: Any) -> Timed:
        """Change the UNet's layout in place, as the engine does when it has chosen one."""
        self.unet.to(**named)
        return self

    @contextmanager
    def _apart(self) -> Iterator[None]:
        if self.counted is not None:
            self.counted.on = False
        yield
        if self.counted is not None:
            self.counted.on = True


def job(i: int, size: int) -> JobParameters:
    """One of a mixed list."""
    return JobParameters(
        prompt="a fox",
        seed=i,
        sampler=NAMES[i % len(NAMES)],
        num_inference_steps=STEPS,
        guidance_scale=3.0 + i,
        width=size,
        height=size,
    )


def engine_step(model: LoadedModel, lanes: int, size: int) -> tuple[float, float, int]:
    """Return the median seconds of a step, of what is outside of the forward pass, and operations there."""
    unet = Timed(model)
    engine = Engine(replace(model, unet=unet), mode="throughput", lanes=lanes)
    for i in range(lanes // 2):
        engine.submit(job(i, size))
    steps, outside, counts = [], [], []
    engine.step()
    for i in range(STEPS - 3):
        began = time.perf_counter()
        if i % COUNTED == COUNTED - 1:  # counting takes time of its own
            with Counted() as unet.counted:
                engine.step()
                counts.append(unet.counted.count)
            unet.counted = None
            continue
        engine.step()
        steps.append(time.perf_counter() - began)
        outside.append(steps[-1] - unet.seconds)
    engine.close()
    return median(steps), median(outside), int(median(counts))


@torch.no_grad()
def rival_step(model: LoadedModel, lanes: int, size: int) -> float:
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
    for evaluation in range(STEPS - 3):
        began = time.perf_counter()
        for i, (schedule, latents) in enumerate(requests):
            torch.cat([schedule.scale_input(latents, evaluation)] * 2)
            guided = guide(*output.chunk(2), 7.5)
            requests[i] = (schedule, schedule.step(guided, evaluation, latents))
        settle(model)
        taken.append(time.perf_counter() - began)
    return median(taken)


def main() -> None:
    """Print the table."""
    options = device_arguments(__doc__ or "").parse_args()
    model = demo_model(device=options.device)
    rows = []
    for name, own, size in (("demo, 64x64", model, 64), second_model(model)):
        for lanes in (2, 8) if options.quick else (2, 4, 8, 16, 32):
            step, outside, operations = engine_step(own, lanes, size)
            rival = rival_step(own, lanes, size)
            rows.append(
                {
                    "UNet": name,
                    "R": lanes,
                    "step ms": step * 1000,
                    "outside ms": outside * 1000,
                    "share": outside / step,
                    "operations outside": operations,
                    "schedulers one by one ms": rival * 1000,
                    "ratio": rival / outside,
                }
            )
    show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
