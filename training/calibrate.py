"""Give captions the pull that people expect: the scale that they type, 7.5, has to be a good one.

Captions of this data leave nothing open, so the prompt's prediction is far from the empty prompt's, and a
scale that Stable Diffusion needs overshoots here: colours saturate, and LMS leaves its stability
(docs/decisions/0005, 0010). A share of wrong captions would weaken them as it does on the web, but then the
model no longer trusts a caption once the picture has begun to look like something else. So both predictions
are learned anew from the trained model itself, the prompt's moved towards the empty prompt's:

    prompt'  = empty + STRENGTH (prompt - empty)        empty' = empty

With it a scale g does about what STRENGTH g did before. What is compared is what a sampler uses, the guided
prediction, at a scale drawn anew for each picture: an error of the difference counts g times there.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import nn
from transformers import CLIPTokenizer

from training.data import load, to_triple
from training.diffusion import SCHEDULER_CONFIG, build_networks, draw_noisy, min_snr_weight, predict, to_ids
from training.fit import BatchLoss, Recipe, fit
from training.vocabulary import caption

STRENGTH = 0.55
SCALES = (0.0, 8.0)  # 0 is the empty prompt alone, 1 the prompt alone
# Share of captions that belong to another picture. The teacher answers them, too, and a sampler asks so: what
# it has drawn by then is never quite what the caption says.
OTHERS = 0.3
HIGH_NOISE = 0.6  # share of timesteps from 500 up, where it is decided what the picture shows


@dataclass(frozen=True, kw_only=True)
class CalibrationTask:
    """Predict what the trained model does, with weaker captions.

    Attributes:
        folder: holds labels and latents.
        tokenizer: its folder.
        weights: of the trained model.
        batch: latents in a step of one process.
    """

    folder: Path
    tokenizer: Path
    weights: Path
    batch: int

    def __call__(self) -> tuple[nn.Module, BatchLoss]:
        """Build the networks to train, and the loss against those that were trained."""
        tokenizer = CLIPTokenizer.from_pretrained(self.tokenizer)
        trained = torch.load(self.weights, weights_only=True)
        teacher, networks = build_networks(tokenizer), build_networks(tokenizer)
        teacher.load_state_dict(trained)
        networks.load_state_dict(trained)
        latents = np.load(self.folder / "latents.npy")
        labels = load(self.folder, "train").labels
        schedule: Any = DDPMScheduler.from_config(SCHEDULER_CONFIG)

        def batch_loss(networks: nn.Module, rng: np.random.Generator) -> torch.Tensor:
            chosen = rng.integers(0, len(latents), self.batch)
            others = rng.integers(0, len(latents), self.batch)
            named = np.where(rng.random(self.batch) < OTHERS, others, chosen)
            drawn = random.Random(int(rng.integers(2**62)))
            captions = [caption(to_triple(row), drawn) for row in labels[named]]
            ids = to_ids(tokenizer, [""] * self.batch + captions)
            noisy, timesteps, _ = draw_noisy(
                torch.from_numpy(latents[chosen]).float(), schedule, rng, high_noise=HIGH_NOISE
            )
            scale = torch.from_numpy(rng.uniform(*SCALES, (self.batch, 1, 1, 1)).astype(np.float32))
            with torch.no_grad():
                wanted = guided(teacher, noisy, timesteps, ids, STRENGTH * scale)
            error = ((guided(networks, noisy, timesteps, ids, scale) - wanted) ** 2).mean(dim=(1, 2, 3))
            return (min_snr_weight(schedule, timesteps) * error).mean()

        return networks, batch_loss


def guided(
    networks: Any, noisy: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Predict the noise in n latents under classifier-free guidance.

    Args:
        networks: text encoder and UNet.
        noisy: (n, 4, 16, 16).
        timesteps: (n,).
        ids: (2 n, MAX_LENGTH), the empty prompts first.
        scale: (n, 1, 1, 1).
    """
    both = predict(networks, noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), ids)
    unprompted, prompted = both.chunk(2)
    return unprompted + scale * (prompted - unprompted)


def calibrate(folder: Path, tokenizer: Path, weights: Path, *, steps: int, batch: int, seed: int) -> Path:
    """Train both networks on the trained ones' predictions; return the path of their weights."""
    task = CalibrationTask(folder=folder, tokenizer=tokenizer, weights=weights, batch=batch)
    recipe = Recipe(name="calibrated", steps=steps, learning_rate=2e-4, warmup=20, ema=0.99, seed=seed)
    return fit(task, recipe, folder)
