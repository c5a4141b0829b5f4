"""The job's own random numbers: one CPU generator per job, whatever the device and the company."""

from __future__ import annotations

import torch


def job_generator(seed: int) -> torch.Generator:
    """Make the CPU generator from which everything random in a job is drawn."""
    return torch.Generator(device="cpu").manual_seed(seed)


def initial_noise(shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """Draw the noise that a picture starts from, before it is scaled to the sampler's first sigma.

    Always float32, whatever the model's dtype: in float32 these are the numbers that diffusers'
    `randn_tensor` draws with a CPU generator; in half precision diffusers draws in half: other numbers.

    Args:
        shape: (channels, h, w) of the latents.
        generator: the job's own.

    Returns:
        (1, channels, h, w), float32, on the CPU, standard normal.
    """
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)
