"""`--mode reference` is the reference loop, bit for bit."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from storage.parameters import JobParameters
from tests.device import DEVICE
from worker.models.load import LoadedModel

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # torchsde, at the rounded end points
]

PROMPT = "A watercolor painting of an otter"


@torch.no_grad()
def _reference_loop(
    model: LoadedModel, *, guidance_scale: float, rescale: float = 0.0
) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """Render the canonical job by the loop as it was written down, with this model's constants."""

    def embed(text: str) -> torch.Tensor:
        tokens = model.tokenizer(
            text, padding="max_length", max_length=model.max_length, truncation=True, return_tensors="pt"
        )
        embeds: torch.Tensor = model.text_encoder(tokens.input_ids.to(DEVICE))[0]
        return embeds

    embeds = torch.cat([embed(""), embed(PROMPT)])
    scheduler = diffusers.LMSDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    scheduler.set_timesteps(30)
    width, height = (size // model.vae_scale_factor for size in model.native_size)
    latents = torch.randn((1, 4, height, width), generator=torch.manual_seed(32))
    latents = latents.to(DEVICE) * scheduler.init_noise_sigma
    for t in scheduler.timesteps.to(torch.float32):
        x = torch.cat([latents] * 2)
        x = scheduler.scale_model_input(x, t)
        uncond, cond = model.unet(x, t, encoder_hidden_states=embeds).sample.chunk(2)
        noise = uncond + guidance_scale * (cond - uncond)
        if rescale:
            noise = rescale_noise_cfg(noise, cond, guidance_rescale=rescale)
        latents = scheduler.step(noise, t, latents).prev_sample
    image = model.vae.decode(latents / model.vae.config.scaling_factor).sample
    image = (image / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).cpu().numpy()
    return latents.cpu(), (image * 255).round().astype("uint8")


@pytest.mark.parametrize("guidance_scale", [7.5, 4.0])
def test_reference_mode_is_the_reference_loop(guidance_scale: float, model: LoadedModel, render: Any) -> None:
    """The canonical job's latents and pixels are equal in every bit, although other jobs wait beside it."""
    job = JobParameters(prompt=PROMPT, seed=32, guidance_scale=guidance_scale)
    neighbour = JobParameters(
        prompt="a cat", seed=1, num_inference_steps=3, guidance_scale=1.0, sampler="euler"
    )
    ours, _ = render([job, neighbour], mode="reference")
    latents, pixels = _reference_loop(model, guidance_scale=guidance_scale)
    assert torch.equal(ours.latents, latents)
    assert np.array_equal(ours.pixels, pixels)


@pytest.mark.parametrize("rescale", [0.9, 0.85, 0.7, 1.0])
def test_reference_mode_rescales_as_diffusers_does(rescale: float, model: LoadedModel, render: Any) -> None:
    """In every bit, for shares that float32 has and for those that it rounds."""
    options = {"guidance_rescale": rescale}
    (ours,) = render(
        [JobParameters(prompt=PROMPT, seed=32, guidance_scale=4.0, options=options)], mode="reference"
    )
    latents, pixels = _reference_loop(model, guidance_scale=4.0, rescale=rescale)
    assert torch.equal(ours.latents, latents)
    assert np.array_equal(ours.pixels, pixels)


def test_exact_mode_is_within_one_of_the_reference_loop(model: LoadedModel, render: Any) -> None:
    """The default mode gives the reference loop's picture within 1 of 255."""
    (ours,) = render([JobParameters(prompt=PROMPT, seed=32, guidance_scale=4.0)])
    _, pixels = _reference_loop(model, guidance_scale=4.0)
    assert np.abs(ours.pixels.astype(int) - pixels.astype(int)).max() <= 1
