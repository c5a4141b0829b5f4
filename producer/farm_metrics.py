"""What Prometheus hears of a whole farm: from the database, and by asking Redis and the picture store.

Workers have metrics of their own (`worker start --metrics-port`). Labels are models, states, workers' names.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from storage.errors import PromptmillError
from storage.imagestore import ImageStore
from storage.jobstore import JobStore
from storage.queue import ping
from storage.records import JobStatus, SubmissionState, Worker, WorkerState
from storage.served import served_by
from storage.settings import Settings
from storage.stores import open_image_store, open_job_store
from storage.surveying import FarmView
from storage.version import promptmill_version

KEPT_FOR = 5.0  # seconds at least that what was seen is shown again
KEPT_TIMES = 10  # times as long as the look took: watching must not keep a database busy
SILENT = "silent"  # the state of a worker that has not beaten for a lease, and that nobody has expired yet
WORKER_STATES = (WorkerState.STARTING, WorkerState.READY, WorkerState.DRAINING, SILENT)
PROBE = "probe"  # a key that no picture has


class FarmMetrics(Collector):
    """Collects them; a part that is down is said to be down, and tried again at the next look.

    Attributes:
        failures: why each part that is down is so, by its name.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._lock = threading.Lock()
        self._jobs: JobStore | None = None
        self._images: ImageStore | None = None
        self._seen: list[GaugeMetricFamily | InfoMetricFamily] = []
        self._fresh_until = -1.0
        self.failures: dict[str, PromptmillError] = {}

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        """Yield what was seen; look again where that is old."""
        with self._lock:
            began = self._clock()
            if not self._seen or began >= self._fresh_until:
                self._seen = list(self._look())
                now = self._clock()
                self._fresh_until = now + max(KEPT_FOR, KEPT_TIMES * (now - began))
            yield from self._seen

    def close(self) -> None:
        """Close what was opened."""
        if self._jobs is not None:
            self._jobs.close()

    def _look(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        yield InfoMetricFamily(
            "promptmill_build", "Of whoever looks.", value={"version": promptmill_version()}
        )
        views: list[FarmView] = []
        room: list[int | None] = []
        self.failures.clear()
        up, seconds = (
            _family("up", "Whether a part answers: 1 or 0.", "part"),
            _family("probe_seconds", "What its answer took.", "part"),
        )
        probes: dict[str, Callable[[], object]] = {
            "database": lambda: views.append(self._survey()),
            "redis": lambda: ping(self._settings),
            "store": lambda: room.append(self._free_bytes()),
        }
        for part, ask in probes.items():
            began = self._clock()
            try:
                ask()
            except PromptmillError as error:
                self.failures[part] = error
            up.add_metric([part], part not in self.failures)
            seconds.add_metric([part], self._clock() - began)
        yield up
        yield seconds
        yield _number("lease_seconds", "After which a silent worker's jobs are taken.", self._settings.lease)
        for free in room:
            if free is not None:
                yield _number("store_free_bytes", "What pictures may still take of the disk.", free)
        for view in views:
            yield from described(view, lease=self._settings.lease)

    def _survey(self) -> FarmView:
        self._jobs = self._jobs or open_job_store(self._settings)
        return self._jobs.survey()

    def _free_bytes(self) -> int | None:
        """Ask the store for a sign of life, and for its room where it has an end."""
        self._images = self._images or open_image_store(self._settings)
        if self._images.is_local:
            return self._images.free_bytes()
        self._images.find(PROBE)
        return None


def described(view: FarmView, *, lease: float) -> Iterator[GaugeMetricFamily]:
    """Yield the families of one look at the rows; models of which nothing is known any more have none."""
    models = sorted(
        {model for model, _ in (*view.jobs, *view.submissions)}
        | {served.name for worker in view.workers for served in served_by(worker)}
    )
    jobs = _family("jobs", "Of complete submissions.", "model", "status")
    oldest = _family(
        "oldest_waiting_seconds", "Age of the oldest open submission with jobs that wait.", "model"
    )
    submissions = _family("submissions", "By what may happen to their jobs.", "model", "state")
    for model in models:
        for status in JobStatus:
            jobs.add_metric([model, status], view.jobs.get((model, status), 0))
        for state in SubmissionState:
            submissions.add_metric([model, state], view.submissions.get((model, state), 0))
        since = view.oldest.get(model)
        oldest.add_metric([model], 0.0 if since is None else max(0.0, _age(since, view)))
    yield from (jobs, oldest, submissions)
    yield from _of_workers(view, models, lease=lease)


def _of_workers(view: FarmView, models: Iterable[str], *, lease: float) -> Iterator[GaugeMetricFamily]:
    states: Counter[tuple[str, str]] = Counter()
    lanes: Counter[tuple[str, str]] = Counter()
    used: Counter[tuple[str, str]] = Counter()
    ages: dict[str, float] = {}
    for worker in view.workers:
        state = _state(worker, view, lease=lease)
        states.update((served.name, state) for served in served_by(worker) if not served.problem)
        lanes[worker.name, worker.model] += worker.lanes
        used[worker.name, worker.model] += worker.lanes_used
        ages[worker.name] = max(_age(worker.beat_at, view), ages.get(worker.name, 0.0), key=abs)
    workers = _family("workers", "That serve a model: one of several counts for each.", "model", "state")
    for model in models:
        for state in WORKER_STATES:
            workers.add_metric([model, state], states[model, state])
    beat = _family(
        "worker_beat_age_seconds", "The database's clock less a worker's, at its last beat.", "worker"
    )
    for name, age in ages.items():
        beat.add_metric([name], age)
    yield from (workers, beat)
    for name, words, numbers in (
        ("worker_lanes", "R of a worker's processes.", lanes),
        ("worker_lanes_in_use", "Lanes of jobs, at the last beat.", used),
    ):
        family = _family(name, words, "worker", "model")
        for labels, number in numbers.items():
            family.add_metric(labels, number)
        yield family


def _state(worker: Worker, view: FarmView, *, lease: float) -> str:
    return SILENT if _age(worker.beat_at, view) >= lease else str(worker.state)


def _age(moment: datetime, view: FarmView) -> float:
    return (view.clock - moment).total_seconds()


def _family(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"promptmill_{name}", words, labels=labels)


def _number(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"promptmill_{name}", words, value=value)
