"""Give captions the pull that people expect: the scale that they type, 7.5, has to be a good one.

Captions of this data leave nothing open, so the prompt's prediction is far from the empty prompt's, and a
scale that Stable Diffusion needs overshoots here: colours saturate, and LMS leaves its stability
(docs/decisions/0005, 0010). A share of wrong captions would weaken them as it does on the web, but then the
model no longer trusts a caption once the picture has begun to look like something else. So both predictions
are learned anew from the trained model itself, the prompt's moved towards the empty prompt's:

    prompt'  = empty + STRENGTH (prompt - empty)        empty' = empty

With it a scale g does about what STRENGTH g did before (least exactly where sigma is highest: decision 0010).
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

STRENGTH = 0.58
EMPTY = 0.2  # share of steps on the empty prompt, whose prediction has to stay


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
            drawn = random.Random(int(rng.integers(2**62)))
            captions = [caption(to_triple(row), drawn) for row in labels[chosen]]
            empty = torch.from_numpy(rng.random(self.batch) < EMPTY)
            ids, none = to_ids(tokenizer, captions), to_ids(tokenizer, [""] * self.batch)
            noisy, timesteps, _ = draw_noisy(torch.from_numpy(latents[chosen]).float(), schedule, rng)
            with torch.no_grad():
                unprompted, prompted = predict(
                    teacher, noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), torch.cat([none, ids])
                ).chunk(2)
            pull = torch.where(empty, 0.0, STRENGTH)[:, None, None, None]
            wanted = unprompted + pull * (prompted - unprompted)
            noise_pred = predict(networks, noisy, timesteps, torch.where(empty[:, None], none, ids))
            error = ((noise_pred - wanted) ** 2).mean(dim=(1, 2, 3))
            return (min_snr_weight(schedule, timesteps) * error).mean()

        return networks, batch_loss


def calibrate(folder: Path, tokenizer: Path, weights: Path, *, steps: int, batch: int, seed: int) -> Path:
    """Train both networks on the trained ones' predictions; return the path of their weights."""
    task = CalibrationTask(folder=folder, tokenizer=tokenizer, weights=weights, batch=batch)
    recipe = Recipe(name="calibrated", steps=steps, learning_rate=3e-4, warmup=20, ema=0.99, seed=seed)
    return fit(task, recipe, folder)
