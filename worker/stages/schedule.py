"""A request's way from noise to latents: its sampler's table, or the noise scheduler itself."""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

from worker.stages.sampler import SamplerSettings
from worker.stages.tables import Tables


class NoiseSchedule:
    """One request's sampler, config and steps.

    Attributes:
        table: None where the noise scheduler itself has to be called, by `step`.
        timesteps: the UNet's timestep of every forward pass, float32 exact.
        init_noise_sigma: what initial noise is multiplied with.
    """

    def __init__(
        self,
        settings: SamplerSettings,
        *,
        seed: int,
        generator: torch.Generator,
        tables: Tables | None,
    ) -> None:
        """Find the table, or build the noise scheduler.

        Args:
            settings: the job's, with its model's config.
            seed: the job's; the Brownian tree of DPM++ SDE is seeded with it.
            generator: the job's CPU generator; noise during the loop is drawn from it.
            tables: where tables are found; None calls the noise scheduler in any case, for the reference
                loop bit for bit.

        Raises:
            BadInputError: when the combination cannot be rendered; one sentence says why.
        """
        self._seed, self._generator = seed, generator
        self._noise: list[torch.Tensor | None] = []
        self._shape: tuple[int, ...] = ()
        self.table = None if tables is None else tables[settings]
        if self.table is not None:
            self.timesteps: list[float] = list(self.table.timesteps)
            self.init_noise_sigma: torch.Tensor | float = self.table.init_noise_sigma
            return
        self._scheduler = settings.build(seed=seed)
        self._arguments = settings.step_arguments(self._scheduler, generator)
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
