"""How far weights move the mean of a chunk's embeddings, which A1111's emphasis brings back.

One to three neighbouring words of each example prompt are weighted 0.5 to 2. The factor that brings the mean
back changes little where it is near 1; far from 1, or negative, it would be what one sees.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch

from storage.models import parse_model
from worker.models.device import choose_device
from worker.models.families.sd import encode
from worker.models.load import load_model
from worker.stages.tokens import tokenise

ROOT = Path(__file__).parents[1]
DRAWS = 50  # of each prompt
WEIGHTS = (0.5, 0.8, 1.1, 1.21, 1.3, 1.5, 2.0)


@torch.no_grad()
def main() -> None:
    """Print the factors of all prompts."""
    model = load_model(parse_model(f"demo={ROOT / 'models' / 'demo'}"), device=choose_device("cpu"))
    draw = random.Random(0)  # noqa: S311 - a measurement
    factors, means, deviations = [], [], []
    prompts = (ROOT / "examples" / "prompts.txt").read_text().split("\n")
    for prompt in filter(None, map(str.strip, prompts)):
        tokens = tokenise(model.tokenizer, prompt)
        embeds = encode(model.text_encoder, tokens)[0]
        means.append(abs(float(embeds.mean())))
        deviations.append(float(embeds.std()))
        for _ in range(DRAWS):
            weights = torch.ones(len(embeds), 1)
            first = draw.randrange(1, max(2, int(tokens.attention_mask.sum()) - 1))
            weights[first : first + draw.choice([1, 2, 3])] = draw.choice(WEIGHTS)
            factors.append(float(embeds.mean() / (embeds * weights).mean()))
    factors.sort()
    count = len(factors)
    print(f"mean, without sign     {min(means):.4f} to {max(means):.4f}")
    print(f"standard deviation     {min(deviations):.2f} to {max(deviations):.2f}")
    print(f"factor, {count} draws     {factors[0]:.2f} to {factors[-1]:.2f}")
    print(f"nine tenths of them    {factors[count // 20]:.2f} to {factors[count * 19 // 20]:.2f}")


if __name__ == "__main__":
    main()
