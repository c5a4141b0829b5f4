"""A request's way from noise to latents: its sampler's table, or the noise scheduler itself."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

from worker.stages.sampler import positioned_scheduler, step_arguments
from worker.stages.table import SamplerTable, probe


class NoiseSchedule:
    """One request's sampler, config and steps.

    Attributes:
        table: None where the noise scheduler itself has to be called, by `step`.
        timesteps: the UNet's timestep of every forward pass, float32 exact.
        init_noise_sigma: what initial noise is multiplied with.
    """

    def __init__(
        self,
        *,
        sampler: str,
        schedule: str,
        num_inference_steps: int,
        scheduler_config: Mapping[str, Any],
        seed: int,
        generator: torch.Generator,
        eta: float = 0.0,
        tabulated: bool = True,
    ) -> None:
        """Find the table, or build the noise scheduler.

        Args:
            sampler: a name from `storage.samplers`.
            schedule: likewise.
            num_inference_steps: 1 to 1000.
            scheduler_config: the model's, after the pipeline's own fix-ups (`LoadedModel.scheduler_config`).
            seed: the job's; the Brownian tree of DPM++ SDE is seeded with it.
            generator: the job's CPU generator; noise during the loop is drawn from it.
            eta: noise that DDIM and TCD add, 0 to 1; the pipeline passes it to samplers that take it.
            tabulated: False calls the noise scheduler in any case, for the reference loop bit for bit.

        Raises:
            BadInputError: when the combination cannot be rendered; one sentence says why.
        """
        self._seed, self._generator = seed, generator
        self._noise: list[torch.Tensor | None] = []
        self._shape: tuple[int, ...] = ()
        self.table: SamplerTable | None = None
        if tabulated:
            config = json.dumps(dict(scheduler_config), sort_keys=True)
            self.table = sampler_table(sampler, schedule, num_inference_steps, config, eta)
        if self.table is not None:
            self.timesteps: list[float] = list(self.table.timesteps)
            self.init_noise_sigma: torch.Tensor | float = self.table.init_noise_sigma
            return
        self._scheduler = positioned_scheduler(
            sampler=sampler,
            schedule=schedule,
            num_inference_steps=num_inference_steps,
            scheduler_config=scheduler_config,
            seed=seed,
        )
        self._arguments = step_arguments(self._scheduler, generator, eta=eta)
        self._timesteps: list[torch.Tensor] = list(self._scheduler.timesteps)
        self.timesteps = [float(timestep) for timestep in self._timesteps]
        self.init_noise_sigma = self._scheduler.init_noise_sigma

    def __len__(self) -> int:
        """Count the forward passes; Heun, DPM2 and DPM++ SDE need two for most steps."""
        return len(self.timesteps)

    def draw_noise(self, shape: tuple[int, ...], device: torch.device) -> None:
        """Draw what a table's evaluations will need, in diffusers' order; the initial noise comes before.

        Args:
            shape: of the latents, (1, channels, h, w).
            device: of the model. diffusers' Brownian tree draws there, so on another device than the CPU that
                is left to `move_noise`.
        """
        if self.table is None:
            return  # its scheduler draws, from the same generator
        self._shape = shape
        self._noise = [torch.randn(shape, generator=self._generator) if d else None for d in self.table.draws]
        if device.type == "cpu":
            self._draw_from_tree(device)

    def move_noise(self, device: torch.device) -> None:
        """Bring what was drawn onto the device."""
        if device.type == "cpu" or self.table is None:
            return
        self._noise = [None if noise is None else noise.to(device) for noise in self._noise]
        self._draw_from_tree(device)

    def _draw_from_tree(self, device: torch.device) -> None:
        if self.table is None or not any(self.table.intervals):
            return
        latents = torch.zeros(self._shape, device=device)
        tree = BrownianTreeNoiseSampler(latents, *self.table.sigma_range, self._seed)
        self._noise = [
            noise if interval is None else tree(*interval)
            for noise, interval in zip(self._noise, self.table.intervals, strict=True)
        ]

    def noise(self, evaluation: int) -> torch.Tensor | None:
        """Return what forward pass number `evaluation` draws; None where it draws nothing.

        What the one before it drew is let go.
        """
        if evaluation:
            self._noise[evaluation - 1] = None
        return self._noise[evaluation]

    def scale_input(self, latents: torch.Tensor, evaluation: int) -> torch.Tensor:
        """Return the UNet's input for forward pass number `evaluation`; only where there is no table."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self._timesteps[evaluation])
        return scaled

    def step(self, output: torch.Tensor, evaluation: int, latents: torch.Tensor) -> torch.Tensor:
        """Call the noise scheduler after forward pass number `evaluation`; only where there is no table.

        Args:
            output: the guided prediction, (1, channels, h, w) float32.
            evaluation: 0 to n - 1.
            latents: those that went into the forward pass, unscaled.
        """
        stepped: torch.Tensor = self._scheduler.step(
            output, self._timesteps[evaluation], latents, **self._arguments, return_dict=False
        )[0]
        return stepped


def sampler_table(
    sampler: str, schedule: str, num_inference_steps: int, scheduler_config: str, eta: float
) -> SamplerTable | None:
    """Return the table of a sampler, schedule, number of steps, config and eta; None where it has none.

    Reading one takes 0.05 to 3 s at 20 steps, and longer with more: it is done in the submitter's thread, and
    once, whoever asks at the same time.

    Args:
        sampler: see `NoiseSchedule`.
        schedule: likewise.
        num_inference_steps: likewise.
        scheduler_config: likewise, as JSON.
        eta: likewise.

    Raises:
        BadInputError: when the combination cannot be rendered.
    """
    reader = _reader(sampler, schedule, num_inference_steps, scheduler_config, eta)
    with reader.lock:
        return reader.table


class _Reader:
    """Reads one table when it is first asked for."""

    def __init__(self, build: Callable[[], Any], eta: float) -> None:
        self.lock = threading.Lock()
        self._build, self._eta = build, eta

    @functools.cached_property
    def table(self) -> SamplerTable | None:
        """The table."""
        return probe(
            self._build, lambda scheduler: step_arguments(scheduler, torch.Generator(), eta=self._eta)
        )


@functools.lru_cache(maxsize=256)
def _reader(
    sampler: str, schedule: str, num_inference_steps: int, scheduler_config: str, eta: float
) -> _Reader:
    def build() -> Any:
        return positioned_scheduler(
            sampler=sampler,
            schedule=schedule,
            num_inference_steps=num_inference_steps,
            scheduler_config=json.loads(scheduler_config),
            seed=0,  # of the tree that DPM++ SDE would draw from, and a table does not
        )

    return _Reader(build, eta)
