"""One step of the way from nothing to a model, and what its trainings' logs say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.fit import losses


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of the way.

    Attributes:
        name: in the notes.
        run: does it, and returns figures to note, if any.
        outputs: what it leaves in the work folder.
        trainings: the names of the networks that it trains, as their logs are called.
    """

    name: str
    run: Callable[[], dict[str, Any] | None]
    outputs: tuple[str, ...]
    trainings: tuple[str, ...] = ()


def summaries(stage: Stage, work: Path) -> list[dict[str, Any]]:
    """Summarise a stage's trainings for the card.

    Args:
        stage: one that has run.
        work: holds its logs.

    Raises:
        TrainingError: when their loss did not fall. One that goes on with what another has trained begins
            low, so the stage's beginning is what counts.
    """
    checked = []
    began: float | None = None
    for training in stage.trainings:
        first, *_, last = losses(work, training)
        began = first["loss"] if began is None else began
        if not last["loss"] < began:
            raise TrainingError(f"{training} did not learn: the loss went from {began} to {last['loss']}.")
        checked.append(
            {
                "name": training,
                "steps": last["step"],
                "first_loss": first["loss"],
                "last_loss": last["loss"],
                "minutes": last["seconds"] / 60,
            }
        )
    return checked
