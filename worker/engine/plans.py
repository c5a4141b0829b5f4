"""How each latent shape is run: found out when it is first met, and anew when it runs out of memory."""

from __future__ import annotations

import structlog

from worker.engine.admission import LanePlan, LatentShape
from worker.engine.tuning import native_shape, plan_shape, smaller_plan
from worker.models.load import LoadedModel

log = structlog.get_logger()


class Plans:
    """The lane plans of one engine, by latent shape."""

    def __init__(self, model: LoadedModel, *, mode: str, lanes: int) -> None:
        """Begin with the native shape, which `lanes` were chosen for."""
        self._model, self._mode, self._lanes = model, mode, lanes
        self._plans = {native_shape(model): LanePlan(lanes=lanes, alone=mode == "reference")}

    def __contains__(self, shape: LatentShape) -> bool:
        """Tell whether a shape has a plan."""
        return shape in self._plans

    def __getitem__(self, shape: LatentShape) -> LanePlan:
        """Return a shape's plan."""
        return self._plans[shape]

    def add(self, shape: LatentShape) -> None:
        """Find out whether a new shape is exact at R lanes; it takes a few forward passes."""
        if self._mode != "exact":
            self._plans[shape] = LanePlan(lanes=self._lanes, alone=self._mode == "reference")
            return
        plan = self._plans[shape] = plan_shape(self._model, shape, self._lanes)
        if plan.alone:
            log.warning(
                "size is rendered one job at a time", action="plan_shape", shape=shape, lanes=self._lanes
            )

    def shrink(self, shape: LatentShape) -> LanePlan | None:
        """Plan a shape that ran out of memory anew, with fewer lanes; None when not even two fit."""
        before = self._plans[shape]
        if self._mode == "reference":
            return None
        plan = smaller_plan(self._model, shape, before, exact=self._mode == "exact")
        if plan is not None:
            log.warning("out of memory", action="shrink", shape=shape, lanes=plan.lanes, before=before.lanes)
            self._plans[shape] = plan
        return plan
