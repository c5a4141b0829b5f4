"""How each latent shape is run: found out when it is first met, and anew when it runs out of memory."""

from __future__ import annotations

import structlog
import torch

from storage.worker_options import FEWEST_LANES
from worker.engine.admission import LanePlan, LatentShape
from worker.engine.trial import Beat, native_shape
from worker.engine.tuning import fewer_lanes, fitting_plan, free_memory
from worker.models.load import LoadedModel

log = structlog.get_logger()


class Plans:
    """The lane plans of one engine, by latent shape."""

    def __init__(self, model: LoadedModel, *, mode: str, lanes: int, beat: Beat) -> None:
        """Begin with the native shape, which `lanes` were chosen for; `beat` precedes each trial pass."""
        self._model, self._mode, self._lanes, self._beat = model, mode, lanes, beat
        self._plans = {native_shape(model): LanePlan(lanes=lanes, alone=mode == "reference")}

    def __contains__(self, shape: LatentShape) -> bool:
        """Tell whether a shape has a plan."""
        return shape in self._plans

    def __getitem__(self, shape: LatentShape) -> LanePlan:
        """Return a shape's plan."""
        return self._plans[shape]

    def lanes(self, shape: LatentShape) -> int:
        """Return R of a shape; of one that has no plan, what it was tried with."""
        return self._plans[shape].lanes if shape in self._plans else self._lanes

    def add(self, shape: LatentShape) -> None:
        """Find out how a new shape is run; it takes a few forward passes.

        Raises:
            torch.OutOfMemoryError: when not even two lanes of it fit.
        """
        if self._mode == "reference":
            self._plans[shape] = LanePlan(lanes=self._lanes, alone=True)
            return
        plan = self._fitting(shape, self._lanes)
        if plan is None:
            raise torch.OutOfMemoryError(f"out of memory with {FEWEST_LANES} lanes")
        self._plans[shape] = plan
        if plan.alone:
            log.warning(
                "size is rendered one job at a time", action="plan_shape", shape=shape, lanes=self._lanes
            )
        elif plan.lanes < self._lanes:
            _warn_of_memory(shape, plan, before=self._lanes)

    def shrink(self, shape: LatentShape) -> LanePlan | None:
        """Plan a shape that ran out of memory anew, with fewer lanes; None when not even two fit."""
        if self._mode == "reference":
            return None
        free_memory(self._model)
        before = self._plans[shape].lanes
        plan = self._fitting(shape, fewer_lanes(before))
        if plan is not None:
            _warn_of_memory(shape, plan, before=before)
            self._plans[shape] = plan
        return plan

    def _fitting(self, shape: LatentShape, lanes: int) -> LanePlan | None:
        return fitting_plan(self._model, shape, lanes, exact=self._mode == "exact", beat=self._beat)


def _warn_of_memory(shape: LatentShape, plan: LanePlan, *, before: int) -> None:
    log.warning("out of memory", action="shrink", shape=shape, lanes=plan.lanes, before=before)
