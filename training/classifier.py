"""The judge: a small convolutional network that tells noun, style and background of a picture.

It is independent of the model: trained on drawn pictures of every combination, held-out ones included, with
its own seed, and never on a generated picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from training.data import load
from training.fit import BatchLoss, Recipe, fit
from training.vae import to_tensor
from training.vocabulary import BACKGROUNDS, NOUNS, STYLES

HEADS = (len(NOUNS), len(STYLES), len(BACKGROUNDS))


class Classifier(nn.Module):
    """Pictures (n, 3, 64, 64) in -1..1 to three tensors of logits: noun, style, background."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (24, 48, 96, 128):
            layers += [
                nn.Conv2d(channels, width, 3, stride=2, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
            channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1))
        self.heads = nn.ModuleList(nn.Linear(channels * 4, count) for count in HEADS)

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Return logits, each (n, classes)."""
        features = self.features(pictures)
        return [head(features) for head in self.heads]


@dataclass(frozen=True, kw_only=True)
class ClassifierTask:
    """Tell what pictures show, whatever a VAE does to them: blur, noise and brightness are varied.

    Attributes:
        folder: holds `train` and `judge` pictures.
        batch: pictures in a step of one process.
    """

    folder: Path
    batch: int = 64

    def __call__(self) -> tuple[nn.Module, BatchLoss]:
        """Build the network and its loss."""
        sets = [load(self.folder, name) for name in ("judge", "train")]

        def batch_loss(classifier: nn.Module, rng: np.random.Generator) -> torch.Tensor:
            halves = [rng.integers(0, len(pictures.pixels), self.batch // 2) for pictures in sets]
            pixels = np.concatenate([p.pixels[np.sort(half)] for p, half in zip(sets, halves, strict=True)])
            labels = np.concatenate([p.labels[np.sort(half)] for p, half in zip(sets, halves, strict=True)])
            logits = classifier(_vary(to_tensor(pixels), rng))
            targets = torch.from_numpy(labels).unbind(1)
            return sum(
                (
                    functional.cross_entropy(guess, target)
                    for guess, target in zip(logits, targets, strict=True)
                ),
                start=torch.zeros(()),
            )

        return Classifier(), batch_loss


def train_classifier(folder: Path, *, steps: int, seed: int) -> Path:
    """Train the judge; return its weights' path."""
    recipe = Recipe(name="classifier", steps=steps, learning_rate=3e-3, ema=0.99, seed=seed + 100)
    return fit(ClassifierTask(folder=folder), recipe, folder)


def judge(weights: Path, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return, for each picture, whether noun, style and background are right: bool (n, 3).

    Args:
        weights: from `train_classifier`.
        pixels: uint8 (n, 64, 64, 3).
        labels: int64 (n, 3), what was asked for.
    """
    classifier = Classifier()
    classifier.load_state_dict(torch.load(weights, weights_only=True))
    classifier.eval()
    guesses = []
    with torch.no_grad():
        for start in range(0, len(pixels), 128):
            logits = classifier(to_tensor(pixels[start : start + 128]))
            guesses.append(torch.stack([head.argmax(1) for head in logits], dim=1))
    return torch.cat(guesses).numpy() == labels


def _vary(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    blurred = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mix = torch.from_numpy(rng.uniform(-0.3, 0.9, (len(pictures), 1, 1, 1)).astype(np.float32)).clamp(min=0)
    gain = torch.from_numpy(rng.uniform(0.92, 1.08, (len(pictures), 1, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32))
    return (pictures + mix * (blurred - pictures)) * gain + 0.04 * noise
