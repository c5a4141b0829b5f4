"""A request's way from noise to latents: its sampler's table, or the noise scheduler itself."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
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

    def draw_noise(self, shape: tuple[int, ...]) -> None:
        """Draw what a table's evaluations will need, in diffusers' order; the initial noise comes before.

        Args:
            shape: of the latents, (1, channels, h, w).
        """
        if self.table is None:
            return  # its scheduler draws, from the same generator
        tree = None
        if any(self.table.intervals):
            tree = BrownianTreeNoiseSampler(torch.zeros(shape), *self.table.sigma_range, self._seed)
        for draws, interval in zip(self.table.draws, self.table.intervals, strict=True):
            if tree is not None and interval is not None:
                self._noise.append(tree(*interval))
            else:
                self._noise.append(torch.randn(shape, generator=self._generator) if draws else None)

    def move_noise(self, device: torch.device) -> None:
        """Bring what was drawn onto the device."""
        self._noise = [None if noise is None else noise.to(device) for noise in self._noise]

    def noise(self, evaluation: int) -> torch.Tensor | None:
        """Return what forward pass number `evaluation` draws; None where it draws nothing."""
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


@functools.lru_cache(maxsize=256)
def sampler_table(
    sampler: str, schedule: str, num_inference_steps: int, scheduler_config: str, eta: float
) -> SamplerTable | None:
    """Return the table of a sampler, schedule, number of steps, config and eta; None where it has none.

    Reading one takes 0.05 to 2 s: it is done in the submitter's thread, and once.

    Args:
        sampler: see `NoiseSchedule`.
        schedule: likewise.
        num_inference_steps: likewise.
        scheduler_config: likewise, as JSON.
        eta: likewise.

    Raises:
        BadInputError: when the combination cannot be rendered.
    """

    def build() -> Any:
        return positioned_scheduler(
            sampler=sampler,
            schedule=schedule,
            num_inference_steps=num_inference_steps,
            scheduler_config=json.loads(scheduler_config),
            seed=0,  # of the tree that DPM++ SDE would draw from, and a table does not
        )

    return probe(build, step_arguments(build(), torch.Generator(), eta=eta))
