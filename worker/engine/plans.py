"""How each group is run: found out when it is first met, and anew when it runs out of memory."""

from __future__ import annotations

from dataclasses import replace

import structlog
import torch

from storage.worker_options import FEWEST_LANES
from worker.engine.admission import Group, LanePlan
from worker.engine.agreement import agreeing
from worker.engine.planning import fewer_lanes, fitting_plan, free_memory, plan_group
from worker.engine.trial import Beat, Trial, native_group, try_lanes
from worker.models.load import LoadedModel
from worker.models.threads import in_passing_thread

log = structlog.get_logger()


class Plans:
    """The lane plans of one engine, by kind of group: latent shape, prompt length, names of LoRAs."""

    def __init__(self, model: LoadedModel, *, mode: str, lanes: int, trial: Trial | None, beat: Beat) -> None:
        """Begin with the native group, which `lanes` were chosen for by `trial`; `beat` precedes passes."""
        self._model, self._mode, self._lanes, self._beat = model, mode, lanes, beat
        narrower: tuple[int, ...] = ()
        if trial is not None and mode == "exact" and model.launch == "eager":
            narrower = in_passing_thread(lambda: agreeing(model, trial))
        parts = () if trial is None else trial.parts
        self._widths = narrower
        plan = LanePlan(lanes=lanes, alone=mode == "reference", narrower=narrower, parts=parts)
        self._plans = {native_group(model): plan}

    @property
    def takes_no_passes(self) -> bool:
        """Whether a new group is run like all others, with nothing to find out."""
        return self._mode == "reference" or (self._mode == "throughput" and self._model.launch == "eager")

    def __contains__(self, group: Group) -> bool:
        """Tell whether a group has a plan."""
        return group.kind in self._plans

    def __getitem__(self, group: Group) -> LanePlan:
        """Return a group's plan."""
        return self._plans[group.kind]

    def lanes(self, group: Group) -> int:
        """Return R of a group; of one that has no plan, what it was tried with."""
        return self[group].lanes if group in self else self._lanes

    def record(self, group: Group) -> dict[str, int | str]:
        """Return what goes into the record of a group; of one that has no plan, what it is if R is exact."""
        return self[group].record if group in self else LanePlan(lanes=self._lanes).record

    def add(self, group: Group) -> None:
        """Find out how a new group is run, LoRAs turned on; exact mode takes dozens of passes for it.

        Raises:
            torch.OutOfMemoryError: when not even two lanes of it fit.
        """
        if self._mode == "reference":
            self._plans[group.kind] = LanePlan(lanes=self._lanes, alone=True)
            return
        plan = self._fitting(group, self._lanes)
        if plan is None:
            raise torch.OutOfMemoryError(f"out of memory with {FEWEST_LANES} lanes")
        self._plans[group.kind] = plan
        if plan.alone:
            log.warning(
                "size is rendered one job at a time",
                action="plan_shape",
                lanes=self._lanes,
                **group._asdict(),
            )
        if plan.short:
            _warn_of_memory(group, plan, before=self._lanes)

    def shrink(self, group: Group) -> LanePlan | None:
        """Plan a group that ran out of memory anew, with fewer lanes; None when not even two fit."""
        if self._mode == "reference":
            return None
        free_memory(self._model)
        before = self[group].lanes
        plan = self._fitting(group, fewer_lanes(before))
        if plan is not None:
            _warn_of_memory(group, plan, before=before)
            self._plans[group.kind] = plan
        return plan

    def _fitting(self, group: Group, lanes: int) -> LanePlan | None:
        # What does not agree at the native size hardly does at another, and jobs wait for this.
        widths = self._widths if lanes == self._lanes else ()
        exact = self._mode == "exact"

        def plan(count: int) -> LanePlan:
            found = plan_group(self._model, group, count, exact=exact, widths=widths, beat=self._beat)
            return replace(found, short=count < self._lanes)

        def alone(count: int) -> LanePlan:
            try_lanes(self._model, count, group=group, beat=self._beat)
            return LanePlan(lanes=count, alone=True, short=True)

        found = fitting_plan(self._model, lanes, plan)
        if found is None and exact and lanes >= FEWEST_LANES:  # who is alone need not be looked at
            found = fitting_plan(self._model, FEWEST_LANES, alone)
        return found


def _warn_of_memory(group: Group, plan: LanePlan, *, before: int) -> None:
    log.warning("out of memory", action="shrink", lanes=plan.lanes, before=before, **group._asdict())
