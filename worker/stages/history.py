"""What tables of samplers look back at, and the update that takes a line of each (`worker.stages.table`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

# How far back a line may look: latents 0 to 3 evaluations, outputs 0 to 4, noise 0 and 1. Measured over every
# sampler and option that is offered: PNDM, which leaves out its second output, needs the fifth.
LATENT_LAGS, OUTPUT_LAGS, NOISE_LAGS = 4, 5, 2
TERMS = LATENT_LAGS + OUTPUT_LAGS + NOISE_LAGS + 1  # the last is hidden


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What the next lines of tables look back at: one row a request.

    It is replaced, not changed: a step that fails leaves every request where it was.

    Attributes:
        latents: the newest first, LATENT_LAGS tensors of (requests, channels, h, w) float32.
        outputs: what the model predicted, OUTPUT_LAGS of them.
        noise: what was drawn, NOISE_LAGS.
        hidden: the sample that UniPC and SA-Solver keep.
    """

    latents: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    noise: tuple[torch.Tensor, ...]
    hidden: torch.Tensor

    @classmethod
    def start(cls, latents: torch.Tensor) -> History:
        """Begin at the scaled initial noise."""
        nothing = torch.zeros_like(latents)
        return cls(
            latents=(latents, *[nothing] * (LATENT_LAGS - 1)),
            outputs=(nothing,) * OUTPUT_LAGS,
            noise=(nothing,) * NOISE_LAGS,
            hidden=nothing,
        )

    @classmethod
    def gather(cls, states: Sequence[tuple[History, int]]) -> History:
        """Put rows of other histories below each other."""

        def rows(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
            return torch.cat([t[row : row + 1] for t, (_, row) in zip(tensors, states, strict=True)])

        def registers(of: Iterable[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
            return tuple(rows(lag) for lag in zip(*of, strict=True))

        histories = [history for history, _ in states]
        return cls(
            latents=registers(history.latents for history in histories),
            outputs=registers(history.outputs for history in histories),
            noise=registers(history.noise for history in histories),
            hidden=rows(history.hidden for history in histories),
        )

    def after(self, weights: torch.Tensor, output: torch.Tensor, noise: torch.Tensor) -> History:
        """Take one line of every row's table.

        Args:
            weights: (2, TERMS, requests) float32: the coefficients of the latents and of hidden.
            output: the guided prediction, same shape as the latents.
            noise: what is drawn in this evaluation; zeros for who draws none.
        """
        outputs, drawn = (output, *self.outputs[:-1]), (noise, *self.noise[:-1])
        terms = (*self.latents, *outputs, *drawn, self.hidden)
        each = weights[..., None, None, None]
        latents, hidden = (weighted_sum(line, terms) for line in each)
        return self.moved(latents=latents, hidden=hidden, output=output, noise=noise)

    def padded(self, count: int) -> History:
        """Append `count` rows of zeros."""
        return History.from_flat([pad(each, count) for each in self.flat()])

    def moved(
        self, *, latents: torch.Tensor, hidden: torch.Tensor, output: torch.Tensor, noise: torch.Tensor
    ) -> History:
        """Make these the newest; the oldest are let go."""
        return History(
            latents=(latents, *self.latents[:-1]),
            outputs=(output, *self.outputs[:-1]),
            noise=(noise, *self.noise[:-1]),
            hidden=hidden,
        )

    def flat(self) -> tuple[torch.Tensor, ...]:
        """Return all tensors, for `from_flat`."""
        return (*self.latents, *self.outputs, *self.noise, self.hidden)

    @classmethod
    def from_flat(cls, tensors: Sequence[torch.Tensor]) -> History:
        """Take back what `flat` returned."""
        outputs, noise = LATENT_LAGS, LATENT_LAGS + OUTPUT_LAGS
        return cls(
            latents=tuple(tensors[:outputs]),
            outputs=tuple(tensors[outputs:noise]),
            noise=tuple(tensors[noise:-1]),
            hidden=tensors[-1],
        )

    def with_latents(self, row: int, latents: torch.Tensor) -> History:
        """Replace one row's newest latents, (1, channels, h, w): those of a scheduler that has no table."""
        newest = self.latents[0].clone()
        newest[row : row + 1] = latents
        return replace(self, latents=(newest, *self.latents[1:]))


def weighted_sum(weights: torch.Tensor, terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Add `terms`, each times its weight, one after the other, as separate multiplications and additions.

    Sums over a dimension and `einsum` gave other bits in other places of a batch. A weight of 0 adds nothing,
    to the bit, as long as its term is finite.
    """
    total = weights[0] * terms[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total = total + weight * term
    return total


def pad(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Append `count` rows of zeros."""
    return torch.cat([rows, rows.new_zeros((count, *rows.shape[1:]))]) if count else rows
