"""Which models a worker serves: one, or several that take turns (docs/decisions/0017)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from storage.records import Worker


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model of a worker of several, and what is known of it there.

    Attributes:
        loaded: whether it is on the device now.
        revision, family, defaults, dtype, lanes, concurrency: as in `Worker`; empty until it was loaded once.
        bytes: of its weights on the device; 0 until it was loaded once.
        problem: why it could not be loaded; its jobs wait until another try succeeds.
    """

    name: str
    loaded: bool = False
    revision: str | None = None
    family: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    dtype: str = ""
    lanes: int = 0
    concurrency: int = 0
    bytes: int = 0
    problem: str | None = None


class TakingTurns(Protocol):
    """The part of the job store's contract that only a worker of several models needs."""

    def models_with_work(self, models: Iterable[str]) -> set[str]:
        """Return which of these models have jobs that are queued, or that dispatch would queue."""
        ...

    def model_of(self, job: int) -> str | None:
        """Return the name of the model that a job is for; None where there is no such job any more."""
        ...


_FIELDS = {known.name for known in fields(ServedModel)}


def read_served(stored: Iterable[Mapping[str, Any]] | None) -> tuple[ServedModel, ...]:
    """Make records of a row's `models`; what a newer version knows besides is left out."""
    return tuple(
        ServedModel(**{name: value for name, value in model.items() if name in _FIELDS})
        for model in stored or ()
    )


def served_by(worker: Worker) -> tuple[ServedModel, ...]:
    """Return the models that a worker serves, in the order in which it was given them."""
    if worker.models:
        return worker.models
    alone = ServedModel(
        name=worker.model,
        loaded=worker.revision is not None,
        revision=worker.revision,
        family=worker.family,
        defaults=worker.defaults,
        dtype=worker.dtype,
        lanes=worker.lanes,
        concurrency=worker.concurrency,
    )
    return (alone,)


def served_model(worker: Worker, name: str) -> ServedModel | None:
    """Return what a worker says of one model; None where it does not serve it, or cannot."""
    return next((model for model in served_by(worker) if model.name == name and not model.problem), None)
