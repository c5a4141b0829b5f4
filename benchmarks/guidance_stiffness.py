"""Why LMS can break at a high guidance scale: how stiff the guided equation is at each noise level.

LMS, Euler and DPM++ solve dx/dsigma = noise_pred(x, sigma) (Karras et al. 2022, equation 1, sigma as time).
Where noise_pred has the slope s, a step of d sigma multiplies a deviation by about 1 - d sigma s. Euler is
stable up to d sigma s = 2, LMS of order 2 (Adams-Bashforth) up to 1, of order 4, diffusers' default, up to
0.3. The table has the largest d sigma s over all directions, by power iteration along each guidance scale's
own Euler trajectory of 30 steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from report import arguments, show

from storage.models import builtin_model_path

STEPS = 30
EVERY = 3  # steps between two lines of the table
ITERATIONS = 6
NUDGE = 0.05  # relative to sigma
PROMPTS = (
    "a photo of a fox on a red background",
    "a watercolor painting of an otter on a blue background",
    "an oil painting of a rose on a green background",
    "a pencil sketch of a car on a yellow background",
    "pixel art of a penguin on a purple background",
    "a sticker of a star on a white background",
)


class Guided:
    """The guided noise prediction of a pipeline, as a function of latents of unscaled variance."""

    def __init__(self, model: Path, prompts: tuple[str, ...], spacing: dict[str, bool]) -> None:
        self.pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model)
        count = len(prompts)
        embeds = self.pipeline.encode_prompt(list(prompts), "cpu", 1, True, [""] * count)  # noqa: FBT003 - its signature
        self.prompt_embeds = torch.cat([embeds[1], embeds[0]])
        self.scheduler: Any = diffusers.EulerDiscreteScheduler.from_config(
            self.pipeline.scheduler.config, **spacing
        )
        self.scheduler.set_timesteps(STEPS)

    def __call__(self, latents: torch.Tensor, step: int, guidance: float) -> torch.Tensor:
        """Predict the noise in latents (n, 4, h, w)."""
        sigma, timestep = self.scheduler.sigmas[step], self.scheduler.timesteps[step]
        scaled = latents / (sigma**2 + 1) ** 0.5
        noise_pred = self.pipeline.unet(torch.cat([scaled, scaled]), timestep, self.prompt_embeds).sample
        uncond, cond = noise_pred.chunk(2)
        return uncond + guidance * (cond - uncond)

    def stiffness(self, latents: torch.Tensor, step: int, guidance: float) -> float:
        """Return the median over prompts of d sigma times the largest slope."""
        sigma, after = self.scheduler.sigmas[step], self.scheduler.sigmas[step + 1]
        here = self(latents, step, guidance)
        direction = _unit(torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)))
        nudge = NUDGE * sigma
        for _ in range(ITERATIONS):
            answer = (self(latents + nudge * direction, step, guidance) - here) / nudge
            slope = (answer * direction).sum(dim=(1, 2, 3))
            direction = _unit(answer)
        return float((slope * (sigma - after)).median())


def _unit(direction: torch.Tensor) -> torch.Tensor:
    return direction / direction.flatten(1).norm(dim=1)[:, None, None, None]


def main() -> None:
    """Print the table for one model and spacing."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", type=Path, default=builtin_model_path())
    parser.add_argument("--karras", action="store_true", help="Karras sigmas instead of the default spacing")
    options = parser.parse_args()
    prompts = PROMPTS[:2] if options.quick else PROMPTS
    guided = Guided(options.model, prompts, {"use_karras_sigmas": True} if options.karras else {})
    sigmas = guided.scheduler.sigmas
    size = guided.pipeline.unet.config.sample_size
    generator = torch.Generator().manual_seed(32)
    start = (
        torch.randn((len(prompts), 4, size, size), generator=generator) * guided.scheduler.init_noise_sigma
    )
    rows = [{"sigma": float(sigmas[step])} for step in range(0, STEPS, EVERY)]
    with torch.no_grad():
        for guidance in (1.0, 4.0, 7.5):
            latents = start
            for step in range(STEPS):
                if step % EVERY == 0:
                    rows[step // EVERY][f"w = {guidance:g}"] = guided.stiffness(latents, step, guidance)
                noise_pred = guided(latents, step, guidance)
                latents = latents + (sigmas[step + 1] - sigmas[step]) * noise_pred
    show(rows, as_json=options.json)


main()
