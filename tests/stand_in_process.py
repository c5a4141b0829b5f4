"""A stand-in for the worker process that a command starts in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from storage.worker_options import WorkerOptions


class StandInProcess:
    """Stands in for BackgroundWorker: renders all that waits whenever it is looked at."""

    started: list[StandInProcess]
    behaviour: Callable[[Any], object]

    def __init__(self, options: WorkerOptions, settings: object, *, environment: Mapping[str, str]) -> None:
        del settings
        self.options, self.environment = options, environment
        self.stopped = False
        type(self).started.append(self)

    def check(self) -> None:
        """Render."""
        type(self).behaviour(self)

    def ask_to_stop(self) -> None:
        """Nothing to ask."""

    def stop(self) -> None:
        """Remember it."""
        self.stopped = True
