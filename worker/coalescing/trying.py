"""Forward passes of one width on trial: does a call's result depend on its place or its company?

As `worker.engine.lane_parts` asks it of Stable Diffusion's lanes: in every layer, with random content. That
is drawn from the call's form, and from the call that was recorded when the model was loaded, never from the
job that happens to come first: all workers of a kind have to find the same layers to be called in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from time import perf_counter
from typing import Any

import structlog
import torch

from worker.coalescing.axes import Axes, NotAlikeError
from worker.coalescing.call import Modes
from worker.coalescing.drawing import Draw, smallest_calls
from worker.coalescing.joining import run_joined
from worker.coalescing.leaves import UnknownValueError, equal, leaves
from worker.coalescing.proof import Recording, near
from worker.device_faults import is_device_fault, is_out_of_memory
from worker.engine.admission import Parts
from worker.engine.digests import draws, in_half_precision, listening
from worker.engine.lane_layers import lane_layers
from worker.engine.layer_search import search_parts
from worker.engine.trial import Beat, nothing

log = structlog.get_logger()
# A denoiser that cannot be called like that says so in its own way.
UNTRIABLE = (NotAlikeError, UnknownValueError, RuntimeError, TypeError, ValueError, LookupError, MemoryError)


class Trials:
    """Forward passes of calls of one form.

    Attributes:
        unit: lanes that the smallest call of this form can have; places are multiples of it.
        masks: whether calls with other masks are among the company; else all have those of the sample. (Some
            denoisers cut off what every mask hides, so that the longest prompt of a pass shows in all.)
    """

    def __init__(
        self,
        denoiser: Any,
        sample: Recording,
        axes: Axes,
        width: int,
        *,
        learned: Recording | None = None,
        masks: bool = True,
        beat: Beat = nothing,
    ) -> None:
        """Prepare.

        Args:
            denoiser: the module.
            sample: a call of this form.
            axes: what was learned of such calls.
            width: lanes of a forward pass, R.
            learned: the call that they were learned from; None where that is the sample.
            masks: see above.
            beat: called ahead of every forward pass.
        """
        self._denoiser, self._axes, self._modes, self._width = denoiser, axes, sample.modes, width
        self._learned, self._beat, self.masks = (learned or sample).inputs, beat, masks
        self._pieces = smallest_calls(sample.inputs, axes)
        self.unit = axes.lanes(sample.inputs) // len(self._pieces)

    def lanes_per_second(self, *, parts: Parts = ()) -> float:
        """Measure the faster of two passes.

        Raises:
            torch.OutOfMemoryError: when that many lanes do not fit.
            NotAlikeError: when the result cannot be divided.
        """
        calls, seconds = self._drawn(0), []
        for _ in range(2):
            began = perf_counter()
            _wait_for(self.run(calls, parts))
            seconds.append(perf_counter() - began)
        return self._width / min(seconds)

    def is_exact(self, parts: Parts = ()) -> bool:
        """Compare random lanes at two places each, and one of them among idle lanes, in every layer.

        Raises:
            torch.OutOfMemoryError, NotAlikeError: as above.
        """
        if self._width < 2 * self.unit:  # alone there is one place, and no company
            return True
        *enough, _ = draws(self._denoiser)  # the last of these is looked at alone as well, below
        for seed, within in enough:
            calls = self._drawn(1000 + seed)
            places = 1 if seed % 2 == 0 else max(1, len(calls) // 2 - 1)
            with within:
                results, here = self._heard(calls, parts)
                moved, there = self._heard(calls[-places:] + calls[:-places], parts)
            if not (
                all(map(equal, results, moved[places:] + moved[:places]))
                and _same(here, there, places=places * self.unit)
            ):
                return False
        alone, silent = self._heard(calls[:1], parts)
        return equal(alone[0], results[0]) and _same(here[:, : self.unit], silent[:, : self.unit], places=0)

    def exact_parts(self) -> Parts | None:
        """Find the layers to be called in parts, so that places and company change no bit.

        Returns:
            () where nothing has to be done, None where nothing helps.

        Raises:
            torch.OutOfMemoryError: when that many lanes do not fit.
        """
        try:
            if self.is_exact():
                return ()
            found = search_parts(
                self._denoiser,
                self._width,
                run=lambda seed: self.run(self._drawn(seed)),
                try_out=lambda parts: parts if self.is_exact(parts) and self._is_near(parts) else None,
            )
        except UNTRIABLE as error:
            if is_device_fault(error) or is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            log.warning("calls cannot be tried out", action="plan_shape", lanes=self._width, reason=reason)
            return None
        if found is not None:
            log.info("layers run in parts", action="plan_shape", lanes=self._width, layers=len(found))
        return found

    def run(self, calls: Sequence[dict[str, Any]], parts: Parts = ()) -> list[Any]:
        """Run calls in one pass, and return each one's result."""
        self._beat()
        return run_in_parts(self._denoiser, calls, self._axes, self._modes, width=self._width, parts=parts)

    def _is_near(self, parts: Parts) -> bool:
        """Tell whether parts leave results as they were, but for rounding: what was divided were lanes."""
        calls = self._drawn(0)
        half = in_half_precision(self._denoiser)
        return all(map(partial(near, half=half), self.run(calls, parts), self.run(calls)))

    def _heard(self, calls: list[dict[str, Any]], parts: Parts) -> tuple[list[Any], torch.Tensor]:
        """Return the calls' results, and what each layer put out for their lanes: (layers, lanes) int64."""
        with listening(self._denoiser, self._width, silent=False) as heard:
            results = self.run(calls, parts)
        lanes = len(calls) * self.unit
        own = [digests[:lanes] for digests in heard]
        return results, torch.stack(own) if own else torch.zeros((0, lanes), dtype=torch.int64)

    def _drawn(self, seed: int) -> list[dict[str, Any]]:
        """Draw the smallest calls of this form, so many that they fill a pass."""
        draw = Draw(torch.Generator().manual_seed(seed), masks=self.masks)
        pieces, count = self._pieces, self._width // self.unit
        return [draw(self._axes.inputs, pieces[i % len(pieces)], self._learned) for i in range(count)]


def run_in_parts(
    denoiser: Any,
    calls: Sequence[dict[str, Any]],
    axes: Axes,
    modes: Modes,
    *,
    width: int,
    parts: Parts,
) -> list[Any]:
    """Call `run_joined` with some layers called for fewer lanes at a time."""
    with lane_layers(denoiser, width, parts=parts) if parts else nullcontext():
        return run_joined(denoiser, calls, axes, modes, width=width)


def _same(here: torch.Tensor, there: torch.Tensor, *, places: int) -> bool:
    """Compare layers' digests, (layers, lanes), of which one's lanes are some places on.

    A layer whose rows are no lanes, although there are as many, puts out the same at the same place.
    """
    if here.shape != there.shape:
        return False
    moved = (here.roll(places, dims=1) == there).all(dim=1)
    stayed = (here == there).all(dim=1)
    return bool((moved | stayed).all())


def _wait_for(value: Any) -> None:
    """Wait until the device has finished a result."""
    last = next((leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)), None)
    if last is not None and last.is_cuda:
        torch.cuda.synchronize(last.device)
