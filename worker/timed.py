"""Job store and picture store of a worker process, with each operation timed."""

from __future__ import annotations

import time
from typing import Any, cast

from prometheus_client import Histogram

from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from worker.metrics import DATABASE_SECONDS, STORE_SECONDS


class Timed:
    """Stands for another object, and times each call of its methods by the method's name."""

    def __init__(self, target: object, seconds: Histogram) -> None:
        self._target, self._seconds = target, seconds

    def __getattr__(self, name: str) -> Any:
        """Return the target's attribute; a method is found here from then on."""
        found = getattr(self._target, name)
        if not callable(found):
            return found
        observe = self._seconds.labels(name).observe

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return found(*arguments, **named)
            finally:
                observe(time.perf_counter() - began)

        self.__dict__[name] = timed
        return timed


def timed_jobs(jobs: JobStore) -> JobStore:
    """Return the same job store, timed."""
    return cast("JobStore", Timed(jobs, DATABASE_SECONDS))


def timed_images(images: ImageStore) -> ImageStore:
    """Return the same picture store, timed."""
    return cast("ImageStore", Timed(images, STORE_SECONDS))
