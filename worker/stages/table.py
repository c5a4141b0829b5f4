"""A sampler as a table of numbers, read out of diffusers' own code.

The samplers of diffusers are linear in the latents, the model's outputs and the noise. A noise scheduler that
is fed one-hot vectors instead of latents therefore returns its coefficients; with a new vector for every
forward pass (`evaluation`) i,

    x[i+1] = sum_k a[i,k] x[i-k] + sum_k b[i,k] eps[i-k] + sum_k c[i,k] noise[i-k] + d[i] hidden[i]
    the UNet's input is s[i] x[i], at timestep t[i]

`hidden` is the corrected sample that UniPC and SA-Solver keep; it follows the same kind of line. What does
not fit (clipping, thresholding, PNDM's Runge-Kutta steps) has no table, and its scheduler has to be called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
import torch
from torch.overrides import TorchFunctionMode

from worker.device_faults import is_out_of_memory
from worker.stages.history import LATENT_LAGS, NOISE_LAGS, OUTPUT_LAGS, TERMS, History

log = structlog.get_logger()

TOLERANCE = 2e-5  # relative, of a table against its scheduler on random tensors

_NOT_LINEAR = ("clip_sample", "thresholding")
_DRAWING = (torch.randn, torch.randn_like)
# Kinds of vectors in the basis.
_LATENTS, _OUTPUT, _NOISE, _HIDDEN = range(4)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerTable:
    """All numbers of one sampler, config and number of steps; n is the number of forward passes.

    Attributes:
        timesteps: the UNet's, n floats.
        init_noise_sigma: what initial noise is multiplied with.
        input_scale: n floats: s above.
        weights: (n, 2, TERMS) float32: the coefficients of x[i+1] and of hidden[i+1], for the terms' latents,
            outputs and noise, newest first, then hidden.
        draws: whether evaluation i draws noise from the job's generator, in diffusers' order.
        intervals: the two sigmas between which evaluation i draws from a Brownian tree, for DPM++ SDE only.
        sigma_range: smallest and largest sigma, which that tree spans.
    """

    timesteps: tuple[float, ...]
    init_noise_sigma: float
    input_scale: tuple[float, ...]
    weights: torch.Tensor
    draws: tuple[bool, ...]
    intervals: tuple[tuple[float, float] | None, ...]
    sigma_range: tuple[float, float]

    def __len__(self) -> int:
        """Count the forward passes."""
        return len(self.timesteps)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold, and holds to the bit."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"weights": self.weights.tolist()}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> SamplerTable:
        """Take back what `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
        weights = torch.tensor(kept["weights"], dtype=torch.float32)
        if weights.shape != (len(kept["timesteps"]), 2, TERMS):
            raise ValueError(f"its weights have the shape {tuple(weights.shape)}")
        return cls(
            timesteps=tuple(kept["timesteps"]),
            init_noise_sigma=kept["init_noise_sigma"],
            input_scale=tuple(kept["input_scale"]),
            weights=weights,
            draws=tuple(kept["draws"]),
            intervals=tuple(None if each is None else tuple(each) for each in kept["intervals"]),
            sigma_range=tuple(kept["sigma_range"]),
        )


def probe(build: Callable[[], Any], step_arguments: Callable[[Any], dict[str, Any]]) -> SamplerTable | None:
    """Read a noise scheduler's table out of it.

    Args:
        build: makes the scheduler, its steps set; called twice, since probing uses one up.
        step_arguments: returns what the pipeline passes to a scheduler's `step` besides output, timestep and
            sample; a `generator` among them is not drawn from.

    Returns:
        The table, or None when the scheduler is not such a recurrence, or not closely enough.

    Raises:
        MemoryError, RuntimeError: when memory ran out, which says nothing of the scheduler.
    """
    scheduler = build()
    if any(scheduler.config.get(option) for option in _NOT_LINEAR):
        return None
    try:
        table = _Prober(scheduler, step_arguments(scheduler)).read()
        return table if table is not None and _agrees(table, build(), step_arguments(scheduler)) else None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        # A class that wants real latents gets them, when it is called itself.
        name = type(scheduler).__name__
        log.info("a noise scheduler has no table", action="table", scheduler=name, reason=str(error))
        return None


class _Prober:
    """One walk through a scheduler's steps, with one-hot vectors for everything that goes in."""

    def __init__(self, scheduler: Any, step_arguments: dict[str, Any]) -> None:
        self.scheduler, self.step_arguments = scheduler, step_arguments
        self.timesteps = list(scheduler.timesteps)
        self.size = 4 * (len(self.timesteps) + 1)
        self.drawn = 0
        self.evaluation = 0
        self.interval: tuple[float, float] | None = None

    def read(self) -> SamplerTable | None:
        """Walk; None when a line looks back further than a table does."""
        if hasattr(self.scheduler, "noise_sampler"):
            self.scheduler.noise_sampler = self._brownian
        scales: list[float] = []
        lines: list[torch.Tensor] = []
        draws: list[bool] = []
        intervals: list[tuple[float, float] | None] = []
        with _Drawing(self._draw):
            for evaluation, timestep in enumerate(self.timesteps):
                self.evaluation, self.drawn, self.interval = evaluation, 0, None
                latents = self._basis(_LATENTS)
                scaled = self.scheduler.scale_model_input(latents, timestep)
                following = self.scheduler.step(
                    self._basis(_OUTPUT), timestep, latents, **self.step_arguments, return_dict=False
                )[0]
                scale = self._scale(scaled)
                row, hidden = self._row(following), self._hidden_row()
                if scale is None or row is None or hidden is None or self.drawn > 1:
                    return None
                scales.append(scale)
                lines.append(torch.stack([row, hidden]))
                draws.append(self.drawn == 1 and self.interval is None)
                intervals.append(self.interval)
        return SamplerTable(
            timesteps=tuple(float(timestep) for timestep in self.timesteps),
            init_noise_sigma=float(self.scheduler.init_noise_sigma),
            input_scale=tuple(scales),
            weights=torch.stack(lines),
            draws=tuple(draws),
            intervals=tuple(intervals),
            sigma_range=self._sigma_range(),
        )

    def _sigma_range(self) -> tuple[float, float]:
        """As `DPMSolverSDEScheduler.step` takes it for its tree; nothing to others."""
        sigmas = getattr(self.scheduler, "sigmas", torch.ones(1))
        return float(sigmas[sigmas > 0].min()), float(sigmas.max())

    def _place(self, kind: int, evaluation: int) -> int:
        return 4 * evaluation + kind

    def _basis(self, kind: int, *, ahead: int = 0) -> torch.Tensor:
        vector = torch.zeros(self.size)
        vector[self._place(kind, self.evaluation + ahead)] = 1.0
        return vector[None, :, None, None]  # some classes look at the number of dimensions

    def _draw(self) -> torch.Tensor:
        self.drawn += 1
        return self._basis(_NOISE)

    def _brownian(self, sigma: Any, following: Any) -> torch.Tensor:
        self.interval = (float(sigma), float(following))
        return self._draw()

    def _scale(self, scaled: torch.Tensor) -> float | None:
        places = scaled.flatten().nonzero().flatten().tolist()
        place = self._place(_LATENTS, self.evaluation)
        return float(scaled.flatten()[place]) if places == [place] else None

    def _row(self, vector: torch.Tensor) -> torch.Tensor | None:
        """Sort the coefficients of `vector` into a table's order; None when one has no place there."""
        row = torch.zeros(TERMS)
        flat = vector.flatten().float()
        for place in flat.nonzero().flatten().tolist():
            evaluation, kind = divmod(place, 4)
            lag = self.evaluation - evaluation
            starts = (0, LATENT_LAGS, LATENT_LAGS + OUTPUT_LAGS, TERMS - 1)
            lags = (LATENT_LAGS, OUTPUT_LAGS, NOISE_LAGS, 1)
            if lag >= lags[kind] or not torch.isfinite(flat[place]):
                return None
            row[starts[kind] + lag] = flat[place]
        return row

    def _hidden_row(self) -> torch.Tensor | None:
        """Read the sample that the scheduler keeps, and replace it by a new vector of the basis."""
        kept = getattr(self.scheduler, "last_sample", None)
        if kept is None:
            return torch.zeros(TERMS)
        self.scheduler.last_sample = self._basis(_HIDDEN, ahead=1)
        return self._row(kept)


class _Drawing(TorchFunctionMode):
    """Answer every draw of normal noise in this thread, and only in this thread."""

    def __init__(self, answer: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Take the place of `torch.randn`."""
        return self.answer() if func in _DRAWING else func(*args, **(kwargs or {}))


def _agrees(table: SamplerTable, scheduler: Any, step_arguments: dict[str, Any]) -> bool:
    """Tell whether table and scheduler lead random outputs to the same latents."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn((1, 4, 4, 4), generator=generator)

    sample = draw() * table.init_noise_sigma
    history = History.start(sample)
    noise = [draw() for _ in range(len(table))]
    place = 0
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = lambda *_: noise[place]
    with _Drawing(lambda: noise[place]):
        for place, timestep in enumerate(scheduler.timesteps):
            # An output that depends on the input, as a model's does, keeps the latents from growing.
            scaled = scheduler.scale_model_input(sample, timestep)
            output = 0.5 * scaled / scaled.std() + 0.5 * noise[-1 - place]
            sample = scheduler.step(output, timestep, sample, **step_arguments, return_dict=False)[0]
            history = history.after(table.weights[place, :, :, None], output, noise[place])
    error = (history.latents[0] - sample).norm() / sample.norm()
    return bool(error < TOLERANCE)
